"""Read texts and labels from files, folders, data sets and assets. Column names are settings.

Errors name files, columns, labels and lines, and never what a text says.
"""

from __future__ import annotations

import difflib
import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from fedaipc.data import encoding
from fedaipc.data.assets import fetch_asset, is_asset, list_assets
from fedaipc.data.columns import beyond, check_columns, check_header, missing_column, numbers
from fedaipc.data.csv_lines import CsvReader, fits
from fedaipc.data.reading import Collector, Fault, Reading, Row
from fedaipc.data.registry import find_source, register_source
from fedaipc.errors import DataError, os_errors_as
from fedaipc.extras import need
from fedaipc.files import expanded

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from fedaipc.config import TextSource
    from fedaipc.data.csv_lines import Line
    from fedaipc.data.reading import Place

    Rows = Iterable[tuple[Place, Row | Fault]]

_WIDE = ("utf-16", "utf-32")
FILE_KINDS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


def local_path(source: str) -> Path | None:
    """The file or folder that `source` names; None if it names something else."""
    return None if is_asset(source) or find_source(source) is not None else expanded(source)


def read_records(
    source: str,
    how: TextSource,
    *,
    group_column: str | None = None,
    labels: Collection[str] | None = None,
) -> Reading:
    """All records of `source`: an asset, a file, a folder with one sub-folder of .txt per label,
    or "hf:ID" / "hf:ID:SPLIT". Where it is comes from here and not from `how`.

    Labels and groups become text, as `label_name` says; with `labels`, others cannot be used.
    Anything else raises DataError: nothing there, a column missing, a damaged file. AssetError: as
    `fetch_asset`.
    """
    columns = [how.text_column, how.label_column] + ([group_column] if group_column else [])
    collector = Collector(labels, grouped=group_column is not None)
    if is_asset(source):
        return _read_file(fetch_asset(source), how, columns, collector)
    if (found := find_source(source)) is not None:
        reader, name = found
        return _read_table(source, reader(name, columns), collector)
    try:
        path = expanded(source)
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:
        raise DataError(f"{source}: cannot be read ({type(error).__name__})") from None
    if is_folder:
        if group_column is not None:
            raise DataError(f"{source}: a folder of texts has no column {group_column!r}")
        return _read_folder(path, how, collector)
    if not is_file:
        close = difflib.get_close_matches(source, [asset.name for asset in list_assets()], n=1)
        if not close and (path.suffix or len(path.parts) > 1):  # no asset is named so
            raise DataError(f"{source}: no such file or folder")
        hint = f"did you mean {close[0]}?" if close else "see `fedaipc assets list`"
        raise DataError(f"{source}: no such file, folder or asset; {hint}")
    return _read_file(path, how, columns, collector)


def _read_file(
    path: Path, how: TextSource, columns: Sequence[str], collector: Collector
) -> Reading:
    kind = path.suffix.lower()
    if kind in FILE_KINDS[2:] and not how.header:
        raise DataError(
            f"{path.name}: has column names; only .csv and .tsv can be without a header"
        )
    try:
        if kind in (".csv", ".tsv"):
            return _read_csv(path, how, columns, collector)
        if kind in (".jsonl", ".ndjson"):
            return _read_jsonl(path, how, columns, collector)
        if kind == ".parquet":
            return _read_parquet(path, how, columns, collector)
    except pa.ArrowException as error:
        raise DataError(f"{path.name}: not valid {kind[1:]} ({type(error).__name__})") from None
    except OSError as error:
        # Arrow's errors of this kind have no strerror, and more than one line.
        raise DataError(f"{path.name}: cannot be read ({error.strerror or 'damaged'})") from None
    if path.is_dir():
        raise DataError(f"{path.name}: this asset is a model, not text; see `fedaipc assets list`")
    raise DataError(f"{path.name}: unknown kind of file (known: {', '.join(FILE_KINDS)})")


