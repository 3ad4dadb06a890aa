"""What the cells measured: a row for each, and for each point over its seeds; CSV and JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fedaipc.config import Privacy, Schedule
from fedaipc.lab.sweep.cells import RUN_FOLDER, Cell, Values
from fedaipc.lab.sweep.runner import State, cell_folder, error_of, state_of
from fedaipc.report.formatting import done_rounds
from fedaipc.results import Results


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One cell. What is not known is None; `epsilon` is the most that any PC was charged.

    `epsilon_pld` is of the declared schedule; `steps` of all attempts, of which a PC that had no
    budget left for the last ones was charged for fewer; `seconds` and bytes of the run itself.
    """

    cell: str
    values: Values
    seed: int
    state: State
    error: str = ""
    status: str | None = None
    private: bool | None = None
    test_accuracy: float | None = None
    test_macro_f1: float | None = None
    validation_accuracy: float | None = None
    majority: float | None = None
    epsilon: float | None = None
    epsilon_pld: float | None = None
    delta: float | None = None
    mechanism: Privacy | None = field(default=None, repr=False)  # as it was charged
    noise_multiplier: float | None = None
    sampling_rate: float | None = None
    steps: int | None = None
    rounds: int | None = None
    attempts: int | None = None
    pcs: int | None = None
    seconds: float | None = None
    bytes_up: float | None = None

    @property
    def cut_short(self) -> bool:
        """Whether it ended before its last round: an interrupted one is charged, too."""
        return self.status not in (None, "finished")

    @property
    def schedule(self) -> Schedule | None:
        """All that a PC was charged for, where that is private."""
        if not self.private or self.mechanism is None or not self.steps:
            return None
        return Schedule(mechanism=self.mechanism, steps=self.steps)


@dataclass(frozen=True, slots=True)
class Point:
    """One point of the sweep over its seeds: mean and standard deviation of the accuracies."""

    values: Values
    private: bool
    runs: int
    test_mean: float
    test_deviation: float | None
    validation_mean: float
    epsilon: float | None
    cut_short: int


def rows_of(folder: Path, cells: Iterable[Cell]) -> list[Row]:
    return [_row(folder, cell) for cell in cells]


def points_of(rows: Iterable[Row]) -> list[Point]:
    """In the order of the first cell of each; points without a finished cell are left out."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.test_accuracy is not None and row.validation_accuracy is not None:
            groups.setdefault(json.dumps(row.values, sort_keys=True, default=str), []).append(row)
    return [_point(group) for group in groups.values()]


def to_json(name: str, rows: Sequence[Row]) -> str:
    content = {
        "format": "fedaipc sweep",
        "version": 1,
        "name": name,
        "points": [asdict(point) for point in points_of(rows)],
        "cells": [measured(row) for row in rows],
    }
    return json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"


def measured(row: Row, *without: str) -> dict[str, Any]:
    """All fields but the mechanism, which its numbers and the run's own results tell."""
    return {k: v for k, v in asdict(row).items() if k not in ("mechanism", *without)}


def _finite(content: Any) -> Any:
    """JSON has no infinity: epsilon inf becomes a word."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return "inf" if content == float("inf") else content


def _row(folder: Path, cell: Cell) -> Row:
    state = state_of(folder, cell)
    row = Row(cell=cell.name, values=cell.values, seed=cell.seed, state=state)
    if state != "done":
        return replace(row, error=error_of(folder, cell))
    results = Results.load(cell_folder(folder, cell) / RUN_FOLDER)
    privacy, test, validation = results.privacy, results.test, results.validation
    mechanism, planned = privacy.schedule.mechanism, privacy.planned_epsilon
    asked = sum(one.asked for one in results.rounds)
    return replace(
        row,
        status=results.status,
        private=not results.not_private,
        test_accuracy=None if test is None else test.accuracy,
        test_macro_f1=None if test is None else test.macro_f1,
        validation_accuracy=None if validation is None else validation.accuracy,
        majority=results.data.majority,
        epsilon=max((pc.epsilon for pc in results.pcs if pc.epsilon is not None), default=None),
        epsilon_pld=None if results.not_private or planned is None else planned.pld,
        delta=privacy.delta,
        mechanism=mechanism,
        noise_multiplier=None if privacy.dp_sgd is None else privacy.dp_sgd.multiplier,
        sampling_rate=mechanism.sampling_rate,
        steps=results.charged * privacy.schedule.steps,
        rounds=done_rounds(results),
        attempts=results.charged,
        pcs=len(results.pcs),
        seconds=results.seconds,
        bytes_up=sum(one.bytes_up for one in results.rounds) / asked if asked else None,
    )


def _point(rows: Sequence[Row]) -> Point:
    tests = [row.test_accuracy for row in rows if row.test_accuracy is not None]
    validations = [r.validation_accuracy for r in rows if r.validation_accuracy is not None]
    spent = [row.epsilon for row in rows if row.epsilon is not None]
    return Point(
        values=rows[0].values,
        private=all(row.private for row in rows),
        runs=len(rows),
        test_mean=statistics.mean(tests),
        test_deviation=statistics.stdev(tests) if len(tests) > 1 else None,
        validation_mean=statistics.mean(validations),
        epsilon=max(spent, default=None),
        cut_short=sum(row.cut_short for row in rows),
    )
