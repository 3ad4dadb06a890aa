"""Read texts and labels from files, folders, data sets and assets. Column names are settings.

Errors name files, columns and row numbers (the header of a CSV is row 1), and never what a row
holds.
"""

from __future__ import annotations

import csv
import difflib
import json
import math
import re
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from fedaipc.data.assets import fetch_asset, is_asset, list_assets
from fedaipc.data.records import Records
from fedaipc.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    Place = int | str  # a row number, or the name of a file in a folder
    Row = tuple[object, ...]  # text, label and, where it was asked for, group

FILE_KINDS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_LARGEST_FIELD = 10_000_000  # characters
_COLUMN_NAME = re.compile(r"[^\W\d][\w.-]{0,29}( [\w.-]{1,29})?")


def local_path(source: str) -> Path | None:
    """The file or folder that `source` names; None for what is no place of this machine."""
    return None if is_asset(source) or source.startswith("hf:") else Path(source).expanduser()


def read_records(
    source: str,
    *,
    text_column: str,
    label_column: str,
    group_column: str | None,
    skip_unusable: bool = False,
) -> Records:
    """All records of `source`: an asset, a file, a folder with one sub-folder of .txt per label,
    or "hf:ID" / "hf:ID:SPLIT".

    Labels and groups become text; 1, 1.0 and "1" are one label. Raises DataError: nothing there,
    a column missing, an empty text or label (with its row). AssetError: as `fetch_asset`. With
    `skip_unusable`, a record that cannot be used is left out instead (a byte that is not UTF-8 or a
    stray quotation mark costs its own record), and none at all is fine; what is no file of records
    still raises.
    """
    columns = [text_column, label_column] + ([group_column] if group_column is not None else [])
    if is_asset(source):
        return _read_file(fetch_asset(source), columns, skip_unusable)
    if source.startswith("hf:"):
        return _read_hub(source, columns, skip_unusable)
    try:
        path = Path(source).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError) as error:
        raise DataError(f"{source}: cannot be read ({type(error).__name__})") from None
    if is_folder:
        if group_column is not None:
            raise DataError(f"{source}: a folder of texts has no column {group_column!r}")
        return _read_folder(path, skip_unusable)
    if not is_file:
        close = difflib.get_close_matches(source, [asset.name for asset in list_assets()], n=1)
        hint = f"did you mean {close[0]}?" if close else "see `fedaipc assets list`"
        raise DataError(f"{source}: no such file, folder or asset; {hint}")
    return _read_file(path, columns, skip_unusable)


def _read_file(path: Path, columns: Sequence[str], skip: bool) -> Records:
    kind = path.suffix.lower()
    try:
        if kind in (".csv", ".tsv"):
            return _read_csv(path, columns, skip)
        if kind in (".jsonl", ".ndjson"):
            return _read_jsonl(path, columns, skip)
        if kind == ".parquet":
            return _read_parquet(path, columns, skip)
    except UnicodeDecodeError:
        raise DataError(f"{path.name}: not UTF-8; save it as UTF-8") from None
    except (csv.Error, pa.ArrowException) as error:
        raise DataError(f"{path.name}: not valid {kind[1:]} ({type(error).__name__})") from None
    except OSError as error:
        # Arrow's errors of this kind have no strerror, and more than one line.
        raise DataError(f"{path.name}: cannot be read ({error.strerror or 'damaged'})") from None
    if path.is_dir():
        raise DataError(f"{path.name}: this asset is a model, not text; see `fedaipc assets list`")
    raise DataError(f"{path.name}: unknown kind of file (known: {', '.join(FILE_KINDS)})")


def _read_csv(path: Path, columns: Sequence[str], skip: bool) -> Records:
    csv.field_size_limit(2**31 - 1 if skip else _LARGEST_FIELD)
    with _opened(path, skip) as file:
        header = file.readline()
        if not header.strip():
            raise DataError(f"{path.name}: is empty, or has no column names in its first row")
        file.seek(0)
        lines = _csv_lines(path.name, file, _delimiter(header, columns), strict=not skip)
        names = [name.strip() for name in next(lines)[1]]
        if not set(columns) <= set(names):
            _check_header(path.name, names, (line for _, line in islice(lines, 1000)))
        _check_columns(path.name, names, columns)
        places = [names.index(column) for column in columns]
        return _records(path.name, _csv_rows(path.name, lines, len(names), places), skip)


