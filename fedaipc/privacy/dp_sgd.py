"""One private step, from top to bottom: DP-SGD (Abadi et al., CCS 2016, algorithm 1) on one PC.

| step     | function         | what it guarantees                                             |
|----------|------------------|----------------------------------------------------------------|
| sample   | `poisson_sample` | each record is drawn by a coin of its own, of probability q     |
| clip     | `add_clipped`    | the sum moves by C at most for one record, rounding included   |
| noise    | `noisy`          | the sum carries N(0, (sigma C)^2) on every coordinate           |
| divide   | `private_step`   | by the public number q n, whoever was drawn                     |
| step     | `private_step`   | of an ordinary torch optimizer, which sees the noisy mean alone |

So a step is the Poisson-subsampled Gaussian mechanism of noise multiplier sigma and rate q, for
neighbours that differ in one record (added or removed); what the optimizer does with its result is
post-processing. What must hold besides: a record's gradient depends on no other record (batches of
public shape, a sum of losses, no layer that mixes examples), which `training` and `bookkeeping`
see to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedaipc.errors import ModelError
from fedaipc.privacy.norms import double

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from fedaipc.privacy.bookkeeping import BookKeepingModule
    from fedaipc.privacy.randomness import SecureRandom

Sums = dict[torch.nn.Parameter, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Draw:
    """What a mechanism draws a sample with: the PC's secret randomness, and how many records."""

    random: SecureRandom
    records: int

    def poisson(self, rate: float) -> npt.NDArray[np.int64]:
        """As `poisson_sample`."""
        return poisson_sample(self.random, self.records, rate)


@dataclass(frozen=True, slots=True)
class Step:
    """What a mechanism trains one step with; the fields are those of `private_step`."""

    optimizer: torch.optim.Optimizer
    module: BookKeepingModule
    losses: Iterable[tuple[torch.Tensor, int]]
    divisor: float
    random: SecureRandom

    def dp_sgd(self, *, clip_norm: float, noise_multiplier: float) -> None:
        """As `private_step`."""
        private_step(
            self.optimizer,
            self.module,
            self.losses,
            clip_norm=clip_norm,
            noise_multiplier=noise_multiplier,
            divisor=self.divisor,
            random=self.random,
        )


def poisson_sample(random: SecureRandom, records: int, rate: float) -> npt.NDArray[np.int64]:
    """Numbers below `records`, each there by a coin of its own of probability `rate` at most.

    How many are drawn is random and secret: nothing that leaves may depend on it.
    """
    return random.poisson_sample(records, rate)


def add_clipped(
    sums: Sums, module: BookKeepingModule, clip_norm: float, rows: int, *, exact: bool = False
) -> None:
    """Add the gradients of the first `rows` rows of the last backward pass to `sums`.

    Before that, each row's whole gradient is scaled to an L2 norm of `clip_norm` at most, less
    the margin for rounding (`rounding`). So one record moves all of `sums` together by no more
    than `clip_norm`: that is a bound, not an estimate. The sums are in float64 from the second
    micro-batch on, and with `exact` within a micro-batch as well.
    """
    for parameter, total in module.clipped_sums(clip_norm, rows, exact=exact):
        before = sums.get(parameter)
        sums[parameter] = total if before is None else double(before).add_(total)


def sample_sums(
    module: BookKeepingModule, losses: Iterable[tuple[torch.Tensor, int]], clip_norm: float
) -> Sums:
    """The sums of `add_clipped` over a whole sample; empty where the sample is.

    `losses` as for `private_step`.
    """
    sums: Sums = {}
    records = 0
    for loss, rows in losses:
        loss.backward()
        records += rows
        exact = records > module.rounding.records  # what lies beyond would break the bound
        add_clipped(sums, module, clip_norm, rows, exact=exact)
    return sums


def flat(sums: Sums, parameters: Sequence[torch.nn.Parameter]) -> npt.NDArray[np.float64]:
    """The sums of all `parameters` in their order, shape (size,); zeros where the sample was empty.

    Raises ModelError where one of them got no gradient.
    """
    if sums and any(parameter not in sums for parameter in parameters):
        raise ModelError("a trainable parameter got no per-example gradients")
    parts = [
        np.zeros(parameter.numel()) if (total := sums.get(parameter)) is None
        else total.detach().reshape(-1).double().cpu().numpy()
        for parameter in parameters
    ]  # fmt: skip
    return np.concatenate(parts)


def clipped_update(update: npt.NDArray[np.float32], clip_norm: float) -> npt.NDArray[np.float64]:
    """`update`, shape (size,), scaled to an L2 norm of `clip_norm` at most.

    A bound, rounding included: the norm of d values in float64 is off by less than d 2^-53 of
    itself, which 2^-20 covers for any model below 2^32 parameters. Raises ModelError where a value
    is not finite.
    """
    whole = update.astype(np.float64)
    norm = math.sqrt(float(whole @ whole))
    if not math.isfinite(norm):
        raise ModelError("training left an update that is not finite")
    bound = clip_norm * (1 - 2.0**-20)
    if norm > bound:
        whole *= bound / norm
    return whole


def noisy(
    total: torch.Tensor, *, clip_norm: float, noise_multiplier: float, random: SecureRandom
) -> torch.Tensor:
    """`total` plus Gaussian noise of deviation `noise_multiplier` times `clip_norm`.

    Both are rounded to a lattice first, so that no floating-point gap tells the sum (`randomness`).
    Rounding d coordinates to multiples of at most 2^-28 C moves a sum by 2^-28 C sqrt(d), which has
    room in 2^-8 C (`rounding`) for any model below 2^38 parameters.
    """
    spacing = 2.0 ** (math.floor(math.log2(clip_norm)) - 28)
    values = total.detach().cpu().flatten().numpy()
    return torch.from_numpy(random.noisy(values, noise_multiplier * clip_norm, spacing))


def private_step(
    optimizer: torch.optim.Optimizer,
    module: BookKeepingModule,
    losses: Iterable[tuple[torch.Tensor, int]],
    *,
    clip_norm: float,
    noise_multiplier: float,
    divisor: float,
    random: SecureRandom,
) -> None:
    """Train one step on one Poisson sample.

    `losses` gives, for each micro-batch of the sample, the sum of its rows' losses and how many of
    the rows are records. An empty sample gives no micro-batch and leaves only noise: skipping
    the step would show that it was empty. `divisor` is the public number of records that a sample
    is expected to have. Draws one noise vector from `random`. Raises ModelError where a trained
    parameter got no gradient.
    """
    sums = sample_sums(module, losses, clip_norm)
    for parameter in _trained(optimizer):
        total = sums.get(parameter)
        if total is None:
            if sums:
                raise ModelError("a trainable parameter got no per-example gradients")
            total = torch.zeros_like(parameter)
        noise = noisy(total, clip_norm=clip_norm, noise_multiplier=noise_multiplier, random=random)
        parameter.grad = noise.view_as(parameter).to(parameter)
        parameter.grad /= divisor
    optimizer.step()
    optimizer.zero_grad()


def _trained(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
