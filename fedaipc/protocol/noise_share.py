"""A client's share of the noise that only a sum carries (docs/explanation/distributed-noise.md).

Every sum that can be unmasked holds the shares of `honest` honest clients at least, each a rounded
Gaussian of deviation sigma C / sqrt(honest) on the lattice of the ring. Together they are the
Gaussian mechanism with noise multiplier sigma, so that every accountant of it holds as it is.
A client whose whole update is protected adds its noise here too: a share, or all of it (`honest`
is then 1). All numbers here are public: they follow from the signed job and the terms of the round.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedaipc.errors import SecAggError

if TYPE_CHECKING:
    import numpy.typing as npt

    from fedaipc.config import DPSGD
    from fedaipc.privacy.randomness import SecureRandom
    from fedaipc.secagg.encoding import Encoding, Words
    from fedaipc.secagg.terms import Terms

MIN_DEVIATION = 16.0  # steps of the lattice; the law of a sum is then off by less than 10^-1000
MAX_MARGIN = 1 / 8  # of the clip bound, given up to the rounding of a large model
_CHUNK = 1 << 22  # values: enough for all threads
_DEVIATIONS = 8  # of the noise: beyond, a Gaussian value is less likely than 1e-15


@dataclass(frozen=True, slots=True)
class NoiseShare:
    """How one client encodes its clipped sum, or its clipped update.

    `clip_norm` bounds one record's gradient, or the whole update: what rounding can add to it is
    taken off. The sum is multiplied by `factor`, at most 1. `limit` bounds one value before the
    share is added, and `deviation` is the share's; both in whole numbers of the ring,
    `encoding.scale` for a unit.
    """

    encoding: Encoding
    clip_norm: float
    factor: float
    deviation: float
    limit: float

    def encode(self, total: npt.NDArray[np.float64], random: SecureRandom) -> Words:
        """Ring elements of `total`, shape (size,), each with its share of noise.

        Raises SecAggError where a value is not finite.
        """
        if not np.isfinite(total).all():
            raise SecAggError("a sum that is not finite cannot be sealed")
        words: npt.NDArray[Any] = np.empty(len(total), self.encoding.dtype)
        for start in range(0, len(total), _CHUNK):  # what lies between takes four times the room
            part = slice(start, start + _CHUNK)
            steps = total[part] * (self.factor * self.encoding.scale)
            # Before the share is added, never after: values that were moved with their noise have
            # a sum that depends on more than the noisy sum. What is too large then wraps around.
            np.clip(steps, -self.limit, self.limit, out=steps)
            noisy = random.noisy(steps, self.deviation, 1.0)  # both in whole numbers
            words[part] = noisy.astype(np.int64) & ((1 << self.encoding.bits) - 1)
        return words


def noise_share(mechanism: DPSGD, terms: Terms, own: bytes) -> NoiseShare:
    """Of the PC `own`, in the round that has these terms.

    Raises SecAggError where the sum may have fewer honest clients than the mechanism counts with,
    or the ring is too coarse for the noise, or for so many values.
    """
    bounds, encoding = terms.thresholds, terms.encoding
    if mechanism.distributed and (not terms.sealed or mechanism.honest is None):
        raise SecAggError("distributed noise needs secure aggregation")
    honest = mechanism.honest or 1
    if mechanism.distributed and bounds.least - bounds.colluding < honest:
        raise SecAggError(
            f"a sum may have {bounds.least - bounds.colluding} honest PCs, and the job's noise "
            f"counts with {honest}: the list of members has changed, so have the job signed again"
        )
    check_scale(mechanism, encoding, terms.size)
    place, whole = terms.place(own), mechanism.unit == "client"
    if whole and terms.weights[place] != 1:
        raise SecAggError("a whole update is protected by what it weighs: one, as any other's")
    return NoiseShare(
        encoding=encoding,
        clip_norm=mechanism.clip_norm * (1 - _margin(mechanism, encoding, terms.size)),
        factor=1.0 if whole else terms.weights[place] / terms.bundles[place].size_class,
        deviation=_deviation(mechanism, encoding),
        limit=(encoding.bound - noise_room(mechanism, encoding.count)) * encoding.scale,
    )


def check_scale(mechanism: DPSGD, encoding: Encoding, size: int) -> None:
    """Raise SecAggError where the ring is too coarse for the noise, or for `size` values."""
    room = noise_room(mechanism, encoding.count)
    if encoding.bound <= room:
        raise SecAggError(
            f"aggregation.bound = {encoding.bound:g} leaves no room beside the noise: set more "
            f"than {room:g}"
        )
    coarse = _deviation(mechanism, encoding) < MIN_DEVIATION
    if coarse or _margin(mechanism, encoding, size) > MAX_MARGIN:
        raise SecAggError(
            f"a ring of {encoding.bits} bits is too coarse for the noise on {size:,} values: set a "
            "smaller aggregation.bound, or more aggregation.bits"
        )


def _deviation(mechanism: DPSGD, encoding: Encoding) -> float:
    """Of one share, in steps."""
    honest = math.sqrt(mechanism.honest or 1)
    return mechanism.multiplier * mechanism.clip_norm * encoding.scale / honest


def _margin(mechanism: DPSGD, encoding: Encoding, size: int) -> float:
    """What rounding `size` values to whole steps can add to a distance, by the clip bound."""
    # A thousandth more for the floating-point product that is rounded.
    return 1.001 * math.sqrt(size) / (encoding.scale * mechanism.clip_norm)


def noise_room(mechanism: DPSGD, clients: int) -> float:
    """What of the bound on one client's value is kept for the noise in a sum over `clients`.

    The noise of all of them has a deviation of sqrt(clients / honest) sigma C.
    """
    share = mechanism.multiplier * mechanism.clip_norm / math.sqrt(mechanism.honest or 1)
    return _DEVIATIONS * share / math.sqrt(clients)
