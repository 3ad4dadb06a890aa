"""Settings: frozen, validated at birth, the only home of defaults.

settings.py  the types, their defaults and ranges
toml.py      from TOML, flags and --set; back to TOML
explain.py   errors and allowed values in words
"""

from fedaipc.config.explain import describe_fields
from fedaipc.config.settings import (
    LEAST_CLIP,
    LEAST_NOISE,
    MOST_CLIP,
    MOST_NOISE,
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
    TrainingSettings,
    WarmUpSettings,
    WorkSettings,
)
from fedaipc.config.toml import load_owner, load_settings, settings_from, to_toml

__all__ = [
    "LEAST_CLIP",
    "LEAST_NOISE",
    "MOST_CLIP",
    "MOST_NOISE",
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
    "TrainingSettings",
    "WarmUpSettings",
    "WorkSettings",
    "describe_fields",
    "load_owner",
    "load_settings",
    "settings_from",
    "to_toml",
]
