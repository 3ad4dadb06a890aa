"""Opacus' optimizer with three changes: our noise, a clip that rounding cannot exceed, no NaN."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from opacus.optimizers import DPOptimizer

from fedaipc.errors import ModelError

if TYPE_CHECKING:
    from fedaipc.privacy.randomness import SecureRandom

# Clipping to a bound that is smaller by 2^-10 leaves room for what float32 rounds; the noise still
# has C in it. The room suffices because nothing long is added up in float32: squares in blocks of
# 1024 (at most 1024 * 2^-24 off; over 12 million equal values torch's own norm is 0.9 % too small),
# and blocks and examples in float64.
_ROUNDING_MARGIN = 1 - 2.0**-10
_BLOCK = 1024
_WIDENED = 1 << 23  # values that are held in float64 at a time


class PrivateOptimizer(DPOptimizer):
    """Clips each example to L2 norm C, adds N(0, (sigma C)^2) to the sum, divides by a constant.

    The constant is the public expected batch size (sampling rate times size class). An example
    whose gradient is not finite contributes nothing: it would otherwise both break the bound and
    destroy the update, which would show.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        clip: float,
        expected_batch_size: float,
        random: SecureRandom,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip,
            expected_batch_size=1,  # Opacus takes whole numbers only: scale_grad below is ours
            loss_reduction="mean",
        )
        self._divisor = expected_batch_size
        self._rows: int | None = None  # all
        self._random = random

    def take(self, rows: int) -> None:
        """Only the first `rows` rows of the coming per-example gradients stand for an example."""
        self._rows = rows

    def clip_and_accumulate(self) -> None:
        """Add the clipped per-example gradients of this micro-batch to `summed_grad`."""
        samples = self.grad_samples
        if len(samples[0]) == 0:
            return super().clip_and_accumulate()
        # Over all rows: with their number the last bits of a norm could change.
        norms = torch.stack([_norms(s.flatten(1).float()) for s in samples], 1).norm(2, 1)
        norms = norms[: self._rows]
        factors = (self.max_grad_norm * _ROUNDING_MARGIN / norms.clamp(min=1e-30)).clamp(max=1.0)
        finite = torch.isfinite(norms)
        every = bool(finite.all())
        for parameter, sample in zip(self.params, samples, strict=True):
            rows = sample[: self._rows]
            if every:
                total = _weighted_sum(factors, rows)
            else:  # left out, and not multiplied by 0, which would keep a NaN
                total = _weighted_sum(factors[finite], rows[finite])
            summed = parameter.summed_grad
            parameter.summed_grad = total if summed is None else summed.add_(total)
        return None

    def add_noise(self) -> None:
        """Add noise to every coordinate, in float64, rounded once to float32."""
        deviation = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            if parameter.summed_grad is None:
                raise ModelError("a trainable parameter got no per-example gradients")
            noise = torch.from_numpy(self._random.normal(parameter.numel(), deviation))
            total = parameter.summed_grad.detach().double().cpu().flatten() + noise
            parameter.grad = total.to(parameter.dtype).view_as(parameter).to(parameter.device)

    def scale_grad(self) -> None:
        for parameter in self.params:
            parameter.grad /= self._divisor

    def step_on_nothing(self) -> Any:
        """One step for an empty Poisson sample: noise alone. Skipping it would show."""
        for parameter in self.params:
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
        return self.step()


def _norms(rows: torch.Tensor) -> torch.Tensor:
    """L2 norm of each row of a float32 matrix (N, D) as float32, right to 2^-13 for any D."""
    whole = rows.shape[1] - rows.shape[1] % _BLOCK
    blocks = rows[:, :whole].unflatten(1, (-1, _BLOCK)).norm(2, dim=2)
    parts = torch.cat([blocks, rows[:, whole:].norm(2, dim=1, keepdim=True)], 1)
    return _double(parts).norm(2, dim=1).to(rows)


def _weighted_sum(factors: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The sum of factors[i] * rows[i], in float64, shape of one row."""
    total = _double(torch.zeros_like(rows[:0].sum(0)))
    size = max(1, _WIDENED // max(1, total.numel()))
    for some, part in zip(factors.split(size), rows.split(size), strict=True):
        total += torch.tensordot(_double(some), _double(part), dims=1)
    return total


def _double(values: torch.Tensor) -> torch.Tensor:
    """In float64; Apple's devices have none, so from there by way of the processor."""
    return (values.cpu() if values.device.type == "mps" else values).double()
