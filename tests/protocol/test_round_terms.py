"""Both sides compute the same public facts, and a bound that no private update reaches."""

from __future__ import annotations

import hashlib
import math
import struct
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from hypothesis import given
from hypothesis import strategies as st

from fedaipc.config import DPSGD, NoPrivacy, SecAgg
from fedaipc.errors import SecAggError
from fedaipc.privacy.dp_sgd import private_step
from fedaipc.protocol.job import Job, SignedJob
from fedaipc.protocol.messages import MaskRequest
from fedaipc.protocol.round_terms import (
    colluding_members,
    hash_vector,
    job_thresholds,
    make_terms,
    update_bound,
)
from fedaipc.secagg.keys import ExchangeKey, SigningKey
from fedaipc.secagg.roster import Bundle, Roster
from fedaipc.secagg.terms import PLAIN, Terms
from fedaipc.simulation.flower_adapter import ensure_message_identity
from tests.support.jobs import ADMISSION, sent, signed, tiny_job

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fedaipc.privacy.randomness import SecureRandom
from fedaipc.privacy.rounding import EXACT

VECTOR = np.array([0.5, -1.5, 2.0**-30], np.float32)
PCS = [SigningKey(bytes([number]) * 32) for number in range(1, 11)]
ROSTER = Roster.sign(
    ADMISSION, federation="f", version=1, beacon=bytes(32), members=[pc.public for pc in PCS]
)
TEN = "federation.clients=10"


def bundle(pc: SigningKey, run: str) -> Bundle:
    number = PCS.index(pc)
    return Bundle(
        federation="f", run=run, epoch=1, not_after=int(time.time()) + 3600, identity=pc.public,
        size_class=(32, 64)[number % 2],
        share_key=ExchangeKey(bytes([200 + number]) * 32).public,
    ).signed_by(pc)  # fmt: skip


def terms(job: Job, missing: int = 0, number: int = 1, roster: Roster = ROSTER) -> Terms:
    """Of the group of a round; of its PCs the last ones are missing."""
    (group,) = roster.groups(number, job.cohort)
    keys = {pc.public: pc for pc in PCS}
    bundles = [bundle(keys[pc], job.run) for pc in group[: len(group) - missing]]
    vector_hash = hash_vector(VECTOR)
    return make_terms(signed(job), roster, number, group, bundles, vector_hash, len(VECTOR))


# Alike on both sides


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("aggregation.kind=plain",),
        ("aggregation.bits=16", "aggregation.colluding=3", "aggregation.threshold=0.9"),
        ("federation.weighting=equal", "aggregation.bound=0.125"),
        ("federation.fraction=0.7",),
    ],
    ids=str,
)
def test_a_pc_computes_what_the_coordinator_states(changes: tuple[str, ...]) -> None:
    """M4, M12: from the signed job, the list of members and the vector as they arrive."""
    ensure_message_identity()
    job, number = signed(tiny_job(TEN, *changes)), 4
    stated = terms(job.job, number=number)
    request = MaskRequest(job.text, job.signature, 1, stated.encode(), b"", VECTOR).encode()
    got = MaskRequest.decode(sent(Message(request, 7, "train.mask")).content)
    read = SignedJob.read(got.job, got.signature, ADMISSION.public)
    roster = Roster.decode(ROSTER.encode(), ADMISSION.public)
    (group,) = roster.groups(number, read.job.cohort)
    own = make_terms(
        read, roster, number, group, Terms.decode(got.terms).bundles,
        hash_vector(got.vector), len(got.vector),
    )  # fmt: skip
    assert own == Terms.decode(got.terms) == stated
    assert own.encode() == got.terms
    assert own.context == stated.context
    own.check(roster, group, time.time())


