"""Whole clients protected: what is clipped, what is counted, and which settings go with it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedaipc import strict_json
from fedaipc.config import DPSGD, NoPrivacy, Schedule
from fedaipc.errors import ConfigError, LedgerError, ModelError, PrivacyError, SecAggError
from fedaipc.privacy.accountant import epsilon_pld, epsilon_prv, epsilon_rdp, rdp
from fedaipc.privacy.budget import round_schedule
from fedaipc.privacy.chain import signed_line
from fedaipc.privacy.dp_sgd import clipped_update
from fedaipc.privacy.ledger import Charge, Ledger
from fedaipc.privacy.randomness import SecureRandom
from fedaipc.privacy.signal import DROWNED, clients_of_use, noise_ratio, noise_warning
from fedaipc.protocol.job import job_schedule
from fedaipc.protocol.noise_share import NoiseShare, noise_share
from fedaipc.protocol.round_terms import update_bound
from fedaipc.secagg.keys import SigningKey
from fedaipc.secagg.terms import PLAIN
from tests.support.jobs import tiny, tiny_job
from tests.support.secagg import federation

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from fedaipc.secagg.terms import Terms

WHOLE = DPSGD(unit="client", noise_multiplier=2.0, clip_norm=0.5, sampling_rate=0.1)
SHARED = WHOLE.model_copy(update={"noise": "distributed", "honest": 6})
COUNT = 10


# What is clipped


@given(arrays(np.float32, st.integers(1, 50), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
       st.floats(1e-6, 1e6))  # fmt: skip
def test_an_update_is_no_longer_than_the_clip_bound_and_keeps_its_direction(
    update: npt.NDArray[np.float32], bound: float
) -> None:
    found = clipped_update(update, bound)
    assert math.fsum(float(v) ** 2 for v in found) <= bound**2
    long = math.hypot(*update.astype(float)) > bound
    if long:
        assert np.linalg.norm(found) > 0.99999 * bound
        longest = int(np.abs(update).argmax())
        scale = found[longest] / float(update[longest])
        assert np.allclose(found, update.astype(float) * scale, rtol=1e-12, atol=0)


def test_a_short_update_stays_as_it_is() -> None:
    update = np.array([3.0, -4.0], np.float32)
    assert clipped_update(update, 5.1).tolist() == [3.0, -4.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_is_refused(value: float) -> None:
    """The trainer then sends what a PC without records would: noise alone."""
    with pytest.raises(ModelError, match="not finite"):
        clipped_update(np.array([1.0, value], np.float32), 1.0)


# What is added


def of_round(mechanism: DPSGD, **changes: object) -> tuple[Terms, NoiseShare]:
    terms, keys = federation(COUNT, **{"bound": 10.0, **changes})
    return terms, noise_share(mechanism, terms, next(iter(keys)))


def test_local_noise_is_all_of_it_and_a_share_is_a_part() -> None:
    terms, alone = of_round(WHOLE)
    assert alone.deviation == 2.0 * 0.5 * terms.encoding.scale
    assert of_round(SHARED)[1].deviation * math.sqrt(6) == pytest.approx(alone.deviation)
    assert alone.factor == 1.0


def test_local_noise_needs_no_secure_aggregation() -> None:
    assert of_round(WHOLE, thresholds=PLAIN)[1].factor == 1.0
    with pytest.raises(SecAggError, match="needs secure aggregation"):
        of_round(SHARED, thresholds=PLAIN)


def test_another_weight_than_one_is_refused() -> None:
    with pytest.raises(SecAggError, match="what it weighs"):
        of_round(WHOLE, weights=(2,) * COUNT)


@given(
    update=arrays(np.float32, 40, elements=st.floats(-1e3, 1e3, width=32)),
    bits=st.sampled_from([32, 24]), shared=st.booleans(), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_what_a_client_holds_moves_its_whole_numbers_by_the_clip_bound_at_most(
    update: npt.NDArray[np.float32], bits: int, shared: bool, seed: int
) -> None:
    """Away from those of a client without records, whose share is the same."""
    terms, share = of_round(SHARED if shared else WHOLE, size=40, bits=bits)
    own, none = (
        share.encode(clipped_update(values, share.clip_norm), SecureRandom.for_test(seed))
        for values in (update, np.zeros_like(update))
    )
    moved = np.rint(terms.encoding.decode(own - none) * terms.encoding.scale)
    assert np.linalg.norm(moved) <= WHOLE.clip_norm * terms.encoding.scale


def test_the_bound_leaves_room_for_any_update_and_the_noise_of_all() -> None:
    job = tiny_job("privacy.unit=client", "privacy.clip_norm=0.5", "federation.clients=10")
    room = 8 * 1.0 * 0.5 / math.sqrt(10)
    assert update_bound(job) == pytest.approx(0.5 + room)


# What is counted


@pytest.mark.parametrize("mechanism", [WHOLE, SHARED])
def test_sampling_within_an_update_counts_for_nothing(mechanism: DPSGD) -> None:
    steps = [Schedule(mechanism=mechanism, steps=30)]
    gaussian = [Schedule(mechanism=DPSGD(noise_multiplier=2.0), steps=30)]
    for epsilon in (epsilon_rdp, epsilon_prv, epsilon_pld):
        assert epsilon(steps, 1e-5) == epsilon(gaussian, 1e-5)
    assert rdp(steps, 4.0) == rdp(gaussian, 4.0)
    assert epsilon_pld(steps, 1e-5) > 3 * epsilon_pld(
        [Schedule(mechanism=DPSGD(noise_multiplier=2.0, sampling_rate=0.1), steps=30)], 1e-5
    )


def test_a_round_counts_once_however_many_steps_it_has() -> None:
    settings = tiny("privacy.unit=client", "training.local_steps=7")
    assert round_schedule(settings).steps == 1
    assert tiny_job("privacy.unit=client", "training.local_steps=7").schedule.steps == 1
    assert round_schedule(tiny("training.local_steps=7")).steps == 7


def test_without_privacy_all_steps_are_taken() -> None:
    assert NoPrivacy(unit="client").noisy_steps(7) == 7


def test_a_share_alone_is_what_its_own_noise_promises() -> None:
    assert SHARED.local == WHOLE.with_noise(2.0 / math.sqrt(6))
    assert WHOLE.local == WHOLE


def test_delta_is_looked_at_when_the_number_of_clients_is_known() -> None:
    with pytest.raises(PrivacyError, match="20 clients"):
        tiny_job("privacy.unit=client", "privacy.delta=0.009", "federation.clients=20")


# The ledger's unit


def ledger_of(folder: Path, unit: str) -> Ledger:
    key = SigningKey()
    return Ledger.create(
        folder / "ledger.jsonl", key, lifetime_epsilon=100.0, delta=1e-5, filter_kind=4.0, unit=unit
    )


@pytest.mark.parametrize("unit", ["record", "client"])
def test_a_ledger_counts_for_one_unit_alone(tmp_path: Path, unit: str) -> None:
    ledger = ledger_of(tmp_path, unit)
    assert Ledger(ledger.path).unit == unit
    for own in (WHOLE, WHOLE.model_copy(update={"unit": "record"})):
        charge = Charge(run="r", round=1, attempt=len(ledger.charges) + 1,
                        schedule=Schedule(mechanism=own, steps=1))  # fmt: skip
        if own.unit == unit:
            ledger.charge(charge)
        else:
            with pytest.raises(LedgerError, match=f"counts per {unit} permanently"):
                ledger.charge(charge)
    assert len(Ledger(ledger.path).charges) == 1


def test_an_unknown_unit_is_not_guessed_at(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="not per household"):
        ledger_of(tmp_path, "household")
    assert not list(tmp_path.glob("*.jsonl"))
    path, key = ledger_of(tmp_path, "record").path, SigningKey()
    header = strict_json.parse(path.read_bytes())
    added = {"hash", "previous", "signature", "version"}
    kept = {name: header[name] for name in header if name not in added}
    path.write_bytes(signed_line({**kept, "unit": "household", "key": key.public.hex()}, "", key))
    with pytest.raises(LedgerError, match="newer fedaipc"):
        Ledger(path)


# Which settings go with it


def test_all_clients_weigh_alike_by_default() -> None:
    assert tiny("privacy.unit=client").federation.weighting == "equal"
    assert tiny().federation.weighting == "size-class"
    with pytest.raises(ConfigError, match='weighting = "equal"'):
        tiny("privacy.unit=client", "federation.weighting=size-class")


def test_many_steps_and_adam_may_go_with_distributed_noise_here() -> None:
    settings = tiny("privacy.unit=client", "privacy.noise=distributed", "federation.clients=10",
                    "training.local_steps=5", "training.optimizer=adam")  # fmt: skip
    mechanism = job_schedule(settings).mechanism
    assert isinstance(mechanism, DPSGD)
    assert mechanism.honest == 6


def test_distributed_noise_needs_secure_aggregation_here_too() -> None:
    with pytest.raises(ConfigError, match="needs secure aggregation"):
        tiny("privacy.unit=client", "privacy.noise=distributed", "aggregation.kind=plain")


# Of how much use it is


def test_the_warning_names_a_number_of_clients_that_would_do() -> None:
    settings = tiny("privacy.unit=client", "privacy.noise_multiplier=4.0", "rounds=30")
    once = round_schedule(settings)
    sizes = [32] * 10
    needed = clients_of_use(once, settings, 770, sizes)
    assert f"about {needed:,} PCs" in str(noise_warning(once, settings, 770, 2, sizes))
    assert noise_ratio(once, settings, 770, [32] * needed) <= DROWNED
    assert noise_ratio(once, settings, 770, [32] * (needed - 1)) > DROWNED
    assert noise_warning(once, settings, 770, 2, [32] * needed) is None
    # sigma sqrt(values) / sqrt(clients rounds), worked out by hand
    assert noise_ratio(once, settings, 770, sizes) == pytest.approx(4 * math.sqrt(770 / 300))
