"""A saved result loads through transformers and peft alone and says what the trained one says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from fedaipc.errors import OutputError
from fedaipc.model.classifier import Classifier, write_vector
from fedaipc.model.export import Exported, export
from fedaipc.model.inputs import make_inputs
from fedaipc.model.load import quiet
from fedaipc.model.predict import logits, mean_loss
from tests.model.tiny import (
    FAMILIES,
    LABELS,
    METHODS,
    TEXTS,
    make_folder,
    settings,
    shared_folder,
)


def trained(folder: Path, base: Path, **changes: object) -> np.ndarray:
    """Export a model with random values to `folder`; its logits."""
    classifier = Classifier(settings(base, **changes), LABELS)
    vector = np.random.default_rng(0).normal(0, 0.3, classifier.layout.size).astype(np.float32)
    write_vector(classifier, vector)
    export(folder, classifier.settings, LABELS, classifier.layout, vector)
    return logits(classifier, make_inputs(classifier, TEXTS, None), 5)


@torch.no_grad()
def logits_by_transformers_alone(folder: Path, base: Path, method: str, pooling: str) -> np.ndarray:
    """What a user does who has never heard of fedaipc."""
    auto = (
        AutoModelForTokenClassification if pooling == "mean" else AutoModelForSequenceClassification
    )
    with quiet():
        if method == "lora":
            body = auto.from_pretrained(base, num_labels=len(LABELS))
            model = PeftModel.from_pretrained(body, folder)
        else:
            model = auto.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    model.eval()
    rows = []
    for text in TEXTS:
        found = model(**tokenizer(text, truncation=True, max_length=16, return_tensors="pt"))
        rows.append(found.logits[0].mean(0) if pooling == "mean" else found.logits[0])
    return torch.stack(rows).numpy()


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_result_loads_without_fedaipc_and_gives_the_same_logits(
    family: str, method: str, pooling: str, tmp_path: Path
) -> None:
    base = shared_folder(family)
    expected = trained(tmp_path / "out", base, method=method, pooling=pooling)
    alone = logits_by_transformers_alone(tmp_path / "out", base, method, pooling)
    assert alone == pytest.approx(expected, abs=1e-5)
    probabilities = Exported.load(tmp_path / "out").probabilities(TEXTS)
    assert probabilities == pytest.approx(softmax(expected), abs=1e-5)


def test_an_adapter_brings_the_pooler_that_its_base_has_not(tmp_path: Path) -> None:
    """Else whoever loads it would get a pooler of random values, and other answers each time."""
    base = make_folder(tmp_path / "base", "bert", pooler=False)
    expected = trained(tmp_path / "out", base, method="lora", pooling="cls")
    alone = logits_by_transformers_alone(tmp_path / "out", base, "lora", "cls")
    assert alone == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("method", ["lora", "last-k"])
def test_a_model_cut_to_its_lowest_layers_stays_cut(method: str, tmp_path: Path) -> None:
    base = shared_folder("bert")
    expected = trained(tmp_path / "out", base, method=method, keep_layers=1)
    loaded = Exported.load(tmp_path / "out")
    assert loaded.hf.config.num_hidden_layers == 1
    assert loaded.probabilities(TEXTS) == pytest.approx(softmax(expected), abs=1e-5)


def test_labels_and_length_travel_with_the_model(tmp_path: Path) -> None:
    trained(tmp_path / "out", shared_folder("bert"), method="head", max_length=9)
    loaded = Exported.load(tmp_path / "out")
    assert (loaded.labels, loaded.max_length, loaded.pooling) == (LABELS, 9, "mean")
    assert loaded.hf.config.id2label == dict(enumerate(LABELS))


def test_weights_are_safetensors_and_an_adapter_holds_no_base(tmp_path: Path) -> None:
    for method in ("lora", "head"):
        trained(tmp_path / method, shared_folder("bert"), method=method)
        names = {path.name for path in (tmp_path / method).iterdir()}
        assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    assert (tmp_path / "lora" / "adapter_model.safetensors").stat().st_size < 8000
    assert (tmp_path / "head" / "model.safetensors").stat().st_size > 16000


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"^[^\n]*the model cannot be written[^\n]*$"):
        trained(tmp_path / "file" / "out", shared_folder("bert"), method="head")


@pytest.mark.parametrize("damage", ["missing", "empty", "no labels", "no weights", "cut weights"])
def test_a_folder_without_a_usable_result_is_told_in_one_line(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "out"
    trained(folder, shared_folder("bert"), method="head")
    what = folder / "fedaipc.json"
    if damage == "missing":
        what.unlink()
    elif damage == "empty":
        what.write_text("")
    elif damage == "no labels":
        rest = {k: v for k, v in json.loads(what.read_text()).items() if k != "labels"}
        what.write_text(json.dumps(rest))
    elif damage == "no weights":
        (folder / "model.safetensors").unlink()
    else:
        (folder / "model.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(OutputError, match=r"^[^\n]*no usable model here[^\n]*$"):
        Exported.load(folder)


def test_mean_loss_equals_torchs_cross_entropy() -> None:
    values = np.random.default_rng(0).normal(0, 30, (20, 3)).astype(np.float32)
    truth = np.arange(20) % 3
    expected = torch.nn.functional.cross_entropy(torch.tensor(values), torch.tensor(truth)).item()
    assert mean_loss(values, truth) == pytest.approx(expected, rel=1e-6)
