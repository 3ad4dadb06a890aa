"""Plots: made without a display, the same bytes each time, readable for many PCs, never hostile."""

from __future__ import annotations

import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import pytest
from matplotlib.font_manager import fontManager

from fedaipc.errors import OutputError
from fedaipc.report import formatting
from fedaipc.report.plot_style import figure_bytes, save, save_all
from fedaipc.report.plots import OTHER, comparison, figures
from tests.support.results import make_results

if TYPE_CHECKING:
    from pathlib import Path

    from fedaipc.results import Results

HOSTILE = '_<b>&"x"$\\frac{1}$ \N{RIGHT-TO-LEFT OVERRIDE}\x00</text><script>'


def _titles(results: Results) -> dict[str, str]:
    return {name: figure.axes[0].get_title(loc="left") for name, figure in figures(results).items()}


def svg_plots(results: Results) -> dict[str, str]:
    found = figures(results)
    return {name: figure_bytes(one, ".svg", name).decode() for name, one in found.items()}


def _texts(svg: str) -> str:
    return "\n".join("".join(node.itertext()) for node in ET.fromstring(svg).iter())


def test_png_and_svg_of_each_plot(tmp_path: Path) -> None:
    paths = save_all(figures(make_results(pcs=5, rounds=4)), tmp_path / "plots")
    assert [path.name for path in paths] == [
        f"{name}{ending}"
        for name in ("accuracy", "epsilon", "examples")
        for ending in (".png", ".svg")
    ]
    for path in paths:
        start = path.read_bytes()[:8]
        assert start.startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml")


def test_same_results_same_bytes_and_no_date(tmp_path: Path) -> None:
    results = make_results(pcs=5, rounds=4)
    first = save_all(figures(results), tmp_path / "a")
    second = save_all(figures(results), tmp_path / "b")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    for path in first:
        assert b"<dc:date>" not in path.read_bytes()


def test_drawing_leaves_matplotlib_as_it_was() -> None:
    before = dict(mpl.rcParams)
    svg_plots(make_results(pcs=3, rounds=2))
    assert dict(mpl.rcParams) == before


def test_accuracy_plot_tells_test_majority_and_void_rounds() -> None:
    text = _texts(svg_plots(make_results())["accuracy"])
    for part in ("test: 0.768 ± 0.009", "commonest label: 0.519", "void attempt", "round"):
        assert part in text


def test_not_private_leads_every_title() -> None:
    for run in (make_results(private=False), make_results(not_private=("insecure test seed",))):
        titles = _titles(run)
        assert all(title.startswith(formatting.NOT_PRIVATE) for title in titles.values())
    assert not any(formatting.NOT_PRIVATE in title for title in _titles(make_results()).values())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"private": False}, {"accuracy", "examples"}),
        ({"rounds": ()}, {"epsilon", "examples"}),
        ({"pcs": ()}, {"accuracy"}),
        ({"pcs": (), "rounds": ()}, set()),
    ],
)
def test_a_plot_without_data_is_left_out(changes: dict[str, Any], expected: set[str]) -> None:
    results = make_results(private=changes.pop("private", True))
    assert set(svg_plots(results.model_copy(update=changes))) == expected


@pytest.mark.parametrize("pcs", [41, 200, 401, 3000])
def test_many_pcs_stay_readable_and_quick(pcs: int) -> None:
    results = make_results(pcs=pcs, rounds=3)
    begun = time.monotonic()
    plots = svg_plots(results)
    assert time.monotonic() - begun < 20
    for name in ("epsilon", "examples"):
        assert f"{pcs:,}" in _texts(plots[name])
        assert "pc-000" not in _texts(plots[name])
        assert len(plots[name]) < 400_000


def _with_pcs(results: Results, **changes: Any) -> Results:
    pcs = tuple(pc.model_copy(update=changes) for pc in results.pcs)
    return results.model_copy(update={"pcs": pcs})


