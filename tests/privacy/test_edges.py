"""A record's place in a batch: libraries compute the last rows by another kernel, we must not care.

The weights here make the last bits of a matrix product decide a whole clipped gradient. With rows
as they used to be (one more than the micro-batch), taking one record out moved the sum by up to 22
times the clip bound, on two threads of an x86.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from fedaipc.config import DPSGD, TrainingSettings
from fedaipc.errors import ModelError
from fedaipc.model import inputs as inputs_module
from fedaipc.model import products
from fedaipc.model.classifier import Classifier, read_vector
from fedaipc.model.inputs import Inputs, longest_input
from fedaipc.model.load import quiet
from fedaipc.privacy import batch_invariance, training
from fedaipc.privacy.randomness import SecureRandom
from tests.support.batch_invariance import (
    CLIP,
    MECHANISM,
    ONCE,
    Kernels,
    Weights,
    clipped_sum,
    rehearse,
)
from tests.support.tiny_models import LABELS, WORDS, settings, word_piece

if TYPE_CHECKING:
    from collections.abc import Callable

COUNT, WIDTH = 36, 128
pytestmark = pytest.mark.usefixtures("threads")


@cache
def wide() -> tuple[Classifier, np.ndarray]:
    """Wide enough for the kernels that real models meet."""
    folder = Path(mkdtemp(prefix="wide-"))
    config = BertConfig(
        vocab_size=50, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=2 * WIDTH, max_position_embeddings=32,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), quiet():
        torch.random.manual_seed(0)
        BertModel(config).save_pretrained(folder)
        word_piece().save_pretrained(folder)
    classifier = Classifier(settings(folder, method="bitfit"), LABELS)
    return classifier, read_vector(classifier)


def rounding_alone() -> np.ndarray:
    """States that do not depend on the text; below the head nothing but rounding, times 2^60.

    All rows of the head are one, so the gradient by its input is their sum of p - y, which is 0
    but for its last bits.
    """
    classifier, start = wide()
    weights, rng = Weights(classifier, start), np.random.default_rng(1)
    weights["layer.0.output.LayerNorm.weight"][...] = 0
    weights["layer.0.output.LayerNorm.bias"][...] = 0
    weights["classifier.weight"][...] = 2.0**60 * rng.normal(size=WIDTH)
    weights["classifier.bias"][...] = rng.normal(size=3)
    return weights.vector


def check_removal(micro_batch: int) -> None:
    """One text, many times; labels tell the last row of each micro-batch apart."""
    texts = [" ".join(WORDS[:3])] * COUNT
    targets = np.where(np.arange(COUNT) % micro_batch == micro_batch - 1, 0, 1)
    classifier, weights = wide()[0], rounding_alone()
    whole = clipped_sum(classifier, weights, texts, targets, micro_batch)
    part = clipped_sum(classifier, weights, texts[1:], targets[1:], micro_batch)
    assert np.linalg.norm(whole - part) <= CLIP


def one_row_more(size: int) -> int:
    return size + 1


def has_edges() -> bool:
    """Whether this machine computes some rows of a product by another kernel."""
    alike = torch.randn(1, WIDTH).expand(10, WIDTH).contiguous()
    product = torch.nn.functional.linear(alike, torch.randn(WIDTH, WIDTH))
    return not torch.equal(product, product[:1].expand_as(product))


@pytest.mark.parametrize("micro_batch", [6, 9, 16])
def test_no_place_in_a_batch_makes_a_record_move_the_others(micro_batch: int) -> None:
    check_removal(micro_batch)


def test_with_one_row_more_than_the_micro_batch_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_edges():
        pytest.skip("no such kernels on this machine with so many threads")
    monkeypatch.setattr(inputs_module, "batch_rows", one_row_more)
    check_removal(9)  # a narrow head is safe even so
    monkeypatch.setattr(wide()[0], "by_record", products.NONE)
    with pytest.raises(AssertionError):
        check_removal(9)


# The guard


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
@pytest.mark.parametrize("method", ["head", "bitfit", "lora", "last-layers", "full"])
def test_the_guard_lets_this_machine_train(method: str, family: str, cached: bool) -> None:
    rehearse(method, family=family, cached=cached)


class LastBit(torch.autograd.Function):
    """Gives the rows from `first` on other last bits, on the way there or on the way back."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, first: int, backwards: bool) -> torch.Tensor:
        ctx.first = first if backwards else None
        return values if backwards else _moved(values, first)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return grad if ctx.first is None else _moved(grad, ctx.first), None, None


