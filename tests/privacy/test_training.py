"""One PC's round: sensitivity, noise, divisor and sampling; and broken builds that must be caught.

The checks are in tests/support/private_rounds.py.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from fedaipc.config import NoPrivacy, Schedule, TrainingSettings
from fedaipc.model.classifier import Batch, Classifier, read_vector, write_vector
from fedaipc.model.inputs import Inputs, make_inputs
from fedaipc.privacy import norms, training
from fedaipc.privacy.randomness import SecureRandom
from fedaipc.privacy.rounding import EXACT, Rounding
from tests.support.broken_builds import faults
from tests.support.private_rounds import (
    CLASS,
    CLIP,
    EVERYTHING,
    NOISE,
    ONCE,
    RATE,
    Scripted,
    all_inputs,
    assert_deviation,
    by_tokens,
    check_divisor,
    check_empty_sample,
    check_every_step,
    check_fresh_noise,
    check_neighbours,
    check_neighbours_by_tokens,
    check_noise,
    check_poisson,
    model,
    update,
)
from tests.support.schedules import changed
from tests.support.tiny_models import (
    FAMILIES,
    LABELS,
    METHODS,
    TARGETS,
    TEXTS,
    settings,
    shared_folder,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=["instantiated", "by tokens"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both ways to a norm."""
    with by_tokens() if request.param == "by tokens" else nullcontext():
        yield request.param


# The real code passes


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("way")
def test_one_record_more_moves_the_sum_by_at_most_the_clip_bound(method: str, family: str) -> None:
    check_neighbours(method, family)


@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_noise_on_the_update_has_the_promised_deviation(rate: float) -> None:
    check_noise(NOISE * CLIP * rate / (RATE * CLASS), rate)


@pytest.mark.parametrize("factor", [0.94, 1.06])
def test_a_deviation_six_percent_off_is_rejected(factor: float) -> None:
    # 5875 values leave 0.9 % of uncertainty; finer errors are for the generator's own tests.
    with pytest.raises(AssertionError):
        check_noise(factor * NOISE * CLIP / (RATE * CLASS))


def test_an_empty_sample_adds_full_noise() -> None:
    check_empty_sample()


def test_every_step_of_a_round_adds_noise() -> None:
    check_every_step()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("way")
def test_in_bfloat16_the_bound_holds_and_the_update_is_close(method: str) -> None:
    classifier = model(method, "bert")[0]
    total: dict[str, Any] = {"method": method, "sampling_rate": 1.0, "size_class": 1}
    exact = update(Scripted(EVERYTHING), clip_norm=1e4, **total)
    classifier.half_precision = True
    try:
        check_neighbours(method)
        rough = update(Scripted(EVERYTHING), clip_norm=1e4, **total)
    finally:
        classifier.half_precision = False
    assert np.linalg.norm(rough - exact) <= 0.1 * np.linalg.norm(exact)
    assert method == "head" or not np.array_equal(rough, exact)


def test_a_pc_left_with_no_record_sends_noise_like_any_other() -> None:
    classifier, start = model("full")
    noise = training.train_round(
        classifier,
        Inputs.nothing(),
        np.zeros(0, dtype=np.int64),
        start,
        schedule=ONCE,
        training=TrainingSettings(learning_rate=1.0),
        size_class=CLASS,
        micro_batch=64,
        random=SecureRandom.for_test(5),
    )
    assert_deviation(noise.astype(np.float64), NOISE * CLIP / (RATE * CLASS))


