"""What real runs leave in the ledgers, over one run and over a PC's life."""

from __future__ import annotations

import errno
import importlib
import os
from typing import TYPE_CHECKING

import pytest
from opacus.accountants import RDPAccountant

from fedaipc.client.client import OWNER_FILE
from fedaipc.client.client_app import pc_folder
from fedaipc.config import load_owner, load_settings, settings_from, to_toml
from fedaipc.errors import (
    BudgetExhausted,
    LedgerError,
    OutputError,
    PrivacyError,
    RoundError,
)
from fedaipc.privacy.accountant import ORDERS, epsilon_pld, epsilon_prv
from fedaipc.privacy.budget import best_filter, charged_epsilon, round_schedule
from fedaipc.protocol import job_folder
from fedaipc.results import Results
from fedaipc.simulation import simulated_pc, simulation
from fedaipc.simulation.simulated_pc import join_run
from fedaipc.simulation.simulation import Run, prepare, reopen, simulate
from tests.support.jobs import tiny
from tests.support.runs import allow, job_of, ledger, ledgers, quiet

if TYPE_CHECKING:
    from pathlib import Path

    from fedaipc.config import Settings

PRIVATE = ("privacy.noise_multiplier=1.1", "privacy.sampling_rate=0.2", "training.local_steps=3")


def settings(folder: Path, *changes: str) -> Settings:
    return tiny(f"output.folder='{folder}'", *PRIVATE, *changes)


def ran(settings: Settings, state: Path | None = None) -> tuple[Run, Results]:
    run = prepare(settings, pc_state=state)
    return run, simulate(run, "in-process", quiet)


def test_the_ledger_of_a_run_is_opacus_accountant_composed_over_all_its_steps(
    tmp_path: Path, minilm: Path
) -> None:
    run, results = ran(settings(tmp_path, "rounds=3"))
    accountant = RDPAccountant()
    for _ in range(3 * 3):  # as Opacus itself would count: one step at a time
        accountant.step(noise_multiplier=1.1, sample_rate=0.2)
    expected = accountant.get_epsilon(1e-5, alphas=list(ORDERS))
    own = ledger(run)
    assert own.best_epsilon() == pytest.approx(expected, rel=1e-6)
    assert results.privacy.planned_epsilon is not None
    assert results.privacy.planned_epsilon.rdp == pytest.approx(expected, rel=1e-6)
    assert own.spent_epsilon() >= expected * (1 - 1e-9)
    assert [pc.epsilon for pc in results.pcs] == [own.spent_epsilon()] * 3
    prv, pld = epsilon_prv(own.schedules, 1e-5), epsilon_pld(own.schedules, 1e-5)
    assert abs(prv - pld) <= max(0.01 * pld, 0.002)
    assert own.best_epsilon() >= pld * 0.99


def test_a_target_epsilon_is_what_the_ledgers_show_in_the_end(tmp_path: Path, minilm: Path) -> None:
    changes = ("model.keep_layers=1", "model.train.kind=head", "model.max_length=16",
               "data.limit=300", "federation.clients=3", "rounds=3", "privacy.epsilon=2.0",
               "federation.lifetime_epsilon=2.0", "speed.threads=1",
               f"output.folder='{tmp_path}'")  # fmt: skip
    _, results = ran(load_settings(overrides=changes))
    assert [pc.charges for pc in results.pcs] == [3, 3, 3]
    for pc in results.pcs:
        # The target is met by RDP, an upper bound; what steps on all records cost is less.
        assert pc.filter == "gaussian"
        assert pc.epsilon == pytest.approx(1.839, rel=0.001)
        assert pc.epsilon <= 2.0
        assert pc.state == "exhausted"


@pytest.mark.slow
def test_a_second_run_on_the_same_pcs_goes_on_from_what_the_first_one_spent(
    tmp_path: Path, minilm: Path
) -> None:
    state = tmp_path / "state"
    first, results = ran(settings(tmp_path), state)
    once = results.pcs[0].epsilon
    second, results = ran(settings(tmp_path), state)
    twice = results.pcs[0].epsilon
    assert first.folder != second.folder
    assert once is not None
    assert twice is not None
    assert once < twice < 2 * once  # composed as mechanisms, not as epsilons
    assert results.pcs[0].charges == 4
    plan = job_of(second).schedule
    assert twice == pytest.approx(charged_epsilon(plan, 4, ledger(second).filter_kind))


