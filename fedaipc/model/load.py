"""Weights and tokenizer of a BERT-family model from an asset, a folder or a hub id.

The only module that lets transformers open files. A base folder comes from strangers. Of its
config.json only the numbers that shape the model are used, none of its code is run, and weights
must be safetensors. Loading asks nothing on the terminal and fetches nothing.
"""

from __future__ import annotations

import logging
import re
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from fedaipc import strict_json
from fedaipc.config.family import FAMILIES, known_families
from fedaipc.errors import ModelError
from fedaipc.model.base import base_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fedaipc.config import TextClassifier

_ACTIVATIONS = ("gelu", "relu")  # others were observed to use another kernel for their last values
_SHAPE = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "hidden_act", "max_position_embeddings", "type_vocab_size", "initializer_range",
    "layer_norm_eps", "pad_token_id", "bos_token_id", "eos_token_id",
    "dim", "n_layers", "n_heads", "hidden_dim", "activation", "sinusoidal_pos_embds",
)  # fmt: skip
_UNUSABLE = {
    "auto_map": "needs its own code, which fedaipc never runs",
    "quantization_config": "holds quantised weights, which cannot be trained",
    "is_decoder": "is a decoder",
    "add_cross_attention": "is a decoder",
    "is_encoder_decoder": "is an encoder with a decoder",
}
_VOCABULARIES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model",
)  # fmt: skip
_LARGEST_CONFIG = 1 << 20  # bytes
_HEADS = ("classifier.", "pre_classifier.", "score.")  # names of classification heads


class Base(NamedTuple):
    """A model with its head, in evaluation mode; `notes` say what was done to the files' own."""

    hf: Any
    notes: tuple[str, ...]


def load_base(settings: TextClassifier, labels: tuple[str, ...]) -> Base:
    """The whole model with a head for `labels`, all dropout off, in float32 on the CPU.

    With mean pooling the head is transformers' token classification head: averaging its logits
    over the tokens is the same linear map as classifying the average. With "cls" it is the sequence
    classification head. The files' own head stays only where it has this kind and these labels;
    otherwise its values are fresh and follow from the public `settings.seed`. Raises ModelError.
    """
    with _readable(f"model.base = {settings.base}: "):
        folder = base_folder(settings.base)
        own = _read_config(folder)
        config = _configured(own, settings, labels)
        with torch.random.fork_rng(devices=[]):
            torch.random.manual_seed(settings.seed)  # public start values, no secret
            hf, info = _open_weights(folder, config, settings.pooling)
            notes = () if _continues(own, hf, labels) else _drop_head(hf, info, own)
    return Base(hf, notes)


def load_tokenizer(settings: TextClassifier) -> Any:
    """The model's own tokenizer. Raises ModelError."""
    with _readable(f"model.base = {settings.base}: "):
        folder = base_folder(settings.base)
        return open_tokenizer(folder, _shape(_read_config(folder)))


def open_result(folder: Path, labels: tuple[str, ...], pooling: str) -> tuple[Any, Any]:
    """(model, tokenizer) of a full model that was saved for `labels`. Raises ModelError."""
    with _readable(f"{folder}: "):
        config = _shape(_read_config(folder))
        _set_labels(config, labels)
        _stop_dropout(config)
        hf, info = _open_weights(folder, config, pooling)
        if info["missing_keys"] or info["mismatched_keys"]:
            raise ModelError("weights are missing")
        return hf, open_tokenizer(folder, config)


def open_tokenizer(folder: Path, config: Any) -> Any:
    """Raises ModelError where the folder has none: transformers would invent one that knows no
    word.
    """
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise ModelError(
            "the folder holds no tokenizer; add its tokenizer.json, or vocab.txt, from where the "
            "weights came from"
        )
    if (folder / "tokenizer_config.json").is_file():
        _check_usable(folder / "tokenizer_config.json", ("auto_map",))
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(
            folder, config=config, trust_remote_code=False, local_files_only=True
        )
    if not tokenizer.is_fast:
        raise ModelError("its tokenizer is not one of the tokenizers library (tokenizer.json)")
    if len(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)) == 0:
        raise ModelError("its tokenizer knows no word; take the weights' own tokenizer.json")
    return tokenizer


def check_vocabulary(tokenizer: Any, embedded: int) -> None:
    """Raise ModelError where a token has no embedding: some text would stop the PC, which would
    show that it holds that text.
    """
    if max(tokenizer.get_vocab().values()) >= embedded:
        raise ModelError(
            f"the tokenizer knows tokens beyond the model's {embedded:,} embeddings: "
            "take weights and tokenizer of one model"
        )


def model_class(pooling: str) -> Any:
    """The class of transformers that holds a model with this pooling."""
    if pooling == "mean":
        return AutoModelForTokenClassification
    return AutoModelForSequenceClassification


