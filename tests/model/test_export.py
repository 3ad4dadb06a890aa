"""A saved result gives the right answer by the obvious call, or that call raises."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, AutoPeftModelForTokenClassification
from safetensors import safe_open
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    pipeline,
)

from fedaipc.errors import OutputError
from fedaipc.model.card import model_card
from fedaipc.model.classifier import Classifier, write_vector
from fedaipc.model.export import Exported, export
from fedaipc.model.inputs import make_inputs
from fedaipc.model.load import quiet
from fedaipc.model.predict import logits, mean_loss
from fedaipc.results import DataFacts
from tests.support.results import make_results
from tests.support.tiny_models import (
    FAMILIES,
    LABELS,
    METHODS,
    TEXTS,
    make_folder,
    settings,
    shared_folder,
)

LONG = " ".join(TEXTS)  # of more tokens than `max_length`


def trained(folder: Path, base: Path, **changes: Any) -> np.ndarray:
    """Export a model with random values to `folder`; its probabilities."""
    classifier = Classifier(settings(base, **changes), LABELS)
    vector = np.random.default_rng(0).normal(0, 0.3, classifier.layout.size).astype(np.float32)
    write_vector(classifier, vector)
    data = DataFacts(source="own.csv", labels=LABELS, train=9, validation=3, test=3, majority=0.4)
    results = make_results(data=data)
    layers = classifier.hf.config.num_hidden_layers
    card = model_card(results, classifier.settings, layers)
    export(folder, classifier.settings, LABELS, classifier.layout, vector, card=card)
    return softmax(logits(classifier, make_inputs(classifier, TEXTS, None), 5))


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def by_pipeline(folder: Path, texts: list[str], **options: Any) -> np.ndarray:
    """What the obvious call says, shape (texts, labels), by the labels' names."""
    with quiet():
        found = pipeline("text-classification", model=str(folder))(texts, top_k=None, **options)
    scores = [{one["label"]: one["score"] for one in row} for row in found]
    return np.array([[row[label] for label in LABELS] for row in scores])


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_obvious_call_gives_the_right_answer_or_raises(
    family: str, method: str, pooling: str, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    expected = trained(folder, shared_folder(family), method=method, pooling=pooling)
    assert Exported.load(folder).probabilities(TEXTS) == pytest.approx(expected, abs=1e-5)
    if pooling == "cls":
        assert by_pipeline(folder, TEXTS, truncation=True) == pytest.approx(expected, abs=1e-5)
        assert by_pipeline(folder, TEXTS, truncation=True, batch_size=4) == pytest.approx(
            expected, abs=1e-5
        )
    else:
        with quiet(), pytest.raises(ValueError, match="Could not load model"):
            pipeline("text-classification", model=str(folder))
        with quiet(), pytest.raises(RuntimeError, match="mismatch"):
            AutoModelForSequenceClassification.from_pretrained(folder)
    for auto in (AutoPeftModelForSequenceClassification, AutoPeftModelForTokenClassification):
        for place in (folder, folder / "adapter"):
            with quiet(), pytest.raises((ValueError, OSError)):
                auto.from_pretrained(place)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_text_is_cut_as_in_training_or_raises(family: str, tmp_path: Path) -> None:
    trained(tmp_path, shared_folder(family), method="head", pooling="cls")
    cut = Exported.load(tmp_path).probabilities([LONG])
    assert by_pipeline(tmp_path, [LONG], truncation=True) == pytest.approx(cut, abs=1e-5)
    with pytest.raises((RuntimeError, IndexError)):
        by_pipeline(tmp_path, [LONG])


@pytest.mark.slow
def test_the_cards_own_lines_give_the_same_answers_without_fedaipc(tmp_path: Path) -> None:
    """For each method and pooling; for LoRA both the merged model and peft's adapter."""
    expected, blocks = {}, []
    for method in METHODS:
        for pooling in ("mean", "cls"):
            name = f"{method}-{pooling}"
            expected[name] = trained(
                tmp_path / name, shared_folder("bert"), method=method, pooling=pooling,
                keep_layers=1,
            )  # fmt: skip
            card = (tmp_path / name / "README.md").read_text(encoding="utf-8")
            found = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
            assert len(found) == (2 if method == "lora" else 1)
            blocks += [(name, block) for block in found]
    expected["frozen-a"] = trained(
        tmp_path / "frozen-a", shared_folder("bert"), method="lora", freeze_a=True, keep_layers=1
    )
    card = (tmp_path / "frozen-a" / "README.md").read_text(encoding="utf-8")
    blocks += [("frozen-a", block) for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL)]
    script = tmp_path / "use.py"
    script.write_text(_USE)
    done = subprocess.run(
        [sys.executable, "-P", str(script)],
        input=json.dumps({"blocks": blocks, "texts": TEXTS, "folder": str(tmp_path)}),
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    assert len(answers) == len(blocks) == 14
    for (name, _), rows in zip(blocks, answers, strict=True):
        best = [LABELS[place] for place in expected[name].argmax(axis=1)]
        assert [label for label, _ in rows] == best
        assert [chance for _, chance in rows] == pytest.approx(expected[name].max(axis=1), abs=1e-5)


_USE = """
import builtins, contextlib, io, json, os, sys
sys.modules["fedaipc"] = None  # whoever imports it fails
given = json.load(sys.stdin)
answers = []
for name, block in given["blocks"]:
    os.chdir(os.path.join(given["folder"], name))
    block = block.replace('["a first text", "and another one"]', "TEXTS")
    assert "TEXTS" in block
    space = {"TEXTS": given["texts"]}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(block, space)
    if "probabilities" in space:
        names = space["model"].config.id2label
        rows = [[names[int(row.argmax())], float(row.max())] for row in space["probabilities"]]
    else:
        found = space["classify"](given["texts"], truncation=True, max_length=16, top_k=None)
        rows = [[row[0]["label"], row[0]["score"]] for row in found]
    answers.append(rows)
print(json.dumps(answers))
"""


def test_an_adapter_brings_the_pooler_that_its_base_has_not(tmp_path: Path) -> None:
    """Else whoever loads it would get a pooler of random values, and other answers each time."""
    base = make_folder(tmp_path / "base", "bert", pooler=False)
    trained(tmp_path / "out", base, method="lora", pooling="cls")
    file = tmp_path / "out" / "adapter" / "adapter_model.safetensors"
    with safe_open(file, "np") as tensors:
        assert any("pooler" in name for name in tensors.keys())  # noqa: SIM118 - no mapping


@pytest.mark.parametrize("method", ["lora", "last-layers"])
def test_a_model_cut_to_its_lowest_layers_stays_cut(method: str, tmp_path: Path) -> None:
    base = shared_folder("bert")
    expected = trained(tmp_path / "out", base, method=method, keep_layers=1)
    loaded = Exported.load(tmp_path / "out")
    assert loaded.hf.config.num_hidden_layers == 1
    assert loaded.probabilities(TEXTS) == pytest.approx(expected, abs=1e-5)


def test_labels_and_length_travel_with_the_model(tmp_path: Path) -> None:
    trained(tmp_path / "out", shared_folder("bert"), method="head", max_length=9)
    loaded = Exported.load(tmp_path / "out")
    assert (loaded.labels, loaded.max_length, loaded.pooling) == (LABELS, 9, "mean")
    with quiet():
        alone = AutoModelForTokenClassification.from_pretrained(tmp_path / "out")
    assert alone.config.id2label == dict(enumerate(LABELS))
    assert alone.config.max_position_embeddings == 9


def test_weights_are_safetensors_and_an_adapter_holds_no_base(tmp_path: Path) -> None:
    for method in ("lora", "head"):
        trained(tmp_path / method, shared_folder("bert"), method=method)
        names = {path.name for path in (tmp_path / method).rglob("*")}
        assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
        assert (tmp_path / method / "model.safetensors").stat().st_size > 16000
    assert (tmp_path / "lora" / "adapter" / "adapter_model.safetensors").stat().st_size < 8000


def test_nothing_is_asked_of_the_hub_while_saving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself peft looks the base up by its name, which tells the hub what is trained."""
    asked = []
    monkeypatch.setattr(
        "peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda *a: asked.append(a)
    )
    trained(tmp_path, shared_folder("bert"), method="lora")
    assert asked == []


def test_the_card_says_what_the_run_was_and_what_it_promises(tmp_path: Path) -> None:
    base = shared_folder("bert")
    card = model_card(make_results(), settings(base), 2)
    for part in ("epsilon 7.97 at delta 1e-05", "2,000 test texts", '`"negative"`', "per record"):
        assert part in card
    assert "NOT PRIVATE" not in card
    assert str(base) not in card  # a path may name a user
    open_ = model_card(make_results(private=False), settings(base), 2)
    assert "**NOT PRIVATE**: mode none: no noise" in open_
    assert "epsilon" not in open_.split("## Privacy")[1].split("## Data")[0]
    licensed = model_card(
        make_results(), settings(base).model_copy(update={"base": "minilm-l6"}), 6
    )
    assert "Licence of the base: Apache-2.0" in licensed


def test_the_card_of_a_fleets_model_names_the_pcs_texts_once() -> None:
    data = make_results().data.model_copy(update={"train": None, "source": "the PCs' own texts"})
    card = model_card(make_results(data=data), settings(shared_folder("bert")), 2)
    assert "- trained on: the PCs' own texts\n" in card


def test_a_label_cannot_break_out_of_the_card() -> None:
    evil = ('"""\nimport os', "``` <script>", "plain")
    data = DataFacts(source="x", labels=evil, train=1, validation=1, test=1, majority=0.5)
    card = model_card(make_results(data=data), settings(shared_folder("bert"), method="lora"), 2)
    blocks = re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "card", "exec")
    assert "\nimport os" not in card.replace("\nimport torch", "")


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"^[^\n]*the model cannot be written[^\n]*$"):
        trained(tmp_path / "file" / "out", shared_folder("bert"), method="head")


