"""Settings: frozen, validated at birth, the only home of defaults.

settings.py  the types, their defaults and ranges
recipe.py    defaults that follow from other settings or from the data
toml.py      from TOML, flags and --set; back to TOML
remedy.py    how a setting is given, for errors to say
explain.py   errors and allowed values in words
"""

from fedaipc.config.explain import describe_fields, unknown_key
from fedaipc.config.recipe import for_labels, reasons, recipe_text, rounds_warning
from fedaipc.config.settings import (
    LOSS_DELTA,
    MAX_CLIP,
    MAX_KINDS,
    MAX_LOSS,
    MAX_NOISE,
    MIN_CLIP,
    MIN_NOISE,
    NAME,
    RUN,
    DataSettings,
    EvaluationSettings,
    FederationSettings,
    ModelSettings,
    OutputSettings,
    OwnerSettings,
    Policy,
    PrivacySettings,
    SealingSettings,
    Section,
    Settings,
    SpeedSettings,
    Stage,
    TextSource,
    TrainingSettings,
    WarmUpSettings,
    WorkSettings,
)
from fedaipc.config.toml import (
    load_owner,
    load_settings,
    owner_from,
    settings_from,
    text_source,
    to_toml,
)

__all__ = [
    "LOSS_DELTA",
    "MAX_CLIP",
    "MAX_KINDS",
    "MAX_LOSS",
    "MAX_NOISE",
    "MIN_CLIP",
    "MIN_NOISE",
    "NAME",
    "RUN",
    "DataSettings",
    "EvaluationSettings",
    "FederationSettings",
    "ModelSettings",
    "OutputSettings",
    "OwnerSettings",
    "Policy",
    "PrivacySettings",
    "SealingSettings",
    "Section",
    "Settings",
    "SpeedSettings",
    "Stage",
    "TextSource",
    "TrainingSettings",
    "WarmUpSettings",
    "WorkSettings",
    "describe_fields",
    "for_labels",
    "load_owner",
    "load_settings",
    "owner_from",
    "reasons",
    "recipe_text",
    "rounds_warning",
    "settings_from",
    "text_source",
    "to_toml",
    "unknown_key",
]
