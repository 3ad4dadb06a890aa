"""One table, four outputs: the same cells in each, and no cell is read as markup by any."""

from __future__ import annotations

import csv
import io

import jinja2
import pytest
from rich.console import Console

from fedaipc.report import template
from fedaipc.report.table import Alarm, Caution, Table, facts
from tests.support.html_pages import HOSTILE, Page

NUMBERS = Table(
    ("run", "epsilon", "test accuracy"),
    [("a first run with a long name", "7.97", "0.768 ± 0.009"), ("b", Alarm("NOT PRIVATE"), "-")],
    title="Runs", notes=("one note", Caution("a warning")),
)  # fmt: skip


def shown(table: Table, width: int = 100, *, color: bool = False) -> str:
    console = Console(width=width, force_terminal=color, color_system="standard" if color else None)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_all_outputs_hold_the_same_cells() -> None:
    page = Page(NUMBERS.__html__())
    outputs = (shown(NUMBERS), NUMBERS.to_markdown(), page.text, NUMBERS.to_csv())
    for cell in (*NUMBERS.columns, *(cell for row in NUMBERS.rows for cell in row)):
        assert all(str(cell) in output for output in outputs)
    assert "one note" in page.text
    assert "a warning" in shown(NUMBERS)


def test_terminal_columns_are_aligned_numbers_to_the_right() -> None:
    title, head, first, second, *_ = shown(NUMBERS).splitlines()
    assert title.strip() == "Runs"
    assert head.startswith("run ")
    assert second.startswith("b ")
    place = head.index("test accuracy") + len("test accuracy")
    assert first[:place].endswith("0.768 ± 0.009")
    assert second[:place].endswith(" -")


@pytest.mark.parametrize("width", [100, 40, 30])
def test_no_width_cuts_a_number(width: int) -> None:
    """A narrow terminal breaks names, and then gives each cell its own line."""
    text = shown(NUMBERS, width)
    assert "0.768 ± 0.009" in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for word in ("epsilon", "accuracy", "NOT", "PRIVATE"):
        assert word in text


def test_an_alarm_is_bold_red_and_marked_on_the_page() -> None:
    assert "\x1b[1;31mNOT PRIVATE" in shown(NUMBERS, color=True)
    assert '<td class="number bad">NOT PRIVATE</td>' in NUMBERS.__html__()


def test_hostile_cells_are_only_shown() -> None:
    text = HOSTILE + "[bold]|\x1b[2J\n"
    for table in (Table((text, "n"), [(text, 1)], notes=(text,)), facts([(text, text)])):
        html = table.__html__()
        page = Page(html)
        assert page.tags <= {"div", "table", "thead", "tbody", "tr", "th", "td", "p", "dl", "dt",
                             "dd"}  # fmt: skip
        assert not any(name.startswith("on") for name, _ in page.attributes)
        assert page.text.count("<script>alert(1)</script>") >= 2
        for output in (html, shown(table, 200), table.to_markdown()):
            assert "\x1b" not in output
            assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in output
        assert "[bold]" in shown(table, 200)


def test_markdown_cells_stay_cells() -> None:
    table = Table(("a|b", "c"), [("<i>x|y</i>", 1)])
    assert table.to_markdown().splitlines() == [
        r"| a\|b | c |",
        "|---|---|",
        r"| \<i>x\|y\</i> | 1 |",
    ]
    assert facts([("a", 1)]).to_markdown().splitlines() == ["|  |  |", "|---|---|", "| a | 1 |"]


def test_csv_is_read_back_as_it_was() -> None:
    rows = [("a,b", '"', "x\ny"), ("", "1", "2")]
    table = Table.of_records([dict(zip("pqr", row, strict=True)) for row in rows])
    assert list(csv.reader(io.StringIO(table.to_csv(), newline=""))) == [
        ["p", "q", "r"],
        *map(list, rows),
    ]


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="has not 2 cells"):
        Table(("a", "b"), [(1,)])


def test_a_name_that_a_template_is_not_given_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="text"):
        template.render("plain.html.j2")


def test_lines_of_plain_text_stay_lines() -> None:
    html = template.render("plain.html.j2", text="a <b>\n\tc\x1b\n")
    assert html.strip() == "<pre>a &lt;b&gt;\n    c\\x1b</pre>"
