"""The same apps in this process and on Flower's own runtime: one model, nothing left behind."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedaipc.errors import BudgetExhausted, EngineError
from fedaipc.results import Results, RoundResult
from fedaipc.simulation import flower_engine, processes
from fedaipc.simulation.simulation import prepare, reopen, simulate
from tests.support.jobs import tiny
from tests.support.runs import allow, ledgers, quiet

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
        raise EngineError("that is enough")

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.setattr(flower_engine, "run_on_flower_simulation", engine)
    run = prepare(tiny(f"output.folder='{tmp_path}'"), pc_state=tmp_path / "shared")
    with pytest.raises(EngineError, match="enough"):
        simulate(run, "flower", quiet)
    assert asked["run_config"]["pc-state"] == str(tmp_path / "shared")
    assert asked["num_pcs"] == 3
    assert asked["cpus_per_pc"] == 1
