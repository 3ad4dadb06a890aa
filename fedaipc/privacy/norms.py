"""Norms of per-example gradients that rounding cannot make too small, and their weighted sums.

Where a sum of products replaces a norm, an error bound is added. A float32 dot product of n
terms is off by at most n u |x| |y| in any order of summation, u = 2^-24 (Jeannerod and Rump 2013),
hence A A^T * G G^T by (d + p + 8) u times the square of the gross size S = sum over t of
|A_t| |G_t|. What is too small for float32 is covered by a floor on |A_t| and |G_t|. The letters are
those of layers.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_UNIT = 1.01 * 2.0**-24  # rounding of float32; the 1 % covers products of bounds
_FLOOR = 2.0**-100  # of a squared length: far above what float32 loses, far below any clip bound
_BLOCK = 1024  # values whose squares are added in float32
SMALL = 1 << 14  # values of one example's gradient that are kept, and added up in float64
SCRATCH = 1 << 24  # bytes of token-by-token products at a time
KEPT = 1 << 26  # bytes of larger per-example gradients of one layer that may be kept
_CACHE = 1 << 18  # values that stay in a core's second-level cache
_WIDENED = 1 << 23  # values that are held in float64 at a time
# What it costs to form one value of a per-example gradient and read it twice, in multiply-adds.
# Measured with scripts/bench/clipping.py; a wrong value costs time only.
_NEAR, _FAR = 24, 95


@dataclass(slots=True)
class Sizes:
    """Sizes of each example's gradient, float64 of shape (B,), on the processor.

    `square` is at least the squared norm. `gross` is the gross size where a sum of products stands
    in for the gradient, 0 elsewhere.
    """

    square: Tensor
    gross: Tensor

    def add(self, other: Sizes) -> None:
        """Add the sizes of another set of parameters to these."""
        self.square += other.square
        self.gross = torch.hypot(self.gross, other.gross)


def is_instantiated(rows: int, tokens: int, width: int, outputs: int) -> bool:
    """Whether a linear layer's per-example gradients are formed and kept.

    Else their norms come from products of tokens. Both follow from public shapes alone.
    """
    values = width * outputs
    if values <= SMALL:
        return True
    if 4 * rows * values > KEPT:
        return False
    cost = values * (_NEAR if values <= _CACHE else _FAR)
    return cost < tokens * tokens * (width + outputs)


def double(values: Tensor) -> Tensor:
    """In float64; Apple's devices have no float64, so from there by way of the processor."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def nothing(rows: int) -> Sizes:
    return Sizes(torch.zeros(rows, dtype=torch.float64), torch.zeros(rows, dtype=torch.float64))


def joined(sizes: list[Sizes]) -> Sizes:
    """One behind the other; none where a batch is empty."""
    if not sizes:
        return nothing(0)
    if len(sizes) == 1:
        return sizes[0]
    return Sizes(torch.cat([s.square for s in sizes]), torch.cat([s.gross for s in sizes]))


def paired(a: Tensor, g: Tensor, terms: int) -> Sizes:
    """Sizes from A A^T and G G^T, (B, T, T) both; `terms` is the length of their dot products."""
    if a.device.type == "mps":
        product = double(a * g).sum((1, 2))
    else:
        product = (a * g).sum((1, 2), dtype=torch.float64).cpu()
    own = [double(m.diagonal(dim1=1, dim2=2)).clamp(min=_FLOOR) for m in (a, g)]
    gross = (own[0] * own[1]).sqrt().sum(1).cpu()
    # A product may overflow below 0 where the diagonal does not: then the size is not known.
    product = torch.where(product.isfinite(), product.clamp(min=0.0), torch.inf)
    return Sizes(product + terms * _UNIT * gross * gross, gross)


def squares(kept: Tensor) -> Tensor:
    """Squared norms of the float32 rows of (B, ...), exact to 2^-12: float64, on the processor.

    Squares are added in float32 in blocks only: over 12 million equal values torch's own norm is
    0.9 % too small.
    """
    rows = kept.reshape(len(kept), kept.shape[1:].numel()).float()
    if rows.shape[1] <= SMALL:
        return double(rows).square().sum(1).cpu()
    whole = rows.shape[1] - rows.shape[1] % _BLOCK
    blocks = rows[:, :whole].unflatten(1, (-1, _BLOCK)).norm(2, dim=2)
    parts = torch.cat([blocks, rows[:, whole:].norm(2, dim=1, keepdim=True)], 1)
    return double(parts).square().sum(1).cpu()


def weighted_sum(factors: Tensor, rows: Tensor, *, exact: bool = False) -> Tensor:
    """The sum of factors[i] * rows[i], one row; in float64 where `exact` or a row is small."""
    if rows.shape[1:].numel() > SMALL and not exact:
        return torch.tensordot(factors.to(rows), rows, dims=1)
    if rows.numel() <= _WIDENED:
        each = double(rows)
        return torch.tensordot(factors.to(each.device), each, dims=1)
    total = double(torch.zeros_like(rows[:0].sum(0)))
    size = max(1, _WIDENED // max(1, total.numel()))
    for some, part in zip(factors.to(total.device).split(size), rows.split(size), strict=True):
        total += torch.tensordot(some, double(part), dims=1)
    return total
