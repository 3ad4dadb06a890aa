"""Runs that protect whole clients: what is sent, what is charged, what is said."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fedaipc.certificate.check import check
from fedaipc.certificate.document import NEIGHBOURS, UNITS, Certificate
from fedaipc.certificate.issue import pc_certificate, run_certificate
from fedaipc.client import examples, trainer
from fedaipc.config import DPSGD, FedAvg
from fedaipc.data.sources import read_records
from fedaipc.errors import PrivacyError, RoundError
from fedaipc.federation.key import Admission
from fedaipc.lab.audit.canary import check_sums_are_sent
from fedaipc.privacy.budget import charged_epsilon, local_epsilon
from fedaipc.privacy.training import clipped_update
from fedaipc.protocol import job as jobs
from fedaipc.protocol.noise_share import NoiseShare
from fedaipc.report.run_tables import summary
from fedaipc.simulation import simulated_pc
from fedaipc.simulation.simulation import prepare, simulate
from tests.support.jobs import tiny
from tests.support.runs import job_of, ledger, quiet

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    import numpy.typing as npt

    from fedaipc.privacy.randomness import SecureRandom
    from fedaipc.secagg.encoding import Words
    from fedaipc.simulation.simulation import Run
    from tests.support.commands import Ran

CLIENT = (
    "privacy.unit=client", "privacy.clip_norm=0.5", "training.local_steps=3",
    "federation.clients=5", "privacy.noise_multiplier=2.0",
)  # fmt: skip


def prepared(folder: Path, *changes: str, state: Path | None = None) -> Run:
    return prepare(tiny(f"output.folder='{folder}'", *CLIENT, *changes), pc_state=state)


@pytest.mark.parametrize("noise", ["local", "distributed"])
def test_a_run_charges_one_gaussian_a_round_and_says_what_is_protected(
    tmp_path: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch, noise: str
) -> None:
    sums: list[npt.NDArray[np.float64]] = []
    words: list[tuple[Words, NoiseShare]] = []
    real = NoiseShare.encode

    def encode(self: NoiseShare, total: npt.NDArray[np.float64], random: SecureRandom) -> Words:
        sums.append(total.copy())
        found = real(self, total, random)
        words.append((found.copy(), self))  # masks are added in place
        return found

    monkeypatch.setattr(NoiseShare, "encode", encode)
    run = prepared(tmp_path, f"privacy.noise={noise}")
    results = simulate(run, "in-process", quiet)
    assert results.status == "finished"
    # What leaves is the clipped update and noise of the right length, and there is an update.
    assert len(sums) == 10
    assert all(0 < np.linalg.norm(one) <= 0.5 for one in sums)
    for total, (sent, share) in zip(sums, words, strict=True):
        added = sent.view("<i4").astype(np.int64) - np.rint(total * share.encoding.scale)
        honest = 3 if noise == "distributed" else 1
        whole = 2.0 * 0.5 * share.encoding.scale / math.sqrt(honest)
        # 770 values: their deviation is off by 12 % once in a million times.
        assert added.std() == pytest.approx(whole, rel=0.12)
    job, own = job_of(run), ledger(run)
    assert isinstance(job.privacy, DPSGD)
    assert own.unit == "client"
    assert [one.schedule.steps for one in own.charges] == [1, 1]
    assert own.spent_epsilon() == charged_epsilon(job.schedule, 2, own.filter_kind)
    assert results.privacy.unit == "client"
    assert results.privacy.neighbours == "all records of one PC added or removed"
    said = " ".join(str(cell) for row in summary(results).rows for cell in row)
    assert "per client, dp-sgd" in said
    assert "clip 0.5 of a PC's whole update" in said
    card = (run.folder / "model" / "README.md").read_text()
    assert "Differential privacy per client" in card
    assert "Each PC clipped its whole update to 0.5" in card


def test_a_pc_whose_texts_cannot_be_used_sends_noise_alone(
    tmp_path: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so it is in the data set beside: without its records."""
    sums: list[npt.NDArray[np.float64]] = []
    real = NoiseShare.encode

    def encode(self: NoiseShare, total: npt.NDArray[np.float64], random: SecureRandom) -> Words:
        sums.append(total)
        return real(self, total, random)

    def fails(source: str, owner: Any, **named: Any) -> object:
        if "pc-0002" in str(source):
            raise OSError("gone")
        return read_records(source, owner, **named)

    monkeypatch.setattr(NoiseShare, "encode", encode)
    monkeypatch.setattr(examples, "read_records", fails)
    assert simulate(prepared(tmp_path, "rounds=1"), "in-process", quiet).status == "finished"
    assert sum(not one.any() for one in sums) == 1
    assert len(sums) == 5


