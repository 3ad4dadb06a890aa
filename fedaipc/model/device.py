"""Which device trains, and why."""

from __future__ import annotations

import ctypes
import platform
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from fedaipc.errors import ModelError
from fedaipc.machine import cpus

if TYPE_CHECKING:
    from fedaipc.config import SpeedSettings


@dataclass(frozen=True, slots=True)
class Device:
    """A device and the reason it was chosen, to be shown to the user."""

    torch: torch.device
    dtype: str
    reason: str


def choose_device(speed: SpeedSettings) -> Device:
    """The device asked for, or the best one present. Sets torch's thread count and allocator.

    Raises ModelError where the device asked for is not there.
    """
    # torch knows the processors that a process may run on, but not how much of their time.
    threads = speed.threads or min(torch.get_num_threads(), cpus())
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    _keep_freed_memory()
    present = {
        "cuda": torch.cuda.is_available(),
        "xpu": torch.xpu.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if speed.device != "auto":
        if not present[speed.device]:
            names = ", ".join(name for name, there in present.items() if there)
            raise ModelError(f"speed.device = {speed.device}: not on this machine (has: {names})")
        name, why = str(speed.device), "asked for in speed.device"
    else:
        name = next(name for name, there in present.items() if there)
        missing = [other for other in ("cuda", "xpu", "mps") if not present[other]]
        why = f"no {', '.join(missing)} here" if name == "cpu" else f"{name} is present"
    digits = "results compare across PCs" if speed.precision == "float32" else "asked for"
    return Device(torch.device(name), speed.precision, f"{why}; {speed.precision}: {digits}")


def has_fused_steps(device: torch.device) -> bool:
    """Whether torch's optimizers can take one pass over a parameter there, in place of several."""
    return device.type in {"cpu", "cuda"}


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h of the GNU C library
_KEPT = 1 << 30  # bytes


@lru_cache(maxsize=1)
def _keep_freed_memory() -> None:
    """Let the GNU C library keep what is freed: the next step asks for the same again.

    Otherwise each step gets its memory from the system again, page by page, which costs a private
    step up to an eighth of its time. Elsewhere the system's own allocator decides.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_TRIM_THRESHOLD, _KEPT)
        library.mallopt(_MMAP_THRESHOLD, 32 << 20)  # as much as the setting takes