def test_lifetime_budget_far_above_is_told_and_not_drawn() -> None:
    results = _with_pcs(make_results(pcs=4), lifetime_epsilon=1000.0)
    assert "lifetime budget: 1000 (above the plot)" in _texts(svg_plots(results)["epsilon"])


@pytest.mark.parametrize("pcs", [4, 60])
def test_lifetime_budgets_may_differ_or_be_unknown(pcs: int) -> None:
    results = make_results(pcs=pcs)
    mixed = tuple(
        pc.model_copy(update={"lifetime_epsilon": (None, 8.0, 12.0)[number % 3]})
        for number, pc in enumerate(results.pcs)
    )
    svg = svg_plots(results.model_copy(update={"pcs": mixed}))["epsilon"]
    assert "lifetime budget" in _texts(svg)
    unknown = _with_pcs(results, lifetime_epsilon=None)
    assert "lifetime" not in _texts(svg_plots(unknown)["epsilon"])


def test_nothing_spent_can_be_drawn() -> None:
    assert svg_plots(_with_pcs(make_results(pcs=4), epsilon=0.0))["epsilon"]


def test_more_groups_than_colours() -> None:
    results = make_results(pcs=40)
    many = tuple(
        pc.model_copy(update={"groups": (f"user {number // 2}",)})
        for number, pc in enumerate(results.pcs)
    )
    assert OTHER in _texts(svg_plots(results.model_copy(update={"pcs": many}))["examples"])
    own = tuple(
        pc.model_copy(update={"groups": (f"user {number}",)})
        for number, pc in enumerate(results.pcs)
    )
    assert "user" not in _texts(svg_plots(results.model_copy(update={"pcs": own}))["examples"])


def test_hostile_strings_are_only_shown() -> None:
    results = _with_pcs(
        make_results(pcs=3, rounds=2, name=HOSTILE), name=HOSTILE, groups=(HOSTILE,)
    )
    for svg in svg_plots(results).values():
        assert "<script" not in svg
        assert "<b>" in _texts(svg)


def test_scripts_that_the_font_lacks_do_not_warn(tmp_path: Path) -> None:
    assert fontManager  # the font list is built before warnings count
    results = _with_pcs(make_results(pcs=3, rounds=2, name="评论"), groups=("ความเห็น",))
    save_all(figures(results), tmp_path)
    assert "评论" in (tmp_path / "accuracy.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("count", [1, 2, 12])
def test_comparison(tmp_path: Path, count: int) -> None:
    runs = [make_results(name=f"run-{number}", rounds=3) for number in range(count)]
    path = tmp_path / "new" / "comparison.svg"
    save(comparison(runs), path)
    text = _texts(path.read_text(encoding="utf-8"))
    assert all(run.name in text for run in runs)
    assert formatting.NOT_PRIVATE not in text
    save(comparison([*runs, make_results(private=False, name="open")]), path)
    assert f"SOME RUNS {formatting.NOT_PRIVATE}" in path.read_text(encoding="utf-8")


def test_comparison_of_a_run_without_scores(tmp_path: Path) -> None:
    bare = {"test": None, "standard_error": None, "rounds": (), "pcs": ()}
    save(comparison([make_results().model_copy(update=bare)]), tmp_path / "c.png")
    assert (tmp_path / "c.png").is_file()


@pytest.mark.parametrize("name", ["comparison", "comparison.jpeg"])
def test_comparison_refuses_other_formats(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=r"\.png or \.svg"):
        save(comparison([make_results()]), tmp_path / name)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputError, match=r"taken: cannot write accuracy\.png"):
        save_all(figures(make_results(pcs=2, rounds=2)), tmp_path / "taken")


def test_what_a_plot_needs_is_loaded_before_the_first_one() -> None:
    """Root draws a run's report as the server's user, who may not look into root's HOME."""
    code = "import sys, fedaipc.report.html; assert 'matplotlib.style' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
