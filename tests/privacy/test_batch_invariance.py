"""What a record adds to the sum depends on no other record, whatever weights a coordinator sends.

The clip bound is one record's alone only then. Both attacks move the clipped sum of a careless
build by many times C: weights under which the padding overflows that other texts ask for, and
weights under which the last bits of a row, which follow the shape of its batch, become everything.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
import torch

from fedaipc.model.classifier import Batch, Classifier, read_vector
from fedaipc.model.inputs import Inputs, make_inputs
from fedaipc.privacy import norms, training
from fedaipc.privacy.bookkeeping import BookKeepingModule
from tests.support.batch_invariance import CLIP, Weights, clipped_sum
from tests.support.tiny_models import FAMILIES, LABELS, WORDS, settings, shared_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy.typing as npt

COUNT = 40
pytestmark = pytest.mark.usefixtures("threads")


@cache
def model(family: str, method: str) -> tuple[Classifier, np.ndarray]:
    """And its weights as they come, which training overwrites."""
    classifier = Classifier(settings(shared_folder(family), method=method), LABELS)
    return classifier, read_vector(classifier)


# Weights under which padding overflows


@cache
def short_texts() -> tuple[str, ...]:
    return tuple(" ".join(WORDS[(3 * t + p) % 40] for p in range(6)) for t in range(COUNT))


LONG = " ".join(WORDS[:9])


def weights_that_overflow_on_padding() -> np.ndarray:
    """Finite wherever there is a token of these texts, infinite on the padding behind them."""
    classifier, start = model("bert", "last-layers")
    weights = Weights(classifier, start)
    batch = padded_to_the_longest(classifier, (*short_texts(), LONG))
    states = classifier.freeze_through(batch).values.numpy()
    there = batch.mask.numpy().astype(bool)

    def normal(x: np.ndarray) -> np.ndarray:
        return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-12)

    real, padding = normal(states[there]), normal(states[~there])
    direction = padding.mean(0) / np.linalg.norm(padding.mean(0))
    threshold = ((real @ direction).max() + (padding @ direction).min()) / 2
    for part in ("self.value", "output.dense"):
        weights[f"attention.{part}.weight"][...] = 0
        weights[f"attention.{part}.bias"][...] = 0
    weights["attention.output.LayerNorm.weight"][...] = 1
    weights["attention.output.LayerNorm.bias"][...] = 0
    inner, outer = weights["intermediate.dense.weight"], weights["layer.1.output.dense.weight"]
    inner[...] = 0
    inner[0] = 1e30 * direction
    weights["intermediate.dense.bias"][...] = -1e30 * threshold
    outer[...] = 0
    outer[:, 0] = 3e38
    weights["layer.1.output.dense.bias"][...] = 0
    return weights.vector


def padded_to_the_longest(classifier: Classifier, texts: Sequence[str]) -> Batch:
    inputs = make_inputs(classifier, texts, None)
    values = np.zeros((len(texts), int(inputs.lengths().max())), dtype=np.int64)
    mask = np.zeros_like(values)
    for row in range(len(texts)):
        ids = _rows(inputs, row)
        values[row, : len(ids)], mask[row, : len(ids)] = ids, 1
    return Batch(torch.from_numpy(values), torch.from_numpy(mask))


def check_padding() -> None:
    classifier, weights = model("bert", "last-layers")[0], weights_that_overflow_on_padding()
    one = clipped_sum(classifier, weights, short_texts()[:1])
    assert np.linalg.norm(one) > 0.9 * CLIP  # alone, a short text trains
    few = clipped_sum(classifier, weights, short_texts())
    more = clipped_sum(classifier, weights, [*short_texts(), LONG])
    assert np.linalg.norm(more - few) <= CLIP


# Weights under which the last bits decide


def chaotic(start: np.ndarray, scale: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    wild = start.astype(np.float64) * scale + rng.normal(0, scale / 10, len(start))
    return wild.astype(np.float32)


def mixed_texts() -> list[str]:
    return [" ".join(WORDS[(3 * t + p) % 40] for p in range(1 + t % 9)) for t in range(COUNT)]


def check_last_bits(method: str = "full", family: str = "bert") -> None:
    """Remove any record: the sum of the others' contributions stays what it was.

    Under chaotic weights a single bit anywhere in a row changes its whole clipped gradient.
    """
    (classifier, start), texts = model(family, method), mixed_texts()
    trained = False
    for scale in (1.0, 30.0, 1e3):
        weights = chaotic(start, scale)
        whole = clipped_sum(classifier, weights, texts)
        trained |= bool(whole.any())  # the wildest only give NaN, which counts as nothing
        for left_out in (0, 7, 18, 33, 39):
            kept = [text for number, text in enumerate(texts) if number != left_out]
            moved = np.linalg.norm(whole - clipped_sum(classifier, weights, kept))
            assert moved <= CLIP
    assert trained


# The real code passes


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["head", "bitfit", "lora", "last-layers", "full"])
@pytest.mark.parametrize("kept", [1 << 14, -1], ids=["kept", "by tokens"])
def test_a_record_moves_the_sum_by_its_own_contribution_to_the_last_bit(
    method: str, family: str, kept: int
) -> None:
    with mock.patch.multiple(norms, SMALL=kept, KEPT=kept):
        check_last_bits(method, family)


@pytest.mark.parametrize("method", ["lora", "last-layers", "full"])
def test_so_it_is_in_bfloat16(method: str) -> None:
    classifier = model("bert", method)[0]
    classifier.half_precision = True
    try:
        check_last_bits(method)
    finally:
        classifier.half_precision = False


def test_padding_that_overflows_takes_no_record_with_it() -> None:
    check_padding()


@pytest.mark.parametrize("method", ["head", "bitfit"])
def test_frozen_states_are_a_records_own_to_the_last_bit(tmp_path: Path, method: str) -> None:
    classifier, texts = model("bert", method)[0], mixed_texts()
    whole = make_inputs(classifier, texts, tmp_path)
    for kept in (range(1, COUNT), range(COUNT - 1), range(0, COUNT, 3), reversed(range(COUNT))):
        chosen = list(kept)
        part = make_inputs(classifier, [texts[number] for number in chosen], tmp_path)
        for place, number in enumerate(chosen):
            assert np.array_equal(_rows(part, place), _rows(whole, number))


def _rows(inputs: Inputs, number: int) -> npt.NDArray[np.generic]:
    if inputs.offsets is None:
        return inputs.rows[number]
    return inputs.rows[inputs.offsets[number] : inputs.offsets[number + 1]]


# Builds that were broken fail


def _fault_padded_to_the_longest(patch: pytest.MonkeyPatch) -> None:
    def widths(self: Inputs, _: int = 4) -> np.ndarray:
        return np.full(len(self), self.lengths().max(initial=1))

    patch.setattr(Inputs, "widths", widths)


def _fault_mean_loss(patch: pytest.MonkeyPatch) -> None:
    real: Any = torch.nn.functional.cross_entropy

    def mean(logits: torch.Tensor, truth: torch.Tensor, **named: Any) -> torch.Tensor:
        return real(logits, truth, **{**named, "reduction": "mean"})

    patch.setattr(training, "cross_entropy", mean)
    patch.setattr(
        training,
        "BookKeepingModule",
        lambda module, **_: BookKeepingModule(module, loss_reduction="mean"),
    )


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (_fault_padded_to_the_longest, check_padding),
        (_fault_mean_loss, check_last_bits),
    ],
    ids=lambda function: function.__name__.removeprefix("_"),
)
def test_a_broken_build_is_caught(
    fault: Callable[[pytest.MonkeyPatch], None],
    check: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        check()
