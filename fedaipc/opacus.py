"""Book-keeping clipping for your own Opacus script: replace the engine, and keep the rest.

    from fedaipc.opacus import PrivacyEngine       # in place of opacus.PrivacyEngine

    engine = PrivacyEngine()
    model, optimizer, loader = engine.make_private(
        module=model, optimizer=optimizer, data_loader=loader,
        noise_multiplier=1.0, max_grad_norm=1.0,
    )

Clipped sums are those of Opacus' hooks, to rounding, without a gradient for each example in memory
(docs/explanation/speed.md has the times). Sampling, noise and accounting stay Opacus' own. Every
input of the model needs one row for each example; layers without a known rule are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import opacus
import torch
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer import _check_processed_flag

from fedaipc.errors import ModelError
from fedaipc.privacy.bookkeeping import BookKeepingModule

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

__all__ = ["BookKeepingModule", "BookKeepingOptimizer", "PrivacyEngine"]


class BookKeepingOptimizer(DPOptimizer):
    """Opacus' optimizer, with the clipped sums of a `BookKeepingModule`."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, module: BookKeepingModule, **settings: Any
    ) -> None:
        """`settings` as of opacus' DPOptimizer."""
        super().__init__(optimizer, **settings)
        self._module = module

    @property
    def accumulated_iterations(self) -> int:
        """One backward pass for each step, or for each physical batch of a BatchMemoryManager."""
        return 1

    def clip_and_accumulate(self) -> None:
        """Add the clipped sums of the last backward pass to those before in the same step.

        Raises ValueError, as Opacus does, where nobody called zero_grad after the step before.
        """
        for parameter, clipped in self._module.clipped_sums(self.max_grad_norm):
            own: Any = parameter
            _check_processed_flag(own.summed_grad)  # a sum that was released is not added to
            total = clipped.to(parameter.dtype)
            own.summed_grad = total if own.summed_grad is None else own.summed_grad + total

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool:
        """Clip, and unless a physical batch of the same step follows, add noise and divide."""
        del closure
        self.clip_and_accumulate()
        self._is_last_step_skipped = bool(self._check_skip_next_step())
        if self._is_last_step_skipped:
            return False
        self.add_noise()
        self.scale_grad()
        if self.step_hook:
            self.step_hook(self)
        return True


class PrivacyEngine(opacus.PrivacyEngine):
    """Opacus' engine, whose `make_private` clips by book-keeping. Flat clipping, one process."""

    def _prepare_model(
        self,
        module: nn.Module,
        *,
        batch_first: bool = True,
        loss_reduction: str = "mean",
        **_: Any,
    ) -> BookKeepingModule:
        """Raises ModelError on layers that it does not know, or that mix examples."""
        if not batch_first:
            raise ModelError("book-keeping needs batch_first=True: one row for each example")
        self.validate(module=module, optimizer=None, data_loader=None)
        reduction: Literal["sum", "mean"] = "sum" if loss_reduction == "sum" else "mean"
        self._module = BookKeepingModule(module, loss_reduction=reduction)
        return self._module

    def _prepare_optimizer(
        self,
        *,
        optimizer: torch.optim.Optimizer,
        noise_multiplier: float,
        max_grad_norm: float | list[float],
        expected_batch_size: int,
        loss_reduction: str = "mean",
        distributed: bool = False,
        clipping: str = "flat",
        noise_generator: torch.Generator | None = None,
        **_: Any,
    ) -> BookKeepingOptimizer:
        """Raises ModelError where clipping is by layer or over several processes."""
        if distributed or clipping != "flat" or isinstance(max_grad_norm, list):
            raise ModelError("book-keeping clips whole gradients, in one process")
        plain = optimizer.original_optimizer if isinstance(optimizer, DPOptimizer) else optimizer
        return BookKeepingOptimizer(
            plain,
            module=self._module,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size,
            loss_reduction=loss_reduction,
            generator=self.secure_rng if self.secure_mode else noise_generator,
            secure_mode=self.secure_mode,
        )
