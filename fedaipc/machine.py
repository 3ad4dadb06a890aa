"""What this process may use of its machine: memory, processors, and what they are.

The system's own figures are the host's. A service or a container has a control group whose limits
are lower, and the lowest among a group and all those above it counts.
"""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")
_CPU_INFO = Path("/proc/cpuinfo")
# Those that training uses: vector units, and bfloat16 and matrix tiles beside them.
_INSTRUCTIONS = (
    "sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "avx_vnni",
    "asimd", "bf16", "sve", "sme",
)  # fmt: skip
_LIBRARIES = (
    "torch", "numpy", "opacus", "transformers", "peft", "flwr", "cryptography", "dp-accounting",
    "scipy",
)  # fmt: skip


def memory_total() -> int:
    """Bytes that this process may use at most, with all others in its control group."""
    limits = (limit for limit, _ in _memory_groups())
    return min(int(psutil.virtual_memory().total), *limits, sys.maxsize)


def memory_available() -> int:
    """Bytes that can still be had before the machine or a control group is full."""
    rooms = (max(0, limit - used) for limit, used in _memory_groups())
    return min(int(psutil.virtual_memory().available), *rooms, sys.maxsize)


def cpus() -> int:
    """Processors that this process can keep busy: by affinity and by its groups' quotas."""
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    elif sys.platform == "win32":
        count = len(psutil.Process().cpu_affinity())
    # A quota of 1.5 is used up by two threads and not by one.
    return max(1, min(count, *(math.ceil(quota) for quota in _quotas()), sys.maxsize))


def processor() -> str:
    """As its maker calls it, where the system tells; never empty."""
    name = ""
    with suppress(OSError, subprocess.SubprocessError):
        if sys.platform == "darwin":
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
            name = done.stdout.strip()
        elif sys.platform == "win32":
            import winreg

            where = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, where) as key:
                name = str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
        else:
            name = _cpu_info("model name")
    return name or platform.processor() or platform.machine() or "unknown"


def instructions() -> tuple[str, ...]:
    """Those that matter for training; empty where the system does not list them."""
    flags = set((_cpu_info("flags") or _cpu_info("Features")).split())
    return tuple(name for name in _INSTRUCTIONS if name in flags)


def libraries() -> dict[str, str]:
    """Versions of those that decide how fast training is and what it computes."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def facts() -> dict[str, object]:
    """What a measurement was taken on, for the file with its result."""
    import torch

    return {
        "processor": processor(),
        "instructions": list(instructions()),
        "torch_kernels": torch.backends.cpu.get_cpu_capability(),
        "cores": cpus(),
        "memory_gib": round(memory_total() / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "libraries": libraries(),
    }


def _cpu_info(name: str) -> str:
    """The first value of that name that Linux reports for a processor, or ""."""
    with suppress(OSError):
        for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return ""


def _memory_groups() -> Iterator[tuple[int, int]]:
    """Limit and use in bytes of each group; pages of files that can be dropped are not used."""
    for folder in _folders("memory"):
        limits = [
            limit
            for name in ("memory.max", "memory.high", "memory.limit_in_bytes")
            if (limit := _number(folder / name)) is not None
        ]
        used = _number(folder / "memory.current")
        if used is None:
            used = _number(folder / "memory.usage_in_bytes")
        if limits:
            yield min(limits), max(0, (used or 0) - _droppable(folder / "memory.stat"))


def _droppable(path: Path) -> int:
    found = {}
    with suppress(OSError, ValueError):
        for line in path.read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            found[name] = int(value)
    return found.get("total_inactive_file", found.get("inactive_file", 0))


def _quotas() -> Iterator[float]:
    """Processors' worth of time that each group has."""
    for folder in _folders("cpu"):
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
            if quota != "max":
                yield int(quota) / int(period)
            continue
        own, period_of = (_number(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if own is not None and own > 0 and period_of:
            yield own / period_of


def _number(path: Path) -> int | None:
    """What a file of a control group says; None where it is missing or says "max"."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _folders(controller: str) -> Iterator[Path]:
    """Folders of the own control group and of all above it, for version 1 and 2.

    In a container the path may be the host's, which does not exist inside: what is there counts.
    """
    try:
        lines = _OWN_GROUPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            roots = [_GROUPS, _GROUPS / "unified"]
        elif controller in names.split(","):
            roots = [_GROUPS / names, _GROUPS / controller]
        else:
            continue
        root = next((root for root in roots if root.is_dir()), None)
        if root is None or ".." in Path(path).parts:
            continue
        folder = root / path.lstrip("/")
        while True:
            if folder.is_dir():
                yield folder
            if folder == root:
                break
            folder = folder.parent
