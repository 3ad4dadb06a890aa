"""Opacus' optimizer for sums that are clipped already, with our noise and our divisor."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping

from fedaipc.errors import ModelError
from fedaipc.privacy.norms import double

if TYPE_CHECKING:
    from fedaipc.privacy.bookkeeping import BookKeepingModule
    from fedaipc.privacy.randomness import SecureRandom


class PrivateOptimizer(DPOptimizerFastGradientClipping):
    """Adds N(0, (sigma C)^2) to the sum of clipped gradients, divides by a constant, then steps.

    `module` gives the sums, each example's gradient clipped to L2 norm C. The constant is the
    public expected batch size (sampling rate times size class).
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        module: BookKeepingModule,
        noise_multiplier: float,
        clip_norm: float,
        expected_batch_size: float,
        random: SecureRandom,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip_norm,
            expected_batch_size=1,  # Opacus takes whole numbers only: scale_grad below is ours
            loss_reduction="mean",
        )
        self._module = module
        self._divisor = expected_batch_size
        self._rows: int | None = None  # all
        self._random = random

    def take(self, rows: int) -> None:
        """Only the first `rows` rows of the coming backward pass stand for an example."""
        self._rows = rows

    def accumulate(self) -> None:
        """Add the clipped sums of this micro-batch to `summed_grad`, from the second on in float64.

        In float32 the contributions of a long sample would be rounded away.
        """
        parameter: Any
        for parameter, total in self._module.clipped_sums(self.max_grad_norm, self._rows):
            summed = parameter.summed_grad
            parameter.summed_grad = total if summed is None else double(summed).add_(total)

    def add_noise(self) -> None:
        """Add noise to every coordinate, on a lattice so fine that rounding to it does not count.

        Rounding d coordinates to multiples of at most 2^-28 C moves a sum by 2^-28 C sqrt(d), which
        is within ROUNDING_MARGIN for any model below 2^38 parameters.
        """
        deviation = self.noise_multiplier * self.max_grad_norm
        spacing = 2.0 ** (math.floor(math.log2(self.max_grad_norm)) - 28)
        for parameter in self.params:
            if parameter.summed_grad is None:
                raise ModelError("a trainable parameter got no per-example gradients")
            total = parameter.summed_grad.detach().cpu().flatten().numpy()
            noisy = torch.from_numpy(self._random.noisy(total, deviation, spacing))
            parameter.grad = noisy.view_as(parameter).to(parameter)

    def scale_grad(self) -> None:
        for parameter in self.params:
            parameter.grad /= self._divisor

    def step_on_nothing(self) -> Any:
        """One step for an empty Poisson sample: noise alone. Skipping it would show."""
        for parameter in self.params:
            parameter.summed_grad = torch.zeros_like(parameter)
        self.add_noise()
        self.scale_grad()
        return self.original_optimizer.step()
