"""Every wrong build is caught by a named check, and one with little noise by the audit as well.

What the audit makes of the others is in the table that scripts/broken_builds.py writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.broken_builds.audited import audited
from tests.support.broken_builds.table import ALL_CHECKS, ALL_FAULTS, AUDIT_REFUTES, CATCHES

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.broken_builds.table import Check, Fault


def name(function: object) -> str:
    return str(getattr(function, "__name__", function))


def test_every_fault_has_its_check() -> None:
    assert set(CATCHES) == set(ALL_FAULTS)
    assert set(CATCHES.values()) <= set(ALL_CHECKS)


@pytest.mark.parametrize("check", ALL_CHECKS, ids=name)
def test_the_right_build_passes(check: Check, minilm: Path) -> None:
    check()


@pytest.mark.parametrize("fault", ALL_FAULTS, ids=name)
def test_a_broken_build_is_caught_by_its_check(
    fault: Fault, monkeypatch: pytest.MonkeyPatch, minilm: Path
) -> None:
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        CATCHES[fault]()


@pytest.mark.slow
def test_the_audit_finds_something_and_no_more_than_is_promised(
    minilm: Path, sentiment: Path
) -> None:
    for epsilon, least in ((2.0, 0.0), (8.0, 0.2)):
        found = audited(epsilon)
        assert found.promised is not None
        assert least <= found.bound.lower <= found.promised
        assert found.holds


@pytest.mark.slow
def test_without_privacy_the_audit_reads_nearly_every_coin(minilm: Path, sentiment: Path) -> None:
    found = audited(None)
    assert found.promised is None
    assert found.bound.lower > 4
    assert found.accuracy > 0.95


@pytest.mark.slow
@pytest.mark.parametrize("fault", AUDIT_REFUTES, ids=name)
def test_the_audit_refutes_a_build_with_too_little_noise(
    fault: Fault, monkeypatch: pytest.MonkeyPatch, minilm: Path, sentiment: Path
) -> None:
    fault(monkeypatch)
    found = audited()
    assert not found.holds
    assert found.bound.lower > 1.5 * (found.promised or 0)
