"""One PC's round on a tiny model, and checks of it: sensitivity, noise, divisor and sampling.

Each `check_...` is used twice: the real code passes it, and the build with one fault fails it.
Statistical checks use |z| < 4.9 (one false alarm in a million) and fixed streams, unless the check
is about the operating system's randomness.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import pytest

from fedaipc.config import Schedule, TrainingSettings
from fedaipc.model.classifier import Classifier, read_vector
from fedaipc.model.inputs import Inputs, make_inputs
from fedaipc.privacy import norms, training
from fedaipc.privacy.randomness import SecureRandom
from tests.support.schedules import changed, dp_sgd
from tests.support.tiny_models import LABELS, TARGETS, TEXTS, settings, shared_folder

CLIP, NOISE, RATE, CLASS = 0.05, 2.0, 0.25, 32
EVERYTHING = range(len(TEXTS))
ONCE = dp_sgd(NOISE, RATE, clip_norm=CLIP)


class Scripted(SecureRandom):
    """Draws the samples it is given, and noise from a test stream or none; keeps a log."""

    def __init__(self, *samples: Any, noise: int | None = None) -> None:
        self.samples = list(samples)
        self.log: list[Any] = []
        self.noise = None if noise is None else SecureRandom.for_test(noise)

    def poisson_sample(self, count: int, rate: float) -> np.ndarray:
        self.log.append(("sample", count, rate))
        return np.array(list(self.samples.pop(0)), dtype=np.int64)

    def noisy(self, values: np.ndarray, deviation: float, spacing: float) -> np.ndarray:
        self.log.append(("noise", len(values), deviation))
        return self.noise.noisy(values, deviation, spacing) if self.noise else values


@contextmanager
def by_tokens() -> Iterator[None]:
    """Layers of a tiny model are treated as those of a large one: no per-example gradients."""
    with mock.patch.multiple(norms, SMALL=-1, KEPT=0):
        yield


def model(method: str, family: str = "bert") -> tuple[Classifier, np.ndarray]:
    return _model(method, family)  # one key for both spellings: tests look at what `update` trains


@cache
def _model(method: str, family: str) -> tuple[Classifier, np.ndarray]:
    classifier = Classifier(settings(shared_folder(family), method=method), LABELS)
    start = read_vector(classifier)
    return classifier, start + np.random.default_rng(0).normal(0, 0.1, len(start)).astype("f4")


@cache
def all_inputs(method: str, family: str = "bert") -> Inputs:
    return make_inputs(model(method, family)[0], TEXTS, None)


def only(inputs: Inputs, keep: list[int]) -> Inputs:
    """The PC that holds just these texts."""
    assert inputs.offsets is not None
    rows: list[Any] = [inputs.rows[inputs.offsets[i] : inputs.offsets[i + 1]] for i in keep]
    return Inputs(np.concatenate(rows), np.cumsum([0, *map(len, rows)]), inputs.most)


def update(
    stream: SecureRandom,
    *,
    method: str = "bitfit",
    family: str = "bert",
    keep: list[int] | None = None,
    size_class: int = CLASS,
    micro_batch: int = 64,
    rate: float = 1.0,
    optimizer: str = "sgd",
    schedule: Schedule = ONCE,
    **changes: Any,
) -> np.ndarray:
    classifier, start = model(method, family)
    inputs, targets = all_inputs(method, family), TARGETS
    if keep is not None:
        inputs, targets = only(inputs, keep), TARGETS[keep]
    return training.train_round(
        classifier,
        inputs,
        targets,
        start,
        schedule=changed(schedule, **changes) if changes else schedule,
        training=TrainingSettings(learning_rate=rate, optimizer=optimizer),
        size_class=size_class,
        micro_batch=micro_batch,
        random=stream,
    ).astype(np.float64)


# Checks


def check_neighbours(method: str = "bitfit", family: str = "bert") -> None:
    """Without noise, one record more moves the clipped sum by at most C."""
    total: dict[str, Any] = {
        "method": method, "family": family, "sampling_rate": 1.0, "size_class": 1,
    }  # divisor 1: the plain sum  # fmt: skip
    whole = update(Scripted(EVERYTHING), **total)
    moves = []
    for left_out in (0, 3, 4, 8, 11):
        keep = [i for i in EVERYTHING if i != left_out]
        part = update(Scripted(range(len(keep))), keep=keep, **total)
        moves.append(np.linalg.norm(whole - part))
    assert max(moves) <= CLIP
    assert min(moves) > 0.9 * CLIP  # every gradient here is longer than C, so the bound is met


def check_neighbours_by_tokens() -> None:
    """The same where norms come from products of tokens, as they do in layers of usual size."""
    with by_tokens():
        check_neighbours("full")


def check_noise(expected: float = NOISE * CLIP / (RATE * CLASS), rate: float = 1.0) -> None:
    """The update differs from the noiseless one by N(0, (sigma C lr / (q class))^2)."""
    assert_deviation(
        update(Scripted(EVERYTHING, noise=1), method="full", rate=rate)
        - update(Scripted(EVERYTHING), method="full", rate=rate),
        expected,
    )


def check_empty_sample() -> None:
    """A step on nothing is a step all the same: noise of full size."""
    noise = update(Scripted([], noise=2), method="full")
    assert_deviation(noise, NOISE * CLIP / (RATE * CLASS))


def check_every_step() -> None:
    """Each of a round's steps has noise of its own: three on nothing add up to sqrt(3) of one."""
    noise = update(Scripted([], [], [], noise=2), method="full", steps=3)
    assert_deviation(noise, math.sqrt(3) * NOISE * CLIP / (RATE * CLASS))


def check_fresh_noise() -> None:
    """The operating system's randomness never gives the same noise twice."""
    values = [update(SecureRandom(), keep=[0, 1], sampling_rate=1e-18) for _ in range(2)]
    assert not np.array_equal(values[0], values[1])
    # Independent, so that their difference has twice the variance.
    spread = np.std(values[0] - values[1]) * 1e-18 * CLASS / (NOISE * CLIP)
    assert spread == pytest.approx(math.sqrt(2), rel=4.9 / math.sqrt(2 * len(values[0])))


def check_divisor() -> None:
    """PCs of 12 and of 6 records in one class, same draws: the same update, bit by bit."""
    drawn = [0, 2, 5]
    large = update(Scripted(drawn, noise=3))
    small = update(Scripted(drawn, noise=3), keep=list(range(6)))
    assert np.array_equal(large, small)


def check_poisson() -> None:
    """The sample's size is binomial: over 400 steps its variance is that of 12 fair draws."""
    sizes = []

    class Watched(SecureRandom):
        def poisson_sample(self, count: int, rate: float) -> np.ndarray:
            sample = super().poisson_sample(count, rate)
            sizes.append(len(sample))
            return sample[:0]  # steps on nothing are quick

    update(Watched(bytes(32)), method="head", steps=400)
    variance = 12 * RATE * (1 - RATE)
    # Its standard error over 400 steps is about 7 %.
    assert np.var(sizes) == pytest.approx(variance, rel=0.35)
    assert np.mean(sizes) == pytest.approx(12 * RATE, abs=4.9 * math.sqrt(variance / 400))


def assert_deviation(values: np.ndarray, expected: float) -> None:
    assert values.std() == pytest.approx(expected, rel=4.9 / math.sqrt(2 * len(values)))