def test_a_diverging_update_is_noise_alone(
    tmp_path: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums: list[npt.NDArray[np.float64]] = []
    real = NoiseShare.encode

    def diverges(classifier: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        training = named["training"].model_copy(update={"learning_rate": 1e45})
        return clipped_update(classifier, inputs, *rest, **{**named, "training": training})

    def encode(self: NoiseShare, total: npt.NDArray[np.float64], random: SecureRandom) -> Words:
        sums.append(total)
        return real(self, total, random)

    monkeypatch.setattr(NoiseShare, "encode", encode)
    monkeypatch.setattr(trainer, "clipped_update", diverges)
    assert simulate(prepared(tmp_path, "rounds=1"), "in-process", quiet).status == "finished"
    assert len(sums) == 5
    assert not any(one.any() for one in sums)


@pytest.mark.parametrize("noise", ["local", "distributed"])
def test_the_model_moves_by_the_mean_of_the_updates(
    tmp_path: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch, noise: str
) -> None:
    sums: list[npt.NDArray[np.float64]] = []
    means: list[npt.NDArray[np.float32]] = []
    real, direction = NoiseShare.encode, FedAvg.direction

    def encode(self: NoiseShare, total: npt.NDArray[np.float64], random: SecureRandom) -> Words:
        sums.append(total.copy())
        return real(self, total, random)

    def step(self: FedAvg, mean: npt.NDArray[np.float32], state: Any) -> Any:
        means.append(mean.copy())
        return direction(self, mean, state)

    monkeypatch.setattr(NoiseShare, "encode", encode)
    monkeypatch.setattr(FedAvg, "direction", step)
    little = ("privacy.noise_multiplier=0.1", f"privacy.noise={noise}", "rounds=1")
    simulate(prepared(tmp_path, *little), "in-process", quiet)
    (mean,) = means
    own = np.mean(sums, axis=0)
    honest = 3 if noise == "distributed" else 1
    deviation = 0.1 * 0.5 / math.sqrt(5 * honest)  # of five shares, divided by five
    # 770 values: off by 12 % once in a million times.
    assert (mean - own).std() == pytest.approx(deviation, rel=0.12)


def test_a_pc_refuses_a_delta_too_large_for_so_many_clients(
    tmp_path: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Though the federation has signed it."""
    monkeypatch.setattr(jobs, "check_delta", lambda *_, **__: None)
    monkeypatch.setattr(simulated_pc, "check_delta", lambda *_, **__: None)
    run = prepared(tmp_path, "privacy.delta=0.009", "federation.clients=12")
    with pytest.raises(RoundError, match="every PC refuses this job"):
        simulate(run, "in-process", quiet)
    assert "privacy.delta = 0.009 is too large for 12 clients" in caplog.text


def test_pcs_do_not_change_their_unit(tmp_path: Path, minilm: Path) -> None:
    state = tmp_path / "pcs"
    prepared(tmp_path / "first", state=state)
    with pytest.raises(PrivacyError, match="counts per client permanently"):
        prepared(tmp_path / "second", "privacy.unit=record", state=state)


def test_a_pc_whose_ledger_counts_records_refuses_the_job(
    tmp_path: Path, minilm: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = prepared(tmp_path)
    for number in range(5):
        of_records(run, number)
    with pytest.raises(RoundError, match="every PC refuses this job"):
        simulate(run, "in-process", quiet)
    assert "this PC's ledger counts per record permanently" in caplog.text
    assert all(not ledger(run, number).charges for number in range(5))


def of_records(run: Run, number: int) -> None:
    """Give the PC a ledger of the other unit, as if it had enrolled for other jobs."""
    from fedaipc.client.key_store import KeyStore
    from fedaipc.privacy.ledger import Ledger

    old = ledger(run, number)
    old.path.unlink()
    Ledger.create(
        old.path, KeyStore(old.path.parent).identity, lifetime_epsilon=old.lifetime_epsilon,
        delta=old.delta, filter_kind=old.filter_kind,
    )  # fmt: skip


def test_the_canary_audit_says_that_it_is_of_records() -> None:
    with pytest.raises(PrivacyError, match=r'set privacy\.unit="record"'):
        check_sums_are_sent(tiny(*CLIENT))


def test_the_planner_and_config_check_say_what_they_know(
    fedaipc: Callable[..., Ran], minilm: Path, tmp_path: Path
) -> None:
    config = tmp_path / "job.toml"
    config.write_text(
        '[data]\nsource = "sentiment-4"\n[privacy]\nunit = "client"\nepsilon = 1.0\n'
        "[model]\nkeep_layers = 1\n[federation]\nclients = 5\n"
    )
    ran = fedaipc("privacy", "plan", config)
    assert ran.code == 6
    assert "`fedaipc config check`" in ran.err
    ran = fedaipc("config", "check", config)
    assert ran.code == 0
    charged = re.search(
        r"30 whole updates of a PC: epsilon (0\.9\d\d) charged per client at delta 1e-05 by "
        r"Gaussian DP \(RDP 1\.000, PRV 0\.9\d\d, PLD (0\.9\d\d)\)",
        ran.out,
    )
    assert charged, ran.out
    assert charged[1] == charged[2]
    assert "PCs in place of 5" in ran.out


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["local", "distributed"])
def test_certificates_hold_and_lies_about_the_unit_are_found(
    tmp_path: Path, minilm: Path, noise: str
) -> None:
    run = prepared(tmp_path, f"privacy.noise={noise}")
    simulate(run, "in-process", quiet)
    key, job = Admission(run.pc_state / "federation").key, job_of(run)
    made = run_certificate(run.folder, key)
    assert [one.what for one in check(made) if not one.holds] == []
    assert made.guarantee.unit == UNITS["client"]
    assert made.guarantee.neighbours == NEIGHBOURS["client"]
    shared = noise == "distributed"
    local = local_epsilon([job.schedule.times(2)], job.privacy.delta) if shared else None
    assert made.guarantee.local == local
    of_pc = pc_certificate(run.pc_state / "pc-0001")
    assert [one.what for one in check(of_pc) if not one.holds] == []
    assert of_pc.guarantee.unit == UNITS["client"]

    def lied(**changes: Any) -> list[str]:
        content = made.model_dump(mode="json")
        content["guarantee"] |= changes
        signed = Certificate.model_validate({**content, "signature": ""}).signed_by(key)
        return [one.what for one in check(signed) if not one.holds]

    assert lied(unit=UNITS["record"]) == ["wording"]
    assert lied(unit="one household") == ["wording"]
    assert lied(neighbours=NEIGHBOURS["record"]) == ["wording"]
    sampled = made.model_dump(mode="json")["guarantee"]["schedule"]
    sampled[0]["mechanism"]["unit"] = "record"
    assert lied(schedule=sampled) == ["wording"]
