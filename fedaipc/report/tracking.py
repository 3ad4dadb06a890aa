"""Trackers, which are told of a run while it trains, by name: output.trackers = ["tensorboard"]."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol

from fedaipc.config.section import load_extensions
from fedaipc.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import Self

    from fedaipc.results import RoundResult


class Tracker(Protocol):
    """Is made with the folder of the run, told of every finished attempt, and closed at the end.

    It sees public numbers alone. What it raises ends the run's watching, never the run's promise.
    """

    def __init__(self, run_folder: Path) -> None: ...

    def on_round(self, result: RoundResult) -> None:
        """Called after every attempt, void ones included; fields as in results.json."""

    def close(self) -> None:
        """Called once, also where the run fails."""


TRACKERS: dict[str, Callable[[Path], Tracker]] = {}


def register_tracker(
    name: str,
) -> Callable[[Callable[[Path], Tracker]], Callable[[Path], Tracker]]:
    """Make a tracker known by `name`; to be used as a decorator. The last registration of a name
    counts.
    """

    def add(tracker: Callable[[Path], Tracker]) -> Callable[[Path], Tracker]:
        TRACKERS[name] = tracker
        return tracker

    return add


def check_trackers(names: Sequence[str]) -> None:
    """Raise ConfigError where one is not known here, MissingExtra where one's package is not."""
    for name in names:
        check = getattr(_find(name), "check", None)
        if check is not None:
            check()


class Trackers:
    """All that a run names, opened together and closed together."""

    def __init__(self, names: Sequence[str], run_folder: Path) -> None:
        """Raises ConfigError where one is not known, OutputError where one cannot write."""
        self._open = ExitStack()
        self._trackers = []
        for name in names:
            tracker = _find(name)(run_folder)
            self._open.callback(tracker.close)
            self._trackers.append(tracker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def on_round(self, result: RoundResult) -> None:
        for tracker in self._trackers:
            tracker.on_round(result)


def _find(name: str) -> Callable[[Path], Tracker]:
    if name not in TRACKERS:
        from fedaipc.report import tensorboard  # noqa: F401 - registers itself

        load_extensions()
    if name not in TRACKERS:
        raise ConfigError(
            f"output.trackers: {name} is not known here (known: {', '.join(sorted(TRACKERS))})"
        )
    return TRACKERS[name]
