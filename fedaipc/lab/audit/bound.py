"""A lower bound on epsilon from guesses about coins.

Theorem 5.2 of Steinke, Nasr and Jagielski, "Privacy Auditing with One (1) Training Run" (NeurIPS
2023). Each of m records is in or out of the data by a fair coin. The auditor guesses r of the
coins, and v guesses are right. If training is (epsilon, delta)-DP for adding or removing a record,
then

    P[v or more right] <= beta + 2 m delta alpha,
    beta  = P[B >= v],   alpha = max over i in 1..v of P[v > B >= v - i] / i,

with B binomial of r tries with chance e^epsilon / (1 + e^epsilon). An epsilon for which that is
less than 1 - confidence is ruled out. It does not matter what else the auditor's scores use.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit
from scipy.stats import binom

from fedaipc.errors import PrivacyError

Floats = npt.NDArray[np.float64]
CONFIDENCE = 0.95
_SHARES = (1.0, 0.5, 0.25, 0.125, 0.0625)  # of the canaries that are guessed; all are tried
_MAX_EPSILON = 60.0
_DIGITS = 1e-4


@dataclass(frozen=True, slots=True)
class Bound:
    """Epsilon is at least `lower` with the stated confidence; by `right` of `guesses` guesses."""

    lower: float
    guesses: int
    right: int
    canaries: int
    confidence: float


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """The chance bound above: of so many right guesses or more, if (epsilon, delta) were true."""
    if not 0 <= right <= guesses <= canaries:
        raise PrivacyError("right guesses are some of the guesses, and those some of the canaries")
    chance = float(expit(epsilon))
    beta = float(binom.sf(right - 1, guesses, chance))
    if right == 0 or delta == 0:
        return min(1.0, beta)
    below = binom.pmf(np.arange(right - 1, -1, -1), guesses, chance)
    alpha = float((np.cumsum(below) / np.arange(1, right + 1)).max())
    return min(1.0, beta + 2 * canaries * delta * alpha)


def lower_bound(
    canaries: int, guesses: int, right: int, delta: float, confidence: float = CONFIDENCE
) -> float:
    """The largest epsilon that is ruled out; 0 where none is."""
    risk = 1 - confidence

    def ruled_out(epsilon: float) -> bool:
        return p_value(canaries, guesses, right, epsilon, delta) < risk

    if not ruled_out(0.0):
        return 0.0
    low, high = 0.0, _MAX_EPSILON
    while high - low > _DIGITS:
        middle = (low + high) / 2
        low, high = (middle, high) if ruled_out(middle) else (low, middle)
    return low


def audit_bound(
    scores: Floats, included: npt.NDArray[np.bool_], delta: float, confidence: float = CONFIDENCE
) -> Bound:
    """Guess "in" for the highest scores and "out" for as many of the lowest.

    How many are guessed is tried in five ways, each with a fifth of the risk (Bonferroni), so that
    the best may be taken. Raises PrivacyError where the two arrays differ in length or are empty, a
    score is not a number, or delta or confidence is out of range.
    """
    count = len(scores)
    if count != len(included) or count < 2:
        raise PrivacyError("an audit needs a score and a coin for each of at least two canaries")
    if np.isnan(scores).any():
        raise PrivacyError("a score is not a number (NaN): leave that canary out of both lists")
    if not (0 <= delta < 1 and 0 < confidence < 1):
        raise PrivacyError(
            f"delta {delta:g}, confidence {confidence:g}: give delta from 0 to below 1, and "
            "confidence between 0 and 1"
        )
    order = np.argsort(scores, kind="stable")
    risk = (1 - confidence) / len(_SHARES)
    best = Bound(0.0, 0, 0, count, confidence)
    for share in _SHARES:
        half = max(1, round(share * count / 2))
        guesses = min(2 * half, count)
        low, high = order[: guesses // 2], order[count - (guesses - guesses // 2) :]
        right = int((~included[low]).sum() + included[high].sum())
        lower = lower_bound(count, guesses, right, delta, 1 - risk)
        if lower > best.lower or not best.guesses:
            best = Bound(lower, guesses, right, count, confidence)
    return best
