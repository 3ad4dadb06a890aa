"""Defaults that follow from other settings. A value that was given always stands.

They were measured on several tasks: docs/recipe.md, "The defaults". Only public facts decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sized

    from fedaipc.config.settings import Settings

_FEW_LABELS, _ROUNDS, _MANY_LABELS_ROUNDS = 10, 30, 60
_FEW = 3  # a third of the usual rounds or less
_EPSILON = 8.0
_PLAIN_RATE = 1.0  # FedAvg and FedAvgM take the mean update as it is
# A pass through a layer costs some 500 through a cached head, so that steps sample; and FedAdam's
# steps, as long for a bias as for the head, would drown what a layer knows.
_BEYOND_A_HEAD = (
    ("privacy", "sampling_rate", 0.1),
    ("training", "learning_rate", 0.5),
    ("federation", "server_optimizer", "fedavg"),
)


def filled(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of settings, and in it what follows from its method, optimizer and noise."""
    whole = dict(tree)
    if _value(tree, "model", "method", "head") != "head":
        for section, name, value in _BEYOND_A_HEAD:
            _fill(whole, section, name, value)
    if _value(whole, "federation", "server_optimizer", "fedadam") != "fedadam":
        _fill(whole, "federation", "server_learning_rate", _PLAIN_RATE)
    private = _value(tree, "privacy", "mode", "local") == "local"
    if private and _value(tree, "privacy", "noise_multiplier", None) is None:
        _fill(whole, "privacy", "epsilon", _EPSILON)  # only where nothing else was said about noise
    return whole


def for_labels(settings: Settings, labels: Sized) -> Settings:
    """`settings` with the rounds that so many labels take, where nobody gave their number."""
    if "rounds" in settings.federation.model_fields_set:
        return settings
    federation = settings.federation.model_copy(update={"rounds": _usual_rounds(labels)})
    return settings.model_copy(update={"federation": federation})


def rounds_warning(settings: Settings, labels: Sized) -> str | None:
    """One line where so few rounds are asked for that the model can hardly move."""
    rounds, usual = settings.federation.rounds, _usual_rounds(labels)
    if settings.model.method != "head" or rounds * _FEW > usual:
        return None
    return (
        f"federation.rounds = {rounds} is few: {usual} are usual for {len(labels)} labels, and "
        "with a target epsilon they cost no more privacy"
    )


def recipe_text(settings: Settings) -> str:
    """What is trained, and how, in one line."""
    model, training, federation = settings.model, settings.training, settings.federation
    steps = f"{training.local_steps} step{'s' * (training.local_steps > 1)}"
    rate = settings.privacy.sampling_rate
    sample = "all records" if rate == 1 else f"{rate:g} of the records"
    clip = "no clip" if settings.privacy.mode == "none" else f"clip {settings.privacy.clip_norm:g}"
    return (
        f"{model.method} on {model.pooling}-pooled states, {federation.rounds} rounds of {steps} "
        f"on {sample}, {training.optimizer} at {training.learning_rate:g}, {clip}, "
        f"{federation.server_optimizer} at {federation.server_learning_rate:g}"
    )


def reasons(settings: Settings) -> list[str]:
    """Why values that nobody gave are what they are, a line each."""
    rounds = f"federation.rounds: {_ROUNDS}; for more than {_FEW_LABELS} labels "
    rounds += f"{_MANY_LABELS_ROUNDS}, where it is not given"
    if settings.model.method == "head":
        recipe = "a head: all records in each step, FedAdam at 0.05 (measured: docs/recipe.md)"
    else:
        recipe = "beyond a head: a tenth of the records in each step, FedAvg (not tuned)"
    return [f"what nobody gave is, for {recipe}", rounds]


def _usual_rounds(labels: Sized) -> int:
    return _ROUNDS if len(labels) <= _FEW_LABELS else _MANY_LABELS_ROUNDS


def _value(tree: Mapping[str, Any], section: str, name: str, default: object) -> object:
    part = tree.get(section, {})
    found = part.get(name) if isinstance(part, Mapping) else getattr(part, name, None)
    return default if found is None else found


def _fill(tree: dict[str, Any], section: str, name: str, value: object) -> None:
    part = tree.get(section, {})
    if isinstance(part, Mapping) and part.get(name) is None:
        tree[section] = {**part, name: value}