def test_a_lifetime_budget_stops_the_second_run_in_the_middle_and_the_third_at_once(
    tmp_path: Path, minilm: Path
) -> None:
    state = tmp_path / "state"
    plan = round_schedule(settings(tmp_path))
    most = charged_epsilon(plan, 3, best_filter(plan, 2, 1000.0)) * 1.0001
    budget = f"federation.lifetime_epsilon={most}"
    run, results = ran(settings(tmp_path, budget), state)
    assert run.covered_rounds >= 2
    assert results.status == "finished"
    run = prepare(settings(tmp_path, budget), pc_state=state)
    assert run.covered_rounds <= 2
    with pytest.raises(BudgetExhausted):
        simulate(run, "in-process", quiet)
    results = Results.load(run.folder)
    assert results.status == "stopped"
    assert [r.void for r in results.rounds] == [False]  # the second was not even begun
    assert [pc.charges for pc in results.pcs] == [3] * 3
    for pc in results.pcs:
        assert pc.epsilon is not None
        assert pc.epsilon <= most
        assert pc.state == "exhausted"
    # What was paid for is worth having: a model and its score on the test set.
    assert results.test is not None
    assert (run.folder / "model" / "fedaipc.json").is_file()
    folders = sorted(tmp_path.iterdir())
    with pytest.raises(BudgetExhausted, match="new --pc-state"):
        prepare(settings(tmp_path, budget), pc_state=state)
    assert sorted(tmp_path.iterdir()) == folders


def test_a_budget_below_the_target_is_told_before_and_ends_with_a_model(
    tmp_path: Path, minilm: Path
) -> None:
    run = prepare(settings(tmp_path, "rounds=4", "federation.lifetime_epsilon=4"))
    assert 0 < run.covered_rounds < 4
    with pytest.raises(BudgetExhausted):
        simulate(run, "in-process", quiet)
    results = Results.load(run.folder)
    assert sum(not r.void for r in results.rounds) == run.covered_rounds
    assert results.test is not None
    assert all(pc.epsilon is not None and pc.epsilon <= 4 for pc in results.pcs)


@pytest.mark.parametrize("epsilon", [0.5, 8.0, 300.0])
def test_a_job_of_a_single_round_is_charged_its_target(
    tmp_path: Path, minilm: Path, epsilon: float
) -> None:
    raw = tiny(f"output.folder='{tmp_path}'").model_dump(mode="json", exclude_none=True)
    raw["rounds"] = 1
    raw["privacy"] = {"epsilon": epsilon}
    raw["federation"]["lifetime_epsilon"] = epsilon
    _, results = ran(settings_from(raw))
    assert results.status == "finished"
    for pc in results.pcs:
        assert pc.epsilon is not None
        assert pc.epsilon <= epsilon


def test_one_pc_with_its_budget_spent_leaves_the_others_to_finish(
    tmp_path: Path, minilm: Path
) -> None:
    state = tmp_path / "state"
    run = prepare(settings(tmp_path, "rounds=3", "federation.clients=5"), pc_state=state)
    allow(run, 1, rounds=1)
    results = simulate(run, "in-process", quiet)
    assert results.status == "finished"
    assert [pc.charges for pc in results.pcs] == [3, 1, 3, 3, 3]
    assert [(r.asked, r.arrived, r.declined) for r in results.rounds] == [
        (5, 5, 0), (5, 4, 1), (4, 4, 0),
    ]  # fmt: skip
    assert [pc.state for pc in results.pcs] == ["active", "exhausted", "active", "active", "active"]


def test_a_run_without_privacy_says_so_and_marks_its_ledgers(tmp_path: Path, minilm: Path) -> None:
    state = tmp_path / "state"
    plain = tiny(f"output.folder='{tmp_path}'").model_dump(mode="json", exclude_none=True)
    plain["privacy"] = {"kind": "none"}
    run, results = ran(settings_from(plain), state)
    assert any("none" in reason for reason in results.not_private)
    assert results.privacy.planned_epsilon is None
    assert all(pc.epsilon is None for pc in results.pcs)
    assert ledger(run).unprotected
    _, after = ran(settings(tmp_path), state)
    assert all(pc.epsilon is None for pc in after.pcs)  # no claim can be made any more
    assert any("without privacy" in reason for reason in after.not_private)


@pytest.mark.parametrize(
    "change", ["privacy.delta=1e-6", "federation.lifetime_epsilon=999"], ids=["delta", "budget"]
)
def test_what_a_ledger_has_for_good_no_later_run_can_change(
    tmp_path: Path, minilm: Path, change: str
) -> None:
    state = tmp_path / "state"
    run, _ = ran(settings(tmp_path), state)
    before = {file: file.read_bytes() for file in sorted(state.rglob("*")) if file.is_file()}
    folders = sorted(tmp_path.iterdir())
    with pytest.raises(PrivacyError, match="permanently"):
        prepare(settings(tmp_path, change), pc_state=state)
    assert sorted(tmp_path.iterdir()) == folders
    assert {f: f.read_bytes() for f in sorted(state.rglob("*")) if f.is_file()} == before
    assert ledger(run).delta == 1e-5


def test_pcs_that_joined_another_run_since_are_not_taken_back(tmp_path: Path, minilm: Path) -> None:
    """They hold its records now: to go on would train the first job on other data."""
    state = tmp_path / "state"
    first = prepare(settings(tmp_path), pc_state=state)
    second, _ = ran(settings(tmp_path), state)
    for again in (lambda: reopen(first.folder), lambda: simulate(first, "in-process", quiet)):
        with pytest.raises(RoundError, match="joined another run"):
            again()
    assert len(ledger(second).charges) == 2