def _moved(values: torch.Tensor, first: int) -> torch.Tensor:
    moved = values.clone()
    moved[first:] = torch.nextafter(moved[first:], torch.tensor(torch.inf))
    return moved


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("method", ["head", "bitfit", "lora", "last-layers", "full"])
def test_the_guard_refuses_a_machine_that_tells_rows_apart(
    method: str, backwards: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if method == "head" and backwards:
        pytest.skip("nothing comes back to a head's input")
    real = torch.nn.Linear.forward

    def forward(self: torch.nn.Linear, values: torch.Tensor) -> torch.Tensor:
        return LastBit.apply(real(self, values), 5, backwards)

    monkeypatch.setattr(torch.nn.Linear, "forward", forward)
    with pytest.raises(ModelError, match=r"depends on its place in the batch.*tried on cpu with"):
        rehearse(method, 8, cached=True)


def _few_columns(name: str, columns: int) -> bool:
    return name in {"mm", "addmm"} and columns < 16


def _many_columns(name: str, columns: int) -> bool:
    return name in {"mm", "addmm"} and columns >= products.NARROW


def _products_of_records(name: str, columns: int) -> bool:
    return name == "baddbmm" and columns < 16


@pytest.mark.parametrize(
    ("faulty", "settled"),
    [
        (_few_columns, products.NARROW),
        (_many_columns, products.ALL),
        (_products_of_records, products.NONE),
    ],
)
def test_a_machine_whose_kernels_tell_rows_apart_multiplies_otherwise_and_trains(
    faulty: Callable[[str, int], bool], settled: int
) -> None:
    classifier, start = wide()
    with Kernels(faulty):
        training.rehearse(
            classifier, longest_input(classifier, cached=True), start,
            mechanism=MECHANISM, training=TrainingSettings(learning_rate=1.0), micro_batch=16,
        )  # fmt: skip
    assert classifier.by_record == settled
    classifier.by_record = products.NARROW


def test_a_rehearsal_trains_its_record_whatever_the_mechanism_samples() -> None:
    """Else memory could run out after a charge, for the length of one record."""

    class Rare(DPSGD):
        def sample(self, draw: Any) -> Any:
            return np.zeros(0, np.int64)

        def event(self) -> Any:
            return super().event()

    classifier, start = wide()
    with mock.patch.object(training, "_losses", wraps=training._losses) as losses:
        training.rehearse(
            classifier, longest_input(classifier, cached=True), start,
            mechanism=Rare(noise_multiplier=1.0), training=TrainingSettings(), micro_batch=8,
        )  # fmt: skip
    assert [list(call.args[4]) for call in losses.call_args_list] == [[0]]


def test_where_nothing_helps_the_message_names_what_was_tried() -> None:
    classifier, start = wide()
    with (
        Kernels(lambda _name, columns: columns < 16),
        pytest.raises(ModelError, match=r"in narrow layers, in all layers, in no layer: none") as e,
    ):
        training.rehearse(
            classifier, longest_input(classifier, cached=True), start,
            mechanism=MECHANISM, training=TrainingSettings(learning_rate=1.0), micro_batch=9,
        )  # fmt: skip
    assert "micro-batches of 16" in str(e.value)
    assert classifier.by_record == products.NARROW


@pytest.mark.parametrize("below", [products.NARROW, products.ALL])
def test_a_product_by_record_is_the_product(below: int) -> None:
    """And gives its input the same gradient; where a weight's is wanted, it stays one product."""
    rng = torch.Generator().manual_seed(3)
    for shape in ((4, 5, 12), (4, 12)):
        for bias in (None, torch.randn(100, generator=rng, dtype=torch.float64)):
            values = torch.randn(shape, generator=rng, dtype=torch.float64, requires_grad=True)
            weight = torch.randn(100, 12, generator=rng, dtype=torch.float64)
            plain = torch.nn.functional.linear(values, weight, bias)
            with products.ByRecord(below):
                found = torch.nn.functional.linear(values, weight, bias)
            torch.testing.assert_close(found, plain)
            (wanted,) = torch.autograd.grad(plain.square().sum(), values)
            (given,) = torch.autograd.grad(found.square().sum(), values)
            torch.testing.assert_close(given, wanted)
            with products.ByRecord(below):
                whole = torch.nn.functional.linear(values, weight.requires_grad_(), bias)
            assert "Bmm" not in type(whole.grad_fn.next_functions[0][0]).__name__
            assert torch.equal(whole, plain)


@pytest.mark.slow
@pytest.mark.parametrize("cap", ["MKL_ENABLE_INSTRUCTIONS=SSE4_2", "ATEN_CPU_CAPABILITY=default"])
def test_a_processor_without_avx_trains(cap: str) -> None:
    """In a process of its own, which is told so: Intel's processors heed the first."""
    name, _, value = cap.partition("=")
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from tests.support.batch_invariance import rehearse\n"
        "for method in ('head', 'bitfit', 'lora', 'full'): rehearse(method, cached=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, name: value}, check=False,
        capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_guard_looks_at_frozen_layers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Classifier.freeze_through

    def forward(self: Classifier, tokens: Any) -> Any:
        found = real(self, tokens)
        return type(found)(_moved(found.values, 5), found.mask)

    monkeypatch.setattr(Classifier, "freeze_through", forward)
    with pytest.raises(ModelError, match="frozen layers"):
        rehearse("head", cached=True)


def test_the_guard_looks_at_frozen_layers_in_a_steps_own_batches_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A disk that is full only after the rehearsal sends tokens through them."""
    real = Classifier.freeze_through

    def forward(self: Classifier, tokens: Any) -> Any:
        found = real(self, tokens)
        moved = _moved(found.values, 5) if len(found.values) == 64 else found.values
        return type(found)(moved, found.mask)

    monkeypatch.setattr(Classifier, "freeze_through", forward)
    rehearse("bitfit", 16, cached=True)
    with pytest.raises(ModelError, match="frozen layers"):
        rehearse("bitfit", 64, cached=True)


def test_the_guard_finds_the_rows_that_the_attack_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_edges():
        pytest.skip("no such kernels on this machine with so many threads")
    for module in (inputs_module, batch_invariance):
        monkeypatch.setattr(module, "batch_rows", one_row_more)
    monkeypatch.setattr(batch_invariance, "_CHOICES", (products.NONE,))
    classifier = wide()[0]
    with pytest.raises(ModelError, match="depends on its place"):
        training.rehearse(
            classifier, longest_input(classifier, cached=True), wide()[1],
            mechanism=MECHANISM, training=TrainingSettings(learning_rate=1.0), micro_batch=9,
        )  # fmt: skip


def test_a_base_with_an_activation_that_tells_rows_apart_is_refused(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, hidden_act="gelu_pytorch_tanh",
    )  # fmt: skip
    with quiet():
        BertModel(config).save_pretrained(tmp_path)
        word_piece().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"gelu_pytorch_tanh.* take a base with gelu or relu"):
        Classifier(settings(tmp_path), LABELS)


def test_empty_inputs_and_secure_randomness_are_no_special_case() -> None:
    classifier, start = wide()
    training.train_round(
        classifier, Inputs.nothing(), np.zeros(0, dtype=np.int64), start, schedule=ONCE,
        training=TrainingSettings(learning_rate=1.0), size_class=1, micro_batch=3,
        random=SecureRandom(),
    )  # fmt: skip
