"""Scalars of a run for TensorBoard, written as rounds end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedaipc.errors import OutputError, os_errors_as
from fedaipc.extras import need
from fedaipc.report.tracking import register_tracker

if TYPE_CHECKING:
    from pathlib import Path

    from fedaipc.results import RoundResult

FOLDER = "tensorboard"


@register_tracker("tensorboard")
class Scalars:
    """Writes below RUN/tensorboard; give that folder to `tensorboard --logdir`."""

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
