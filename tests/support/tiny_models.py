"""Random tiny models of each family, small enough to train in milliseconds."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from fedaipc.config import TextClassifier, TrainingMethod
from fedaipc.model.load import quiet

FAMILIES = ("bert", "distilbert", "roberta")
METHODS = ("head", "bitfit", "lora", "last-layers", "full")
LABELS = ("bad", "fair", "good")
WORDS = [f"w{i}" for i in range(40)]
TEXTS = [
    " ".join(WORDS[(7 * text + 3 * place) % len(WORDS)] for place in range(1 + text % 9))
    for text in range(12)
]
TARGETS = np.arange(len(TEXTS), dtype=np.int64) % len(LABELS)


def settings(folder: Path | str, *, method: str = "bitfit", **changes: Any) -> TextClassifier:
    """`changes` are of the model, or of its method where it has such a key."""
    kind = TrainingMethod.kinds[method]
    train: dict[str, Any] = {"kind": method}
    for key, value in {"rank": 2, **changes}.items():
        if key in kind.model_fields:
            train[key] = changes.pop(key, value)
    return TextClassifier.model_validate(
        {"base": str(folder), "max_length": 16, "train": train, **changes}
    )


@cache
def shared_folder(family: str) -> Path:
    """A tiny model's folder, one for the whole test session."""
    return make_folder(Path(mkdtemp(prefix="tiny-")) / family, family)


def make_folder(folder: Path, family: str, *, seed: int = 0, pooler: bool = True) -> Path:
    """Two layers of width 16; weights wide enough that no layer is close to the identity."""
    folder.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]), quiet():
        torch.random.manual_seed(seed)
        model = _model(family, pooler=pooler)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.save_pretrained(folder)
        (_bpe() if family == "roberta" else word_piece()).save_pretrained(folder)
    return folder


def _model(family: str, *, pooler: bool) -> Any:
    if family == "distilbert":
        return DistilBertModel(
            DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=32,
                             max_position_embeddings=32)
        )  # fmt: skip
    sizes = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 32,
    }  # fmt: skip
    if family == "bert":
        return BertModel(BertConfig(vocab_size=50, **sizes), add_pooling_layer=pooler)
    # Positions 0 and 1 are the padding's: 30 tokens fit.
    return RobertaModel(
        RobertaConfig(vocab_size=300, pad_token_id=1, bos_token_id=0, eos_token_id=2, **sizes),
        add_pooling_layer=False,
    )


def word_piece() -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip


def _bpe() -> PreTrainedTokenizerFast:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    signs = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE({sign: n for n, sign in enumerate(signs)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", pad_token="<pad>", eos_token="</s>",
        unk_token="<unk>", mask_token="<mask>", cls_token="<s>", sep_token="</s>",
    )  # fmt: skip