def _delimiter(header: str, columns: Sequence[str]) -> str:
    """The delimiter under which the header has the wanted columns, else the most columns."""

    def split(delimiter: str) -> list[str]:
        return [name.strip() for name in next(csv.reader([header], delimiter=delimiter))]

    return max(",;\t|", key=lambda d: (set(columns) <= set(split(d)), len(split(d))))


def _csv_lines(
    name: str, file: Iterable[str], delimiter: str, *, strict: bool
) -> Iterator[tuple[int, list[str]]]:
    lines = csv.reader(file, delimiter=delimiter, strict=strict, skipinitialspace=True)
    number = 0
    try:
        for number, line in enumerate(lines, start=1):
            if line:
                yield number, line
    except csv.Error:
        raise DataError(
            f"{name}, row {number + 1}: not valid CSV; write a quotation mark inside a quoted "
            'text as "", close each quotation, and keep fields below 10 million characters'
        ) from None


def _csv_rows(
    name: str, lines: Iterable[tuple[int, list[str]]], width: int, places: Sequence[int]
) -> Iterator[tuple[Place, Row | DataError]]:
    for number, line in lines:
        where = f"{name}, row {number}"
        if len(line) <= max(places):
            yield number, DataError(f"{where}: has too few columns")
        elif any(extra.strip() for extra in line[width:]):
            more = "put texts that hold the delimiter in quotation marks"
            yield number, DataError(f"{where}: has more columns than the first row; {more}")
        else:
            yield number, tuple(line[place] for place in places)


