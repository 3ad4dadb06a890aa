"""The report page: whole by itself, honest, and safe to open whatever a run's strings hold."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from fedaipc.report import formatting
from fedaipc.report.html import report_page, write_all, write_report
from tests.support.html_pages import HOSTILE, Page
from tests.support.results import begun_results, make_results

if TYPE_CHECKING:
    from pathlib import Path

    from fedaipc.results import Results

CONFIG = '[model]\nbase = "minilm-l6"\n'


def test_page_says_what_was_trained_how_well_and_at_which_cost() -> None:
    page = Page(report_page(make_results(), CONFIG))
    for part in (
        "20 simulated PCs",
        "0.768 ± 0.009",
        "epsilon 7.97 at delta 1e-5",
        "add or remove one record of one PC",
        "Only the PC itself",
        "Timing. A compromised PC. Poisoning",
        "7.97 (RDP), 7.41 (PRV), 7.42 (PLD)",
        'base = "minilm-l6"',
        "no accelerator found",
        "1.2 GiB",
        "pc-019",
        "1,084 duplicates removed",
    ):
        assert part in page.text, part
    assert formatting.NOT_PRIVATE not in page.text


def test_page_loads_nothing_and_runs_nothing() -> None:
    text = report_page(make_results(), CONFIG)
    page = Page(text)
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed", "form", "a"}
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in {"href", "xlink:href"}:
            assert value.startswith("#")
    for target in re.findall(r"url\(([^)]*)\)", text):
        assert target.startswith("#")
    assert "default-src 'none'" in text


def test_plots_share_no_ids_and_every_reference_has_its_target() -> None:
    page = Page(report_page(make_results(), CONFIG))
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = {value[1:] for name, value in page.attributes if name == "href"}
    used |= {
        target
        for name, value in page.attributes
        for target in re.findall(r"url\(#([^)]*)\)", value)
        if name in {"style", "clip-path", "fill"}
    }
    assert used
    assert used <= set(ids)


@pytest.mark.parametrize(
    "results",
    [make_results(private=False), make_results(not_private=("insecure test seed",))],
    ids=["mode none", "test seed"],
)
def test_not_private_is_everywhere(results: Results) -> None:
    text = report_page(results, CONFIG)
    assert f"<title>{formatting.NOT_PRIVATE}: demo" in text
    assert f'<p class="alarm"><strong>{formatting.NOT_PRIVATE}</strong>' in text
    assert results.not_private[0] in text
    page = Page(text)
    assert f"{formatting.NOT_PRIVATE} | Accuracy per round" in page.text
    assert "can hardly tell" not in page.text
    assert "No PC has spent more" not in page.text
    assert "Only the PC itself" not in page.text


def test_hostile_strings_are_only_shown(tmp_path: Path) -> None:
    plain = make_results(pcs=3, rounds=2)
    tree = plain.model_dump()
    for section, key in (("model", "base"), ("model", "reason"), ("privacy", "neighbours"),
                         ("data", "source"), ("machine", "processor")):  # fmt: skip
        tree[section][key] = HOSTILE
    tree["name"] = tree["run_id"] = HOSTILE
    tree["not_private"] = (HOSTILE,)
    tree["data"]["labels"] = tree["data"]["notes"] = (HOSTILE, HOSTILE + "2")
    tree["test_classes"][0]["label"] = HOSTILE
    tree["rounds"][0]["phases"] = {HOSTILE: 1.0}
    for pc in tree["pcs"]:
        pc["name"], pc["groups"] = HOSTILE, (HOSTILE,)
    results = type(plain).model_validate(tree)
    (tmp_path / "config.toml").write_text(f"# {HOSTILE}\n", encoding="utf-8")
    text = write_report(results, tmp_path).read_text(encoding="utf-8")
    page = Page(text)
    assert "<script" not in text
    assert "<img" not in text
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in text
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert page.tags == Page(report_page(plain.model_copy(
        update={"not_private": ("a",)}), CONFIG)).tags  # fmt: skip
    assert page.text.count("<script>alert(1)</script>") > 10


def test_long_tables_are_folded() -> None:
    few, many = report_page(make_results(pcs=30), None), report_page(make_results(pcs=200), None)
    assert "<summary>30 PCs</summary>" not in few
    assert "<summary>200 PCs</summary>" in many
    assert len(many) < 500_000


def test_a_run_over_real_pcs_shows_no_counts_of_examples() -> None:
    results = make_results()
    pcs = tuple(pc.model_copy(update={"examples": None, "groups": ()}) for pc in results.pcs)
    page = Page(report_page(results.model_copy(update={"pcs": pcs}), None))
    assert "simulated" not in page.text
    assert "examples" not in page.text


def test_config_is_shown_as_it_stands_or_said_to_be_missing(tmp_path: Path) -> None:
    results = make_results(pcs=2, rounds=2)
    assert "no readable config.toml" in write_report(results, tmp_path).read_text()
    (tmp_path / "config.toml").write_text("[a]\n\tb = '<é>'\n", encoding="utf-8")
    text = write_report(results, tmp_path).read_text(encoding="utf-8")
    assert "<pre>[a]\n    b = &#39;&lt;é&gt;&#39;</pre>" in text


def test_a_run_that_has_just_begun_has_a_page() -> None:
    assert "The run has not finished" in Page(report_page(begun_results(), None)).text


def test_write_all(tmp_path: Path) -> None:
    paths = write_all(make_results(pcs=2, rounds=2), tmp_path)
    assert len(paths) == 7
    assert all(path.is_file() for path in paths)
