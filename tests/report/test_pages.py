"""Pages of the lab: whole by themselves, and safe whatever texts, names and errors hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fedaipc.lab.audit.bound import Bound
from fedaipc.lab.audit.canary import CanaryAudit
from fedaipc.lab.audit.inversion import Inversion, Reading
from fedaipc.lab.audit.page import audit_page
from fedaipc.lab.audit.report import AuditReport, Setting
from fedaipc.lab.sweep.run import SweepResult, sweep_page
from fedaipc.lab.sweep.table import Row
from fedaipc.report.html import report_page
from tests.support.html_pages import HOSTILE, Page
from tests.support.results import make_results

if TYPE_CHECKING:
    from collections.abc import Callable

SAFE = "a name"


def _audit(text: str) -> str:
    bound = Bound(lower=0.5, guesses=9, right=8, canaries=40, confidence=0.95)
    held = CanaryAudit(bound=bound, promised=2.0, delta=1e-5, accuracy=0.6)
    setting = Setting(
        epsilon=2.0, noise_multiplier=1.0, sampling_rate=0.1, steps=5, clip_norm=1.0,
        test_accuracy=0.7, canary=held, membership=None,
    )  # fmt: skip
    refuted = replace(setting, epsilon=8.0, canary=replace(held, promised=0.1))
    reading = Reading(source=text, words=(text, "other"), right=(True, False), recall=0.5,
                      chance=0.01)  # fmt: skip
    report = AuditReport(
        name=text, pcs=2, canaries=20, settings=(setting, refuted),
        inversion=Inversion(texts=(text,), readings=(reading,)),
    )  # fmt: skip
    return audit_page(report)


def _sweep(text: str) -> str:
    failed = Row(cell=text, values={"model.base": text}, seed=1, state="failed", error=text)
    done = replace(
        failed, state="done", error="", private=True, test_accuracy=0.7, validation_accuracy=0.7,
        values={"model.base": text, "privacy.epsilon": 1.0}, epsilon=1.0,
    )  # fmt: skip
    other = replace(done, values={"model.base": text, "privacy.epsilon": 2.0})
    return sweep_page(SweepResult(text, Path("s"), [failed, done, other]))


def _report(text: str) -> str:
    return report_page(make_results(pcs=3, rounds=2, name=text, run_id=text), text)


PAGES = [_audit, _sweep, _report]


@pytest.mark.parametrize("page", PAGES)
def test_a_page_loads_nothing_and_runs_nothing(page: Callable[[str], str]) -> None:
    text = page(SAFE)
    assert text.startswith("<!DOCTYPE html>")
    assert '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; ' in text
    assert "http://" not in text
    assert "https://" not in text
    read = Page(text)
    assert not read.tags & {"script", "link", "img", "iframe", "object", "embed", "form", "a"}
    assert all(value.startswith("#") for name, value in read.attributes if name == "href")


@pytest.mark.parametrize("page", PAGES)
def test_hostile_texts_are_only_shown(page: Callable[[str], str]) -> None:
    text = page(HOSTILE)
    read, safe = Page(text), Page(page(SAFE))
    assert read.tags == safe.tags
    assert {name for name, _ in read.attributes} == {name for name, _ in safe.attributes}
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in text
    assert read.text.count("<script>alert(1)</script>") >= 3


def test_an_audit_leads_with_what_it_refutes() -> None:
    text = Page(_audit(SAFE)).text
    assert text.index("REFUTED: epsilon 8") < text.index("A promise is refuted.")
    assert "50% of the words (by chance 1.0%)" in text
    assert "<strong>other</strong>" not in _audit(SAFE)
    assert f"<strong>{SAFE}</strong>" in _audit(SAFE)