@pytest.mark.parametrize(
    "damage",
    ["missing", "empty", "no labels", "no weights", "cut weights", "fewer labels", "code"],
)
def test_a_folder_without_a_usable_result_is_told_in_one_line(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "out"
    trained(folder, shared_folder("bert"), method="head")
    what, config = folder / "fedaipc.json", folder / "config.json"
    facts = json.loads(what.read_text())
    if damage == "missing":
        what.unlink()
    elif damage == "empty":
        what.write_text("")
    elif damage == "no labels":
        what.write_text(json.dumps({k: v for k, v in facts.items() if k != "labels"}))
    elif damage == "no weights":
        (folder / "model.safetensors").unlink()
    elif damage == "fewer labels":
        what.write_text(json.dumps({**facts, "labels": ["a", "b"]}))
    elif damage == "code":
        own = json.loads(config.read_text())
        config.write_text(json.dumps({**own, "auto_map": {"AutoModel": "evil.Evil"}}))
    else:
        (folder / "model.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(OutputError, match=r"^[^\n]*no usable model here[^\n]*$"):
        Exported.load(folder)


def test_mean_loss_equals_torchs_cross_entropy() -> None:
    values = np.random.default_rng(0).normal(0, 30, (20, 3)).astype(np.float32)
    truth = np.arange(20) % 3
    expected = torch.nn.functional.cross_entropy(torch.tensor(values), torch.tensor(truth)).item()
    assert mean_loss(values, truth) == pytest.approx(expected, rel=1e-6)
