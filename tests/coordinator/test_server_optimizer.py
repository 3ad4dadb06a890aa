"""FedAvg, FedAvgM and FedAdam against a slow reading of the papers, and across a restart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fedaipc.config import FedAdam, FedAvg, FedAvgM, ServerOptimizer
from fedaipc.coordinator.checkpoint import FILE, Checkpoint, Counters
from fedaipc.errors import OutputError, RoundError

if TYPE_CHECKING:
    from pathlib import Path

OPTIMIZERS = ("fedavg", "fedavgm", "fedadam")
SIZE, ROUNDS = 6, 5
RATE, BETA1, BETA2, TAU = 0.3, 0.8, 0.95, 0.01
LAYOUT = "a" * 64


def made(name: str) -> ServerOptimizer:
    return {
        "fedavg": FedAvg(learning_rate=RATE),
        "fedavgm": FedAvgM(learning_rate=RATE, momentum=BETA1),
        "fedadam": FedAdam(learning_rate=RATE, beta1=BETA1, beta2=BETA2, tau=TAU),
    }[name]


def updates() -> list[np.ndarray]:
    return list(np.random.default_rng(3).normal(size=(ROUNDS, SIZE)).astype(np.float32))


def slowly(name: str) -> list[float]:
    """One coordinate at a time, in Python's floats.

    FedAdam is algorithm 2 of Reddi et al. (ICLR 2021): m starts at 0, v at tau squared, and
    x += eta m / (sqrt(v) + tau). FedAvgM is Hsu et al. 2019: v = beta v + delta, x += eta v.
    """
    result = []
    for j in range(SIZE):
        x, m, v = 1.0, 0.0, (TAU**2 if name == "fedadam" else 0.0)
        for update in updates():
            delta = float(update[j])
            if name == "fedavg":
                x += RATE * delta
            elif name == "fedavgm":
                v = BETA1 * v + delta
                x += RATE * v
            else:
                m = BETA1 * m + (1 - BETA1) * delta
                v = BETA2 * v + (1 - BETA2) * delta**2
                x += RATE * m / (math.sqrt(v) + TAU)
        result.append(x)
    return result


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_equal_the_papers_algorithm(name: str) -> None:
    state: dict[str, np.ndarray] = {}
    vector = np.ones(SIZE, np.float32)
    for update in updates():
        vector = made(name).step(vector, update, state)
        assert vector.dtype == np.float32
    np.testing.assert_allclose(vector, slowly(name), rtol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restart_after_every_round_changes_no_bit(name: str, tmp_path: Path) -> None:
    unbroken: dict[str, np.ndarray] = {}
    whole = np.ones(SIZE, np.float32)
    Checkpoint(layout_hash=LAYOUT, vector=whole).save(tmp_path)
    for update in updates():
        whole = made(name).step(whole, update.copy(), unbroken)
        checkpoint = Checkpoint.load(tmp_path, LAYOUT)
        assert checkpoint is not None
        checkpoint.vector = made(name).step(checkpoint.vector, update.copy(), checkpoint.optimizer)
        checkpoint.round += 1
        checkpoint.save(tmp_path)
    last = Checkpoint.load(tmp_path, LAYOUT)
    assert last is not None
    assert last.round == ROUNDS
    assert last.vector.tobytes() == whole.tobytes()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_leaves_the_model_and_what_it_gave_before_alone(name: str) -> None:
    vector = np.ones(SIZE, np.float32)
    state: dict[str, np.ndarray] = {}
    first = made(name).step(vector, np.full(SIZE, 2, np.float32), state)
    kept = first.copy()
    made(name).step(first, np.full(SIZE, 2, np.float32), state)
    np.testing.assert_array_equal(vector, 1)
    np.testing.assert_array_equal(first, kept)


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert Checkpoint.load(tmp_path, LAYOUT) is None


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    Checkpoint(layout_hash=LAYOUT, vector=np.ones(2, np.float32)).save(tmp_path)
    with pytest.raises(RoundError, match="another model"):
        Checkpoint.load(tmp_path, "b" * 64)


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.3, 0.9, 0.999])
def test_a_torn_checkpoint_is_refused_in_one_line(tmp_path: Path, kept: float) -> None:
    Checkpoint(layout_hash=LAYOUT, vector=np.ones(500, np.float32)).save(tmp_path)
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[: int(kept * len(content))])
    with pytest.raises(RoundError, match="damaged"):
        Checkpoint.load(tmp_path, LAYOUT)


def test_counters_survive_and_are_on_the_disk_when_they_advance(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        counters = Counters(tmp_path)
        assert (counters.attempt, counters.epoch) == (number - 1, 2 * number - 2)
        counters.advance(attempt=number)
        counters.advance(epoch=2 * number)
    assert [path.name for path in tmp_path.iterdir()] == ["counters.json"]


@pytest.mark.parametrize(
    "content",
    ["", "x", "[1]", "null", '{"a": 1}', '{"attempt": 1}', '{"attempt": 1.5, "epoch": 1}'],
)
def test_damaged_counters_stop_the_run(tmp_path: Path, content: str) -> None:
    """To start again at 1 would make every PC refuse for good."""
    (tmp_path / "counters.json").write_text(content)
    with pytest.raises(OutputError, match="counters"):
        Counters(tmp_path)
    assert (tmp_path / "counters.json").read_text() == content
