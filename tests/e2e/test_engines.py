"""The same apps in this process and on Flower's own runtime: one model, nothing left behind."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from fedaipc.errors import BudgetExhausted, EngineError
from fedaipc.fleet.subprocesses import free_port
from fedaipc.results import Results, RoundResult
from fedaipc.simulation import flower_engine, processes
from fedaipc.simulation.simulation import prepare, reopen, simulate
from tests.support.jobs import tiny
from tests.support.runs import allow, ledgers, quiet

if TYPE_CHECKING:
    from collections.abc import Callable

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed"
)


def left_behind() -> tuple[set[int], set[Path]]:
    """Processes of any engine's job, and its folders."""
    marked = set()
    for process in psutil.process_iter():
        try:
            if processes.JOB_MARK in process.environ():
                marked.add(process.pid)
        except psutil.Error:
            continue
    return marked, set(Path(tempfile.gettempdir()).glob("fedaipc-*"))


@needs_ray
@pytest.mark.alone
@pytest.mark.slow
def test_both_engines_give_the_same_model_and_the_same_ledgers(
    tmp_path: Path, minilm: Path
) -> None:
    settings = tiny(
        f"output.folder='{tmp_path}'",
        "model.train.kind=bitfit",
        "server.kind=fedadam",
    )
    before = left_behind()
    results, charges = {}, {}
    for engine in ("in-process", "flower"):
        run = prepare(settings, test_seed=3)
        told: list[RoundResult] = []
        results[engine] = simulate(run, engine, told.append)
        assert tuple(told) == results[engine].rounds
        charges[engine] = [
            [(c.round, c.attempt, c.schedule) for c in own.charges] for own in ledgers(run).values()
        ]
    one, other = results["in-process"], results["flower"]
    assert (one.engine, other.engine) == ("in-process", "flower")
    assert one.model.vector_hash == other.model.vector_hash
    assert one.test == other.test
    assert [(r.arrived, r.bytes_up, r.bytes_down, r.epsilon) for r in one.rounds] == [
        (r.arrived, r.bytes_up, r.bytes_down, r.epsilon) for r in other.rounds
    ]
    assert charges["in-process"] == charges["flower"]
    now = left_behind()
    assert now[0] <= before[0]
    assert now[1] <= before[1]


@needs_ray
@pytest.mark.alone
@pytest.mark.slow
def test_flowers_pcs_find_what_the_frozen_layers_made(
    tmp_path: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states, before = tmp_path / "states", list[Path]()
    real = flower_engine.run_on_flower_simulation

    def engine(**named: Any) -> Any:
        before.extend(states.glob("*.states.npy"))
        return real(**named)

    monkeypatch.setattr(flower_engine, "run_on_flower_simulation", engine)
    run = prepare(
        tiny(f"output.folder='{tmp_path}'", f"speed.cache_folder='{states}'", "speed.threads=0")
    )
    assert simulate(run, "flower", quiet).status == "finished"
    assert len(before) == 3  # of each PC's texts
    assert len(list(states.glob("*.states.npy"))) == 5  # and of the coordinator's two sets


@needs_ray
@pytest.mark.alone
@pytest.mark.slow
def test_a_spent_budget_is_told_through_flowers_runtime(tmp_path: Path, minilm: Path) -> None:
    stopped = prepare(tiny(f"output.folder='{tmp_path}'"))
    for number in range(3):
        allow(stopped, number, rounds=1)
    with pytest.raises(BudgetExhausted):
        simulate(stopped, "flower", quiet)
    results = Results.load(stopped.folder)
    assert results.status == "stopped"
    assert [(r.round, r.void, r.declined) for r in results.rounds] == [(1, False, 0)]
    assert [pc.charges for pc in results.pcs] == [1, 1, 1]


def test_a_cluster_without_a_shared_folder_is_refused(
    tmp_path: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    run = prepare(tiny(f"output.folder='{tmp_path}'"))
    with pytest.raises(EngineError, match="--pc-state"):
        simulate(run, "flower", quiet)
    assert all(own.charges == () for own in ledgers(run).values())
    reopen(run.folder)


def test_a_cluster_with_a_shared_folder_is_taken(
    tmp_path: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def engine(**named: Any) -> None:
        asked.update(named)
        asked["states"] = sorted((tmp_path / "shared").glob("pc-*/cache/*.states.npy"))
        raise EngineError("that is enough")

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.setattr(flower_engine, "run_on_flower_simulation", engine)
    run = prepare(tiny(f"output.folder='{tmp_path}'"), pc_state=tmp_path / "shared")
    with pytest.raises(EngineError, match="enough"):
        simulate(run, "flower", quiet)
    assert asked["run_config"]["pc-state"] == str(tmp_path / "shared")
    assert asked["num_pcs"] == 3
    assert asked["cpus_per_pc"] == 1
    assert asked["states"] == []  # its nodes have more cores than this machine


def _node(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """A node of a Ray cluster, in a group of processes of its own."""
    with (folder / "node.log").open("ab") as log:
        return subprocess.Popen(
            [
                str(Path(sys.executable).parent / "ray"), "start", "--num-cpus=1", "--block",
                "--disable-usage-stats", "--node-ip-address=127.0.0.1", *words,
            ],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


_JOINED = """
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]):
    time.sleep(0.2)
"""


def _processes(node: subprocess.Popen[bytes], name: str) -> int:
    """How many processes with this name a node has."""
    found = 0
    for child in psutil.Process(node.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found += any(name in word for word in child.cmdline())
    return found


def _wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 90
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.2)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _end(node: subprocess.Popen[bytes]) -> None:
    family = [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]
    for process in family:
        with contextlib.suppress(psutil.Error):
            process.kill()
    node.wait()
    psutil.wait_procs(family, timeout=10)


@needs_ray
@pytest.mark.alone
@pytest.mark.slow
def test_all_nodes_of_a_ray_cluster_play_pcs(
    tmp_path: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = tmp_path / "states"
    settings = tiny(
        f"output.folder='{tmp_path}'", "federation.clients=6", "rounds=3",
        f"speed.cache_folder='{states}'",
    )  # fmt: skip
    alone = simulate(prepare(settings, test_seed=4), "in-process", quiet)
    port, sessions = free_port("127.0.0.1"), Path(tempfile.mkdtemp(prefix="ray-"))
    nodes = [
        _node(
            tmp_path, "--head", f"--port={port}", "--include-dashboard=false",
            f"--temp-dir={sessions}",
        )
    ]  # fmt: skip
    most = [0, 0, 0]

    def look(_: object) -> None:
        for number, node in enumerate(nodes):
            most[number] = max(most[number], _processes(node, "ClientAppActor"))

    address = f"127.0.0.1:{port}"
    try:
        _wait_until(lambda: _listens(port))
        for count in (2, 3):  # one after the other: two at once may not both start
            nodes.append(_node(tmp_path, f"--address={address}"))
            words = [sys.executable, "-c", _JOINED, address, str(count)]
            subprocess.run(words, timeout=90, check=True)
        monkeypatch.setenv("RAY_ADDRESS", address)
        shutil.rmtree(states)
        run = prepare(settings, test_seed=4, pc_state=tmp_path / "shared")
        results = simulate(run, "flower", look)
    finally:
        for node in nodes:
            _end(node)
        shutil.rmtree(sessions, ignore_errors=True)
    assert min(most) >= 1, most
    assert len(list(states.glob("*.states.npy"))) == 8  # of each PC's texts, and the two sets
    assert results.model.vector_hash == alone.model.vector_hash
