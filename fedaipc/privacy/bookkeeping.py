"""Clipped per-example gradients at about the price of ordinary ones, as an Opacus module.

One forward pass, one backward pass for the gradients by layer outputs alone; then each layer gives
every example's norm, and after that the sum of all examples with their clip factors. This is the
book-keeping of Bu et al. 2022 (arXiv 2210.00038, algorithm 1): per-example gradients of large
layers never exist. Opacus' hooks form all of them; its ghost mode runs a second backward pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from opacus.grad_sample import AbstractGradSampleModule

from fedaipc.errors import ModelError
from fedaipc.privacy.layer_gradients import Grams, Layer, trained_layers
from fedaipc.privacy.norms import Sizes
from fedaipc.privacy.rounding import EXACT, Rounding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

_MIN_FACTOR = 2.0**-100  # below, factor times gradient loses its digits


class BookKeepingModule(AbstractGradSampleModule):
    """Wraps `module`, whose every input has one row per example; use it like Opacus' own.

    After a backward pass `clipped_sums` gives what an optimizer adds noise to. Parameters get
    neither `.grad` nor `.grad_sample`. Leave with `remove_hooks` and `cleanup`, or
    `to_standard_module`.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        loss_reduction: Literal["sum", "mean"] = "sum",
        rounding: Rounding = EXACT,
    ) -> None:
        """`rounding` says what sums over examples may be in float32, and what room that takes.

        Raises ModelError where two layers share a parameter, or a layer mixes examples.
        """
        super().__init__(module, loss_reduction=loss_reduction)
        _check_mixing(module)
        self._layers = list(trained_layers(module))
        wide = any(layer.is_wide for layer in self._layers)
        self.rounding = rounding if wide else EXACT  # small layers are added up in float64
        self._grams = Grams()
        _check_shared(self._layers)
        self._trained = [p for layer in self._layers for p in layer.parameters]
        self._handles = [
            layer.module.register_forward_hook(self._noting(layer)) for layer in self._layers
        ]

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """As the wrapped module. Raises ModelError where the gradients before were not fetched."""
        if not (torch.is_grad_enabled() and self._handles):
            return self._module(*inputs, **named)
        if any(layer.used for layer in self._layers):
            raise ModelError("gradients of the batch before are still there: fetch or zero them")
        _check_precision()
        for parameter in self._trained:  # otherwise autograd forms the sum over the batch as well
            parameter.requires_grad = False
        try:
            return self._module(*inputs, **named)
        finally:
            for parameter in self._trained:
                parameter.requires_grad = True

    @torch.no_grad()
    def clipped_sums(
        self, bound: float, rows: int | None = None, *, exact: bool = False
    ) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each trained parameter with the sum over the first `rows` examples of its gradients.

        Every example's whole gradient is scaled to L2 norm `bound`, less the room for rounding, at
        most before. One that is not finite, or 2^100 times too long, is left out. With `exact` all
        sums are in float64. In float64 or float32, the shape of the
        parameter. Frees what the backward pass left. Raises ModelError where a parameter got no
        gradient.
        """
        _check_no_autocast(self._trained[0].device)
        sizes = self._sizes()
        factors = _factors(sizes, bound, self._batch_scale(sizes), self.rounding)[:rows]
        terms = 0 if exact else self.rounding.terms
        usable = factors > 0
        chosen: Tensor | slice = slice(len(factors))
        if not bool(usable.all()):  # left out, and not multiplied by 0, which would keep a NaN
            factors = factors[usable]
            chosen = usable.nonzero().flatten().to(self._trained[0].device)
        for layer in self._layers:
            yield from layer.sums(factors, chosen, terms)
            layer.forget()

    @torch.no_grad()
    def norms(self) -> Tensor:
        """Upper bounds of all examples' gradient norms, float64 (B,). Not private: for tests."""
        sizes = self._sizes()
        return sizes.square.sqrt() * self._batch_scale(sizes)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the last backward pass, and clear what gradients the wrapped module has."""
        for layer in self._layers:
            layer.forget()
        self._grams.forget()
        self._module.zero_grad(set_to_none)

    def remove_hooks(self) -> None:
        """Take all hooks off the wrapped module, which then trains as before."""
        while self._handles:
            self._handles.pop().remove()
        for layer in self._layers:
            layer.close()
        self._grams.forget()

    def _noting(self, layer: Layer) -> Any:
        def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if not (torch.is_grad_enabled() and module.training):
                return
            use = layer.saw(inputs)

            def measure(grad: Tensor) -> None:
                _check_no_autocast(grad.device)
                use.grad = grad.detach()
                if not layer.pending:
                    layer.measure(self._grams)

            if not isinstance(output, torch.Tensor):
                raise ModelError(f"{layer.name}: gives more than one tensor; freeze it")
            if not output.requires_grad:
                output.requires_grad_()  # the lowest trained layer: the backward pass ends here
            output.register_hook(measure)

        return note

    def _sizes(self) -> Sizes:
        total: Sizes | None = None
        for layer in self._layers:
            if layer.sizes is None:
                layer.measure(self._grams)  # some of its outputs do not affect the loss
            if layer.sizes is None:
                raise ModelError(f"{layer.name}: a trained layer got no per-example gradients")
            if total is None:
                total = Sizes(layer.sizes.square.clone(), layer.sizes.gross.clone())
            elif len(total.square) != len(layer.sizes.square):
                raise ModelError(
                    f"{layer.name}: saw {len(layer.sizes.square)} rows, others "
                    f"{len(total.square)}: every input needs one row per example"
                )
            else:
                total.add(layer.sizes)
        self._grams.forget()
        if total is None:
            raise ModelError("no parameter is trained")
        return total

    def _batch_scale(self, sizes: Sizes) -> float:
        """What undoes the division of a mean loss."""
        return float(len(sizes.square)) if self.loss_reduction == "mean" else 1.0


def _check_mixing(module: nn.Module) -> None:
    """Raise ModelError where a layer mixes examples, trained or not: then no bound holds."""
    for name, layer in module.named_modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):  # noqa: SLF001
            raise ModelError(
                f"{name}: batch norm mixes examples, so that one changes the gradients of others; "
                "replace it, by group norm for example"
            )


def _check_precision() -> None:
    """Raise ModelError where torch may round the factors of a float32 matrix product."""
    backends = torch.backends
    own = [
        getattr(getattr(backend, "matmul", None), "fp32_precision", "none")
        for backend in (backends.mkldnn, backends.cuda)
    ]
    try:
        highest = torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set by backend: torch has no single answer
        highest = False
    if not highest or not set(own) <= {"none", "ieee"}:
        raise ModelError(
            "the clip bound counts on exact float32 factors: leave "
            "torch.set_float32_matmul_precision at highest, and TF32 off"
        )


def _check_no_autocast(device: torch.device) -> None:
    """Raise ModelError where norms and sums would be computed in fewer digits."""
    if torch.is_autocast_enabled(device.type):
        raise ModelError("leave autocast before backward and clipped_sums: only forward may use it")


def _factors(sizes: Sizes, bound: float, scale: float, rounding: Rounding) -> Tensor:
    """What each example's gradient is multiplied with, float64 (B,); 0 for those left out."""
    norms, gross = sizes.square.sqrt() * scale, sizes.gross * scale
    room = bound * rounding.room
    factors = (room / norms.clamp(min=1e-300)).clamp(max=1.0)
    # One whose tokens cancel each other almost is scaled down further: its rounding errors follow
    # the gross size, and hostile weights can amplify them.
    factors = torch.minimum(factors, room * rounding.cancellation / gross.clamp(min=1e-300))
    usable = torch.isfinite(norms) & torch.isfinite(gross) & (factors >= _MIN_FACTOR)
    return torch.where(usable, factors * scale, 0.0)


def _check_shared(layers: list[Layer]) -> None:
    owner: dict[int, str] = {}
    for layer in layers:
        for parameter in layer.parameters:
            before = owner.setdefault(id(parameter), layer.name)
            if before != layer.name:
                raise ModelError(
                    f"{before} and {layer.name} share a parameter: per-example gradients of tied "
                    "layers are not supported; freeze or untie one"
                )
