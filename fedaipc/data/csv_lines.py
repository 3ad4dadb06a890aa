"""Records of a CSV or TSV file, each with the number of its first line.

A record must not depend on another: it is the unit of privacy. So where a quotation goes wrong,
only the line in which it began is lost, and reading continues with the next line. A quoted text may
go over several lines (`quoting = "csv"`) if its quotation ends where a field ends and the record
then has as many columns as the header. What a missing quotation mark can still do to the lines
behind it is in docs/explanation/limits.md; with `quoting` "line" or "none" it can do nothing.
"""

from __future__ import annotations

import csv
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedaipc.data.reading import Fault

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MAX_LINES = 1000  # of one record
LARGEST_FIELD = 10_000_000  # characters


@dataclass(slots=True, repr=False)  # frozen ones take three times as long to make
class Line:
    """`number` of the first of `lines`; `cells` or what is wrong."""

    number: int
    lines: tuple[str, ...]
    cells: list[str] | Fault


class CsvReader:
    """`width` is the number of columns, 0 until the header is known."""

    def __init__(self, lines: Iterable[str], delimiter: str, quoting: str) -> None:
        self._source = iter(lines)
        self._ahead: deque[str] = deque()
        self._number = 0  # of the line that comes next, less one
        self._most = MAX_LINES if quoting == "csv" else 1
        self._delimiter = delimiter
        self._quotes = quoting != "none"
        self.width = 0

    def __iter__(self) -> Iterator[Line]:
        """Each record, blank lines left out."""
        while True:
            taken: list[str] = []
            cells = self._parse(self._take(taken), taken)
            if not taken:
                return
            if len(taken) > 1 and self._is_no_record(cells):
                self._ahead.extendleft(reversed(taken[1:]))
                del taken[1:]
                cells = Fault.QUOTATION
            number = self._number + 1
            self._number += len(taken)
            if isinstance(cells, Fault) or any(cell.strip() for cell in cells):
                yield Line(number, tuple(taken), cells)

    def parts(self, line: Line) -> Iterator[list[str] | Fault]:
        """The lines of a record over several lines, each read as if it were a record itself.

        The first and the last count only where a delimiter is within the quotation.
        """
        first, *inner, last = line.lines
        opening, closing = first.rfind('"'), last.rfind('"')
        if self._delimiter in first[opening + 1 :]:
            yield self.split(first[:opening] + first[opening + 1 :])
        yield from map(self.split, inner)
        if self._delimiter in last[:closing]:
            yield self.split(last[:closing] + last[closing + 1 :])

    def split(self, line: str) -> list[str] | Fault:
        """The cells of one line alone."""
        return self._parse(iter([line]), [line])

    def _parse(self, lines: Iterator[str], taken: list[str]) -> list[str] | Fault:
        csv.field_size_limit(LARGEST_FIELD)  # of the whole process, so again each time
        reader = csv.reader(
            lines,
            delimiter=self._delimiter,
            quoting=csv.QUOTE_MINIMAL if self._quotes else csv.QUOTE_NONE,
            skipinitialspace=True,
            strict=True,
        )
        try:
            return next(reader, [])
        except csv.Error:
            return Fault.LONG if len(taken[0]) > LARGEST_FIELD else Fault.QUOTATION

    def _take(self, taken: list[str]) -> Iterator[str]:
        while len(taken) < self._most:
            line = self._ahead.popleft() if self._ahead else next(self._source, None)
            if line is None:
                return
            taken.append(line)
            yield line

    def _is_no_record(self, cells: list[str] | Fault) -> bool:
        return isinstance(cells, Fault) or (self.width > 0 and not fits(cells, self.width))


def fits(cells: Sequence[str], width: int) -> bool:
    """Whether the record has `width` columns; extra empty ones do no harm."""
    more = len(cells) - width
    return more == 0 or (more > 0 and not any(cell.strip() for cell in cells[width:]))