def _read_jsonl(path: Path, columns: Sequence[str], skip: bool) -> Records:
    def rows(file: Iterable[str]) -> Iterator[tuple[Place, Row | DataError]]:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path.name}, row {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                yield number, DataError(f"{where}: not valid JSON")
                continue
            if not isinstance(row, dict):
                yield number, DataError(f"{where}: not a JSON object; write one object per line")
                continue
            try:
                _check_columns(where, list(row), columns)
            except DataError as error:
                yield number, error
            else:
                yield number, tuple(row[column] for column in columns)

    with _opened(path, skip) as file:
        return _records(path.name, rows(file), skip)


def _read_parquet(path: Path, columns: Sequence[str], skip: bool) -> Records:
    with pq.ParquetFile(path) as file:
        _check_columns(path.name, file.schema_arrow.names, columns)
        table = file.read(columns=list(dict.fromkeys(columns)))
    values = [_listed(table[column], skip) for column in columns]
    return _records(path.name, enumerate(zip(*values, strict=True), start=1), skip)


def _opened(path: Path, skip: bool) -> TextIO:
    """Where records may be left out, bytes that are not UTF-8 become what `_usable` refuses."""
    errors = "surrogateescape" if skip else "strict"
    return path.open(encoding="utf-8-sig", newline="", errors=errors)


def _listed(column: pa.ChunkedArray, skip: bool) -> list[object]:
    kinds = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
    if not skip:
        return list(column.to_pylist())
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.type not in kinds:
        return [_single(value) for value in column]
    raw = column.cast(kinds[column.type]).to_pylist()
    return [None if v is None else v.decode("utf-8", "surrogateescape") for v in raw]


def _single(value: pa.Scalar) -> object:
    """None for what Python has no value for, as a time in the year 300,000."""
    try:
        return value.as_py()
    except (ValueError, OverflowError, pa.ArrowException):
        return None


def _read_folder(path: Path, skip: bool) -> Records:
    def rows() -> Iterator[tuple[Place, Row | DataError]]:
        for folder in sorted(p for p in path.iterdir() if p.is_dir() and p.name[0] != "."):
            for file in sorted(p for p in folder.iterdir() if p.suffix.lower() == ".txt"):
                try:
                    yield file.name, (file.read_text(encoding="utf-8-sig"), folder.name)
                except (OSError, UnicodeDecodeError) as error:
                    # The sub-folder is a label, so it is not named.
                    yield (
                        file.name,
                        DataError(
                            f"{path.name}, file {file.name}: cannot be read as UTF-8 text "
                            f"({type(error).__name__})"
                        ),
                    )

    if not any(path.glob("*/*")):
        raise DataError(f"{path.name}: holds no sub-folder with .txt files (one per label)")
    try:
        return _records(path.name, rows(), skip)
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read ({error.strerror or error})") from None


def _read_hub(source: str, columns: Sequence[str], skip: bool) -> Records:
    _, identifier, *split = source.split(":", 2)  # a split may be a slice, as test[:10%]
    try:
        import datasets
    except ImportError:
        raise DataError(f"{source}: needs `pip install 'fedaipc[hub]'`") from None
    try:
        data: Any = datasets.load_dataset(identifier, split=split[0] if split else "train")
    except Exception as error:  # noqa: BLE001 - the library raises many kinds; each means this
        raise DataError(
            f"{source}: not to be had ({type(error).__name__}); check the name and split, and "
            "whether the hub is reachable"
        ) from None
    _check_columns(source, data.column_names, columns)
    values = [[_named(data.features[column], v) for v in data[column]] for column in columns]
    return _records(source, enumerate(zip(*values, strict=True), start=1), skip)


def _named(feature: object, value: object) -> object:
    """The name of a class number where the data set knows it; a number below 0 has none."""
    names = getattr(feature, "names", None)
    if names is None:
        return value
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None


def _check_header(where: str, names: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """Raise DataError where a first row may be a record, which an error must not show."""
    repeated = any(name == cell for line in lines for name, cell in zip(names, line, strict=False))
    if repeated or not all(_COLUMN_NAME.fullmatch(name) for name in names if name):
        raise DataError(
            f"{where}: the first row does not read like column names; add a row such as text,label"
        )


def _check_columns(where: str, present: Sequence[str], columns: Sequence[str]) -> None:
    for column in columns:
        if column not in present:
            close = difflib.get_close_matches(column, present, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            shown = ", ".join(present[:20]) + (", ..." if len(present) > 20 else "")
            raise DataError(f"{where}: no column {column!r}; {hint}there are: {shown}")
        if list(present).count(column) > 1:
            raise DataError(f"{where}: column {column!r} is there twice; rename one of them")


def _records(where: str, rows: Iterable[tuple[Place, Row | DataError]], skip: bool) -> Records:
    texts, labels, groups = [], [], []
    for place, row in rows:
        try:
            text, label, group = _usable(where, place, row)
        except DataError:
            if skip:
                continue
            raise
        texts.append(text)
        labels.append(label)
        if group is not None:
            groups.append(group)
    if not texts and not skip:
        raise DataError(f"{where}: holds no records")
    return Records(tuple(texts), tuple(labels), tuple(groups) if groups else None)


def _usable(where: str, place: Place, row: Row | DataError) -> tuple[str, str, str | None]:
    """Text, label and group of a row. Raises DataError."""
    if isinstance(row, DataError):
        raise row
    text, raw_label, *raw_group = row
    what = f"row {place}" if isinstance(place, int) else f"file {place}"
    label = _name(raw_label)
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}, {what}: the text is empty or not a text; remove it")
    if label is None:
        raise DataError(f"{where}, {what}: the label is missing; fill it in or remove it")
    for value in (text, label):
        if not _is_unicode(value):
            raise DataError(f"{where}, {what}: holds half a character; save it as UTF-8 again")
    if not raw_group:
        return text.strip(), label, None
    group = _name(raw_group[0])
    if group is None or not _is_unicode(group):
        raise DataError(f"{where}, {what}: the partition column is empty; fill it in")
    return text.strip(), label, group


def _is_unicode(text: str) -> bool:
    """False with half a surrogate pair (JSON can write one), which no file or tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _name(value: object) -> str | None:
    """A label or group as text: 1, 1.0, "1" and "1.0" are one name. None where missing."""
    if value is None or isinstance(value, bytes | list | dict):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value.is_integer() else repr(value)
    text = str(value).strip()
    if text in ("", "nan", "NaN"):  # what a missing number turns into; "none" may be a class
        return None
    whole, point, zeros = text.partition(".")
    if point and whole.removeprefix("-").isdecimal() and zeros and not zeros.strip("0"):
        return whole
    return text
