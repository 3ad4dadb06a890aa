"""Weights and tokenizer of a BERT-family model from an asset, a folder or a hub id."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from fedaipc.errors import ModelError
from fedaipc.model.base import resolve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fedaipc.config import ModelSettings

OFFSET_FAMILIES = ("roberta", "xlm-roberta", "camembert")  # positions start behind the padding's
_ACTIVATIONS = ("gelu", "relu")  # others were seen to have another kernel for their last values
FAMILIES = ("bert", "distilbert", *OFFSET_FAMILIES)


def load_base(settings: ModelSettings, labels: tuple[str, ...]) -> Any:
    """The whole model with a fresh head, all dropout off, in float32 on the CPU.

    With mean pooling the head is transformers' token classification head: averaging its logits
    over the tokens is the same linear map as classifying the average, so that the result can be
    saved as an ordinary transformers model. With "cls" it is the sequence classification head.
    Head values follow from the public `settings.seed`. Raises ModelError.
    """
    source = resolve(settings.base)
    auto = (
        AutoModelForTokenClassification
        if settings.pooling == "mean"
        else AutoModelForSequenceClassification
    )
    with quiet(), _readable(settings.base):
        config = AutoConfig.from_pretrained(source)
        if config.model_type not in FAMILIES:
            raise ModelError(
                f"model.base = {settings.base}: {config.model_type} is not supported "
                f"(supported: {', '.join(FAMILIES)})"
            )
        _configure(config, settings, labels)
        with torch.random.fork_rng(devices=[]):
            torch.random.manual_seed(settings.seed)  # public start values, no secret
            model = auto.from_pretrained(
                source, config=config, dtype=torch.float32, use_safetensors=True
            )
    return model.eval()


def load_tokenizer(settings: ModelSettings) -> Any:
    """The model's own tokenizer. Raises ModelError."""
    with quiet(), _readable(settings.base):
        return AutoTokenizer.from_pretrained(resolve(settings.base), use_fast=True)


def check_vocabulary(tokenizer: Any, embedded: int) -> None:
    """Raise ModelError where a token has no embedding: some text would stop a PC, and show it."""
    if max(tokenizer.get_vocab().values()) >= embedded:
        raise ModelError(
            f"the tokenizer knows tokens beyond the model's {embedded:,} embeddings: "
            "take weights and tokenizer of one model"
        )


def _configure(config: Any, settings: ModelSettings, labels: tuple[str, ...]) -> None:
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    activation = getattr(config, "hidden_act", None) or getattr(config, "activation", None)
    if activation not in _ACTIVATIONS:
        raise ModelError(
            f"model.base = {settings.base}: its activation, {activation}, may be computed in other "
            f"last bits by a text's place in a batch; take a base with {' or '.join(_ACTIVATIONS)}"
        )
    # Dropout would need a generator per PC and helps no private training: it is off.
    for name in (
        "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout",
        "dropout", "attention_dropout", "seq_classif_dropout",
    ):  # fmt: skip
        if hasattr(config, name):
            setattr(config, name, 0.0)
    depth = config.num_hidden_layers
    if settings.keep_layers is not None:
        if settings.keep_layers > depth:
            raise ModelError(f"model.keep_layers = {settings.keep_layers}: it has only {depth}")
        config.num_hidden_layers = depth = settings.keep_layers
    if settings.method != "head" and settings.trained_layers > depth:
        raise ModelError(f"model.trained_layers = {settings.trained_layers}: it has only {depth}")
    room = config.max_position_embeddings
    if config.model_type in OFFSET_FAMILIES:
        room -= config.pad_token_id + 1
    if settings.max_length > room:
        raise ModelError(
            f"model.max_length = {settings.max_length}: the model takes at most {room} tokens"
        )


@contextmanager
def _readable(base: str) -> Iterator[None]:
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 - transformers raises many kinds; each means this
        reason = str(error).strip().split("\n")[0][:160] or type(error).__name__
        raise ModelError(f"model.base = {base}: cannot be loaded: {reason}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Within, transformers and peft load and save without reports, warnings or progress bars."""
    level, hub = transformers.logging.get_verbosity(), logging.getLogger("huggingface_hub")
    hub_level = hub.level
    hub.setLevel(logging.CRITICAL)  # retries, line by line
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(level)
        hub.setLevel(hub_level)
