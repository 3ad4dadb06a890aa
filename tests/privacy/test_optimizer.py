"""The noise, the divisor and the sum over micro-batches, without any model around them.

That what is summed is clipped is for test_bookkeeping.py.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedaipc.errors import ModelError
from fedaipc.privacy.optimizer import PrivateOptimizer
from fedaipc.privacy.randomness import SecureRandom

SHAPES = ((3, 4), (5,), (2, 2, 2))
SIZE = sum(math.prod(shape) for shape in SHAPES)


class Quiet(SecureRandom):
    """Noise of zero, rounded as ever."""

    def noisy(self, values: np.ndarray, deviation: float, spacing: float) -> np.ndarray:
        return super().noisy(values, 0.0, spacing)


def optimizer(
    random: SecureRandom, *, clip: float = 0.5, divisor: float = 1.0, shapes: tuple = SHAPES
) -> PrivateOptimizer:
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    return PrivateOptimizer(
        torch.optim.SGD(parameters, lr=1.0),
        module=SimpleNamespace(clipped_sums=None),
        noise_multiplier=2.0,
        clip_norm=clip,
        expected_batch_size=divisor,
        random=random,
    )


def stepped(private: PrivateOptimizer, *batches: np.ndarray) -> np.ndarray:
    """What leaves after micro-batches whose clipped gradients add up to these vectors."""
    for number, batch in enumerate(batches):
        parts = np.split(batch.astype("f4"), np.cumsum([p.numel() for p in private.params])[:-1])
        sums = [
            (parameter, torch.from_numpy(part.copy()).view_as(parameter))
            for parameter, part in zip(private.params, parts, strict=True)
        ]
        private._module.clipped_sums = lambda bound, rows, sums=sums: sums
        private.signal_skip_step(do_skip=number < len(batches) - 1)
        private.step()
        private.zero_grad()
    return -torch.cat([p.detach().flatten() for p in private.params]).double().numpy()


def test_sums_of_micro_batches_add_up_and_are_rounded_to_the_lattice() -> None:
    batches = np.random.default_rng(2).normal(size=(7, SIZE)).astype("f4")
    got = stepped(optimizer(Quiet()), *batches)
    assert got == pytest.approx(batches.astype("f8").sum(0), abs=2e-6)
    spacing = 0.5 * 2.0**-28
    assert np.array_equal(got / spacing, np.rint(got / spacing))


@pytest.mark.parametrize("clip", [1e-9, 0.3, 0.5, 1e9])
def test_the_lattice_is_fine_beside_the_clip_bound(clip: float) -> None:
    seen = []

    class Watched(Quiet):
        def noisy(self, values: np.ndarray, deviation: float, spacing: float) -> np.ndarray:
            seen.append((deviation, spacing))
            return super().noisy(values, deviation, spacing)

    stepped(optimizer(Watched(), clip_norm=clip), clip * np.ones(SIZE))
    assert {deviation for deviation, _ in seen} == {2.0 * clip}
    for _, spacing in seen:
        assert clip * 2.0**-29 < spacing <= clip * 2.0**-28


def test_small_records_after_many_large_ones_keep_their_place_in_the_sum() -> None:
    # In float32 a sum of length 4096 would not move by 2^-14 any more.
    large, small = np.zeros(SIZE), np.zeros(SIZE)
    large[0], small[0] = 4096.0, 2.0**-14
    total = stepped(optimizer(Quiet(), clip_norm=1.0), large, *[small] * 64)
    assert total[0] == pytest.approx(4096 + 64 * 2**-14, abs=1e-3)


def test_an_empty_sample_leaves_noise_of_full_size() -> None:
    private = optimizer(SecureRandom.for_test(1), clip_norm=0.5, divisor=4.0, shapes=((300, 300),))
    private.step_on_nothing()
    values = private.params[0].detach().numpy()
    # 90,000 values: the relative error of the deviation is 0.24 %, and 4.9 of it one in a million.
    assert values.std() == pytest.approx(2.0 * 0.5 / 4.0, rel=4.9 / math.sqrt(2 * values.size))


def test_an_empty_sample_after_a_full_one_carries_nothing_over() -> None:
    private = optimizer(Quiet())
    first = stepped(private, np.ones(SIZE))
    private.zero_grad()
    private.step_on_nothing()
    assert np.array_equal(first, -torch.cat([p.detach().flatten() for p in private.params]).numpy())


def test_the_divisor_need_not_be_a_whole_number() -> None:
    total = np.random.default_rng(3).normal(size=SIZE)
    whole = stepped(optimizer(Quiet(), divisor=1.0), total)
    assert stepped(optimizer(Quiet(), divisor=3.2), total) == pytest.approx(whole / 3.2, rel=1e-5)


def test_a_parameter_without_a_sum_stops_the_step() -> None:
    private = optimizer(Quiet())
    with pytest.raises(ModelError, match="no per-example gradients"):
        private.add_noise()
