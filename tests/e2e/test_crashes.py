"""Drop-outs and kill -9: a run comes back, ends as if nothing had been, and never under-reports."""

from __future__ import annotations

import random
import shutil
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from fedaipc.coordinator import server_app
from fedaipc.coordinator.evaluation import Evaluation
from fedaipc.errors import BudgetExhausted, OutputError, RoundError
from fedaipc.model.export import Exported
from fedaipc.privacy.budget import planned_epsilon, round_schedule
from fedaipc.protocol.job_folder import TEST_FILE
from fedaipc.results import RESULTS_FILE, Results
from fedaipc.simulation.simulation import Run, prepare, reopen, simulate
from tests.support.jobs import tiny
from tests.support.killed_run import TRACE, kill
from tests.support.runs import ledgers, quiet

if TYPE_CHECKING:
    from pathlib import Path

    from fedaipc.config import Settings
    from fedaipc.model.classifier import Classifier

needs_kill = pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9 there")


def settings(folder: Path, *changes: str) -> Settings:
    return tiny(
        f"output.folder='{folder}'",
        "rounds=4",
        "server.kind=fedadam",
        *changes,
    )


def check_ledgers(run: Run) -> None:
    """Attempts strictly grow; no PC trained or sent more than it was charged for, or agreed on two
    sets in a round.
    """
    path = run.folder / TRACE
    events = Counter(path.read_text().splitlines() if path.is_file() else [])
    for name, ledger in ledgers(run).items():
        attempts = [charge.attempt for charge in ledger.charges]
        assert attempts == sorted(set(attempts))
        assert len(attempts) >= events[f"trains {name}"] >= events[f"sends {name}"]
        rounds = [charge.round for charge in ledger.charges]
        assert rounds == sorted(rounds)
    bound = {event for event in events if event.startswith("binds ")}
    assert len(bound) == len({event.rsplit(" ", 1)[0] for event in bound})  # one set a round


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Results:
    with pytest.MonkeyPatch.context() as patch:
        zeros = {"rdp": 0.0, "prv": 0.0, "pld": 0.0}
        patch.setattr(server_app, "planned_epsilon", lambda *_: zeros)
        run = prepare(settings(tmp_path_factory.mktemp("unbroken")), test_seed=7)
        return simulate(run, "in-process", quiet)


@pytest.mark.slow
def test_a_run_with_a_third_of_the_pcs_vanishing_gets_through(tmp_path: Path, minilm: Path) -> None:
    run = prepare(
        settings(
            tmp_path,
            "federation.dropout_rate=0.3",
            "federation.clients=5",
            "federation.min_clients=3",
        )
    )
    results = simulate(run, "in-process", quiet)
    assert results.status == "finished"
    done = [r for r in results.rounds if not r.void]
    assert [r.round for r in done] == [1, 2, 3, 4]
    assert all(r.arrived >= 3 for r in done)
    assert all(r.arrived < 3 for r in results.rounds if r.void)
    assert sum(r.dropped for r in results.rounds) > 0
    assert all(r.asked == r.arrived + r.dropped for r in results.rounds)
    # A PC that vanished was charged all the same.
    attempts = len(results.rounds)
    assert {len(ledger.charges) for ledger in ledgers(run).values()} == {attempts}
    assert {pc.charges for pc in results.pcs} == {attempts}


def test_without_pcs_enough_the_run_gives_up_and_keeps_what_it_has(
    tmp_path: Path, minilm: Path
) -> None:
    run = prepare(settings(tmp_path, "federation.dropout_rate=1.0", "federation.spare_attempts=1"))
    with pytest.raises(RoundError, match="attempts"):
        simulate(run, "in-process", quiet)
    results = Results.load(run.folder)
    assert results.status == "interrupted"
    assert [r.void for r in results.rounds] == [True] * 5
    assert all(pc.charges == 5 for pc in results.pcs)


def test_the_same_run_twice_gives_the_same_model(unbroken: Results, tmp_path: Path) -> None:
    again = simulate(prepare(settings(tmp_path), test_seed=7), "in-process", quiet)
    assert again.model.vector_hash == unbroken.model.vector_hash
    other = simulate(prepare(settings(tmp_path), test_seed=8), "in-process", quiet)
    assert other.model.vector_hash != unbroken.model.vector_hash
    assert again.not_private
    assert other.not_private


@pytest.mark.slow
def test_without_a_test_seed_no_run_is_like_another(tmp_path: Path, minilm: Path) -> None:
    hashes = {
        simulate(prepare(settings(tmp_path, "rounds=1")), "in-process", quiet).model.vector_hash
        for _ in range(2)
    }
    assert len(hashes) == 2


def finish(folder: Path, unbroken: Results, killed: int) -> None:
    run = reopen(folder)
    check_ledgers(run)
    results = simulate(run, "in-process", quiet)
    assert results.status == "finished"
    assert results.model.vector_hash == unbroken.model.vector_hash
    assert [r.round for r in results.rounds] == [1, 2, 3, 4]
    attempts = [r.attempt for r in results.rounds]
    assert attempts == sorted(set(attempts))
    assert attempts[-1] <= 4 + killed
    check_ledgers(run)
    charges = max(len(ledger.charges) for ledger in ledgers(run).values())
    assert charges >= 4
    assert results.charged == results.rounds[-1].charged == charges
    with pytest.raises(RoundError, match="finished"):
        reopen(folder)


