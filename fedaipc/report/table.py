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
        lines = ["|" + "---|" * len(columns)]
        for cells in (columns, *self.rows):
            shown = [printable(str(cell)).translate(_MARKDOWN) for cell in cells]
            lines.append(f"| {' | '.join(shown)} |")
        return "\n".join([lines[1], lines[0], *lines[2:]])

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
        from rich.cells import cell_len
        from rich.table import Table as Grid

        def widest(*cells: object) -> int:
            return max((cell_len(str(cell)) for cell in cells), default=0)

        names = tuple(self.columns) or ("", "")
        cells = [[row[place] for row in self.rows] for place in range(len(names))]
        least = []  # of each column
        for place, (name, own) in enumerate(zip(names, cells, strict=True)):
            if place in self.words:
                least.append(widest(*own) if place in self.whole else min(_MIN_WIDTH, widest(*own)))
            else:  # half a number is a wrong number: break its name, or a warning, instead
                words = " ".join([name, *(cell for cell in own if isinstance(cell, Alarm))]).split()
                least.append(widest(*words, *(cell for cell in own if not isinstance(cell, Alarm))))
        gaps = len(names) - 1
        if self.columns and sum(least) + gaps > options.max_width:
            yield from self._row_by_row()
            return
        natural = [widest(name, *own) for name, own in zip(names, cells, strict=True)]
        fits = sum(natural) + 2 * gaps <= options.max_width
        broken = [natural[k] if k in self.words else least[k] for k in range(len(names))]
        roomy = not self.columns or sum(broken) + 2 * gaps <= options.max_width
        grid = Grid(
            box=None, pad_edge=False, padding=(0, 2 if roomy else 1, 0, 0),
            show_header=bool(self.columns), title_justify="left",
            title=_text(self.title, "italic") if self.title else None,
        )  # fmt: skip
        for place, name in enumerate(names):
            if not self.columns:
                grid.add_column(style="" if place else "dim", no_wrap=not place, overflow="fold")
            elif place in self.words:
                grid.add_column(_text(name), overflow="fold", min_width=least[place],
                                no_wrap=place in self.whole)  # fmt: skip
            else:
                grid.add_column(_text(name), justify="right", width=None if fits else least[place])
        for row in self.rows:
            grid.add_row(*map(_text, row))
        yield grid
        yield from (_text(note, "dim") for note in self.notes)

    def _row_by_row(self) -> RenderResult:
        """For a terminal that has no room for the columns."""
        if self.title:
            yield _text(self.title, "italic")
        for row in self.rows:
            yield facts(list(zip(self.columns, row, strict=True)))
            yield ""
        yield from (_text(note, "dim") for note in self.notes)


def _text(cell: object, style: str = "") -> Text:
    from rich.text import Text

    return Text(printable(str(cell)), _STYLES.get(type(cell), style))


def facts(rows: Sequence[tuple[str, Any]]) -> Table:
    """Names with their values."""
    return Table((), rows)
