"""Defaults that follow from other settings. A value that was given always stands.

They were measured on several tasks (docs/explanation/recipe.md, "The defaults"). Only public facts
decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fedaipc.config.privacy import DPSGD
from fedaipc.config.rounds import LIFETIME, MAX_LIFETIME
from fedaipc.config.section import Section

if TYPE_CHECKING:
    from collections.abc import Sized

    from fedaipc.config.settings import Settings

_FEW_LABELS, _ROUNDS, _MANY_LABELS_ROUNDS = 10, 30, 60
_FEW = 3  # a third of the usual rounds or less
# A pass through a layer costs some 500 through a cached head, so that steps sample; and FedAdam's
# steps, as long for a bias as for the head, would drown what a layer knows.
_BEYOND_A_HEAD = (
    ("privacy", "sampling_rate", 0.1),
    ("training", "learning_rate", 0.5),
    ("server", "kind", "fedavg"),
)


def filled(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of settings, and in it what follows from its target, unit and training method."""
    whole = dict(tree)
    epsilon = _value(tree, "privacy", "epsilon")
    if isinstance(epsilon, int | float) and LIFETIME < epsilon <= MAX_LIFETIME:
        _fill(whole, "federation", "lifetime_epsilon", float(epsilon))
    if _value(tree, "privacy", "unit") == "client":
        _fill(whole, "federation", "weighting", "equal")
    if _value(_value(tree, "model"), "train", "kind", default="head") != "head":
        for section, name, value in _BEYOND_A_HEAD:
            _fill(whole, section, name, value)
    return whole


def for_labels(settings: Settings, labels: Sized) -> Settings:
    """`settings` with the rounds that so many labels take, where their number was not given."""
    if "rounds" in settings.model_fields_set:
        return settings
    return settings.model_copy(update={"rounds": _usual_rounds(labels)})


def rounds_warning(settings: Settings, labels: Sized) -> str | None:
    """One line if so few rounds are asked for that the model can hardly change."""
    rounds, usual = settings.rounds, _usual_rounds(labels)
    if settings.model.train.kind != "head" or rounds * _FEW > usual:
        return None
    return (
        f"rounds = {rounds} is few: {usual} are usual for {len(labels)} labels, and "
        "with a target epsilon they cost no more privacy"
    )


def recipe_text(settings: Settings) -> str:
    """What is trained, and how, in one line."""
    model, training, privacy = settings.model, settings.training, settings.privacy
    steps = f"{training.local_steps} step{'s' * (training.local_steps > 1)}"
    rate = privacy.sampling_rate
    sample = "all records" if rate == 1 else f"{rate:g} of the records"
    clip = f"clip {privacy.clip_norm:g}" if isinstance(privacy, DPSGD) else "no clip"
    return (
        f"{model.train.kind} on {model.pooling}-pooled states, {settings.rounds} rounds of {steps} "
        f"on {sample}, {training.optimizer} at {training.learning_rate:g}, {clip}, "
        f"{settings.server.kind} at {settings.server.learning_rate:g}"
    )


def reasons(settings: Settings) -> list[str]:
    """Why values that were not given are what they are, a line each."""
    rounds = f"rounds: {_ROUNDS}; for more than {_FEW_LABELS} labels "
    rounds += f"{_MANY_LABELS_ROUNDS}, where it is not given"
    if settings.model.train.kind == "head":
        recipe = "a head: all records in each step, FedAdam at 0.05 (measured)"
    else:
        recipe = "beyond a head: a tenth of the records in each step, FedAvg (not tuned)"
    return [f"what nobody gave is, for {recipe}", rounds]


def _usual_rounds(labels: Sized) -> int:
    return _ROUNDS if len(labels) <= _FEW_LABELS else _MANY_LABELS_ROUNDS


def _value(part: object, *names: str, default: object = None) -> object:
    for name in names:
        if isinstance(part, str):
            return part  # the name of a kind stands for the kind
        part = part.get(name) if isinstance(part, Mapping) else getattr(part, name, None)
    return default if part is None else part


def _fill(tree: dict[str, Any], section: str, name: str, value: object) -> None:
    part = tree.get(section, {})
    if isinstance(part, str) and name != "kind":
        part = {"kind": part}
    if isinstance(part, Mapping) and part.get(name) is None:
        tree[section] = {**part, name: value}
    elif isinstance(part, Section) and name not in {"kind", *part.model_fields_set}:
        tree[section] = part.model_copy(update={name: value})
