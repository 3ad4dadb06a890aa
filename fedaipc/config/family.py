"""Families of models: what fedaipc must know of an architecture of transformers to train it."""

from __future__ import annotations

from dataclasses import dataclass

from fedaipc.config.section import load_extensions
from fedaipc.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFamily:
    """Encoders of one `model_type` of transformers, with embeddings and a list of layers.

    `shape` are the keys of config.json that shape the model, besides the usual ones: all others
    are left at their defaults. `positions_behind_padding`: the first token has the position behind
    the padding's, as in RoBERTa. `token_types`: it takes token_type_ids. `attention` and `dense`
    are the ends of the names of the layers that LoRA adapts.

    Texts must not mix: one text's output may depend on no other text of the batch. Batch norm is
    refused. Whatever else mixes texts must not be registered, as no test finds every way to do it.
    """

    model_type: str
    shape: tuple[str, ...] = ()
    positions_behind_padding: bool = False
    token_types: bool = True
    attention: tuple[str, ...] = ("query", "key", "value", "attention.output.dense")
    dense: tuple[str, ...] = ("intermediate.dense", "output.dense")


FAMILIES: dict[str, ModelFamily] = {}


def register_family(family: ModelFamily) -> ModelFamily:
    """Let models of this family be trained. Raises ConfigError where another has its type."""
    taken = FAMILIES.get(family.model_type)
    if taken is not None and taken != family:
        raise ConfigError(f"{family.model_type}: another family has this model_type already")
    FAMILIES[family.model_type] = family
    return family


def known_families() -> tuple[str, ...]:
    """All families by their model_type, including those of installed packages."""
    load_extensions()
    return tuple(FAMILIES)


register_family(ModelFamily(model_type="bert"))
register_family(
    ModelFamily(
        model_type="distilbert",
        token_types=False,
        attention=("q_lin", "k_lin", "v_lin", "out_lin"),
        dense=("lin1", "lin2"),
    )
)
for _name in ("roberta", "xlm-roberta", "camembert"):
    register_family(ModelFamily(model_type=_name, positions_behind_padding=True))
