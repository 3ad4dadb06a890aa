"""What one layer knows of each example's gradient: its norm, and the weighted sum over examples.

Names as in Bu et al. 2022 (arXiv 2210.00038): A (B, T, d) goes into a layer, G (B, T, p) is the
gradient of the summed loss by what comes out; B examples of T tokens. An example's gradient of a
linear layer is G^T A, so its norm needs no gradient. |G^T A|^2 is the sum over all pairs of tokens
of (A A^T) * (G G^T). The sum over examples, each with its factor, is one product.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.functorch import ft_compute_per_sample_gradient, prepare_layer
from torch import nn

from fedaipc.errors import ModelError
from fedaipc.privacy import norms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor


@dataclass(slots=True)
class LayerCall:
    """One call of a layer; `grad` comes with the backward pass."""

    inputs: tuple[Tensor, ...]
    versions: tuple[int, ...]
    grad: Tensor | None = None


class Grams:
    """A A^T of the layer input seen last: query, key and value read the same one."""

    def __init__(self) -> None:
        self._of: Tensor | None = None
        self._gram: Tensor | None = None

    def gram(self, values: Tensor) -> Tensor:
        """(B, T, T) of a float32 (B, T, d)."""
        if self._gram is None or self._of is None or not _same(self._of, values):
            self._of, self._gram = values, torch.bmm(values, values.mT)
        return self._gram

    def forget(self) -> None:
        self._of = self._gram = None


class Layer(ABC):
    """A module with parameters of its own that are trained, between two backward passes."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.module: Any = module
        self.parameters = [p for p in module.parameters(recurse=False) if p.requires_grad]
        self.sizes: norms.Sizes | None = None
        self._uses: list[LayerCall] = []
        self._kept: list[tuple[nn.Parameter, Tensor]] = []  # per-example gradients (B, ...)

    def saw(self, inputs: tuple[Any, ...]) -> LayerCall:
        """Note a call in the forward pass."""
        tensors = tuple(value.detach() for value in inputs if isinstance(value, torch.Tensor))
        use = LayerCall(tensors, tuple(value._version for value in tensors))  # noqa: SLF001
        self._uses.append(use)
        return use

    @property
    def is_wide(self) -> bool:
        """Whether it may be added up in float32: else it is small, and float64 costs nothing."""
        return any(parameter.numel() > norms.SMALL for parameter in self.parameters)

    @property
    def pending(self) -> bool:
        """Whether a call of the forward pass has no gradient yet."""
        return any(use.grad is None for use in self._uses)

    @property
    def used(self) -> bool:
        return bool(self._uses or self._kept)

    def forget(self) -> None:
        self._drop_uses()
        self._kept, self.sizes = [], None

    def close(self) -> None:
        """Leave the module as it was found."""
        self.forget()

    def measure(self, grams: Grams) -> None:
        """Find the sizes; call it once all gradients of a backward pass are there."""
        if self.sizes is not None:
            raise ModelError(
                f"{self.name}: a second backward pass; fetch or zero the gradients of the first"
            )
        self._uses = [use for use in self._uses if use.grad is not None]
        if not self._uses:
            return
        for use in self._uses:
            if any(v._version != n for v, n in zip(use.inputs, use.versions, strict=True)):  # noqa: SLF001
                raise ModelError(f"{self.name}: its input was changed in place after it was used")
        rows = {
            len(value)
            for use in self._uses
            for value in (*use.inputs, use.grad)
            if value is not None
        }
        if len(rows) > 1:
            raise ModelError(
                f"{self.name}: its inputs have different numbers of rows, {sorted(rows)}: each "
                "must have one row per example"
            )
        self.sizes = self._measure(grams)
        for _, kept in self._kept:
            self.sizes.square += norms.squares(kept)

    def sums(
        self, factors: Tensor, chosen: Tensor | slice, terms: int
    ) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Per trained parameter: the sum of factors[i] times the gradient of row chosen[i].

        In float32 over at most `terms` tokens, and beyond that, or where it is 0, in float64.
        """
        for parameter, kept in self._kept:
            exact = len(factors) > terms
            yield parameter, norms.weighted_sum(factors, kept[chosen], exact=exact)
        if self._uses:
            yield self.module.weight, self._product(factors, chosen, terms)

    def _product(self, factors: Tensor, chosen: Tensor | slice, terms: int) -> Tensor:
        """The same sum for a weight whose per-example gradients were not formed."""
        values = [one[chosen] for one in self._rows()]
        rows, tokens = values[0].shape[:2]
        if tokens > terms:
            return self._sum(factors, norms.double, *values)
        size = max(1, terms // max(1, tokens))
        total: Tensor | None = None
        for start in range(0, max(1, rows), size):
            some = slice(start, start + size)
            part = self._sum(factors[some], torch.Tensor.float, *(one[some] for one in values))
            total = part if total is None else norms.double(total).add_(part)
        assert total is not None  # noqa: S101 - there is one part at least
        return total

    def _sum(
        self, factors: Tensor, wide: Callable[[Tensor], Tensor], inputs: Tensor, grads: Tensor
    ) -> Tensor:
        """In one go, in the precision that `wide` brings values to."""
        raise NotImplementedError

    @abstractmethod
    def _measure(self, grams: Grams) -> norms.Sizes:
        """norms.Sizes of what is not kept; puts what is kept into `_kept`."""

    def _drop_uses(self) -> None:
        """Release what the hooks of the backward pass still refer to."""
        for use in self._uses:
            use.inputs, use.grad = (), None
        self._uses = []

    def _rows(self) -> tuple[Tensor, Tensor]:
        """A (B, T, ...) and G (B, T, p), the calls one behind the other along T."""
        return _behind([(_tokens(use.inputs[0]), _tokens(use.grad)) for use in self._uses])


class Linear(Layer):
    """y = x W^T + b. Also LoRA's two factors, which are linear layers of their own."""

    def _measure(self, grams: Grams) -> norms.Sizes:
        module = self.module
        inputs, grads = self._rows()
        grads = grads.float()
        if module.bias is not None and module.bias.requires_grad:
            self._kept.append((module.bias, grads.sum(1)))
        if not module.weight.requires_grad:
            self._drop_uses()
            return norms.nothing(len(grads))
        same = inputs.float()
        (rows, tokens, width), outputs = same.shape, grads.shape[2]
        if norms.is_instantiated(rows, tokens, width, outputs):
            self._kept.append((module.weight, torch.bmm(grads.mT, same)))
            self._drop_uses()
            return norms.nothing(rows)
        sizes = []
        size = max(1, norms.SCRATCH // (8 * tokens * tokens))
        for start in range(0, rows, size):
            g = grads[start : start + size]
            if size < rows:
                a = torch.bmm(same[start : start + size], same[start : start + size].mT)
            else:
                a = grams.gram(same)
            sizes.append(norms.paired(a, torch.bmm(g, g.mT), width + outputs + 8))
        return norms.joined(sizes)

    def _sum(
        self, factors: Tensor, wide: Callable[[Tensor], Tensor], inputs: Tensor, grads: Tensor
    ) -> Tensor:
        inputs, grads = wide(inputs), wide(grads)
        each = factors.to(grads)[:, None, None]
        if inputs.shape[2] < grads.shape[2]:  # fold the factors into the smaller one
            inputs = inputs * each
        else:
            grads = grads * each
        return grads.flatten(0, 1).mT @ inputs.flatten(0, 1)


class Embedding(Layer):
    """y = W[ids]: gradients of equal ids add up, that of the padding id is 0."""

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__(name, module)
        if self.module.max_norm is not None or self.module.scale_grad_by_freq:
            raise ModelError(
                f"{name}: an embedding with max_norm or scale_grad_by_freq mixes examples"
            )
        self._padding = self.module.padding_idx

    def _measure(self, grams: Grams) -> norms.Sizes:
        del grams
        ids, grads = self._rows()
        (rows, tokens, width), count = grads.shape, self.module.weight.shape[0]
        if count * width <= norms.SMALL:
            kept = grads.new_zeros(rows, count, width)
            kept.scatter_add_(1, ids[:, :, None].expand_as(grads), grads)
            self._kept.append((self.module.weight, kept))
            self._drop_uses()
            return norms.nothing(rows)
        sizes = []
        size = max(1, norms.SCRATCH // (8 * tokens * tokens))
        for g, i in zip(grads.split(size), ids.split(size), strict=True):
            equal = (i[:, :, None] == i[:, None, :]).to(g.dtype)
            sizes.append(norms.paired(equal, torch.bmm(g, g.mT), width + 8))
        return norms.joined(sizes)

    def _product(self, factors: Tensor, chosen: Tensor | slice, terms: int) -> Tensor:
        """In float64 for the ids that are there, which are few: the others have no gradient.

        Rounded to float32 once where anything may be in float32 at all, which is less than what
        `rounding` has room for.
        """
        ids, grads = (one[chosen] for one in self._rows())
        grads = norms.double(grads)
        scaled = (grads * factors.to(grads)[:, None, None]).flatten(0, 1)
        present, places = ids.to(grads.device).flatten().unique(return_inverse=True)
        sums = grads.new_zeros(len(present), grads.shape[2]).index_add_(0, places, scaled)
        dtype = torch.float32 if terms else torch.float64
        whole = torch.zeros_like(self.module.weight, dtype=dtype, device=grads.device)
        whole[present] = sums.to(dtype)
        return whole

    def _rows(self) -> tuple[Tensor, Tensor]:
        """The padding id has no gradient."""
        ids, grads = super()._rows()
        grads = grads.float()
        if self._padding is not None:
            grads = grads.masked_fill((ids == self._padding)[:, :, None], 0.0)
        return ids, grads


class LayerNorm(Layer):
    """y = w * normal(x) + b."""

    def _measure(self, grams: Grams) -> norms.Sizes:
        del grams
        module = self.module
        inputs, grads = self._rows()
        grads = grads.float()
        shape = module.normalized_shape
        if module.weight.requires_grad:
            normal = nn.functional.layer_norm(inputs.float(), shape, eps=module.eps)
            self._kept.append((module.weight, (grads * normal).sum(1)))
        if module.bias is not None and module.bias.requires_grad:
            self._kept.append((module.bias, grads.sum(1)))
        self._drop_uses()
        return norms.nothing(len(grads))

    def _rows(self) -> tuple[Tensor, Tensor]:
        inner = len(self.module.normalized_shape)

        def tokens(values: Tensor | None) -> Tensor:
            assert values is not None  # noqa: S101 - uses without a gradient were dropped
            flat = values.dim() > inner + 1
            return values.flatten(1, -1 - inner) if flat else values.unsqueeze(1)

        return _behind([(tokens(use.inputs[0]), tokens(use.grad)) for use in self._uses])


class Other(Layer):
    """Any other layer, by Opacus' own rule for it: per-example gradients are formed and kept."""

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__(name, module)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self._rule = GradSampleModule.GRAD_SAMPLERS.get(type(module))
        if self._rule is None:
            prepare_layer(module)
            self._rule = ft_compute_per_sample_gradient

    def close(self) -> None:
        super().close()
        if hasattr(self.module, "ft_compute_sample_grad"):
            del self.module.ft_compute_sample_grad

    def _measure(self, grams: Grams) -> norms.Sizes:
        del grams
        total: dict[nn.Parameter, Tensor] = {}
        for use in self._uses:
            found = self._rule(self.module, list(use.inputs), use.grad)
            for parameter, gradient in found.items():
                if any(parameter is trained for trained in self.parameters):
                    before = total.get(parameter)
                    total[parameter] = gradient if before is None else before + gradient
        self._kept = list(total.items())
        self._drop_uses()
        return norms.nothing(len(self._kept[0][1]))


_KINDS: dict[type[nn.Module], type[Layer]] = {
    nn.Linear: Linear,
    nn.Embedding: Embedding,
    nn.LayerNorm: LayerNorm,
}


def trained_layers(module: nn.Module, name: str = "") -> Iterator[Layer]:
    """All layers below `module` that have trained parameters of their own.

    Raises ModelError where per-example gradients make no sense: a layer with state that examples
    share (batch norm), or a parameter that two layers share.
    """
    if any(p.requires_grad for p in module.parameters(recurse=False)):
        if any(True for _ in module.buffers()):
            raise ModelError(
                f"{name or type(module).__name__}: a trained layer with buffers, as batch norm "
                "has, mixes examples; freeze or replace it"
            )
        kind = _KINDS.get(type(module), Other)
        yield kind(name, module)
        if kind is Other and type(module) not in GradSampleModule.GRAD_SAMPLERS:
            return  # the rule covers what is inside as well
    for inner, child in module.named_children():
        yield from trained_layers(child, f"{name}.{inner}" if name else inner)


def _tokens(values: Tensor | None) -> Tensor:
    """(B, ..., n) as (B, T, n); ids (B, ...) as (B, T)."""
    assert values is not None  # noqa: S101 - uses without a gradient were dropped
    if not values.is_floating_point():
        return values.flatten(1)
    if values.dim() == 2:
        return values.unsqueeze(1)
    return values if values.dim() == 3 else values.flatten(1, -2)


def _behind(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """All pairs as one, one behind the other along T."""
    if len(pairs) == 1:
        return pairs[0]
    return torch.cat([a for a, _ in pairs], 1), torch.cat([g for _, g in pairs], 1)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors that are both alive are views of the same values."""
    return (one.data_ptr(), one.shape, one.stride()) == (
        other.data_ptr(), other.shape, other.stride()
    )  # fmt: skip
