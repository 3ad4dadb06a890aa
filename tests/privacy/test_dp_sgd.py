"""The noise, the divisor and the sum over micro-batches, without any model around them.

That what is summed is clipped is for test_bookkeeping.py.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fedaipc.errors import ModelError
from fedaipc.privacy import dp_sgd
from fedaipc.privacy.randomness import SecureRandom
from fedaipc.privacy.rounding import EXACT

SHAPES = ((3, 4), (5,), (2, 2, 2))
SIZE = sum(math.prod(shape) for shape in SHAPES)


class Quiet(SecureRandom):
    """Noise of zero, rounded as ever."""

    def noisy(self, values: np.ndarray, deviation: float, spacing: float) -> np.ndarray:
        return super().noisy(values, 0.0, spacing)


class Stepper:
    """Parameters that begin at 0, a server of sums that are clipped already, steps of rate 1."""

    def __init__(
        self,
        random: SecureRandom,
        *,
        clip_norm: float = 0.5,
        divisor: float = 1.0,
        shapes: tuple = SHAPES,
    ) -> None:
        self.params = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
        self.optimizer = torch.optim.SGD(self.params, lr=1.0)
        self.known: dict = {"clip_norm": clip_norm, "divisor": divisor, "random": random}

    def step(self, *sums: list) -> None:
        """One step over micro-batches whose clipped sums are these."""
        left = list(sums)
        module: Any = SimpleNamespace(
            clipped_sums=lambda bound, rows, exact: left.pop(0), rounding=EXACT
        )
        losses = ((torch.zeros(1, requires_grad=True).sum(), 1) for _ in sums)
        dp_sgd.private_step(self.optimizer, module, losses, noise_multiplier=2.0, **self.known)


def stepped(private: Stepper, *batches: np.ndarray) -> np.ndarray:
    """What leaves after micro-batches whose clipped gradients add up to these vectors."""
    sums = []
    for batch in batches:
        parts = np.split(batch.astype("f4"), np.cumsum([p.numel() for p in private.params])[:-1])
        sums.append(
            [
                (parameter, torch.from_numpy(part.copy()).view_as(parameter))
                for parameter, part in zip(private.params, parts, strict=True)
            ]
        )
    private.step(*sums)
    return -torch.cat([p.detach().flatten() for p in private.params]).double().numpy()


def test_sums_of_micro_batches_add_up_and_are_rounded_to_the_lattice() -> None:
    batches = np.random.default_rng(2).normal(size=(7, SIZE)).astype("f4")
    got = stepped(Stepper(Quiet()), *batches)
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

    stepped(Stepper(Watched(), clip_norm=clip), clip * np.ones(SIZE))
    assert {deviation for deviation, _ in seen} == {2.0 * clip}
    for _, spacing in seen:
        assert clip * 2.0**-29 < spacing <= clip * 2.0**-28


def test_small_records_after_many_large_ones_keep_their_place_in_the_sum() -> None:
    # In float32 a sum of length 4096 would not move by 2^-14 any more.
    large, small = np.zeros(SIZE), np.zeros(SIZE)
    large[0], small[0] = 4096.0, 2.0**-14
    total = stepped(Stepper(Quiet(), clip_norm=1.0), large, *[small] * 64)
    assert total[0] == pytest.approx(4096 + 64 * 2**-14, abs=1e-3)


def test_an_empty_sample_leaves_noise_of_full_size() -> None:
    private = Stepper(SecureRandom.for_test(1), clip_norm=0.5, divisor=4.0, shapes=((300, 300),))
    private.step()
    values = private.params[0].detach().numpy()
    # 90,000 values: the relative error of the deviation is 0.24 %, and 4.9 of it one in a million.
    assert values.std() == pytest.approx(2.0 * 0.5 / 4.0, rel=4.9 / math.sqrt(2 * values.size))


def test_an_empty_sample_after_a_full_one_carries_nothing_over() -> None:
    private = Stepper(Quiet())
    first = stepped(private, np.ones(SIZE))
    private.step()
    assert np.array_equal(first, -torch.cat([p.detach().flatten() for p in private.params]).numpy())


def test_the_divisor_need_not_be_a_whole_number() -> None:
    total = np.random.default_rng(3).normal(size=SIZE)
    whole = stepped(Stepper(Quiet(), divisor=1.0), total)
    assert stepped(Stepper(Quiet(), divisor=3.2), total) == pytest.approx(whole / 3.2, rel=1e-5)


def test_a_parameter_without_a_sum_stops_the_step() -> None:
    private = Stepper(Quiet())
    with pytest.raises(ModelError, match="no per-example gradients"):
        private.step([(private.params[0], torch.zeros(SHAPES[0]))])
    assert not any(bool(p.any()) for p in private.params)
