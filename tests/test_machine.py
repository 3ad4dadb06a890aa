"""What a process has of its machine, not what the machine has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from fedaipc import machine
from fedaipc.config import AvailabilitySettings

GIB = 2**30


class Groups:
    """A folder like /sys/fs/cgroup, and a file like /proc/self/cgroup."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = folder / "cgroup"
        self._own = folder / "own"
        self.root.mkdir()
        monkeypatch.setattr(machine, "_GROUPS", self.root)
        monkeypatch.setattr(machine, "_OWN_GROUPS", self._own)
        free = SimpleNamespace(total=64 * GIB, available=48 * GIB)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
        monkeypatch.setattr(os, "cpu_count", lambda: 16)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)

    def own(self, lines: str) -> None:
        self._own.write_text(lines)

    def write(self, group: str, **files: Any) -> None:
        folder = self.root / group
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            (folder / name.replace("__", ".")).write_text(f"{value}\n")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Groups:
    return Groups(tmp_path, monkeypatch)


def test_without_limits_it_is_the_machines(groups: Groups) -> None:
    assert machine.memory_total() == 64 * GIB
    assert machine.memory_available() == 48 * GIB
    assert machine.cpus() == 16
    groups.own("0::/\n")  # a group without files of limits, as the topmost
    assert (machine.memory_total(), machine.cpus()) == (64 * GIB, 16)


def test_a_units_limits_count_in_version_2(groups: Groups) -> None:
    groups.own("0::/system.slice/fedaipc.service\n")
    unit = "system.slice/fedaipc.service"
    groups.write("system.slice", memory__max="max", memory__current=9 * GIB, cpu__max="max 100000")
    groups.write(
        unit, memory__max=4 * GIB, memory__high="max", memory__current=3 * GIB,
        memory__stat=f"anon {2 * GIB}\ninactive_file {GIB}", cpu__max="150000 100000",
    )  # fmt: skip
    assert machine.memory_total() == 4 * GIB
    assert machine.memory_available() == 2 * GIB  # a GiB of pages of files can be dropped
    assert machine.cpus() == 2
    groups.write(unit, memory__high=3 * GIB)  # where the kernel begins to hold it back
    assert machine.memory_total() == 3 * GIB
    groups.write(unit, memory__current=9 * GIB)
    assert machine.memory_available() == 0


def test_the_lowest_limit_of_all_groups_above_counts(groups: Groups) -> None:
    groups.own("0::/user.slice/user-1000.slice/app\n")
    groups.write("user.slice", memory__max=8 * GIB, memory__current=7 * GIB, cpu__max="max 100000")
    groups.write("user.slice/user-1000.slice", cpu__max="300000 100000")
    groups.write("user.slice/user-1000.slice/app", memory__max=20 * GIB, memory__current=GIB)
    assert machine.memory_total() == 8 * GIB
    assert machine.memory_available() == GIB
    assert machine.cpus() == 3


@pytest.mark.parametrize("inside", ["box/1", "."], ids=["on the host", "in a container"])
def test_version_1_has_a_tree_for_each_controller(groups: Groups, inside: str) -> None:
    groups.own("4:memory:/box/1\n3:cpu,cpuacct:/box/1\n1:name=systemd:/box/1\n0::/\n")
    groups.write(
        f"memory/{inside}", memory__limit_in_bytes=2 * GIB, memory__usage_in_bytes=GIB,
        memory__stat=f"inactive_file 1\ntotal_inactive_file {GIB // 2}",
    )  # fmt: skip
    groups.write(f"cpu,cpuacct/{inside}", cpu__cfs_quota_us=400000, cpu__cfs_period_us=100000)
    if inside != ".":
        groups.write("memory", memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=5 * GIB)
        groups.write("cpu,cpuacct", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    assert machine.memory_total() == 2 * GIB
    assert machine.memory_available() == GIB + GIB // 2
    assert machine.cpus() == 4


@pytest.mark.parametrize("own", ["", "nonsense", "0::/../../etc\n", "4:memory:\n", "\xff::\n"])
def test_a_file_that_says_something_else_is_no_crash(groups: Groups, own: str) -> None:
    groups.own(own)
    groups.write(".", memory__max="lots", cpu__max="0 0", memory__stat="x")
    assert machine.memory_total() == 64 * GIB
    assert machine.cpus() == 16


def test_a_pc_rests_while_its_unit_is_short_of_memory(groups: Groups) -> None:
    """With systemd's MemoryMax: the machine has 48 GiB free, the unit has one."""
    groups.own("0::/fedaipc.service\n")
    groups.write("fedaipc.service", memory__max=4 * GIB, memory__current=3 * GIB)
    from fedaipc.client.availability import Availability

    available = Availability(AvailabilitySettings(low_priority=False, min_free_gib=2.0))
    assert available() == "only 1.0 GiB of memory are free, and min_free_gib in owner.toml is 2"


def test_affinity_counts(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    groups.own("0::/a\n")
    groups.write("a", cpu__max="800000 100000")
    assert machine.cpus() == 3


def test_torch_takes_no_more_threads_than_the_quota(
    groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from fedaipc.config import SpeedSettings
    from fedaipc.model.device import choose_device

    set_to: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    groups.own("0::/a\n")
    groups.write("a", cpu__max="200000 100000")
    choose_device(SpeedSettings(device="cpu"))
    choose_device(SpeedSettings(device="cpu", threads=5))  # asked for
    assert set_to == [2, 5]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux sets affinities")
def test_a_process_that_is_tied_to_one_processor_has_one() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from fedaipc.machine import cpus; print(cpus())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_a_measurement_names_its_machine() -> None:
    found = machine.facts()
    assert found["processor"]
    assert {"python", "torch", "opacus", "transformers"} <= set(machine.libraries())
    assert {"instructions", "torch_kernels", "cores", "memory_gib", "libraries"} <= set(found)


def test_linux_tells_the_processors_name_and_instructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Some CPU: at 2 GHz\nflags\t\t: sse4_2 avx2 x\n")
    monkeypatch.setattr(machine, "_CPU_INFO", info)
    monkeypatch.setattr(sys, "platform", "linux")
    assert machine.processor() == "Some CPU: at 2 GHz"
    assert machine.instructions() == ("sse4_2", "avx2")
    info.write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")  # ARM names no model
    assert machine.processor()
    assert machine.instructions() == ("asimd", "bf16")


# Written before scripts named their machine: a file that is measured anew leaves this list.
_UNNAMED: set[str] = set()
_NO_TIMES = {"broken_builds.json"}  # counts of what attacks found, on any machine


def test_every_result_names_its_machine_but_those_from_before() -> None:
    folder = Path(__file__).parents[1] / "scripts" / "bench" / "results"
    unnamed = set()
    for path in folder.glob("*.json"):
        named = json.loads(path.read_text("utf-8")).get("machine", {})
        if not (named.get("processor") and named.get("instructions")):
            unnamed.add(path.name)
    assert unnamed == _UNNAMED | _NO_TIMES


def test_every_benchmark_names_its_machine() -> None:
    folder = Path(__file__).parents[1] / "scripts" / "bench"
    writers = [
        path
        for path in folder.glob("*.py")
        if "RESULT.write_text(" in (text := path.read_text("utf-8")) or "out.write_text(" in text
    ]
    assert len(writers) == 11
    unnamed = [p.name for p in writers if "facts()" not in p.read_text("utf-8")]
    assert unnamed == []