def _open_weights(folder: Path, config: Any, pooling: str) -> tuple[Any, dict[str, Any]]:
    """The model, and what transformers says of the weights' names.

    Raises ModelError where one is missing below the head: the values of that part would be random.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        for name in set(_read_json(index).get("weight_map", {}).values()):
            if name != Path(str(name)).name or not str(name).endswith(".safetensors"):
                raise ModelError(f"{index.name} names a file that is no .safetensors beside it")
    with quiet():
        hf, info = model_class(pooling).from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True,
            trust_remote_code=False, local_files_only=True, ignore_mismatched_sizes=True,
            output_loading_info=True,
        )  # fmt: skip
    wrong = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    body = sorted(
        n for n in wrong if n.startswith(f"{hf.base_model_prefix}.") and ".pooler." not in n
    )
    if body:
        raise ModelError(
            f"{len(body)} of its weights are missing or of another size than config.json says, "
            f"as {body[0]}"
        )
    return hf.eval(), info


def _continues(own: dict[str, Any], hf: Any, labels: tuple[str, ...]) -> bool:
    """Whether the files' own head has this class and these labels.

    A mean-pooled result names no class, see export.py.
    """
    named = own.get("id2label")
    names = list(named.values()) if isinstance(named, dict) else []
    name = type(hf).__name__
    kinds = [[name], []] if name.endswith("ForTokenClassification") else [[name]]
    return own.get("architectures") in kinds and names == list(labels)


@torch.no_grad()
def _drop_head(hf: Any, info: dict[str, Any], own: dict[str, Any]) -> tuple[str, ...]:
    """Give the head fresh values where the files held one; say so."""
    head = {n: p for n, p in hf.named_parameters() if not n.startswith(f"{hf.base_model_prefix}.")}
    missing = set(info["missing_keys"])
    unused = any(name.startswith(_HEADS) for name in info["unexpected_keys"])
    if not unused and missing >= head.keys():
        return ()
    for name, parameter in head.items():
        if name not in missing:
            parameter.normal_(0.0, hf.config.initializer_range)
            if name.endswith(".bias"):
                parameter.zero_()
    named = own.get("id2label")
    count = f" for {len(named)} labels" if isinstance(named, dict) else ""
    return (f"the base's own classification head{count} is not used: this job trains a new one",)


def _read_config(folder: Path) -> dict[str, Any]:
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            "holds an adapter (adapter_config.json), which may name any other base; give a folder "
            "with the whole model, as peft's merge_and_unload() makes it"
        )
    own = _check_usable(folder / "config.json", tuple(_UNUSABLE))
    kind = own.get("model_type")
    if kind not in known_families():
        raise ModelError(
            f"{kind!s:.40} is not supported (supported: {', '.join(known_families())})"
        )
    if own.get("position_embedding_type", "absolute") != "absolute":
        raise ModelError("its positions are relative ones, which is not supported")
    return own


def _check_usable(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    own = _read_json(path)
    for key in keys:
        if own.get(key):
            raise ModelError(f"{path.name} {_UNUSABLE[key]} ({key}); take another base")
    return own


def _read_json(path: Path) -> dict[str, Any]:
    most = _LARGEST_CONFIG * (16 if path.name.endswith("index.json") else 1)
    try:
        tree = strict_json.load(path, max_bytes=most)
    except ValueError as error:
        raise ModelError(f"{path.name} cannot be used ({error})") from None
    if not isinstance(tree, dict):
        raise ModelError(f"{path.name} is not an object of JSON")
    return tree


def _shape(own: dict[str, Any]) -> Any:
    """Transformers' configuration with nothing of the file but what shapes the model."""
    keys = (*_SHAPE, *FAMILIES[own["model_type"]].shape)
    return AutoConfig.for_model(
        own["model_type"], **{name: own[name] for name in keys if name in own}
    )


def _configured(own: dict[str, Any], settings: TextClassifier, labels: tuple[str, ...]) -> Any:
    config = _shape(own)
    _set_labels(config, labels)
    activation = getattr(config, "hidden_act", None) or getattr(config, "activation", None)
    if activation not in _ACTIVATIONS:
        raise ModelError(
            f"its activation, {activation!s:.40}, may give other last bits in another place of a "
            f"batch; take a base with {' or '.join(_ACTIVATIONS)}"
        )
    _stop_dropout(config)
    depth = config.num_hidden_layers
    if settings.keep_layers is not None:
        if settings.keep_layers > depth:
            raise ModelError(f"model.keep_layers = {settings.keep_layers}: it has only {depth}")
        config.num_hidden_layers = depth = settings.keep_layers
    if (needed := settings.train.trained_layers()) > depth:
        raise ModelError(f"model.train.layers = {needed}: it has only {depth}")
    room = config.max_position_embeddings - first_position(config)
    if settings.max_length > room:
        raise ModelError(
            f"model.max_length = {settings.max_length}: the model takes at most {room} tokens"
        )
    return config


def first_position(config: Any) -> int:
    """The row of the position embeddings that a text's first token has."""
    behind = FAMILIES[config.model_type].positions_behind_padding
    return config.pad_token_id + 1 if behind else 0


def _set_labels(config: Any, labels: tuple[str, ...]) -> None:
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = "single_label_classification"  # otherwise pipelines may take a sigmoid


def _stop_dropout(config: Any) -> None:
    """Dropout would need a generator per PC and helps no private training: it is off."""
    for name in (
        "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout",
        "dropout", "attention_dropout", "seq_classif_dropout",
    ):  # fmt: skip
        if hasattr(config, name):
            setattr(config, name, 0.0)


@contextmanager
def _readable(what: str) -> Iterator[None]:
    try:
        yield
    except ModelError as error:
        said = str(error)
        names_setting = re.match(r"model\.[\w.]+ = ", said)
        raise ModelError(said if names_setting else what + said) from None
    except Exception as error:  # noqa: BLE001 - transformers raises many kinds; each means this
        reason = str(error).strip().split("\n")[0][:160] or type(error).__name__
        raise ModelError(f"{what}cannot be loaded: {reason}") from None


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
