"""Checks of what the sum of many PCs' shares of noise is; true builds pass, broken ones fail.

Ten PCs, of which 7 are in every sum at least and one may collude: six are honest. As in
`private_rounds`, |z| < 4.9 is one false alarm in a million.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache

import numpy as np
import numpy.typing as npt

from fedaipc.config import DPSGD, TrainingSettings
from fedaipc.model.inputs import Inputs
from fedaipc.privacy import training
from fedaipc.privacy.randomness import SecureRandom
from fedaipc.protocol import noise_share
from fedaipc.secagg.terms import Terms
from tests.support import private_rounds
from tests.support.private_rounds import assert_deviation
from tests.support.secagg import federation
from tests.support.tiny_models import TARGETS, TEXTS

MECHANISM = DPSGD(noise="distributed", noise_multiplier=2.0, honest=6, clip_norm=0.5)
WHOLE = MECHANISM.multiplier * MECHANISM.clip_norm  # deviation that the sum must have
SIZE = 4000


@cache
def ten() -> Terms:
    return federation(10, weights=(64,) * 10, bound=100.0, size=SIZE)[0]


def summed(honest: int, values: float = 0.0, key: bytes | None = None) -> npt.NDArray[np.float64]:
    """What so many honest PCs put into a sum, each with the same value everywhere."""
    terms = ten()
    total = np.zeros(SIZE, terms.encoding.dtype)
    for number, own in enumerate(terms.participants[:honest]):
        random = SecureRandom() if key is None else SecureRandom(key[:-1] + bytes([number]))
        share = noise_share.noise_share(MECHANISM, terms, own)
        total += share.encode(np.full(SIZE, values), random)
    return terms.encoding.decode(total)


def check_shares_of_the_honest() -> None:
    """The smallest sum, less what one colluding PC knows, carries the whole noise."""
    assert_deviation(summed(6, key=bytes(32)), WHOLE)


def check_each_share() -> None:
    """Whichever PCs are in the sum: each adds its part."""
    for count in range(1, 7):
        assert_deviation(summed(count, key=bytes(32)), WHOLE * math.sqrt(count / 6))


def check_shares_are_fresh() -> None:
    """Of the operating system's randomness: no share is another PC's, or of another round."""
    first, second = summed(6), summed(6)
    assert_deviation(first, WHOLE)
    assert_deviation(first - second, WHOLE * math.sqrt(2))


def check_whole_update() -> None:
    """All records of a PC together move its update by the clip bound at most, away from zeros."""
    for method in ("head", "bitfit", "full"):
        found = whole_update(method, range(len(TEXTS)))
        assert 0.99 * private_rounds.CLIP < np.linalg.norm(found) <= private_rounds.CLIP
        assert not whole_update(method, []).any()


def whole_update(method: str, records: Iterable[int]) -> npt.NDArray[np.float64]:
    """Of a PC with these of the tiny records, after three steps that go far."""
    classifier, start = private_rounds.model(method)
    kept = list(records)
    inputs = Inputs.nothing()
    if kept:
        inputs = private_rounds.only(private_rounds.all_inputs(method), kept)
    return training.clipped_update(
        classifier,
        inputs,
        TARGETS[kept],
        start,
        mechanism=DPSGD(unit="client", noise_multiplier=1.0, sampling_rate=1.0),
        clip_norm=private_rounds.CLIP,
        training=TrainingSettings(local_steps=3, learning_rate=1.0),
        micro_batch=64,
        random=SecureRandom.for_test(3),
    )


def check_limit_before_the_share() -> None:
    """Values beyond the limit are moved to it, and their noise is on both sides of it."""
    limit = noise_share.noise_share(MECHANISM, ten(), ten().participants[0]).limit
    found = summed(1, values=1e6, key=bytes(32)) - limit / ten().encoding.scale
    assert_deviation(found, WHOLE / math.sqrt(6))
    assert abs(found.mean()) < 4.9 * WHOLE / math.sqrt(6 * SIZE)
