"""What choosing the best of many private runs costs, where all of them use the same texts.

There are two answers. An observer of all runs' updates and models, such as the coordinator, sees
their composition. If only the best model is ever shown, and the number of runs was drawn at random
beforehand, the bounds of Papernot and Steinke hold: "Hyperparameter Tuning with Renyi Differential
Privacy" (ICLR 2022). They hardly grow with the number of runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from scipy.optimize import brentq

from fedaipc.config import Schedule
from fedaipc.errors import PrivacyError
from fedaipc.privacy.accountant import ORDERS, epsilon_at, epsilon_rdp, merged, rdp


def composed_epsilon(runs: Iterable[Schedule], delta: float) -> float:
    """Epsilon of all runs together, by RDP."""
    return epsilon_rdp(merged(runs), delta)


def selected_epsilon(runs: Sequence[Schedule], delta: float, mean_trials: float) -> float:
    """Epsilon where only the best of a random number of runs is shown.

    The number has the logarithmic distribution (theorem 2 with eta = 0) of mean `mean_trials`, and
    each run draws its settings by itself, so that the dearest of `runs` bounds them all. Raises
    PrivacyError where the mean is below 1.
    """
    if mean_trials < 1:
        raise PrivacyError("a tuner makes one trial at least")
    costs = [max((rdp([run], order) for run in runs), default=0.0) for order in ORDERS]
    gamma = _gamma(mean_trials)
    # Theorem 2: the extra terms are free to use another order than the one that is certified.
    extra = min(
        (1 - 1 / order) * cost + math.log(1 / gamma) / order
        for order, cost in zip(ORDERS, costs, strict=True)
    )
    return min(
        epsilon_at(order, cost + extra + math.log(mean_trials) / (order - 1), delta)
        for order, cost in zip(ORDERS, costs, strict=True)
    )


def _gamma(mean: float) -> float:
    """The logarithmic distribution's parameter: mean = (1/gamma - 1) / ln(1/gamma)."""
    if mean == 1:
        return 1.0

    def excess(logarithm: float) -> float:
        return math.expm1(logarithm) / logarithm - mean

    return math.exp(-float(brentq(excess, 1e-9, 2 * math.log(mean) + 5)))
