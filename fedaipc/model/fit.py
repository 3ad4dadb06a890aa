"""How texts fit a model: the shares of tokens that it does not know, and of texts that it cuts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedaipc.config import TextClassifier
from fedaipc.data.assets import is_asset, is_cached
from fedaipc.errors import AssetError, ModelError
from fedaipc.model.base import WARM_UP, is_local, warm_folder
from fedaipc.model.inputs import cut_characters
from fedaipc.model.load import load_tokenizer
from fedaipc.results import TextFit

if TYPE_CHECKING:
    from collections.abc import Sequence

_SAMPLE = 2000  # texts: the standard error of a share is then about one point


def measure_fit(tokenizer: Any, texts: Sequence[str], max_length: int) -> TextFit | None:
    """Shares over at most 2,000 of `texts`, evenly spaced; None where there is no text.

    A text counts as cut where it has more tokens than `max_length`, the two that mark its ends
    included. An unknown token stands for a whole word, from which the model learns nothing.
    """
    if not texts:
        return None
    sample = texts[:: -(-len(texts) // _SAMPLE)]
    read = cut_characters(sample, max_length)
    encoded = tokenizer(
        read,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    ends = tokenizer.num_special_tokens_to_add(pair=False)
    unknown, total = tokenizer.unk_token_id, sum(map(len, encoded))
    return TextFit(
        unknown_tokens=sum(ids.count(unknown) for ids in encoded) / max(1, total),
        cut_texts=sum(
            len(ids) + ends > max_length or len(begin) < len(text)
            for ids, begin, text in zip(encoded, read, sample, strict=True)
        )
        / len(encoded),
    )


def fit_of_base(base: str, texts: Sequence[str]) -> TextFit | None:
    """How `texts` fit `base` at the usual length; None where it is not on this machine.

    Nothing is fetched for it.
    """
    here = is_cached(base) if is_asset(base) else is_local(base)
    if not here and not (base.startswith(WARM_UP) and warm_folder(base).is_dir()):
        return None
    settings = TextClassifier(base=base)
    try:
        return measure_fit(load_tokenizer(settings), texts, settings.max_length)
    except (AssetError, ModelError):
        return None
