"""The split model against transformers' own, its flat vector, its layout, and what is refused."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedaipc.errors import EncodingError, ModelError
from fedaipc.model.classifier import Classifier, read_vector, write_vector
from fedaipc.model.inputs import make_inputs
from fedaipc.model.load import load_base
from fedaipc.model.predict import logits
from tests.support.tiny_models import (
    FAMILIES,
    LABELS,
    METHODS,
    TEXTS,
    make_folder,
    settings,
    shared_folder,
)

CASES = [
    (family, method, pooling)
    for family in FAMILIES
    for method in METHODS
    for pooling in ("mean", "cls")
]


@cache
def classifier(family: str = "bert", method: str = "bitfit", pooling: str = "mean") -> Classifier:
    return Classifier(settings(shared_folder(family), method=method, pooling=pooling), LABELS)


@torch.no_grad()
def whole_model_logits(model: Classifier) -> np.ndarray:
    """Transformers' own model, unsplit, one unpadded text at a time, with our values in it."""
    settings = model.settings
    hf = settings.train.prepare(load_base(settings, LABELS).hf, settings.pooling, settings.seed)
    parameters = dict(hf.named_parameters())
    for name, value in model.trainable():
        parameters[name].copy_(value)
    rows = []
    for text in TEXTS:
        encoded = model.tokenizer(text, truncation=True, max_length=16, return_tensors="pt")
        found = hf(**encoded).logits[0]
        rows.append(found.mean(0) if model.settings.pooling == "mean" else found)
    return torch.stack(rows).numpy()


def moved(model: Classifier) -> Classifier:
    """Every trained value away from where it started."""
    rng = np.random.default_rng(0)
    write_vector(model, rng.normal(0, 0.3, model.layout.size).astype(np.float32))
    return model


@pytest.mark.parametrize(("family", "method", "pooling"), CASES)
def test_split_cached_and_whole_model_agree(
    family: str, method: str, pooling: str, tmp_path: Path
) -> None:
    model = moved(classifier(family, method, pooling))
    tokens, frozen = make_inputs(model, TEXTS, None), make_inputs(model, TEXTS, tmp_path)
    assert frozen.is_tokens == (method == "full")
    by_tokens = logits(model, tokens, 5)
    assert by_tokens == pytest.approx(logits(model, frozen, 7), abs=1e-5)
    assert by_tokens == pytest.approx(whole_model_logits(model), abs=1e-5)
    assert (
        by_tokens.std(axis=0).min() > 1e-3
    )  # texts are told apart: the comparison means something


@pytest.mark.parametrize(("family", "method", "pooling"), CASES)
def test_only_what_the_method_names_is_trained(family: str, method: str, pooling: str) -> None:
    model = classifier(family, method, pooling)
    names = [name for name, _ in model.trainable()]
    body = [n for n in names if ".layer." in n]
    assert any("classifier" in name for name in names)
    assert (method == "full") == any("embeddings" in name for name in names)
    assert (method == "head") == (not body)
    if method != "full":
        assert all(".layer.1." in name for name in body)
    if method == "bitfit":
        assert all(n.endswith("bias") or "LayerNorm" in n or "layer_norm" in n for n in body)
    if method == "lora":
        assert all("lora_" in name for name in body)


def test_the_frozen_part_is_no_part_of_what_is_trained_or_saved() -> None:
    model = classifier()
    assert model.has_frozen_part
    assert sum(p.numel() for p in model.parameters()) < model.total_parameters
    assert not any(p.requires_grad for p in model._lower[0].parameters())
    assert not classifier(method="full").has_frozen_part


# The flat vector


@pytest.mark.parametrize("method", METHODS)
def test_a_vector_survives_the_round_trip(method: str) -> None:
    model = classifier(method=method)
    vector = np.random.default_rng(1).normal(size=model.layout.size).astype(np.float32)
    write_vector(model, vector)
    assert np.array_equal(read_vector(model), vector)
    assert read_vector(model).dtype == np.float32


def test_the_vector_follows_the_layout() -> None:
    model = classifier(method="last-layers")
    write_vector(model, np.arange(model.layout.size, dtype=np.float32))
    start = 0
    for (name, parameter), label, shape in zip(
        model.trainable(), model.layout.names, model.layout.shapes, strict=True
    ):
        assert name == label
        expected = np.arange(start, start + parameter.numel()).reshape(shape)
        assert np.array_equal(parameter.detach().numpy(), expected)
        start += parameter.numel()
    assert start == model.layout.size
    assert list(model.layout.names) == sorted(model.layout.names)


def test_a_read_vector_is_a_copy() -> None:
    model = classifier(method="head")
    vector = read_vector(model)
    vector += 1
    assert not np.array_equal(read_vector(model), vector)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_and_nothing_written(value: float) -> None:
    model = classifier(method="head")
    before = read_vector(model)
    hostile = np.zeros(model.layout.size, dtype=np.float32)
    hostile[-1] = value
    with pytest.raises(EncodingError, match="not finite"):
        write_vector(model, hostile)
    assert np.array_equal(read_vector(model), before)


def test_a_vector_of_the_wrong_size_is_refused() -> None:
    model = classifier(method="head")
    for size in (0, model.layout.size - 1, model.layout.size + 1):
        with pytest.raises(EncodingError, match="run different jobs"):
            write_vector(model, np.zeros(size, dtype=np.float32))
    with pytest.raises(EncodingError):
        write_vector(model, np.zeros((model.layout.size, 1), dtype=np.float32))