def _read_csv(path: Path, how: TextSource, columns: Sequence[str], collector: Collector) -> Reading:
    own = _encoding(path, how)
    tabs = path.suffix.lower() == ".tsv"
    quoting = how.quoting
    if quoting == "auto":  # without a header only a record shows how wide a record is
        quoting = "none" if tabs else "csv" if how.header else "line"
    delimiter = "\t" if tabs else ","
    if how.header:
        header = next(encoding.lines(path, own), "")
        if not header.strip():
            raise DataError(f"{path.name}: is empty, or has no column names in its first row")
        delimiter = _delimiter(header, columns)
    reader = CsvReader(encoding.lines(path, own), delimiter, quoting)
    lines = iter(reader)
    places = _places(path, how, own, columns, reader, lines) if how.header else numbers(columns)
    long: list[Line] = []
    quoted = widest = 0
    for line in lines:
        if isinstance(line.cells, list):
            widest = max(widest, len(line.cells))
        row = _csv_row(line, reader.width, places)
        if isinstance(row, Row) and len(line.lines) > 1:
            long.append(line)
        collector.add(line.number, row)
        quoted += quoting == "none" and isinstance(row, Row) and _is_quoted(row.text)
    auto = how.quoting == "auto"
    dropped = collector.dropped()
    advice = _advice(path, how, own, {part.fault for part in dropped}, quoting)
    return Reading(
        where=path.name,
        unit="line",
        records=collector.records(),
        how=how,
        dropped=dropped,
        advice=advice,
        missing="" if advice or how.header else beyond(widest, places, delimiter),
        encoding=own,
        # If no text spans several lines, read line by line: a quotation that never closes then
        # costs its own line only.
        quoting="line" if auto and quoting == "csv" and not long else quoting,
        swallowing=_swallowing(long, reader, places, collector) if auto else (),
        quoted=quoted,
    )


def _encoding(path: Path, how: TextSource) -> str:
    """The file's own. Raises DataError where its bytes lack the mark that the asked one needs."""
    if encoding.lacks_mark(path, how.encoding):
        advice = _other_encoding(how, how.encoding, encoding.readable_as(path))
        raise DataError(f"{path.name}: does not begin with a byte order mark: {advice}")
    return encoding.resolve(path, how.encoding)


def _delimiter(header: str, columns: Sequence[str]) -> str:
    """The delimiter under which the header has the wanted columns, otherwise the most columns."""

    def split(delimiter: str) -> list[str]:
        cells = CsvReader((), delimiter, "none").split(header)
        return [] if isinstance(cells, Fault) else [name.strip().strip('"') for name in cells]

    return max(",;\t|", key=lambda d: (set(columns) <= set(split(d)), len(split(d))))


def _places(
    path: Path,
    how: TextSource,
    own: str,
    columns: Sequence[str],
    reader: CsvReader,
    lines: Iterator[Line],
) -> list[int]:
    """Where the wanted columns stand, by the header. Raises DataError."""
    line = next(lines, None)
    if line is None or isinstance(line.cells, Fault):
        raise DataError(f"{path.name}: has no column names in its first row")
    names = [name.strip().strip('"') for name in line.cells]
    reader.width = len(names)
    if not set(columns) <= set(names):
        if any("\0" in name or not encoding.is_valid(name) for name in names):
            advice = _advice(path, how, own, {Fault.ENCODING})
            raise DataError(f"{path.name}: its first row is not {own}; {advice}")
        rows = [line.cells for line in islice(lines, 1000) if isinstance(line.cells, list)]
        check_header(path.name, how, names, rows)
    check_columns(path.name, names, columns, how)
    return [names.index(column) for column in columns]


def _csv_row(line: Line, width: int, places: Sequence[int]) -> Row | Fault:
    cells = line.cells
    if isinstance(cells, Fault):
        return cells
    if len(cells) <= max(places):
        return Fault.FEW
    if width and not fits(cells, min(width, len(cells))):
        return Fault.MANY
    text, label, *group = (cells[place] for place in places)
    return Row(text=text, label=label, group=group[0] if group else "")


def _is_quoted(text: object) -> bool:
    return isinstance(text, str) and len(text) > 1 and text[0] == text[-1] == '"'


def _swallowing(
    long: Sequence[Line], reader: CsvReader, places: Sequence[int], collector: Collector
) -> tuple[int, ...]:
    """Records over several lines that hold a line which reads like a record with a known label."""

    def reads_like_a_record(cells: list[str] | Fault) -> bool:
        if isinstance(cells, Fault) or len(cells) <= max(places):
            return False
        return fits(cells, reader.width) and collector.knows(cells[places[1]])

    return tuple(line.number for line in long if any(map(reads_like_a_record, reader.parts(line))))


def _advice(path: Path, how: TextSource, own: str, faults: set[Fault], quoting: str = "") -> str:
    """What options may make more of a text file usable."""
    if faults & {Fault.ENCODING, Fault.JSON, Fault.FEW}:
        known = encoding.readable_as(path)
        if (Fault.ENCODING in faults and own not in known) or known[0].startswith(_WIDE):
            return _other_encoding(how, own, known)
    if Fault.QUOTATION in faults:
        or_lines = ""
        if quoting == "line":
            or_lines = f"{how.remedy(quoting='csv')} if texts go over several lines, "
        return (
            'write a quotation mark inside a quoted text as "" and close each quotation, or give '
            f"{or_lines}{how.remedy(quoting='none')} if quotation marks are part of the texts"
        )
    return ""


def _other_encoding(how: TextSource, own: str, known: Sequence[str]) -> str:
    return (
        f"the file is not {own}; it could be {' or '.join(known)}: check which one shows its "
        f"letters correctly and give it, as in {how.remedy(encoding=known[0])}"
    )


