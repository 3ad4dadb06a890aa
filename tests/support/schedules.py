"""Schedules of DP-SGD in one line."""

from __future__ import annotations

from typing import Any

from fedaipc.config import DPSGD, Schedule


def dp_sgd(
    noise_multiplier: float = 2.0,
    sampling_rate: float = 0.1,
    steps: int = 1,
    **others: Any,
) -> Schedule:
    """So many steps; `others` are further settings of the mechanism, as `clip_norm`."""
    mechanism = DPSGD(noise_multiplier=noise_multiplier, sampling_rate=sampling_rate, **others)
    return Schedule(mechanism=mechanism, steps=steps)


def mechanism_of(schedule: Schedule) -> DPSGD:
    """The settings of its noise; fails where it has none."""
    assert isinstance(schedule.mechanism, DPSGD)
    return schedule.mechanism


def changed(schedule: Schedule, **changes: Any) -> Schedule:
    """The same with other settings of the mechanism, or other `steps`; validated."""
    steps = changes.pop("steps", schedule.steps)
    mechanism = {**schedule.mechanism.model_dump(exclude_none=True), **changes}
    return Schedule.model_validate({"mechanism": mechanism, "steps": steps})