def test_a_factor_that_is_not_trained_gets_no_noise() -> None:
    chosen = settings(shared_folder("bert"), method="lora", freeze_a=True)
    classifier = Classifier(chosen, LABELS)
    before = {n: p.detach().clone() for n, p in classifier.hf.named_parameters()}
    training.train_round(
        classifier,
        make_inputs(classifier, TEXTS, None),
        TARGETS,
        read_vector(classifier),
        schedule=ONCE,
        training=TrainingSettings(learning_rate=1.0),
        size_class=CLASS,
        micro_batch=16,
        random=SecureRandom.for_test(5),
    )
    moved = {n for n, p in classifier.hf.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(classifier.layout.names)
    assert [n for n in before if ".lora_A." in n]
    assert not [n for n in moved if ".lora_A." in n]


def test_noise_is_never_the_same_twice() -> None:
    check_fresh_noise()


def test_two_counts_of_one_class_give_the_same_update() -> None:
    check_divisor()


def test_samples_are_poisson_samples() -> None:
    check_poisson()


# Broken builds fail


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (faults.no_noise, check_noise),
        (faults.no_noise, check_empty_sample),
        (faults.a_tenth_of_the_noise, check_noise),
        (faults.no_clip, check_neighbours),
        (faults.clip_of_the_batch_mean, check_neighbours),
        (faults.clip_per_layer, check_neighbours),
        (faults.norms_of_tokens_alone, check_neighbours_by_tokens),
        (faults.noise_from_a_fixed_seed, check_fresh_noise),
        (faults.empty_sample_skipped, check_empty_sample),
        (faults.noise_in_the_first_step_only, check_every_step),
        (faults.true_count_as_divisor, check_divisor),
        (faults.drawn_count_as_divisor, check_noise),
        (faults.sample_of_fixed_size, check_poisson),
    ],
    ids=lambda function: function.__name__,
)
def test_a_broken_build_is_caught(
    fault: Callable[[pytest.MonkeyPatch], None],
    check: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        check()


# Against the slow way, and what must not matter


def summed_slowly(method: str, family: str, bound: float) -> np.ndarray:
    """Each text alone through autograd, its whole gradient scaled to at most `bound`."""
    classifier, start = model(method, family)
    write_vector(classifier, start)
    inputs, total = all_inputs(method, family), np.zeros(len(start))
    for text in EVERYTHING:
        classifier.zero_grad()
        ids = inputs.rows[inputs.offsets[text] : inputs.offsets[text + 1]].astype(np.int64)
        tokens = torch.from_numpy(ids)[None]
        batch = classifier.freeze_through(Batch(tokens, torch.ones_like(tokens)))
        cross_entropy(classifier(batch), torch.tensor([TARGETS[text]])).backward()
        parts = [
            torch.zeros(p.numel()) if p.grad is None else p.grad.flatten()
            for _, p in classifier.trainable()
        ]
        row = torch.cat(parts).double().numpy()
        total += row * min(1.0, bound / np.linalg.norm(row))
    classifier.zero_grad()
    return total


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("clip", [CLIP, 2.0, 1e4])
@pytest.mark.usefixtures("way")
def test_the_sum_equals_one_example_at_a_time(method: str, family: str, clip: float) -> None:
    got = update(
        Scripted(EVERYTHING), method=method, family=family, clip_norm=clip, sampling_rate=1.0,
        size_class=1,
    )  # fmt: skip
    wide = norms.SMALL < 0  # all layers are treated as those of a large model
    room = (Rounding(0, 0) if wide else EXACT).room
    expected = summed_slowly(method, family, clip * room)
    assert np.linalg.norm(got + expected) <= 1e-5 * max(1.0, np.linalg.norm(expected))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("way")
def test_the_micro_batch_does_not_matter(method: str) -> None:
    updates = [
        update(Scripted(EVERYTHING, [1, 3], noise=4), method=method, steps=2, micro_batch=m)
        for m in (1, 5, 64)
    ]
    assert np.abs(updates[0] - updates[2]).max() < 1e-5
    assert np.abs(updates[1] - updates[2]).max() < 1e-5


@pytest.mark.parametrize("method", ["head", "bitfit"])
def test_states_from_the_cache_train_alike(method: str, tmp_path: Path) -> None:
    classifier, start = model(method)
    named: dict[str, Any] = {
        "schedule": ONCE, "training": TrainingSettings(), "size_class": CLASS, "micro_batch": 4,
    }  # fmt: skip
    updates = [
        training.train_round(
            classifier, inputs, TARGETS, start, random=Scripted(EVERYTHING, noise=1), **named
        )
        for inputs in (
            make_inputs(classifier, TEXTS, None),
            make_inputs(classifier, TEXTS, tmp_path),
        )
    ]
    assert np.abs(updates[0] - updates[1]).max() < 1e-6


@pytest.mark.usefixtures("way")
def test_a_model_full_of_huge_weights_still_gives_a_bounded_finite_update() -> None:
    """A hostile coordinator's vector: losses overflow, and no contribution passes the bound."""
    classifier, start = model("last-layers")
    for scale in (1e6, 1e18, 3e37):
        got = training.train_round(
            classifier,
            all_inputs("last-layers"),
            TARGETS,
            np.float32(scale) * np.sign(start),
            schedule=changed(ONCE, clip_norm=1e9, sampling_rate=1.0),
            training=TrainingSettings(learning_rate=1.0),
            size_class=1,
            micro_batch=64,
            random=Scripted(EVERYTHING),
        ).astype(np.float64)
        assert np.isfinite(got).all()
        rounding = scale * 2.0**-23 * math.sqrt(len(start))
        assert np.linalg.norm(got) <= len(TEXTS) * 1e9 + rounding


# Draws


def test_each_step_draws_one_sample_and_then_one_noise_vector() -> None:
    stream = Scripted([0, 1], [], EVERYTHING, noise=1)
    update(stream, steps=3)
    kinds = [kind for kind, *_ in stream.log]
    assert kinds.count("sample") == 3
    assert kinds == kinds[: len(kinds) // 3] * 3  # the empty sample draws as the others do
    for first in [i for i, kind in enumerate(kinds) if kind == "sample"]:
        assert stream.log[first] == ("sample", len(TEXTS), RATE)
    values = sum(count for kind, count, _ in stream.log if kind == "noise")
    assert values == 3 * model("bitfit")[0].layout.size
    assert {d for kind, _, d in stream.log if kind == "noise"} == {NOISE * CLIP}


def test_without_privacy_a_round_draws_no_noise_and_takes_the_mean_over_what_was_drawn() -> None:
    stream = Scripted([3, 4, 7], noise=1)
    plain: dict[str, Any] = {"schedule": Schedule(mechanism=NoPrivacy(sampling_rate=RATE), steps=1)}
    got = update(stream, micro_batch=2, **plain)
    assert [kind for kind, *_ in stream.log] == ["sample"]
    alone = [update(Scripted([text]), **plain) for text in (3, 4, 7)]
    assert got == pytest.approx(np.mean(alone, axis=0), abs=1e-6)
    assert not update(Scripted([]), **plain).any()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_test_seed_repeats_and_another_round_differs(optimizer: str) -> None:
    named: dict[str, Any] = {"steps": 2, "optimizer": optimizer, "rate": 0.01}
    first, second, other = (
        update(SecureRandom.for_test(1, "pc", number), **named) for number in (1, 1, 2)
    )
    assert np.array_equal(first, second)
    assert not np.isclose(first, other).all()


def test_training_touches_no_global_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a generator that is not cryptographic was asked")

    for name in ("normal", "randn", "rand", "randn_like", "randint", "randperm", "Generator"):
        monkeypatch.setattr(torch, name, refuse)
    monkeypatch.setattr(np.random, "default_rng", refuse)
    before = (torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate())  # noqa: NPY002
    update(SecureRandom(), steps=2)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tobytes()  # noqa: NPY002
    assert before[2] == random.getstate()


def test_hooks_and_modes_are_gone_after_a_round_even_a_failed_one() -> None:
    classifier, _ = model("bitfit")

    class Failing(Scripted):
        def noisy(self, values: np.ndarray, deviation: float, spacing: float) -> np.ndarray:
            raise RuntimeError("no noise")

    with pytest.raises(RuntimeError, match="no noise"):
        update(Failing(EVERYTHING))
    assert not classifier.training
    assert not any(module._forward_hooks for module in classifier.modules())
    assert not any(hasattr(p, "grad_sample") for p in classifier.parameters())
    assert all(p.requires_grad for _, p in classifier.trainable())
    update(Scripted(EVERYTHING))