def test_every_public_fact_makes_another_round() -> None:
    """M13."""
    base = tiny_job(TEN)
    other_list = Roster.sign(
        ADMISSION, federation="f", version=2, beacon=bytes(32), members=ROSTER.members
    )
    contexts = {
        found.context
        for found in (
            terms(base),
            terms(base, missing=1),
            terms(base, number=2),
            terms(base, roster=other_list),
            terms(tiny_job(TEN, "rounds=3")),  # a fact of the job alone
            terms(tiny_job(TEN, "federation.weighting=equal")),
            terms(tiny_job(TEN, "aggregation.bits=24")),
            terms(tiny_job(TEN, "aggregation.kind=plain")),
        )
    }
    assert len(contexts) == 8


def test_weights_are_the_public_size_classes_or_all_alike() -> None:
    by_size, equal = terms(tiny_job(TEN)), terms(tiny_job(TEN, "federation.weighting=equal"))
    assert by_size.weights == tuple(one.size_class for one in by_size.bundles)
    assert set(by_size.weights) == {32, 64}
    assert equal.weights == (1,) * 10


def test_the_ring_has_room_for_all_that_a_round_asks_not_for_a_group_alone() -> None:
    """M3."""
    job = tiny_job("federation.clients=250")
    assert job.cohort == 250
    assert terms(tiny_job(TEN)).cohort == 10
    found = make_terms(
        signed(job), ROSTER, 1, ROSTER.members, [bundle(pc, job.run) for pc in PCS],
        bytes(32), 3,
    )  # fmt: skip
    assert found.cohort == 250
    assert 250 * found.encoding.most < 2**31


def test_a_vectors_hash_is_of_its_values_as_little_endian_floats() -> None:
    expected = hashlib.sha256(struct.pack("<3f", 0.5, -1.5, 2.0**-30)).digest()
    spread = np.zeros(6, np.float32)
    spread[::2] = VECTOR
    for vector in (VECTOR, VECTOR.astype(">f4"), spread[::2]):
        assert hash_vector(vector) == expected
    for changed in (-VECTOR, VECTOR[::-1], VECTOR[:2], np.nextafter(VECTOR, np.float32(9))):
        assert hash_vector(changed) != expected


# Thresholds


def test_who_is_missing_changes_neither_the_least_set_nor_how_many_may_collude() -> None:
    """M1, M2, M11: else a coordinator could shrink both by leaving honest PCs out."""
    job = tiny_job(TEN, "aggregation.colluding=2")
    whole = terms(job).thresholds
    assert (whole.count, whole.colluding, whole.least) == (10, 2, 7)
    for missing in range(4):
        found = terms(job, missing).thresholds
        assert (found.colluding, found.least) == (whole.colluding, whole.least)
        assert found.count == 10 - missing
        assert 2 * found.shares > found.count + found.colluding
    for missing in range(4, 11):
        with pytest.raises(SecAggError):
            terms(job, missing)


def test_a_tenth_of_the_federation_may_collude_or_what_the_job_says() -> None:
    """M1: of all members, whoever is asked in a round."""
    for members, expected in ((1, 1), (3, 1), (19, 1), (20, 2), (105, 10), (10_000, 1000)):
        assert colluding_members(SecAgg(), members) == expected
    seven = SecAgg(colluding=7)
    assert colluding_members(seven, 100) == 7
    assert colluding_members(seven, 5) == 5


def test_the_jobs_share_sets_the_least_sum() -> None:
    """M2."""
    for share, least in ((0.7, 7), (0.71, 8), (1.0, 10), (0.1, 3)):
        assert job_thresholds(tiny_job(f"aggregation.threshold={share}"), 10, 10, 10).least == least
    job = tiny_job("aggregation.threshold=0.1", "aggregation.colluding=5")
    assert job_thresholds(job, 10, 10, 10).least == 7  # two more than may collude


def test_without_sealing_there_are_no_thresholds() -> None:
    job = tiny_job(TEN, "aggregation.kind=plain")
    for missing in (0, 5, 9):
        found = terms(job, missing)
        assert found.thresholds == PLAIN == job_thresholds(job, 10, 10, 10 - missing)
        assert not found.sealed
        found.check(ROSTER, ROSTER.members, time.time())
    assert terms(tiny_job(TEN)).sealed


# The bound


