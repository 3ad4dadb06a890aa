"""A margin in the clip bound for what float32 loses where the records of a step are added up.

In any order of summation a float32 product of n terms is off, in each value, by at most n u
times the sum of its terms' sizes. Here u = 2^-24 (Jeannerod and Rump, "Improved error bounds for
inner products", 2013). Over a step these sizes are, as vectors, at most k C for each record, k
little above `cancellation`. A record whose tokens cancel each other further is scaled down. One
record more or less may regroup all others and change the error of every product. So a step's sum
moves by at most

    room C + 2 (n + 2) u k records C,

the second 2 for the rounding of the factors: n and the number of records are limited so that this
is C at most. So nothing is assumed about the errors: neither their signs nor the values of the
records.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_UNIT = 1.01 * 2.0**-24  # rounding of float32; the 1 % covers products of bounds
_BASE = 2.0**-8  # for norms that are a little too small, rounded factors and the noise's lattice
_FLOAT32 = 1 / 24  # of the clip bound, for float32: with less, batches are cut more often
_PARTS = (1, 2, 4)  # products that a batch is cut into: each costs a pass over the weights


@dataclass(frozen=True, slots=True)
class Rounding:
    """How a step's records are added up.

    The first `records` of a step in float32 products of at most `terms` tokens, all others in
    float64, and these products in float64, too. A record is scaled to `room` of the clip bound, and
    its tokens, added up by size, to `cancellation` times that.
    """

    records: int
    terms: int
    room: float = 1 - _BASE - _FLOAT32
    cancellation: float = 4.0

    @property
    def error(self) -> float:
        """What float32 can move a step's sum by, in clip bounds."""
        size = math.hypot(self.cancellation, 1)  # the 1 of layers whose gradients are formed
        return 2 * (self.terms + 2) * _UNIT * size * self.records if self.terms else 0.0


EXACT = Rounding(0, 0, room=1 - _BASE, cancellation=16.0)  # where all sums are in float64


def rounding_for(expected: float, tokens: int, longest: int) -> Rounding:
    """For steps of `expected` records on average, in batches of `tokens`; all three are public.

    `longest` is the number of tokens of the longest record. More than four deviations above the
    average are added up in float64, however many there are. The room is the same for all of them,
    so that a model does not depend on how its batches are cut.
    """
    records = math.ceil(expected + 4 * math.sqrt(expected)) + 8
    for parts in _PARTS:
        found = Rounding(records, -(-tokens // parts))
        if found.terms < longest:
            break
        if found.error <= _FLOAT32:
            return found
    return Rounding(0, 0)
