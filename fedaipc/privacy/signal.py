"""How long the noise of a whole job is beside the longest signal that it can carry.

From public numbers alone, so that it can be said before a job runs, and to anybody.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fedaipc.config import DPSGD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedaipc.config import Schedule, Settings

# From here on runs kept less than half of what they learn without noise: see
# docs/explanation/recipe.md.
DROWNED = 0.2


def noise_ratio(
    once: Schedule, settings: Settings, values: int, size_classes: Sequence[int]
) -> float:
    """Length of the noise in the sum of all updates, by the length of that sum at its longest.

    A step of a PC of size class n adds noise of length sigma C sqrt(values) to a sum that is at
    most q n C long, where all gradients agree. Both are divided by q n and weighted. Over T steps
    signals add up to T times one step, independent noise to sqrt(T) times. 0 without noise. With
    distributed noise each PC adds sigma C / sqrt(honest) in its place. Where clients are protected,
    one adds sigma C sqrt(values), or such a share, to an update that is at most C long.
    """
    mechanism = once.mechanism
    if not isinstance(mechanism, DPSGD):
        return 0.0
    federation = settings.federation
    steps = settings.rounds * once.steps * federation.fraction
    if mechanism.unit == "client":
        noise = math.sqrt(len(size_classes) / (mechanism.honest or 1))
        signal = len(size_classes) * math.sqrt(steps)
    else:
        by_size = federation.weighting == "size-class"
        weights = [n if by_size else 1 for n in size_classes]
        noise = math.hypot(*(w / n for w, n in zip(weights, size_classes, strict=True)))
        if mechanism.honest is not None:
            noise = math.sqrt(len(weights) / mechanism.honest)
        signal = mechanism.sampling_rate * sum(weights) * math.sqrt(steps)
    return mechanism.multiplier * math.sqrt(values) * noise / signal


def clients_of_use(
    once: Schedule, settings: Settings, values: int, size_classes: Sequence[int]
) -> int:
    """How many clients a job needs that protects them whole, so that noise does not drown it.

    Upper bound where noise is distributed and there are few: their sums will have more honest ones.
    """
    ratio = noise_ratio(once, settings, values, size_classes)
    return math.ceil(len(size_classes) * (ratio / DROWNED) ** 2)


def noise_warning(
    once: Schedule, settings: Settings, values: int, labels: int, size_classes: Sequence[int]
) -> str | None:
    """One line where noise is too strong, with its numbers and what would help.

    `values` are trained, for `labels` labels, on one PC for each of the public `size_classes`.
    """
    mechanism = once.mechanism
    ratio = noise_ratio(once, settings, values, size_classes)
    if ratio < DROWNED or not isinstance(mechanism, DPSGD):
        return None
    if mechanism.unit == "client":
        needed = clients_of_use(once, settings, values, size_classes)
        return (
            f"noise is too strong to learn much: {ratio:.2g} of the largest possible update "
            f"({DROWNED:g} already halves what the model learns). What helps: about {needed:,} PCs "
            f"in place of {len(size_classes):,}, a larger epsilon, fewer trained values than "
            f"{values:,}"
        )
    head = settings.model.train.kind == "head"
    fewer = "" if head else ', fewer trained values (model.train.kind = "head")'
    return (
        f"noise is too strong to learn much: {ratio:.2g} of the largest possible update "
        f"({DROWNED:g} already halves what the model learns). {len(size_classes):,} PCs of about "
        f"{sum(size_classes) / len(size_classes):,.0f} records, {labels:,} labels, {values:,} "
        f"trained values, {settings.rounds:,} rounds, noise multiplier "
        f"{mechanism.multiplier:.3g}. What helps: more records on each PC, more PCs, a larger "
        f"epsilon, fewer labels{fewer}"
    )