def private(**changes: Any) -> Job:
    """A private job of plain SGD with some of its numbers changed."""
    base = tiny_job()
    training: dict[str, Any] = {
        key: changes.pop(key)
        for key in ("local_steps", "learning_rate", "head_learning_rate", "optimizer")
        if key in changes
    }
    noise: dict[str, Any] = {
        key: changes.pop(key)
        for key in ("clip_norm", "noise_multiplier", "sampling_rate")
        if key in changes
    }
    update = {
        **changes,
        "training": base.training.model_copy(update=training),
        "privacy": base.privacy.model_copy(update=noise),
    }
    return Job.model_validate(base.model_copy(update=update).model_dump())


JOBS = st.builds(
    private,
    local_steps=st.integers(1, 20),
    learning_rate=st.floats(1e-3, 10),
    head_learning_rate=st.one_of(st.none(), st.floats(1e-3, 10)),
    clip_norm=st.floats(1e-2, 100),
    noise_multiplier=st.floats(0.1, 50),
    sampling_rate=st.floats(0.01, 1),
    smallest_class=st.integers(1, 100),
    largest_class=st.integers(100, 10_000),
    weighting=st.sampled_from(["equal", "size-class"]),
)


def worst(job: Job, records: int) -> float:
    """How far one value of a PC of `records` can get in a round, times the PC's weight.

    In each step all clipped gradients point along one axis, there are twice as many as expected,
    and the noise of all steps together is 8 of its deviations.
    """
    assert isinstance(job.privacy, DPSGD)
    expected = job.privacy.sampling_rate * records
    steps = job.training.local_steps
    rate = max(job.training.learning_rate, job.training.head_learning_rate or 0)
    noise = 8 * job.privacy.multiplier * job.privacy.clip_norm / math.sqrt(steps)  # of one step
    value = 0.0
    for _ in range(steps):
        value -= rate * (2 * expected * job.privacy.clip_norm + noise) / expected
    return abs(value) * (1 if job.weighting == "equal" else records)


@given(JOBS, st.data())
def test_no_private_update_leaves_the_bound(job: Job, data: st.DataObject) -> None:
    """M3."""
    records = data.draw(st.integers(job.smallest_class, job.largest_class))
    assert worst(job, records) <= update_bound(job) * (1 + 1e-9)


@given(JOBS)
def test_the_bound_is_no_wider_than_the_worst_pc_needs(job: Job) -> None:
    """M3: the wider, the coarser is the grid."""
    needed = max(worst(job, records) for records in (job.smallest_class, job.largest_class))
    assert update_bound(job) == pytest.approx(needed, rel=1e-9)


class Stubborn:
    """Noise that pushes every value one way in every step, by as many deviations."""

    def __init__(self, deviations: float) -> None:
        self._deviations = deviations

    def noisy(self, values: np.ndarray, deviation: float, spacing: float) -> np.ndarray:
        return values - self._deviations * deviation


@pytest.mark.parametrize("weighting", ["equal", "size-class"])
@pytest.mark.parametrize("records", [20, 80])
def test_steps_of_the_real_optimizer_stay_within_the_bound(weighting: str, records: int) -> None:
    """M3: twice as many records as expected, each gradient as long as the clip bound."""
    steps, rate, clip, noise, sampling = 9, 0.25, 0.5, 1.5, 0.1
    one = private(
        local_steps=steps, learning_rate=rate, clip_norm=clip, noise_multiplier=noise,
        sampling_rate=sampling, smallest_class=20, largest_class=80, weighting=weighting,
    )  # fmt: skip
    parameter, ones = torch.nn.Parameter(torch.zeros(3)), int(2 * sampling * records)
    clipped = torch.tensor([0.0, -clip * ones, 0.0])
    random: SecureRandom = Stubborn(8 / math.sqrt(steps))  # type: ignore[assignment]
    optimizer = torch.optim.SGD([parameter], lr=rate)
    module: Any = SimpleNamespace(
        clipped_sums=lambda *_, **__: [(parameter, clipped.clone())], rounding=EXACT
    )
    for _ in range(steps):
        private_step(
            optimizer, module, [(torch.zeros(1, requires_grad=True).sum(), ones)],
            noise_multiplier=noise, clip_norm=clip, divisor=sampling * records, random=random,
        )  # fmt: skip
    weight = records if weighting == "size-class" else 1
    moved = weight * parameter.detach().abs().numpy()
    assert moved.max() == moved[1]
    assert moved[1] <= update_bound(one)
    if (weighting, records) in {("equal", 20), ("size-class", 80)}:  # the worst PCs there are
        assert moved[1] > 0.99 * update_bound(one)


