"""The clip bound on hostile gradients, and the noise, without any model around them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedaipc.errors import ModelError
from fedaipc.privacy.optimizer import PrivateOptimizer, _norms
from fedaipc.privacy.randomness import SecureRandom

SHAPES = ((3, 4), (5,), (2, 2, 2))


class Quiet(SecureRandom):
    """Noise of zero."""

    def normal(self, count: int, deviation: float) -> np.ndarray:
        return np.zeros(count)


def optimizer(
    random: SecureRandom, *, clip: float = 0.5, divisor: float = 1.0, shapes: tuple = SHAPES
) -> PrivateOptimizer:
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    return PrivateOptimizer(
        torch.optim.SGD(parameters, lr=1.0),
        noise_multiplier=2.0,
        clip=clip,
        expected_batch_size=divisor,
        random=random,
    )


def stepped(private: PrivateOptimizer, *batches: list[torch.Tensor]) -> np.ndarray:
    """The sum that leaves after these micro-batches of per-example gradients."""
    for number, batch in enumerate(batches):
        for parameter, sample in zip(private.params, batch, strict=True):
            parameter.grad_sample = sample.clone()
        private.signal_skip_step(do_skip=number < len(batches) - 1)
        private.step()
        private.zero_grad()
    return -torch.cat([p.detach().flatten() for p in private.params]).double().numpy()


def gradients(rows: np.ndarray, shapes: tuple = SHAPES) -> list[torch.Tensor]:
    """A matrix of one gradient per row, cut into parameters."""
    parts, start = [], 0
    for shape in shapes:
        size = math.prod(shape)
        part = rows[:, start : start + size].astype(np.float32)
        parts.append(torch.from_numpy(part).reshape(-1, *shape))
        start += size
    return parts


def clipped_slowly(rows: np.ndarray, bound: float) -> np.ndarray:
    """Sum of rows, each scaled to at most `bound`, one at a time in float64."""
    total = np.zeros(rows.shape[1])
    for row in rows.astype(np.float32).astype(np.float64):
        norm = math.sqrt(math.fsum(value * value for value in row))
        if math.isfinite(norm):
            total += row * min(1.0, bound / norm if norm else 1.0)
    return total


SIZE = sum(math.prod(shape) for shape in SHAPES)


@pytest.mark.parametrize("exponent", range(-30, 31, 5))
@pytest.mark.parametrize("clip", [1e-9, 0.5, 1e9])
def test_no_scale_of_gradient_contributes_more_than_the_clip_bound(
    exponent: int, clip: float
) -> None:
    rng = np.random.default_rng(exponent + 100)
    for shape in ("even", "one entry", "steep"):
        row = rng.normal(size=(1, SIZE))
        if shape == "one entry":
            row[:, 1:] = 0
        if shape == "steep":
            row *= 10.0 ** -np.arange(SIZE)
        total = stepped(optimizer(Quiet(), clip=clip), gradients(row * 10.0**exponent))
        assert np.isfinite(total).all()
        assert np.linalg.norm(total) <= clip


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_a_gradient_that_is_not_finite_contributes_nothing_at_all(value: float) -> None:
    rows = np.random.default_rng(0).normal(size=(4, SIZE))
    hostile = rows.copy()
    hostile[2, [0, 7]] = value  # 3e38 is finite, its norm in float32 is not
    left = stepped(optimizer(Quiet()), gradients(hostile))
    assert np.array_equal(left, stepped(optimizer(Quiet()), gradients(rows * [[1], [1], [0], [1]])))
    assert left == pytest.approx(clipped_slowly(np.delete(rows, 2, 0), 0.5), rel=2e-3)


def test_the_sum_equals_clipping_one_example_at_a_time() -> None:
    rows = np.random.default_rng(1).normal(size=(50, SIZE)) * np.logspace(-4, 2, 50)[:, None]
    expected = clipped_slowly(rows, 0.5 * (1 - 2**-10))
    assert stepped(optimizer(Quiet()), gradients(rows)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("cut", [1, 7, 16, 17, 49])
def test_micro_batches_change_nothing_but_rounding(cut: int) -> None:
    rows = np.random.default_rng(2).normal(size=(50, SIZE))
    parts = [gradients(rows[start : start + cut]) for start in range(0, 50, cut)]
    whole = stepped(optimizer(Quiet()), gradients(rows))
    assert stepped(optimizer(Quiet()), *parts) == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("value", [1.03, 0.7, 0.0301])
def test_norms_of_millions_of_equal_values_are_not_too_small(value: float) -> None:
    """Torch's own float32 norm of such a row falls short by up to 0.9 %: the bound would break."""
    size = 6_000_000
    exact = float(np.float32(value)) * math.sqrt(size)
    norm = _norms(torch.full((1, size), value)).item()
    assert exact * (1 - 2**-12) <= norm <= exact * (1 + 2**-12)


@pytest.mark.parametrize("size", [1, 1023, 1024, 1025, 3000])
def test_norms_by_blocks_equal_norms_in_float64(size: int) -> None:
    rows = torch.randn(5, size, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(_norms(rows).double(), rows.double().norm(2, dim=1), rtol=1e-6, atol=0)


def test_small_records_after_many_large_ones_keep_their_place_in_the_sum() -> None:
    # In float32 the sum of 4096 contributions of length 1 would not move by 2^-14 any more.
    rows = np.zeros((1, SIZE))
    rows[0, 0] = 1.0
    large, small = gradients(np.repeat(rows, 4096, axis=0)), gradients(rows * 2.0**-14)
    total = stepped(optimizer(Quiet(), clip=1.0), large, *[small] * 64)
    assert total[0] == pytest.approx(4096 * (1 - 2**-10) + 64 * 2**-14, abs=1e-3)


def test_an_empty_sample_leaves_noise_of_full_size() -> None:
    private = optimizer(SecureRandom.for_test(1), clip=0.5, divisor=4.0, shapes=((300, 300),))
    private.step_on_nothing()
    values = private.params[0].detach().numpy()
    # 90,000 values: the relative error of the deviation is 0.24 %, and 4.9 of it one in a million.
    assert values.std() == pytest.approx(2.0 * 0.5 / 4.0, rel=4.9 / math.sqrt(2 * values.size))


def test_an_empty_sample_after_a_full_one_carries_nothing_over() -> None:
    private = optimizer(Quiet())
    first = stepped(private, gradients(np.ones((3, SIZE))))
    private.zero_grad()
    private.step_on_nothing()
    assert np.array_equal(first, -torch.cat([p.detach().flatten() for p in private.params]).numpy())


def test_the_divisor_need_not_be_a_whole_number() -> None:
    rows = np.random.default_rng(3).normal(size=(4, SIZE))
    whole = stepped(optimizer(Quiet(), divisor=1.0), gradients(rows))
    assert stepped(optimizer(Quiet(), divisor=3.2), gradients(rows)) == pytest.approx(
        whole / 3.2, rel=1e-5
    )


def test_a_parameter_without_a_sum_stops_the_step() -> None:
    private = optimizer(Quiet())
    with pytest.raises(ModelError, match="no per-example gradients"):
        private.add_noise()