# The layout


def test_the_layout_changes_with_all_that_must_agree(tmp_path: Path) -> None:
    folder = shared_folder("bert")
    other_base = make_folder(tmp_path / "other", "bert", seed=1)
    same_base = shutil.copytree(folder, tmp_path / "copy")
    variants = {
        "base": (settings(other_base), LABELS),
        "labels": (settings(folder), ("bad", "fair", "best")),
        "order of labels": (settings(folder), LABELS[::-1]),
        "pooling": (settings(folder, pooling="cls"), LABELS),
        "max_length": (settings(folder, max_length=17), LABELS),
        "keep_layers": (settings(folder, keep_layers=1), LABELS),
        "depth": (settings(folder, layers=2), LABELS),
        "lora": (settings(folder, method="lora"), LABELS),
        "lora_alpha": (settings(folder, method="lora", alpha=17.0), LABELS),
        "lora_rank": (settings(folder, method="lora", rank=3), LABELS),
        "lora_targets": (settings(folder, method="lora", targets="all-linear"), LABELS),
        "lora_freeze_a": (settings(folder, method="lora", freeze_a=True), LABELS),
        "lora_a_drawn": (settings(folder, method="lora", freeze_a=True, seed=7), LABELS),
        "head": (settings(folder, method="head"), LABELS),
        "last-layers": (settings(folder, method="last-layers"), LABELS),
        "full": (settings(folder, method="full"), LABELS),
    }
    hashes = [classifier().layout.hash]
    hashes += [Classifier(*variant).layout.hash for variant in variants.values()]
    assert len(set(hashes)) == len(hashes)
    assert Classifier(settings(same_base), LABELS).layout.hash == hashes[0]


def test_a_frozen_factor_is_no_part_of_the_vector() -> None:
    whole = Classifier(settings(shared_folder("bert"), method="lora"), LABELS)
    half = Classifier(settings(shared_folder("bert"), method="lora", freeze_a=True), LABELS)
    assert [name for name in whole.layout.names if ".lora_A." in name]
    assert half.layout.names == tuple(n for n in whole.layout.names if ".lora_A." not in n)


def test_start_values_follow_from_the_public_seed_alone() -> None:
    folder = shared_folder("bert")
    for method in ("head", "lora"):
        first, second, other = (
            read_vector(Classifier(settings(folder, method=method, seed=seed), LABELS))
            for seed in (3, 3, 4)
        )
        assert np.array_equal(first, second)
        assert not np.array_equal(first, other)
    before = torch.get_rng_state()
    Classifier(settings(folder, method="lora"), LABELS)
    assert torch.equal(before, torch.get_rng_state())


# What is refused


def one_line(error: pytest.ExceptionInfo[ModelError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 300
    return text


def refused(folder: Path | str, **changes: Any) -> str:
    with pytest.raises(ModelError) as error:
        Classifier(settings(folder, **changes), LABELS)
    return one_line(error)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(shared_folder("bert"), tmp_path / "model")


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert "no such folder" in refused(tmp_path / "none")


def test_a_folder_without_weights_is_told(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "no .safetensors weights" in refused(folder)


def test_a_folder_without_config_is_told(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "no config.json" in refused(folder)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 64])
def test_weights_that_cannot_be_read_are_told(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert "cannot be loaded" in refused(folder)


def test_an_unsupported_family_is_told(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    assert "gpt2 is not supported" in refused(folder)


def test_too_many_layers_are_told(folder: Path) -> None:
    assert "it has only 2" in refused(folder, keep_layers=3)
    assert "it has only 2" in refused(folder, layers=3)
    assert "it has only 1" in refused(folder, keep_layers=1, layers=2)


@pytest.mark.parametrize(("family", "most"), [("bert", 32), ("distilbert", 32), ("roberta", 30)])
def test_the_longest_text_a_model_takes_works_and_one_more_is_refused(
    family: str, most: int
) -> None:
    base = shared_folder(family)
    model = Classifier(settings(base, method="head", max_length=most), LABELS)
    inputs = make_inputs(model, ["w1 " * 100], None)
    assert inputs.lengths().tolist() == [most]
    assert np.isfinite(logits(model, inputs, 1)).all()
    assert f"at most {most} tokens" in refused(base, max_length=most + 1)


def test_in_bfloat16_states_are_averaged_and_classified_in_float32() -> None:
    model = Classifier(settings(shared_folder("bert"), method="full"), LABELS)
    model.half_precision = True
    seen: dict[str, Any] = {}

    def note(_module: object, given: tuple[torch.Tensor, ...], logits: torch.Tensor) -> None:
        seen["kinds"] = {given[0].dtype, logits.dtype}
        # A value that bfloat16 has would end in zeros.
        seen["digits"] = given[0].detach() - given[0].detach().bfloat16().float()

    model.hf.classifier.register_forward_hook(note)
    _, batch = next(make_inputs(model, TEXTS, None).batches(8, torch.device("cpu")))
    assert model(batch).dtype == torch.float32
    assert seen["kinds"] == {torch.float32}
    assert seen["digits"].abs().max() > 0
