"""Runs whose sums alone carry the noise: what they say, what they send, who refuses them."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fedaipc.client import trainer
from fedaipc.config import DPSGD
from fedaipc.coordinator.aggregation import PlainSum
from fedaipc.errors import ConfigError, FedaipcError, RoundError
from fedaipc.privacy.budget import charged_epsilon, local_epsilon
from fedaipc.privacy.training import clipped_sum
from fedaipc.protocol.noise_share import NoiseShare
from fedaipc.report.run_tables import summary
from fedaipc.results import Results
from fedaipc.secagg.aggregator import Aggregator
from fedaipc.simulation.simulation import prepare, simulate
from tests.support.jobs import tiny
from tests.support.runs import job_of, ledger, quiet

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from fedaipc.privacy.randomness import SecureRandom
    from fedaipc.secagg.encoding import Words
    from fedaipc.simulation.simulation import Run

DISTRIBUTED = ("privacy.noise=distributed", "federation.clients=5")


def prepared(folder: Path, *changes: str, seed: int | None = None) -> Run:
    return prepare(tiny(f"output.folder='{folder}'", *DISTRIBUTED, *changes), test_seed=seed)


def test_a_run_states_both_promises_and_charges_the_first(tmp_path: Path, minilm: Path) -> None:
    run = prepared(tmp_path)
    results = simulate(run, "in-process", quiet)
    assert results.status == "finished"
    job = job_of(run)
    assert isinstance(job.privacy, DPSGD)
    assert job.privacy.honest == 3  # at least 4 in a sum, of which one may collude
    own = ledger(run)
    assert own.spent_epsilon() == charged_epsilon(job.schedule, 2, own.filter_kind)
    local = results.privacy.local_epsilon
    assert own.local_epsilon() == local_epsilon([job.schedule.times(2)], 1e-5)
    assert local == local_epsilon([job.schedule.times(job.max_attempts)], 1e-5)
    assert local is not None
    assert local > 2 * own.spent_epsilon()
    said = " ".join(str(cell) for row in summary(results).rows for cell in row)
    assert "distributed noise: against whoever sees sums and models, with 3 honest PCs" in said
    bound = f"at most {math.ceil(local * 100) / 100:.2f} against whoever reads one PC's own updates"
    assert f"{bound}, over all attempts that the job allows" in said
    card = (run.folder / "model" / "README.md").read_text(encoding="utf-8")
    assert f"epsilon {math.ceil(local * 100) / 100:.2f} over all attempts that the job" in card


def test_a_run_whose_noise_no_pc_could_share_is_not_begun(tmp_path: Path, minilm: Path) -> None:
    with pytest.raises(ConfigError, match="too coarse"):
        prepared(
            tmp_path / "runs", "federation.clients=14", "aggregation.bits=16",
            "privacy.sampling_rate=1.0",
        )  # fmt: skip
    assert not list((tmp_path / "runs").iterdir())


def test_what_the_coordinator_reads_is_the_exact_sum_with_the_noise_of_all(
    tmp_path: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain: list[npt.NDArray[np.float64]] = []
    encoded: list[Words] = []
    means: list[npt.NDArray[np.float32]] = []
    shares: list[NoiseShare] = []
    real, real_mean = NoiseShare.encode, PlainSum.mean

    def encode(self: NoiseShare, total: npt.NDArray[np.float64], random: SecureRandom) -> Words:
        plain.append(np.rint(total * (self.factor * self.encoding.scale)))
        words = real(self, total, random)
        encoded.append(words.copy())  # masks are added in place
        shares.append(self)
        return words

    def mean(self: Any) -> npt.NDArray[np.float32]:
        means.append(real_mean(self))
        return means[-1].copy()  # the coordinator changes it in place

    def summed(*known: Any, clip_norm: float, **named: Any) -> npt.NDArray[np.float64]:
        clips.append(clip_norm)
        return clipped_sum(*known, clip_norm=clip_norm, **named)

    clips: list[float] = []
    monkeypatch.setattr(trainer, "clipped_sum", summed)
    monkeypatch.setattr(NoiseShare, "encode", encode)
    monkeypatch.setattr(PlainSum, "mean", mean)
    run = prepared(tmp_path, "rounds=1", "privacy.sampling_rate=1.0")
    results = simulate(run, "in-process", quiet)
    assert len(encoded) == 5
    assert clips == [share.clip_norm for share in shares]
    job = job_of(run)
    total = np.sum([w.view("<i4").astype(np.int64) for w in encoded], axis=0)
    weights = total / shares[0].encoding.scale / means[0]
    # The same divisor for all values: the public weights.
    assert np.allclose(weights, sum(pc.size_class for pc in results.pcs), rtol=1e-5)
    noise = total - np.sum(plain, axis=0)
    deviation = shares[0].deviation * math.sqrt(5)
    # 770 values or so: their deviation is off by 10 % once in 10^4 times.
    assert np.std(noise) == pytest.approx(deviation, rel=0.1)
    assert isinstance(job.privacy, DPSGD)
    whole = job.privacy.multiplier * job.privacy.clip_norm * shares[0].encoding.scale
    assert deviation == pytest.approx(whole * math.sqrt(5 / 3))


@pytest.mark.slow
def test_pcs_that_vanish_leave_enough_noise_or_a_void_round(tmp_path: Path, minilm: Path) -> None:
    run = prepared(
        tmp_path, "federation.clients=10", "federation.dropout_rate=0.15",
        "federation.dropout_stage=mask", "federation.stage_timeout=2",
    )  # fmt: skip
    results = simulate(run, "in-process", quiet)
    assert results.status == "finished"
    assert all(one.void or one.arrived >= 7 for one in results.rounds)
    assert sum(one.dropped for one in results.rounds) > 0
    job = job_of(run)
    assert isinstance(job.privacy, DPSGD)
    assert job.privacy.honest == 6  # whoever answers


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.1, 0.2, 0.3])
@pytest.mark.parametrize("stage", ["setup", "mask", "agree", "unmask"])
def test_wherever_pcs_drop_out_no_sum_has_less_noise_and_every_attempt_is_charged(
    tmp_path: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch, stage: str, rate: float
) -> None:
    """What was promised counts with the honest PCs of the smallest sum, whoever drops out."""
    sums: list[int] = []
    real = Aggregator.unmask

    def unmask(self: Aggregator) -> None:
        real(self)
        sums.append(len(self.uploaders))

    monkeypatch.setattr(Aggregator, "unmask", unmask)
    run = prepared(
        tmp_path, "federation.clients=10", f"federation.dropout_rate={rate}",
        f"federation.dropout_stage={stage}", "federation.stage_timeout=2",
    )  # fmt: skip
    with suppress(RoundError):  # too many dropped out, again and again
        simulate(run, "in-process", quiet)
    mechanism, own = job_of(run).privacy, Results.load(run.folder)
    assert isinstance(mechanism, DPSGD)
    assert mechanism.honest == 6
    assert all(count - 1 >= mechanism.honest for count in sums)  # one of them may collude
    assert len(sums) == sum(not one.void for one in own.rounds)
    spent = [ledger(run, number) for number in range(10)]
    assert max(len(one.charges) for one in spent) <= own.charged
    for one in spent:
        count = len(one.charges)
        costs = charged_epsilon(job_of(run).schedule, count, one.filter_kind) if count else 0.0
        assert one.spent_epsilon() == pytest.approx(costs)


def test_an_owner_can_limit_what_an_opened_update_would_tell(
    tmp_path: Path, minilm: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = prepared(tmp_path)
    for number in range(5):
        owner = run.pc_state / f"pc-{number:04}" / "owner.toml"
        text = owner.read_text()
        assert "allow_distributed_noise = true" in text  # a simulation's owners have agreed
        owner.write_text(re.sub(r"max_local_epsilon = .*", "max_local_epsilon = 0.5", text))
    with pytest.raises(FedaipcError, match="every PC refuses this job"):
        simulate(run, "in-process", quiet)
    assert "policy.max_local_epsilon" in caplog.text
    assert ledger(run).spent_epsilon() == 0.0


@pytest.mark.slow
def test_it_learns_as_local_noise_of_the_whole_sum_would(tmp_path: Path, minilm: Path) -> None:
    """The step is the same but for its noise: with little of it, the model is nearly the same."""
    little = ("privacy.noise_multiplier=0.5", "privacy.sampling_rate=0.5", "rounds=3")
    vectors = [
        simulate(prepare(tiny(f"output.folder='{tmp_path}'", "federation.clients=5", *little, how),
                         test_seed=3), "in-process", quiet)
        for how in ("privacy.noise=distributed", "privacy.noise=local")
    ]  # fmt: skip
    first, second = (one.validation for one in vectors)
    assert first is not None
    assert second is not None
    assert first.loss == pytest.approx(second.loss, abs=0.01)
