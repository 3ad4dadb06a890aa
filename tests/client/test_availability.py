"""When a PC rests: on battery, or while its owner needs it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from fedaipc.client.availability import Availability
from fedaipc.config import AvailabilitySettings


def work(**settings: Any) -> Availability:
    return Availability(AvailabilitySettings.model_validate({"low_priority": False, **settings}))


@pytest.mark.parametrize(
    ("battery", "why"),
    [
        (None, None),
        (SimpleNamespace(power_plugged=True), None),
        (SimpleNamespace(power_plugged=None), None),
        (SimpleNamespace(power_plugged=False), "on battery"),
    ],
)
def test_on_battery_it_rests_where_the_owner_wants(
    battery: object, why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    assert work(only_on_mains=True)() == why
    assert work()() is None


def test_it_gives_way_to_others_and_does_not_count_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_percent", lambda: 90.0)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    busy = work(max_load=0.5)
    monkeypatch.setattr(busy._own, "cpu_percent", lambda: 20.0)
    assert busy() == "others use 80% of the processor"
    monkeypatch.setattr(busy._own, "cpu_percent", lambda: 170.0)
    assert busy() is None
    assert work()() is None


def test_a_low_priority_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(psutil.Process, "nice", lambda _self, value: asked.append(value))
    Availability(AvailabilitySettings())
    assert len(asked) == 1
    work()
    assert len(asked) == 1


def test_it_rests_while_its_texts_are_not_there(tmp_path: Path) -> None:
    """Else each round would be charged, and trained on nothing."""
    data = tmp_path / "texts.csv"
    resting = Availability(AvailabilitySettings(low_priority=False), lambda: data)
    why = resting()
    assert why is not None
    assert why.startswith(f"{data} was not found: put it back")
    data.touch()
    assert resting() is None


def test_it_rests_while_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    free = SimpleNamespace(available=3 * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    said = "only 3.0 GiB of memory are free, and min_free_gib in owner.toml is 4"
    assert work(min_free_gib=4.0)() == said
    assert work(min_free_gib=2.0)() is None
    assert work()() is None
