"""The room for rounding: the formula, and sums that somebody made to round the wrong way."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedaipc.privacy.bookkeeping import BookKeepingModule
from fedaipc.privacy.rounding import EXACT, Rounding, rounding_for

UNIT = 2.0**-24


@given(expected=st.floats(0.01, 1e5), rows=st.integers(1, 256), longest=st.integers(1, 512))
def test_what_float32_can_lose_has_room_in_the_bound(
    expected: float, rows: int, longest: int
) -> None:
    found = rounding_for(expected, rows * longest, longest)
    assert found.room == rounding_for(1, 64, 64).room  # a model does not depend on its batches
    if not found.terms:
        return
    assert longest <= found.terms <= rows * longest
    assert found.records >= expected + 4 * math.sqrt(expected)
    # The whole step, twice, with the room that its own records leave.
    most = 2 * (found.terms + 2) * UNIT * math.hypot(found.cancellation, 1) * found.records
    assert found.room + most <= 1 - 2.0**-8 + 1e-12
    assert found.room > 0.95


def test_a_batch_is_cut_only_as_far_as_needed() -> None:
    assert rounding_for(10, 16 * 64, 64).terms == 16 * 64
    assert rounding_for(100, 16 * 64, 64).terms == 8 * 64
    assert rounding_for(32, 32 * 64, 64).terms == 16 * 64
    assert not rounding_for(2000, 16 * 64, 64).terms
    assert rounding_for(10, 8 * 512, 512).terms == 4 * 512
    assert not rounding_for(10, 512, 513).terms  # one text is longer than all of a product


def clipped(
    inputs: torch.Tensor, grads: torch.Tensor, rounding: Rounding, *, exact: bool = False
) -> torch.Tensor:
    """The clipped sum of a wide layer without bias, float64, and the bound 1."""
    layer = nn.Linear(inputs.shape[2], grads.shape[2], bias=False)
    layer.train()
    wrapped = BookKeepingModule(layer, rounding=rounding)
    (wrapped(inputs) * grads).sum().backward()
    ((_, total),) = wrapped.clipped_sums(1.0, exact=exact)
    wrapped.remove_hooks()
    return total.double()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rows", [8, 32])
def test_a_record_more_moves_a_wide_layers_sum_by_less_than_the_bound(seed: int, rows: int) -> None:
    """Half of the others bring each value just below a power of two, the rest rounds one way."""
    random = torch.Generator().manual_seed(seed)
    tokens, width = 64, 160
    rounding = rounding_for(rows, rows * tokens, tokens)
    assert rounding.terms
    inputs = torch.ones(rows, tokens, width) / math.sqrt(tokens * width)
    grads = torch.ones(rows, tokens, width) / math.sqrt(width)
    inputs[rows // 2 :] *= torch.rand(rows - rows // 2, tokens, 1, generator=random)
    whole = clipped(inputs, grads, rounding)
    part = clipped(inputs[1:], grads[1:], rounding)
    again = clipped(inputs[torch.randperm(rows, generator=random)], grads, rounding)
    assert (whole - part).norm() <= 1
    assert (again - whole).norm() <= rounding.error
    true = clipped(inputs, grads, rounding, exact=True)
    assert true.dtype == torch.float64
    assert (whole - true).norm() <= rounding.error / 2


def test_records_beyond_those_that_have_room_are_added_up_in_float64() -> None:
    from types import SimpleNamespace
    from typing import Any

    from fedaipc.privacy.dp_sgd import private_step
    from fedaipc.privacy.randomness import SecureRandom

    asked: list[bool] = []
    parameter = nn.Parameter(torch.zeros(3))

    def sums(bound: float, rows: int, *, exact: bool) -> list[Any]:
        asked.append(exact)
        return [(parameter, torch.zeros(3))]

    module: Any = SimpleNamespace(clipped_sums=sums, rounding=Rounding(records=5, terms=64))
    losses = [(torch.zeros(1, requires_grad=True).sum(), 2) for _ in range(4)]
    private_step(
        torch.optim.SGD([parameter], lr=1.0), module, losses, clip_norm=1.0, noise_multiplier=1.0,
        divisor=1.0, random=SecureRandom.for_test(1),
    )  # fmt: skip
    assert asked == [False, False, True, True]


def test_small_layers_need_no_room_for_it() -> None:
    wrapped = BookKeepingModule(nn.Linear(8, 8), rounding=Rounding(100, 512))
    assert wrapped.rounding == EXACT
    wrapped.remove_hooks()
