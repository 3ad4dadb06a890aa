"""Which columns a file has, and what to say where a wanted column is missing."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

from fedaipc.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fedaipc.config import TextSource

_COLUMN_NAME = re.compile(r"[^\W\d][\w.-]{0,29}( [\w.-]{1,29})?")


def numbers(columns: Sequence[str]) -> list[int]:
    """Places of columns that are given by number. Raises DataError."""
    if not all(column.isdecimal() and int(column) for column in columns):
        raise DataError("a file without a header needs column numbers (the first is 1)")
    return [int(column) - 1 for column in columns]


def beyond(widest: int, places: Sequence[int], delimiter: str) -> str:
    """What is wrong where no record is wide enough, otherwise ""."""
    if not 0 < widest <= max(places):
        return ""
    cut = "tabs" if delimiter == "\t" else "commas"
    there = f"columns 1 to {widest}" if widest > 1 else f"one column, if {cut} divide columns"
    return f"there is no column {max(places) + 1}: it has {there}"


def check_header(
    where: str, how: TextSource, names: Sequence[str], lines: Iterable[Sequence[str]]
) -> None:
    """Raise DataError where a first row may be a record, which an error must not show."""
    repeated = any(name == cell for line in lines for name, cell in zip(names, line, strict=False))
    if repeated or not all(_COLUMN_NAME.fullmatch(name) for name in names if name):
        raise DataError(
            f"{where}: the first row does not read like column names; add a row such as "
            "text,label, or give columns by number, as "
            f"{how.remedy(header=False, text_column='1', label_column='2')}"
        )


def check_columns(
    where: str, present: Sequence[str], columns: Sequence[str], how: TextSource | None = None
) -> None:
    """Raise DataError unless each of `columns` is there once; `how` says how to name others."""
    for column in columns:
        if list(present).count(column) > 1:
            raise DataError(f"{where}: column {column!r} is there twice; rename one of them")
    missing = missing_column(where, present, columns, how)
    if missing is not None:
        raise missing


def missing_column(
    where: str, present: Sequence[str], columns: Sequence[str], how: TextSource | None = None
) -> DataError | None:
    for place, column in enumerate(columns):
        if column not in present:
            close = difflib.get_close_matches(column, present, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            shown = [name if name.isprintable() else repr(name) for name in present[:20]]
            more = ", ..." if len(present) > 20 else ""
            key = ("text_column", "label_column", "")[place]
            remedy = f"; name it with {how.remedy(**{key: 'NAME'})}" if how and key else ""
            return DataError(
                f"{where}: no column {column!r}; {hint}there are: {', '.join(shown)}{more}{remedy}"
            )
    return None
