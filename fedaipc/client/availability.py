"""Whether a PC works now, and with what priority: its owner's wishes, by what psutil measures.

The one module that asks the operating system for its load, power supply and priorities. Memory
is what this process may still use, which under systemd's MemoryMax is less than what is free.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil

from fedaipc import machine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fedaipc.config import AvailabilitySettings


class Availability:
    """Call it before each piece of work: None, or why not now.

    `data` says where the PC's texts are, None where they are not a file of its own. While they
    cannot be found, as on a disk that is not plugged in, no budget is spent on training on nothing.
    """

    def __init__(
        self, settings: AvailabilitySettings, data: Callable[[], Path | None] = lambda: None
    ) -> None:
        self._settings, self._data = settings, data
        self._own = psutil.Process()
        psutil.cpu_percent()  # the first value of each is meaningless
        self._own.cpu_percent()
        if settings.low_priority:
            _give_way(self._own)

    def __call__(self) -> str | None:
        """Cheap enough to ask often."""
        data = self._data()
        if data is not None and not os.path.exists(data):  # noqa: PTH110 - which never raises
            return f"{data} was not found: put it back, or change source in owner.toml"
        if self._settings.only_on_mains and _on_battery():
            return "on battery"
        free = machine.memory_available() / 2**30
        least = self._settings.min_free_gib
        if free < least:
            return (
                f"only {free:.1f} GiB of memory are free, and min_free_gib in owner.toml is "
                f"{least:g}"
            )
        most = self._settings.max_load
        if most is not None:
            others = self.others_load()
            if others > most:
                return f"others use {others:.0%} of the processor"
        return None

    def others_load(self) -> float:
        """Share of the whole machine's processors that others used since the last call."""
        own = self._own.cpu_percent() / max(1, os.cpu_count() or 1)
        return max(0.0, float(psutil.cpu_percent()) - float(own)) / 100


def _on_battery() -> bool:
    """A PC without a battery is on mains."""
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return battery is not None and battery.power_plugged is False


def _give_way(process: psutil.Process) -> None:
    with suppress(psutil.Error, OSError):
        if sys.platform == "win32":
            process.nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)
        else:
            process.nice(10)