def test_a_job_can_set_the_bound_itself() -> None:
    for changes in ((), ("training.optimizer=adam",), ("federation.weighting=equal",)):
        assert update_bound(tiny_job("aggregation.bound=0.125", *changes)) == 0.125
    assert terms(tiny_job(TEN, "aggregation.bound=0.125")).bound == 0.125


def moved_by_adam(rate: float, gradients: Iterable[float]) -> float:
    """How far such gradients move a value."""
    value = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.Adam([value], lr=rate)
    for gradient in gradients:
        value.grad = torch.full_like(value, gradient)
        optimizer.step()
    return abs(value.item())


@pytest.mark.parametrize("steps", [1, 3, 50, 2000])
def test_adam_stays_within_its_own_bound_whatever_the_gradients(steps: int) -> None:
    """M3: steps are longest where gradients grow by beta 2 / beta 1; then 7.3 learning rates."""
    rate = 0.01
    one = private(optimizer="adam", local_steps=steps, learning_rate=rate, largest_class=64)
    assert update_bound(one) == pytest.approx(64 * rate * steps * 10)
    equal = one.model_copy(update={"weighting": "equal"})
    assert update_bound(equal) == pytest.approx(rate * steps * 10)
    for gradients in (
        [1e6] * steps,
        [0.0] * (steps - 1) + [1e6],
        [(-1.0) ** step for step in range(steps)],
        [1e-4 * (0.999 / 0.9) ** step for step in range(steps)],
    ):
        assert 0 < 64 * moved_by_adam(rate, gradients) <= update_bound(one)
    if steps == 2000:
        assert moved_by_adam(rate, gradients) > 0.5 * update_bound(equal)


def test_training_without_privacy_has_a_bound_of_its_own() -> None:
    """A gradient without clip has none: 100 for a value of it is a choice."""
    steps, rate = 7, 0.5
    one = private(
        local_steps=steps, learning_rate=rate, smallest_class=32, largest_class=64
    ).model_copy(update={"privacy": NoPrivacy()})
    assert update_bound(one) == pytest.approx(64 * rate * steps * 100)
    assert update_bound(one.model_copy(update={"weighting": "equal"})) == pytest.approx(
        rate * steps * 100
    )


def test_the_faster_of_head_and_body_sets_the_bound() -> None:
    slow, fast = private(learning_rate=0.5), private(learning_rate=2.0)
    assert update_bound(private(learning_rate=0.5, head_learning_rate=2.0)) == update_bound(fast)
    assert update_bound(private(learning_rate=0.5, head_learning_rate=0.1)) == update_bound(slow)
    assert update_bound(fast) == pytest.approx(4 * update_bound(slow))


@pytest.mark.parametrize("bits", [16, 24, 32])
def test_what_reaches_the_bound_is_moved_to_it_and_no_sum_wraps_around(bits: int) -> None:
    """M3."""
    found = terms(tiny_job(TEN, f"aggregation.bits={bits}"))
    most = found.encoding.most
    assert 10 * most < 2 ** (bits - 1)
    update = np.array([found.bound, -found.bound, 1e9, -1e9, 0], np.float32)
    total = np.zeros(5, found.encoding.dtype)
    for number in range(10):
        total += found.encoding.encode(update, 1, bytes([number]) * 32)
    decoded = found.encoding.decode(total) / 10
    assert decoded == pytest.approx(
        [found.bound, -found.bound, found.bound, -found.bound, 0], abs=2 / found.encoding.scale
    )
