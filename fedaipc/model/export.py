"""The result as files that transformers and peft load by themselves.

A LoRA result is a peft adapter; every other method gives a full transformers model. `fedaipc.json`
beside it holds what neither format can say: how token logits are pooled and where texts are cut.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError

from fedaipc.errors import OutputError
from fedaipc.model.base import resolve
from fedaipc.model.classifier import prepare_trainable
from fedaipc.model.load import load_base, load_tokenizer, quiet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from fedaipc.config import ModelSettings
    from fedaipc.model.classifier import Layout


@torch.no_grad()
def export(
    folder: Path,
    settings: ModelSettings,
    labels: tuple[str, ...],
    layout: Layout,
    vector: npt.NDArray[np.float32],
    not_private: Sequence[str] = (),
) -> None:
    """Write the trained model to `folder`, with the reasons why it is not private, if any.

    Raises OutputError where it cannot be written.
    """
    hf = prepare_trainable(load_base(settings, labels), settings)
    parameters = dict(hf.named_parameters())
    start = 0
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        size = int(np.prod(shape))
        parameters[name].copy_(torch.from_numpy(vector[start : start + size].copy()).view(shape))
        start += size
    if settings.method == "lora":
        hf.peft_config["default"].base_model_name_or_path = settings.base
    pooling = {"pooling": settings.pooling, "max_length": settings.max_length, "labels": labels,
               "base": settings.base, "keep_layers": settings.keep_layers,
               "adapter": settings.method == "lora", "not_private": list(not_private)}  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with quiet():
            hf.save_pretrained(folder, safe_serialization=True)
        load_tokenizer(settings).save_pretrained(folder)
        (folder / "fedaipc.json").write_text(json.dumps(pooling, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder}: the model cannot be written ({error.strerror})") from None


@dataclass(frozen=True, slots=True)
class Exported:
    """A saved result, loaded through transformers (and peft) alone."""

    hf: Any
    tokenizer: Any
    labels: tuple[str, ...]
    pooling: str
    max_length: int
    not_private: tuple[str, ...]

    @classmethod
    def load(cls, folder: Path) -> Exported:
        """Raises OutputError where `folder` does not hold a result of `export`."""
        try:
            what = json.loads((folder / "fedaipc.json").read_text(encoding="utf-8"))
            with quiet():
                hf, tokenizer = _load_saved(folder, what)
            return cls(
                hf,
                tokenizer,
                tuple(what["labels"]),
                what["pooling"],
                what["max_length"],
                tuple(what["not_private"]),
            )
        except FileNotFoundError:
            raise OutputError(
                f"{folder}: no usable model here; give the folder of a run that has finished"
            ) from None
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise OutputError(
                f"{folder}: no usable model here: a file is missing or damaged "
                f"({type(error).__name__}); restore the folder, or run again"
            ) from None

    @torch.no_grad()
    def probabilities(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Class probabilities, shape (texts, labels)."""
        batch = self.tokenizer(
            list(texts), truncation=True, max_length=self.max_length, padding=True,
            return_tensors="pt",
        )  # fmt: skip
        logits = self.hf(**batch).logits
        if self.pooling == "mean":
            weights = batch["attention_mask"].unsqueeze(-1).to(logits.dtype)
            logits = (logits * weights).sum(1) / weights.sum(1)
        return logits.softmax(-1).numpy()


def _load_saved(folder: Path, what: dict[str, Any]) -> tuple[Any, Any]:
    from transformers import (
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoTokenizer,
    )

    auto = (
        AutoModelForTokenClassification
        if what["pooling"] == "mean"
        else AutoModelForSequenceClassification
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not what["adapter"]:
        return auto.from_pretrained(folder, dtype=torch.float32).eval(), tokenizer
    from peft import PeftModel

    extra = {} if what["keep_layers"] is None else {"num_hidden_layers": what["keep_layers"]}
    base = auto.from_pretrained(
        resolve(what["base"]), num_labels=len(what["labels"]), dtype=torch.float32, **extra
    )
    return PeftModel.from_pretrained(base, folder).eval(), tokenizer