def test_a_delta_too_large_for_a_pc_is_refused_only_where_it_would_mean_something(
    tmp_path: Path, minilm: Path
) -> None:
    raw = tiny(f"output.folder='{tmp_path}'").model_dump(mode="json", exclude_none=True)
    raw["privacy"] |= {"delta": 0.005}
    with pytest.raises(PrivacyError, match="size class"):
        prepare(settings_from(raw))
    assert list(tmp_path.iterdir()) == []
    raw["privacy"] = {"kind": "none", "delta": 0.005}
    state = tmp_path / "state"
    prepare(settings_from(raw), pc_state=state)
    raw["privacy"] = {"delta": 0.005}
    with pytest.raises(PrivacyError, match="size class"):
        prepare(settings_from(raw), pc_state=state)


def test_a_run_with_a_test_seed_claims_no_epsilon_anywhere(tmp_path: Path, minilm: Path) -> None:
    run = prepare(settings(tmp_path), test_seed=1)
    results = simulate(run, "in-process", quiet)
    assert results.not_private
    assert {r.epsilon for r in results.rounds} == {None}
    assert {pc.epsilon for pc in results.pcs} == {None}


SLOW = [
    pytest.param(at, marks=pytest.mark.slow)
    for at in ("records", "ledger", "validation.parquet", "job.json")
]


@pytest.mark.parametrize("where", ["owner", *SLOW])
def test_a_disk_that_fills_up_while_a_run_is_prepared_changes_no_pc(
    tmp_path: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The run that the PCs are in goes on; the new one can be prepared when there is room."""
    state = tmp_path / "state"
    first = prepare(settings(tmp_path), pc_state=state)
    more = settings(tmp_path, "federation.clients=4", "data.seed=2")
    before = {f: f.read_bytes() for f in state.rglob("*") if f.suffix in (".toml", ".parquet")}

    def full(path: Path) -> None:
        at = {"ledger": "pc-0003/ledger.jsonl", "records": "pc-0003/records.parquet.new",
              "owner": "pc-0003/owner.toml.new"}.get(where, where)  # fmt: skip
        if str(path).endswith(at):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        for name in ("fedaipc.data.records", "fedaipc.privacy.ledger"):
            real = importlib.import_module(name).write_atomic
            patch.setattr(
                f"{name}.write_atomic",
                lambda path, content, real=real, **named: (
                    full(path), real(path, content, **named)
                ),
            )  # fmt: skip
        for module in (job_folder, simulation, simulated_pc):
            real_write = module.write_text
            patch.setattr(
                module, "write_text", lambda path, t, real=real_write: (full(path), real(path, t))
            )
        with pytest.raises((OutputError, LedgerError)):
            prepare(more, pc_state=state)
    assert {f: f.read_bytes() for f in before} == before
    assert simulate(reopen(first.folder), "in-process", quiet).status == "finished"
    run = prepare(more, pc_state=state)
    assert simulate(run, "in-process", quiet).status == "finished"


def test_a_crash_while_pcs_join_a_run_leaves_no_run_that_mixes_records(
    tmp_path: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    first = prepare(settings(tmp_path), pc_state=state)
    joined: list[Path] = []
    real = join_run

    def crash(folder: Path) -> None:
        if len(joined) == 2:
            raise KeyboardInterrupt
        joined.append(folder)
        real(folder)

    with monkeypatch.context() as patch:
        patch.setattr(simulation, "join_run", crash)
        # As after kill -9.
        patch.setattr("fedaipc.simulation.simulation.shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            prepare(settings(tmp_path, "data.seed=2"), pc_state=state)
    second = tmp_path / "run-2"
    assert (second / "job.json").is_file()
    for folder in (first.folder, second):
        with pytest.raises(RoundError, match="joined another run"):
            reopen(folder)
    _, results = ran(settings(tmp_path, "data.seed=2"), state)
    assert results.status == "finished"


def test_one_owner_who_allows_less_costs_the_others_nothing(tmp_path: Path, minilm: Path) -> None:
    """Three PCs, of which all are needed for a sum: the run waits, and says for whom."""
    run = prepare(settings(tmp_path, "rounds=1"))
    path = pc_folder(run.pc_state, 1) / OWNER_FILE
    usual = path.read_text()
    strict = load_owner(path)
    policy = strict.policy.model_copy(update={"max_epsilon": 0.01})
    path.write_text(to_toml(strict.model_copy(update={"policy": policy})))
    for _ in range(2):
        with pytest.raises(RoundError, match="pc-0001 refuses the job"):
            simulate(reopen(run.folder), "in-process", quiet)
    assert [len(ledger.charges) for ledger in ledgers(run).values()] == [0, 0, 0]
    path.write_text(usual)
    results = simulate(reopen(run.folder), "in-process", quiet)
    assert [r.attempt for r in results.rounds] == [1]