def _read_jsonl(
    path: Path, how: TextSource, columns: Sequence[str], collector: Collector
) -> Reading:
    own = _encoding(path, how)
    missing: DataError | None = None
    for number, line in enumerate(encoding.lines(path, own), start=1):
        if not line.strip():
            continue
        row = _json_row(line, columns)
        if isinstance(row, dict):
            if missing is None:
                missing = missing_column(path.name, list(row), columns, how)
            row = Fault.KEY
        collector.add(number, row)
    records, dropped = collector.records(), collector.dropped()
    if missing is not None and not len(records):
        raise missing
    return Reading(
        where=path.name,
        unit="line",
        records=records,
        how=how,
        dropped=dropped,
        advice=_advice(path, how, own, {part.fault for part in dropped}),
        encoding=own,
    )


def _json_row(line: str, columns: Sequence[str]) -> Row | Fault | dict[str, object]:
    """The object itself where it has not all of `columns`."""
    if not encoding.is_valid(line):
        return Fault.ENCODING
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return Fault.JSON
    if not isinstance(row, dict):
        return Fault.JSON
    if not set(columns) <= row.keys():
        return row
    text, label, *group = (row[column] for column in columns)
    return Row(text=text, label=label, group=group[0] if group else "")


def _read_parquet(
    path: Path, how: TextSource, columns: Sequence[str], collector: Collector
) -> Reading:
    with pq.ParquetFile(path) as file:
        check_columns(path.name, file.schema_arrow.names, columns, how)
        table = file.read(columns=list(dict.fromkeys(columns)))
    return _read_table(path.name, [_values(table[column]) for column in columns], collector)


def _read_table(where: str, columns: Sequence[Iterable[object]], collector: Collector) -> Reading:
    for number, (text, label, *group) in enumerate(zip(*columns, strict=True), start=1):
        collector.add(number, Row(text=text, label=label, group=group[0] if group else ""))
    records, dropped = collector.records(), collector.dropped()
    return Reading(where=where, unit="row", records=records, dropped=dropped)


def _values(column: pa.ChunkedArray) -> list[object]:
    """Python values; bytes of a text that are not UTF-8 stay half characters."""
    kinds = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.type not in kinds:
        return [_single(value) for value in column]
    raw = column.cast(kinds[column.type]).to_pylist()
    return [None if v is None else v.decode("utf-8", "surrogateescape") for v in raw]


def _single(value: pa.Scalar) -> object:
    """None where Python has no such value, as for a time in the year 300,000."""
    try:
        return value.as_py()
    except (ValueError, OverflowError, pa.ArrowException):
        return None


def _read_folder(path: Path, how: TextSource, collector: Collector) -> Reading:
    unread: Path | None = None
    with os_errors_as(DataError, f"{path.name}: cannot be read"):
        if not any(path.glob("*/*")):
            raise DataError(f"{path.name}: holds no sub-folder with .txt files (one per label)")
        for folder in sorted(p for p in path.iterdir() if p.is_dir() and p.name[0] != "."):
            for file in sorted(p for p in folder.iterdir() if p.suffix.lower() == ".txt"):
                name = f"{folder.name}/{file.name}"
                try:
                    text = encoding.decode(file.read_bytes(), how.encoding)
                except OSError:
                    collector.add(name, Fault.FILE)
                    continue
                if not collector.add(name, Row(text=text, label=folder.name)):
                    unread = unread or (None if encoding.is_valid(text) else file)
    own = "utf-8" if how.encoding == "auto" else how.encoding  # of a file without a mark
    return Reading(
        where=path.name,
        unit="file",
        records=collector.records(),
        how=how,
        dropped=collector.dropped(),
        advice=_advice(unread, how, own, {Fault.ENCODING}) if unread else "",
        encoding=how.encoding,
    )


@register_source("hf")
def _read_hub(name: str, columns: Sequence[str]) -> list[list[object]]:
    """ID or ID:SPLIT of the hub; a split may be a slice, as test[:10%]."""
    source, (identifier, *split) = f"hf:{name}", name.split(":", 1)
    need(source, "datasets")
    import datasets

    try:
        data: Any = datasets.load_dataset(identifier, split=split[0] if split else "train")
    except Exception as error:  # noqa: BLE001 - the library raises many kinds; each means this
        raise DataError(
            f"{source}: cannot be loaded ({type(error).__name__}); check the name and split, and "
            "whether the hub is reachable"
        ) from None
    check_columns(source, data.column_names, columns)
    return [[_named(data.features[column], v) for v in data[column]] for column in columns]


def _named(feature: object, value: object) -> object:
    """The name of a class number where the data set knows it; a number below 0 has no name."""
    names = getattr(feature, "names", None)
    if names is None:
        return value
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None
