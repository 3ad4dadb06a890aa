"""Runs in this folder are real ones; only what takes longer than a run is cut short."""

from __future__ import annotations

import functools

import pytest

from fedaipc.federation import server_app
from fedaipc.privacy import plan

_planned_once = functools.cache(plan.planned_epsilon)


@pytest.fixture(autouse=True)
def _quick_accounting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same planned epsilon for the same plan, computed once."""
    monkeypatch.setattr(server_app, "planned_epsilon", _planned_once)
