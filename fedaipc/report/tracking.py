"""Trackers, which are told of a run while it trains, by name: output.trackers = ["tensorboard"]."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

from fedaipc.config.section import load_extensions
from fedaipc.errors import ConfigError, OutputError, os_errors_as
from fedaipc.extras import need

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

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


FOLDER = "tensorboard"  # of a run, for TensorBoard
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


@register_tracker("tensorboard")
class Scalars:
    """Scalars of a run for TensorBoard, written as rounds end.

    Writes below RUN/tensorboard; give that folder to `tensorboard --logdir`.
    """

    @staticmethod
    def check() -> None:
        """Raises MissingExtra where TensorBoard is not installed."""
        need("the tracker tensorboard", "tensorboard")

    def __init__(self, run_folder: Path) -> None:
        """Raises MissingExtra as `check`, OutputError where the folder is read-only."""
        self.check()
        from torch.utils.tensorboard import SummaryWriter

        with os_errors_as(OutputError, f"{run_folder}: cannot be written"):
            self._writer: Any = SummaryWriter(str(run_folder / FOLDER))

    def on_round(self, result: RoundResult) -> None:
        """Write what one finished attempt showed."""
        values = {
            "pcs/arrived": result.arrived,
            "pcs/dropped": result.dropped,
            "pcs/declined": result.declined,
            "time/seconds": result.seconds,
            "traffic/bytes_up": result.bytes_up,
            "traffic/bytes_down": result.bytes_down,
        }
        if result.epsilon is not None:
            values["privacy/epsilon"] = result.epsilon
        if result.validation is not None:
            values["validation/accuracy"] = result.validation.accuracy
            values["validation/macro_f1"] = result.validation.macro_f1
        for name, value in values.items():
            self._writer.add_scalar(name, value, result.round)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def check_trackers(names: Sequence[str]) -> None:
    """Raise ConfigError where one is not known here, MissingExtra where one's package is not."""
    for name in names:
        check = getattr(_find(name), "check", None)
        if check is not None:
            check()


class Trackers(ExitStack):
    """All that a run names, opened together and closed together."""

    def __init__(self, names: Sequence[str], run_folder: Path) -> None:
        """Raises ConfigError where one is not known, OutputError where one cannot write."""
        super().__init__()
        self._trackers = []
        for name in names:
            tracker = _find(name)(run_folder)
            self.callback(tracker.close)
            self._trackers.append(tracker)

    def on_round(self, result: RoundResult) -> None:
        for tracker in self._trackers:
            tracker.on_round(result)


def _find(name: str) -> Callable[[Path], Tracker]:
    if name not in TRACKERS:
        load_extensions()
    if name not in TRACKERS:
        raise ConfigError(
            f"output.trackers: {name} is not known here (known: {', '.join(sorted(TRACKERS))})"
        )
    return TRACKERS[name]
