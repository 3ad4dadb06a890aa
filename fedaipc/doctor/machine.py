"""What is in this PC, as far as the system and torch tell."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from fedaipc.machine import cpus, memory_available, memory_total, processor

_RAPL = Path("/sys/class/powercap")
_ACCELERATORS = Path("/sys/class/accel")


@dataclass(frozen=True, slots=True)
class Machine:
    """`features` are those of the processor that training uses; `idle` cannot train here."""

    processor: str
    cores: int
    features: tuple[str, ...]
    memory_bytes: int
    free_bytes: int
    devices: tuple[str, ...]
    idle: tuple[str, ...]


def this_machine() -> Machine:
    """Never raises: what cannot be found out is left out."""
    return Machine(
        processor=processor(),
        cores=cpus(),
        features=features(),
        memory_bytes=memory_total(),
        free_bytes=memory_available(),
        devices=_devices(),
        idle=_neural_units(),
    )


def features() -> tuple[str, ...]:
    """Instructions of the processor that matter for training."""
    import torch

    found = [torch.backends.cpu.get_cpu_capability()]
    for name, test in (
        ("bfloat16 (AVX-512)", "_is_avx512_bf16_supported"),
        ("matrix tiles (AMX)", "_is_amx_tile_supported"),
    ):
        if getattr(torch.cpu, test, lambda: False)():  # private names: absent in another torch
            found.append(name)
    return tuple(found)


def _devices() -> tuple[str, ...]:
    import torch

    found = []
    for kind in ("cuda", "xpu"):
        module = getattr(torch, kind)
        if module.is_available():
            for number in range(module.device_count()):
                facts = module.get_device_properties(number)
                found.append(f"{kind}: {facts.name}, {facts.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        found.append("mps: Apple GPU")
    return tuple(found)


def _neural_units() -> tuple[str, ...]:
    """Neural processing units that Linux lists. torch cannot train on them."""
    if not _ACCELERATORS.is_dir():
        return ()
    return tuple(f"NPU {path.name}" for path in sorted(_ACCELERATORS.iterdir()))


class PowerMeter:
    """Energy of the processor package, where the system allows it (RAPL)."""

    def __init__(self) -> None:
        self._files = [
            path
            for path in sorted(_RAPL.glob("intel-rapl:?/energy_uj"))
            if os.access(path, os.R_OK)
        ]
        self._start = self._read()
        self._clock = time.monotonic()

    def watts(self) -> float | None:
        """Mean power since this meter was made; None where it cannot be read."""
        seconds = time.monotonic() - self._clock
        used = self._read() - self._start
        return used / 1e6 / seconds if self._files and seconds > 0 and used > 0 else None

    def _read(self) -> int:
        return sum(int(path.read_text(encoding="ascii")) for path in self._files)
