"""Warm-up: it learns, is found again, centres the states, and stays an ordinary model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedaipc.config import SpeedSettings, WarmUpSettings
from fedaipc.data.records import Records
from fedaipc.errors import ModelError
from fedaipc.model import warm_up
from fedaipc.model.base import resolve, warm_folder
from fedaipc.model.classifier import Classifier
from fedaipc.model.device import choose_device
from fedaipc.model.inputs import make_inputs
from fedaipc.model.predict import logits
from fedaipc.model.warm_up import warmed_up
from tests.support.tiny_models import LABELS, WORDS, settings, shared_folder

TEXTS = tuple(
    f"{WORDS[number % 3]} {WORDS[5 + number % 7]} {WORDS[13 + number % 5]}" for number in range(90)
)
TRUTH = np.arange(90) % 3  # the first word decides
RECORDS = Records(TEXTS, tuple(LABELS[number] for number in TRUTH))
DEVICE = choose_device(SpeedSettings())


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDAIPC_CACHE", str(tmp_path / "cache"))


def warm(family: str = "bert", records: Records = RECORDS, **changes: Any) -> Path:
    wanted = {"source": "x", "passes": 14, "learning_rate": 3e-3, **changes}
    model = settings(shared_folder(family), method="head")
    base = warmed_up(WarmUpSettings.model_validate(wanted), model, LABELS, records, DEVICE)
    return warm_folder(base)


def after(folder: Path, method: str = "head") -> Classifier:
    return Classifier(settings(folder, method=method), LABELS)


def accuracy(classifier: Classifier, texts: tuple[str, ...] = TEXTS) -> float:
    return float(
        (logits(classifier, make_inputs(classifier, texts, None), 16).argmax(1) == TRUTH).mean()
    )


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
def test_the_new_base_knows_the_task_and_its_head_comes_with_it(family: str) -> None:
    before = accuracy(after(shared_folder(family)))
    assert accuracy(after(warm(family))) > max(0.9, before + 0.2)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
def test_mean_pooled_states_of_the_public_texts_are_centred_and_of_length_one(family: str) -> None:
    classifier = after(warm(family))
    with torch.no_grad():
        states = torch.cat([
            classifier.freeze_through(batch).values[: len(part)]
            for part, batch in make_inputs(classifier, TEXTS, None).batches(16, DEVICE.torch)
        ])  # fmt: skip
    assert states.mean(0).abs().max() < 1e-4
    assert float(states.square().sum(1).mean()) == pytest.approx(1.0, rel=1e-3)


def test_centring_changes_nothing_that_the_model_says() -> None:
    classifier = Classifier(settings(shared_folder("bert"), method="full"), LABELS)
    inputs = make_inputs(classifier, TEXTS, None)
    before = logits(classifier, inputs, 16)
    warm_up._centre(classifier, inputs)
    assert logits(classifier, inputs, 16) == pytest.approx(before, abs=1e-4)


def test_the_same_texts_and_settings_find_the_model_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = warm()
    monkeypatch.setattr(warm_up, "_train", lambda *_: pytest.fail("trained again"))
    assert warm() == first
    monkeypatch.undo()


@pytest.mark.parametrize(
    "change", [{"passes": 1}, {"seed": 5}, {"learning_rate": 1e-3}, {"batch": 7}], ids=str
)
def test_any_setting_gives_another_model(change: dict[str, Any]) -> None:
    assert warm(passes=2) != warm(**{"passes": 2, **change})


def test_other_texts_or_labels_give_another_model() -> None:
    other = Records(RECORDS.texts, (*RECORDS.labels[1:], RECORDS.labels[0]))
    assert (
        len(
            {
                warm(passes=1),
                warm(passes=1, records=other),
                warm(passes=1, records=RECORDS.take(range(50))),
            }
        )
        == 3
    )


def test_the_same_warm_up_gives_the_same_model_on_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = (warm() / "model.safetensors").read_bytes()
    monkeypatch.setenv("FEDAIPC_CACHE", str(tmp_path / "another"))
    assert (warm() / "model.safetensors").read_bytes() == first


def test_a_warm_up_that_diverges_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"smaller warm_up\.learning_rate"):
        warm(learning_rate=1e9, head_learning_rate=1e9)
    assert not [path for path in (tmp_path / "cache" / "warm-up").iterdir() if path.is_dir()]


def test_a_base_that_is_on_another_machine_is_refused_in_one_line() -> None:
    with pytest.raises(ModelError, match=r"^model\.base = warm-up:0123: not in .*; run simulate"):
        resolve("warm-up:0123")


def test_progress_counts_every_step() -> None:
    seen: list[tuple[int, int]] = []
    wanted = WarmUpSettings(source="x", passes=2, batch=40)
    warmed_up(
        wanted, settings(shared_folder("bert")), LABELS, RECORDS, DEVICE,
        lambda step, total: seen.append((step, total)),
    )  # fmt: skip
    assert seen == [(step, 6) for step in range(1, 7)]
