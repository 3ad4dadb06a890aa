"""One table value, shown in a terminal, on a page, in a notebook, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedaipc.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text

_MIN_WIDTH = 10  # characters of a column of words, however narrow the terminal
_MARKDOWN = str.maketrans({"\\": r"\\", "|": r"\|", "<": r"\<"})


class Strong(str):
    """A cell in bold."""

    __slots__ = ()


class Caution(str):
    """A cell that asks for care."""

    __slots__ = ()


class Alarm(str):
    """A cell that nobody may overlook: what is not private, not sealed, or refuted."""

    __slots__ = ()


_STYLES: dict[type, str] = {Strong: "bold", Caution: "yellow", Alarm: "bold red"}


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under the names of their columns; without columns, facts: a name and a value a row.

    Columns hold numbers, which are set to the right and never broken, except for those in `words`,
    of which those in `whole` are not broken either. Cells are plain text: nothing in them is read
    as markup by any of the outputs. `title` is for the terminal; pages have headings of their own.
    Raises ValueError where a row has another length.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    words: Sequence[int] = (0,)
    whole: Sequence[int] = ()
    title: str = ""
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(map(tuple, self.rows)))
        length = len(self.columns) or 2
        if any(len(row) != length for row in self.rows):
            raise ValueError(f"a row of this table has not {length} cells")

    @classmethod
    def of_records(cls, records: Sequence[Mapping[str, object]]) -> Table:
        """One row for each record, in the order of their keys, which all of them share."""
        columns = tuple(records[0]) if records else ()
        return cls(columns, [[record[name] for name in columns] for record in records])

    def to_csv(self) -> str:
        file = io.StringIO(newline="")
        csv.writer(file).writerows([self.columns, *self.rows])
        return file.getvalue()

    def to_markdown(self) -> str:
        columns = self.columns or ("", "")
        lines = []
        for cells in (columns, *self.rows):
            shown = [printable(str(cell)).translate(_MARKDOWN) for cell in cells]
            lines.append(f"| {' | '.join(shown)} |")
        lines.insert(1, "|" + "---|" * len(columns))
        return "\n".join(lines)

    def kind(self, place: int, cell: object) -> str:
        """The class of a cell in HTML."""
        number = "" if not self.columns or place in self.words else "number"
        return f"{number} bad".strip() if isinstance(cell, Alarm) else number

    def __html__(self) -> str:
        """What a template writes for `{{ table }}`."""
        from fedaipc.report.template import render

        return render("table.html.j2", table=self)

    _repr_html_ = __html__

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table as Grid

        if self.title:
            yield _text(self.title, "italic")
        least, natural = self._widths()
        gaps, room = len(self.columns) - 1, options.max_width
        if sum(least) + gaps > room:  # the columns do not fit: each cell gets a line of its own
            for row in self.rows:
                yield facts(list(zip(self.columns, row, strict=True)))
                yield ""
        else:
            fits = sum(natural) + 2 * gaps <= room
            broken = sum(natural[k] if k in self.words else least[k] for k in range(len(least)))
            grid = Grid(box=None, pad_edge=False, show_header=bool(self.columns),
                        padding=(0, 2 if broken + 2 * gaps <= room else 1, 0, 0))  # fmt: skip
            for place, name in enumerate(self.columns):
                number = place not in self.words
                grid.add_column(
                    _text(name), overflow="fold", justify="right" if number else "left",
                    no_wrap=place in self.whole, min_width=least[place],
                    width=least[place] if number and not fits else None,
                )  # fmt: skip
            if not self.columns:
                grid.add_column(style="dim", no_wrap=True, overflow="fold")
                grid.add_column(overflow="fold")
            for row in self.rows:
                grid.add_row(*map(_text, row))
            yield grid
        yield from (_text(note, "dim") for note in self.notes)

    def _widths(self) -> tuple[list[int], list[int]]:
        """Of each column: the least, with all broken that may be, and with nothing broken."""
        from rich.cells import cell_len

        def widest(*cells: object) -> int:
            return max((cell_len(str(cell)) for cell in cells), default=0)

        least, natural = [], []
        for place, name in enumerate(self.columns):
            cells = [row[place] for row in self.rows]
            natural.append(widest(name, *cells))
            if place in self.whole:
                least.append(widest(*cells))
            elif place in self.words:
                least.append(min(_MIN_WIDTH, widest(*cells)))
            else:  # half a number is a wrong number: break its name, or a warning, instead
                alarms = [cell for cell in cells if isinstance(cell, Alarm)]
                numbers = [cell for cell in cells if not isinstance(cell, Alarm)]
                least.append(widest(*" ".join([name, *alarms]).split(), *numbers))
        return least, natural


def _text(cell: object, style: str = "") -> Text:
    from rich.text import Text

    return Text(printable(str(cell)), _STYLES.get(type(cell), style))


def facts(rows: Sequence[tuple[str, Any]]) -> Table:
    """Names with their values."""
    return Table((), rows)
