"""How long things wait: PCs that come and go, looks for messages, queues, silences. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fedaipc.planning.load import Floats, Ints

# A PC's pause between two looks for a message, as in fleet/node.py: seconds, and the part of the
# time since its last message that it waits at most.
SHORTEST_LOOK, LONGEST_LOOK, PATIENT_LOOK = 0.02, 5.0, 20
_REDRAW = 1 / 24  # share of the PCs that decide in an hour whether they are there


def turns(available: Floats) -> tuple[Floats, Floats]:
    """Chances to leave and to come as an hour begins, shape (24, kinds).

    They keep the share of PCs that are there at `available`: as few come and leave as the
    hours ask for, and of the others one in 24 decides again.
    """
    before = np.roll(available, 1, axis=0)
    fewer, more = np.maximum(0, before - available), np.maximum(0, available - before)
    ends = np.divide(fewer, before, out=np.zeros_like(before), where=before > 0)
    starts = np.divide(more, 1 - before, out=np.zeros_like(before), where=before < 1)
    leave = _REDRAW * (1 - available) + (1 - _REDRAW) * ends
    join = _REDRAW * available + (1 - _REDRAW) * starts
    return leave, join


def look(idle: float | Floats, pcs: int | Ints) -> Floats:
    """Expected seconds until the last of `pcs` PCs looks for a message."""
    pause = np.clip(np.asarray(idle) / PATIENT_LOOK, SHORTEST_LOOK, LONGEST_LOOK)
    return np.asarray(pause * (np.asarray(pcs) / (np.asarray(pcs) + 1)))


def served(arrival: Floats, counts: Ints, each: float) -> Floats:
    """When the last of each batch of uploads has been taken in, one after the other.

    A batch of `counts` arrives at `arrival`, and each upload takes `each` seconds.
    """
    order = np.argsort(arrival, kind="stable")
    until = np.cumsum(counts[order]) * each
    begun = np.maximum.accumulate(arrival[order] - (until - counts[order] * each))
    finish = np.empty_like(arrival)
    finish[order] = begun + until
    return finish


def listened(times: Floats, timeout: float, *, silent: bool) -> tuple[float, float]:
    """When the coordinator stops to wait, and how long the last silence was.

    It waits until `timeout` seconds have passed without an answer or a notice, unless it has one
    from everybody; with `silent` there are PCs from which none will come.
    """
    times = np.sort(times)
    gaps = np.diff(times, prepend=0.0)
    late = np.flatnonzero(gaps > timeout)
    if len(late):
        return float(times[late[0]] - gaps[late[0]]) + timeout, timeout
    last = float(times[-1]) if len(times) else 0.0
    if silent:
        return last + timeout, timeout
    return last, float(gaps[-1]) if len(gaps) else 0.0