def test_a_run_that_dies_in_its_last_evaluation_has_its_model(
    tmp_path: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What all PCs were charged for is on the disk before anything more is computed."""

    class Killed(BaseException):
        pass

    class Mortal(Evaluation):
        def __init__(self, classifier: Classifier, path: Path, *rest: Any) -> None:
            if path.name == TEST_FILE:
                raise Killed
            super().__init__(classifier, path, *rest)

    monkeypatch.setattr(server_app, "Evaluation", Mortal)
    run = prepare(settings(tmp_path))
    with pytest.raises(Killed):
        simulate(run, "in-process", quiet)
    assert Exported.load(run.folder / server_app.MODEL_FOLDER)


@pytest.mark.slow
@needs_kill
def test_a_run_killed_in_training_and_after_a_checkpoint_ends_as_an_unbroken_one(
    unbroken: Results, tmp_path: Path
) -> None:
    run = prepare(settings(tmp_path), test_seed=7)
    assert kill(run.folder, "in training", 5)  # the second PC of round 2
    assert Results.load(run.folder).status == "interrupted"
    check_ledgers(run)
    assert {len(ledger.charges) for ledger in ledgers(run).values()} == {1, 2}
    assert kill(run.folder, "between a checkpoint and the results", 1)
    finish(run.folder, unbroken, killed=2)


@pytest.mark.slow
@needs_kill
def test_the_epsilon_that_a_resumed_run_shows_is_the_one_in_the_ledgers(
    tmp_path: Path, minilm: Path
) -> None:
    """Attempts that were cut off before they charged anybody cost nothing, and show nothing."""
    planned = planned_epsilon(round_schedule(settings(tmp_path)), 4)["rdp"]
    run = prepare(settings(tmp_path, f"federation.lifetime_epsilon={planned * (1 + 1e-6)}"))
    assert kill(run.folder, "when a counter is kept", 4)  # round 3 is numbered, and nobody asked
    assert kill(run.folder, "after a charge", 1)  # of the first PC, for round 3
    with pytest.raises(BudgetExhausted):
        simulate(reopen(run.folder), "in-process", quiet)
    results = Results.load(run.folder)
    spent = [pc.epsilon for pc in results.pcs if pc.epsilon is not None]
    assert results.rounds[-1].attempt == 5
    assert sorted(pc.charges for pc in results.pcs) == [3, 3, 4]
    assert results.rounds[-1].epsilon == pytest.approx(max(spent), rel=1e-9)
    assert max(spent) <= planned * (1 + 1e-6)


POINTS = (
    ("while a charge is written", 4),
    ("after a charge", 2),
    ("when an update is sent", 3),
    ("before a checkpoint", 2),
    ("between a checkpoint and the results", 1),
    ("when an attempt is numbered", 1),
    ("when a counter is kept", 2),  # the epoch's, then the attempt's
    ("in training", 1),
    ("before a set is recorded", 2),
    ("when a set is recorded", 2),
    ("when a word is sent", 5),
    ("when keys are made", 2),
    ("at the end", 1),
)


@needs_kill
@pytest.mark.slow
@pytest.mark.parametrize(("point", "nth"), POINTS)
def test_a_run_killed_once_ends_as_an_unbroken_one(
    unbroken: Results, tmp_path: Path, point: str, nth: int
) -> None:
    run = prepare(settings(tmp_path), test_seed=7)
    assert kill(run.folder, point, nth)
    finish(run.folder, unbroken, killed=1)


@needs_kill
@pytest.mark.slow
def test_a_run_killed_at_every_point_in_turn_ends_as_an_unbroken_one(
    unbroken: Results, tmp_path: Path
) -> None:
    run = prepare(settings(tmp_path), test_seed=7)
    killed = 0
    for point, nth in POINTS:
        killed += kill(run.folder, point, nth)
        check_ledgers(run)
    assert killed >= len(POINTS) - 1
    finish(run.folder, unbroken, killed)


@needs_kill
@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_an_unbroken_one(
    unbroken: Results, tmp_path: Path
) -> None:
    run = prepare(settings(tmp_path), test_seed=7)
    draw = random.Random(1)
    killed = 0
    done = False  # a kill may come between the end of the run and that of its process
    while (
        not done
        and killed < 5
        and kill(run.folder, "seconds after its start", draw.uniform(0, 0.5))
    ):
        killed += 1
        check_ledgers(run)
        results = run.folder / RESULTS_FILE
        done = results.is_file() and Results.load(run.folder).status == "finished"
    assert killed
    if killed == 5 and not done:
        finish(run.folder, unbroken, killed)
    assert Results.load(run.folder).model.vector_hash == unbroken.model.vector_hash


@needs_kill
@pytest.mark.slow
def test_a_run_killed_more_often_than_it_has_spare_attempts_says_so(
    tmp_path: Path, minilm: Path
) -> None:
    run = prepare(settings(tmp_path, "federation.spare_attempts=1"), test_seed=7)
    for _ in range(5):
        assert kill(run.folder, "after a charge", 1)
    charges = [len(ledger.charges) for ledger in ledgers(run).values()]
    assert sorted(charges) == [0, 0, 5]
    with pytest.raises(RoundError, match="allows no more than 5 attempts"):
        simulate(reopen(run.folder), "in-process", quiet)
    assert [len(ledger.charges) for ledger in ledgers(run).values()] == charges


def test_what_is_no_run_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not a run folder"):
        reopen(tmp_path)


def test_a_run_whose_pcs_are_gone_is_not_resumed(tmp_path: Path, minilm: Path) -> None:
    run = prepare(settings(tmp_path))
    shutil.rmtree(run.pc_state)
    with pytest.raises(OutputError, match="was not found"):
        reopen(run.folder)
