"""The result as a folder that transformers loads by itself, and that fails loudly where it would
answer wrongly.

config.json, model.safetensors  the whole model, a LoRA result with its adapters merged in
tokenizer.json, ...             the tokenizer, which cuts where the training cut
adapter/                        of a LoRA result: the adapter alone, for whoever has the base
README.md                       the model card, with the lines that load the model
fedaipc.json                    what `fedaipc predict` needs

No sequence classification class of transformers for these families can average over tokens, so a
mean-pooled model is stored as a token classifier. Loaded as a sequence classifier it would answer
from layers that were never trained, after a warning at most. So its file holds one tensor of
that class in an impossible size, and config.json names no class to fall back to: the load raises.
Positions beyond the job's `max_length` are left out, so that a longer text raises as well where
the caller forgets to cut it.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification

from fedaipc.config import Frozen
from fedaipc.errors import ModelError, OutputError
from fedaipc.files import write_atomic
from fedaipc.model.inputs import cut_characters
from fedaipc.model.load import first_position, load_base, load_tokenizer, open_result, quiet

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from fedaipc.config import TextClassifier
    from fedaipc.model.classifier import Layout

ADAPTER_FOLDER, CARD_FILE, FACTS_FILE = "adapter", "README.md", "fedaipc.json"
_HINT = "averages_over_tokens__see_README.md"  # in the report that transformers prints


class Saved(Frozen):
    """`fedaipc.json`: what the other files cannot say."""

    labels: tuple[str, ...] = Field(min_length=2)
    pooling: Literal["mean", "cls"]
    max_length: int = Field(ge=4, le=8192)
    not_private: tuple[str, ...]


def export(
    folder: Path,
    settings: TextClassifier,
    labels: tuple[str, ...],
    layout: Layout,
    vector: npt.NDArray[np.float32],
    *,
    card: str,
    not_private: Sequence[str] = (),
) -> None:
    """Write the trained model to `folder`, with its card and the reasons why it is not private.

    Raises OutputError where it cannot be written.
    """
    hf, tokenizer = _trained(settings, labels, layout, vector), load_tokenizer(settings)
    tokenizer.model_max_length = settings.max_length
    saved = Saved(
        labels=labels,
        pooling=settings.pooling,
        max_length=settings.max_length,
        not_private=tuple(not_private),
    )
    with _writing(folder):
        if hasattr(hf, "peft_config"):
            hf = _save_adapter(hf, folder / ADAPTER_FOLDER)
        tensors = dict(hf.state_dict())
        most = settings.max_length + first_position(hf.config)
        for name in tensors:
            if name.endswith("position_embeddings.weight"):
                tensors[name] = tensors[name][:most]
        hf.config.max_position_embeddings = most
        hf.config.architectures = [type(hf).__name__]
        if settings.pooling == "mean":
            hf.config.architectures = []
            tensors |= {_lure(hf): torch.zeros(1), _HINT: torch.zeros(1)}
        _save(folder, hf.config, tensors, tokenizer)
        (folder / FACTS_FILE).write_text(saved.model_dump_json(indent=2) + "\n", encoding="utf-8")
    write_card(folder, card)


def write_card(folder: Path, card: str) -> None:
    """Write or replace the model's card. Raises OutputError."""
    with _writing(folder):
        write_atomic(folder / CARD_FILE, card.encode())


def export_base(
    folder: Path,
    settings: TextClassifier,
    labels: tuple[str, ...],
    layout: Layout,
    vector: npt.NDArray[np.float32],
) -> None:
    """Write a model that is to be the base of a job. Raises OutputError."""
    hf = _trained(settings, labels, layout, vector)
    hf.config.architectures = [type(hf).__name__]
    with _writing(folder):
        _save(folder, hf.config, dict(hf.state_dict()), load_tokenizer(settings))


@dataclass(frozen=True, slots=True)
class Exported:
    """A saved result, loaded through transformers alone."""

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
            what = Saved.from_file(folder / FACTS_FILE)
            hf, tokenizer = open_result(folder, what.labels, what.pooling)
        except FileNotFoundError:
            raise OutputError(
                f"{folder}: no usable model here; give the folder of a run that has finished"
            ) from None
        except (OSError, ValueError, ValidationError, ModelError) as error:
            raise OutputError(
                f"{folder}: no usable model here: a file is missing or damaged "
                f"({_reason(error)}); restore the folder, or run again"
            ) from None
        return cls(hf, tokenizer, what.labels, what.pooling, what.max_length, what.not_private)

    @torch.no_grad()
    def probabilities(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Class probabilities, shape (texts, labels)."""
        batch = self.tokenizer(
            cut_characters(texts, self.max_length), truncation=True, max_length=self.max_length,
            padding=True, return_tensors="pt",
        )  # fmt: skip
        logits = self.hf(**batch).logits
        if self.pooling == "mean":
            weights = batch["attention_mask"].unsqueeze(-1).to(logits.dtype)
            logits = (logits * weights).sum(1) / weights.sum(1)
        return logits.softmax(-1).numpy()


def _reason(error: Exception) -> str:
    if isinstance(error, ModelError):
        return str(error).rpartition(": ")[2]
    return type(error).__name__


@torch.no_grad()
def _trained(
    settings: TextClassifier,
    labels: tuple[str, ...],
    layout: Layout,
    vector: npt.NDArray[np.float32],
) -> Any:
    """Transformers' model (within peft's, for LoRA) with the values of `vector`."""
    with quiet():
        hf = settings.train.prepare(load_base(settings, labels).hf, settings.pooling, settings.seed)
    parameters = dict(hf.named_parameters())
    start = 0
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        size = int(np.prod(shape))
        parameters[name].copy_(torch.from_numpy(vector[start : start + size].copy()).view(shape))
        start += size
    return hf


def _save_adapter(hf: Any, folder: Path) -> Any:
    """Save what LoRA trained; return the whole model with it merged in."""
    adapter = hf.peft_config["default"]
    # Never looked up: an AutoPeftModel would build the base with other labels, or more layers.
    adapter.base_model_name_or_path = "see ../README.md"
    with quiet():
        # By default peft asks the hub for the base, to see whether its vocabulary is the same.
        hf.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # peft's card has no content
        return hf.merge_and_unload()


def _lure(hf: Any) -> str:
    """A weight of the sequence classification class that the model of `hf` has not."""
    with torch.device("meta"):
        other = AutoModelForSequenceClassification.from_config(hf.config)
    return min(set(other.state_dict()) - set(hf.state_dict()))


def _save(folder: Path, config: Any, tensors: dict[str, torch.Tensor], tokenizer: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.chat_template = None
    with quiet():
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise OutputError(f"{folder}: the model cannot be written ({why})") from None
