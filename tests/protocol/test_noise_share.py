"""Shares of noise: their sum is the Gaussian of the theorem, and what breaks it is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, norm

from fedaipc.config import DPSGD, Schedule
from fedaipc.errors import ConfigError, RoundError, SecAggError
from fedaipc.privacy.accountant import epsilon_rdp
from fedaipc.privacy.budget import local_epsilon
from fedaipc.privacy.randomness import SecureRandom
from fedaipc.privacy.training import clipped_sum
from fedaipc.protocol.job import Job
from fedaipc.protocol.noise_share import MAX_MARGIN, NoiseShare, noise_room, noise_share
from fedaipc.protocol.round_terms import check_noise, job_thresholds
from fedaipc.secagg.encoding import Encoding
from fedaipc.secagg.terms import PLAIN
from tests.support import private_rounds as steps
from tests.support.jobs import tiny, tiny_job
from tests.support.secagg import federation
from tests.support.tiny_models import TARGETS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from fedaipc.secagg.terms import Terms

    Law = npt.NDArray[np.float64]

REACH = 200  # whole numbers on either side of 0
K = np.arange(-REACH, REACH + 1)


def share_law(deviation: float) -> Law:
    law: Law = np.diff(norm.cdf(np.arange(-REACH - 0.5, REACH + 1), scale=deviation))
    return law


def sum_law(deviations: Sequence[float]) -> Law:
    law = np.array([1.0])
    for deviation in deviations:
        law = np.convolve(law, share_law(deviation))
    middle = len(law) // 2
    return law[middle - REACH : middle + REACH + 1]


def spline_law(deviations: Sequence[float]) -> Law:
    """The density of N(0, S^2) plus as many uniform numbers of [-1/2, 1/2], at whole numbers.

    By inverting its characteristic function: another way than by convolving laws of shares.
    """
    total = math.hypot(*deviations)
    w = np.linspace(-12 / total, 12 / total, 40_001)
    image = np.exp(-((total * w) ** 2) / 2) * np.sinc(w / (2 * np.pi)) ** len(deviations)
    law: Law = np.trapezoid(image * np.cos(np.outer(K, w)), w) / (2 * np.pi)
    return law


@pytest.mark.parametrize("shares", [2, 3, 5])
@pytest.mark.parametrize("deviation", [1.0, 1.2, 1.5, 2.0])
def test_a_sum_of_shares_is_the_law_of_the_theorem_up_to_its_bound(
    deviation: float, shares: int
) -> None:
    off = np.abs(sum_law([deviation] * shares) - spline_law([deviation] * shares)).max()
    bound = 2.05 * shares**2 * 1.02**shares * math.exp(-((math.pi * deviation) ** 2))
    assert off <= bound + 1e-15
    if deviation == 1.0:  # above what doubles can show: there is a difference to be bounded
        assert off > 1e-9


def test_shares_of_different_deviations_add_up_too() -> None:
    mixed = [1.5, 2.0, 2.5]
    assert np.abs(sum_law(mixed) - spline_law(mixed)).max() < 1e-9


@pytest.mark.parametrize("wrong", [0.5, 0.95, 1.05])
def test_another_deviation_is_another_law(wrong: float) -> None:
    off = np.abs(sum_law([2.0 * wrong] * 3) - spline_law([2.0] * 3)).max()
    assert off > 1e-3


def test_the_spline_is_a_partition_of_unity() -> None:
    """So that its values at whole numbers are the kernel of a rounding, wherever it starts."""
    assert spline_law([1.0] * 3).sum() == pytest.approx(1, abs=1e-12)


ENCODING = Encoding(bits=32, count=20, bound=300.0)


def share(deviation: float, limit: float = 2.0**26) -> NoiseShare:
    return NoiseShare(
        encoding=ENCODING, clip_norm=1.0, factor=1.0, deviation=deviation, limit=limit
    )


def summed(shares: Sequence[NoiseShare], values: Sequence[Law], seed: int) -> Law:
    """The decoded sum, in lattice steps."""
    total = np.zeros(len(values[0]), ENCODING.dtype)
    for number, (one, value) in enumerate(zip(shares, values, strict=True)):
        total += one.encode(value, SecureRandom.for_test(seed, number))
    return np.rint(ENCODING.decode(total) * ENCODING.scale)


@pytest.mark.parametrize("deviation", [0.7, 1.0, 20.0, 1e4])
def test_the_sum_of_real_shares_follows_the_law(deviation: float) -> None:
    """Chi squared over 200,000 draws at the level 10^-6: that often a right build would fail."""
    draws, honest = 200_000, 3
    found = summed([share(deviation)] * honest, [np.zeros(draws)] * honest, 1)
    assert accepted(found, deviation, honest)
    for wrong in (0.98, 1.02):  # and a share that is 2 % too small or too large is found
        found = summed([share(wrong * deviation)] * honest, [np.zeros(draws)] * honest, 1)
        assert not accepted(found, deviation, honest)


def accepted(found: Law, deviation: float, honest: int) -> bool:
    if deviation > 100:  # by quantiles: uniform where the law is right
        scale = math.hypot(deviation * math.sqrt(honest), math.sqrt(honest / 12))
        counts, _ = np.histogram(norm.cdf(found, scale=scale), bins=50, range=(0, 1))
        expected = np.full(50, len(found) / 50)
    else:
        law = sum_law([deviation] * honest)
        common = law * len(found) >= 50
        counts = np.array([(found == k).sum() for k in K[common]])
        expected = law[common] * len(found)
        counts = np.append(counts, len(found) - counts.sum())
        expected = np.append(expected, len(found) - expected.sum())
        kept = expected > 5
        counts, expected = counts[kept], expected[kept]
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return bool(chi2.sf(statistic, len(counts) - 1) > 1e-6)


@settings(max_examples=30)
@given(
    values=st.lists(st.floats(-100, 100), min_size=1, max_size=30),
    clients=st.integers(1, 20),
    seed=st.integers(0, 2**32),
)
def test_noise_adds_to_the_sum_and_to_nothing_else(
    values: list[float], clients: int, seed: int
) -> None:
    """The same shares on other values: exactly the rounded values apart."""
    own = np.array(values)
    with_values = summed([share(50.0)] * clients, [own] * clients, seed)
    alone = summed([share(50.0)] * clients, [np.zeros_like(own)] * clients, seed)
    assert np.array_equal(with_values - alone, clients * np.rint(own * ENCODING.scale))


def test_a_value_is_limited_before_its_share_and_never_after() -> None:
    """M34: so noise is on both sides of the limit."""
    found = summed([share(1e4, limit=1000.0)], [np.full(20_000, 1e6)], 3)
    assert 0.4 < (found > 1000).mean() < 0.6
    assert found.std() == pytest.approx(1e4, rel=0.03)


def test_what_is_too_large_wraps_around_in_the_ring() -> None:
    one = share(1e3, limit=2.0**31 - 1)
    words = one.encode(np.full(2000, 1e9), SecureRandom.for_test(4))
    assert 0.4 < (words.view("<i4") < 0).mean() < 0.6


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_sum_that_is_not_finite_is_not_encoded(value: float) -> None:
    with pytest.raises(SecAggError, match="not finite"):
        share(20.0).encode(np.array([0.0, value]), SecureRandom())


# What the job and the round must keep

MECHANISM = DPSGD(noise="distributed", noise_multiplier=2.0, honest=6, clip_norm=0.5)
COUNT = 10


def of_round(mechanism: DPSGD = MECHANISM, **changes: Any) -> tuple[Terms, NoiseShare]:
    """Ten PCs of class 64, at least 7 in a sum, one of them colluding."""
    terms, keys = federation(COUNT, **{"weights": (64,) * COUNT, "bound": 100.0, **changes})
    return terms, noise_share(mechanism, terms, next(iter(keys)))


def test_the_shares_of_the_honest_carry_the_noise_between_them() -> None:
    terms, found = of_round()
    assert terms.thresholds.least - terms.thresholds.colluding == 6
    whole = MECHANISM.multiplier * MECHANISM.clip_norm * terms.encoding.scale
    assert found.deviation * math.sqrt(6) == pytest.approx(whole, rel=1e-12)


def test_a_record_moves_whole_numbers_by_the_clip_bound_at_most() -> None:
    terms, found = of_round(size=2000)
    scale = terms.encoding.scale
    assert found.clip_norm * scale + math.sqrt(terms.size) <= MECHANISM.clip_norm * scale
    assert 1 - found.clip_norm / MECHANISM.clip_norm < MAX_MARGIN


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32), size=st.integers(1, 80), length=st.floats(1e-6, 1.0),
    bits=st.sampled_from([32, 24, 16]),
)  # fmt: skip
def test_so_it_is_for_any_sum_and_any_record(
    seed: int, size: int, length: float, bits: int
) -> None:
    """In 16 bits a step is a hundredth of C: rounding takes a good part of the bound."""
    random = np.random.default_rng(seed)
    terms, found = of_round(size=size, bound=20.0, bits=bits)
    total = random.normal(size=size) * random.choice([0.01, 1.0, 20.0])
    record = random.normal(size=size)
    record *= length * found.clip_norm / np.linalg.norm(record)
    before, after = (
        found.encode(one, SecureRandom.for_test(seed)) for one in (total, total + record)
    )
    moved = np.rint(terms.encoding.decode(after - before) * terms.encoding.scale)
    assert np.linalg.norm(moved) <= MECHANISM.clip_norm * terms.encoding.scale


def test_a_weight_below_the_size_class_scales_the_sum_down() -> None:
    _, found = of_round(weights=(32,) * COUNT)
    assert found.factor == 0.5


@pytest.mark.parametrize(
    ("mechanism", "changes", "said"),
    [
        (MECHANISM.model_copy(update={"honest": 7}), {}, "counts with 7"),
        (MECHANISM, {"bits": 16, "bound": 100.0}, "too coarse"),
        (MECHANISM, {"size": 10**9, "bits": 24}, "too coarse"),
        (MECHANISM, {"bound": 1.0}, "leaves no room beside the noise"),
        (MECHANISM, {"thresholds": PLAIN}, "needs secure aggregation"),
    ],
    ids=["too few honest", "noise of few steps", "too many values", "no room", "plain"],
)
def test_a_round_that_cannot_carry_the_noise_is_refused(
    mechanism: DPSGD, changes: dict[str, Any], said: str
) -> None:
    """M33."""
    with pytest.raises(SecAggError, match=said):
        of_round(mechanism, **changes)


@pytest.mark.parametrize("bits", [24, 16])
def test_noise_in_a_smaller_ring_has_the_same_deviation(bits: int) -> None:
    terms, keys = federation(COUNT, weights=(64,) * COUNT, bound=20.0, bits=bits, size=4000)
    total = np.zeros(terms.size, terms.encoding.dtype)
    # Of so many values 16 bits would be refused; here only the noise is looked at.
    few = dataclasses.replace(terms, size=50)
    for number, own in enumerate(list(keys)[:6]):
        share = noise_share(MECHANISM, few, own)
        total += share.encode(np.zeros(terms.size), SecureRandom.for_test(9, number))
    noise = terms.encoding.decode(total & np.array(2**bits - 1, total.dtype))
    assert noise.std() == pytest.approx(1.0, rel=4.9 / math.sqrt(2 * terms.size))


@pytest.mark.parametrize("method", ["head", "bitfit", "full"])
def test_a_record_moves_a_real_sum_by_the_clip_bound_at_most(method: str) -> None:
    classifier, start = steps.model(method)
    inputs = steps.all_inputs(method)
    how: dict[str, Any] = {
        "mechanism": DPSGD(noise="distributed", noise_multiplier=1.0, honest=2),
        "clip_norm": steps.CLIP, "size_class": 32, "micro_batch": 64,
    }  # fmt: skip

    def total(keep: list[int]) -> npt.NDArray[np.float64]:
        some = steps.only(inputs, keep)
        drawn = steps.Scripted(range(len(keep)))
        return clipped_sum(classifier, some, TARGETS[keep], start, random=drawn, **how)

    everything = list(steps.EVERYTHING)
    whole = total(everything)
    moves = [np.linalg.norm(whole - total([i for i in everything if i != n])) for n in (0, 4, 11)]
    assert max(moves) <= steps.CLIP
    assert min(moves) > 0.9 * steps.CLIP  # every gradient here is longer
    nothing = steps.Scripted([])
    assert not clipped_sum(classifier, inputs, TARGETS, start, random=nothing, **how).any()


def test_the_bound_leaves_room_for_the_noise_of_all() -> None:
    """8 deviations of the sum beside values at their limit stay within the ring, and just so."""
    terms, found = of_round()
    noise = 8 * found.deviation * math.sqrt(COUNT)
    assert 0.999 * 2**31 < COUNT * found.limit + noise < 2**31
    assert noise_room(MECHANISM, COUNT) == pytest.approx(8 * 2.0 * 0.5 / math.sqrt(6 * COUNT))
    assert terms.bound > noise_room(MECHANISM, COUNT)


def test_what_one_client_adds_is_its_own_promise() -> None:
    local = MECHANISM.local
    assert (local.noise, local.honest) == ("local", None)
    assert local.multiplier == pytest.approx(2.0 / math.sqrt(6))
    assert DPSGD(noise_multiplier=2.0).local == DPSGD(noise_multiplier=2.0)
    schedule = Schedule(mechanism=MECHANISM, steps=30)
    own = Schedule(mechanism=DPSGD(noise_multiplier=2.0 / math.sqrt(6), clip_norm=0.5), steps=30)
    assert local_epsilon([schedule], 1e-5) == pytest.approx(epsilon_rdp([own], 1e-5))
    assert local_epsilon([own], 1e-5) == pytest.approx(epsilon_rdp([own], 1e-5))


def test_next_to_no_noise_promises_next_to_nothing_and_is_counted_without_sampling() -> None:
    little = MECHANISM.model_copy(update={"noise_multiplier": 0.12, "sampling_rate": 0.1})
    assert little.local.sampling_rate == 1.0
    epsilon = local_epsilon([Schedule(mechanism=little, steps=30)], 1e-5)
    assert 1e3 < epsilon < math.inf


def test_without_a_number_of_honest_clients_nothing_is_promised() -> None:
    with pytest.raises(ValueError, match="honest"):
        _ = MECHANISM.model_copy(update={"honest": None}).local


def test_a_job_that_every_pc_would_refuse_is_refused_before() -> None:
    job = tiny_job("privacy.noise=distributed", "federation.clients=10")
    check_noise(job, 2000)
    for changes in ("aggregation.bits=16", "aggregation.bound=1.0"):
        coarse = tiny_job("privacy.noise=distributed", "federation.clients=10", changes)
        with pytest.raises(ConfigError, match=r"too coarse|no room"):
            check_noise(coarse, 2000)


@pytest.mark.parametrize("clients", [262, 268])
def test_of_two_sizes_of_groups_the_one_with_fewer_honest_clients_counts(clients: int) -> None:
    """Here that is the larger one."""
    job = tiny_job(
        "privacy.noise=distributed", f"federation.clients={clients}",
        "aggregation.threshold=0.5", f"aggregation.colluding={clients // 10}",
    )  # fmt: skip
    assert isinstance(job.privacy, DPSGD)
    small, large = clients // 3, clients // 3 + 1
    honest = []
    for group in (small, large):
        bounds = job_thresholds(job, clients, group, group)
        honest.append(bounds.least - bounds.colluding)
    assert honest[1] < honest[0]
    assert job.privacy.honest == honest[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("training.local_steps=2",), "local_steps = 1"),
        (("training.optimizer=adam",), "local_steps = 1"),
        (("training.head_learning_rate=1.0",), "learning_rate alone"),
        (("federation.weighting=equal",), "size-class"),
        (("aggregation.kind=plain",), "needs secure aggregation"),
        (("privacy.honest=3",), "leave it out"),
    ],
)
def test_settings_that_do_not_go_with_it_are_refused(changes: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tiny("privacy.noise=distributed", *changes)


def test_a_job_counts_honest_clients_if_and_only_if_noise_is_distributed() -> None:
    job = tiny_job("privacy.noise=distributed", "federation.clients=10")
    assert isinstance(job.privacy, DPSGD)
    assert job.privacy.honest == 6
    assert Job.parse(job.model_dump_json()) == job
    for changes in ({"honest": None}, {"noise": "local"}):
        tree = job.model_dump(mode="json")
        tree["privacy"] |= changes
        with pytest.raises(RoundError, match="cannot be read"):
            Job.parse(json.dumps(tree))
