"""Settings: frozen, validated when they are made, the only home of defaults.

section.py   frozen sections, and choices between kinds of a thing
settings.py  a whole job: its sections are in model.py, data.py, privacy.py, rounds.py, server.py
owner.py     what the owner of a PC decides
recipe.py    defaults that follow from other settings or from the data
toml.py      from TOML, flags and --set; back to TOML
remedy.py    how a setting is given, for errors to say
explain.py   errors and allowed values in words
"""

from fedaipc.config.data import (
    ByColumn,
    DataSettings,
    Dirichlet,
    Iid,
    Partition,
    Skewed,
    TextSource,
    WarmUpSettings,
)
from fedaipc.config.explain import describe_fields, unknown_key
from fedaipc.config.model import (
    BiTFiT,
    Full,
    Head,
    LastLayers,
    LoRA,
    TextClassifier,
    TrainingMethod,
)
from fedaipc.config.owner import AvailabilitySettings, OwnerSettings, Policy, SpeedSettings
from fedaipc.config.privacy import DPSGD, MAX_STEPS, NoPrivacy, Privacy, Schedule
from fedaipc.config.recipe import for_labels, reasons, recipe_text, rounds_warning
from fedaipc.config.rounds import (
    Aggregation,
    FederationSettings,
    PlainAggregation,
    SecAgg,
    Stage,
    TrainingSettings,
)
from fedaipc.config.section import (
    LOSS_DELTA,
    MAX_CLIP,
    MAX_KINDS,
    MAX_LOSS,
    MAX_NOISE,
    MIN_CLIP,
    MIN_NOISE,
    NAME,
    RUN,
    Choice,
    Frozen,
    Section,
    kind_fault,
    register,
)
from fedaipc.config.server import FedAdam, FedAvg, FedAvgM, ServerOptimizer
from fedaipc.config.settings import (
    EvaluationSettings,
    OutputSettings,
    Settings,
    distributed_fault,
)
from fedaipc.config.toml import (
    load_owner,
    load_settings,
    owner_from,
    read_toml,
    settings_from,
    text_source,
    to_toml,
    with_values,
)

__all__ = [
    "DPSGD",
    "LOSS_DELTA",
    "MAX_CLIP",
    "MAX_KINDS",
    "MAX_LOSS",
    "MAX_NOISE",
    "MAX_STEPS",
    "MIN_CLIP",
    "MIN_NOISE",
    "NAME",
    "RUN",
    "Aggregation",
    "AvailabilitySettings",
    "BiTFiT",
    "ByColumn",
    "Choice",
    "DataSettings",
    "Dirichlet",
    "EvaluationSettings",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FederationSettings",
    "Frozen",
    "Full",
    "Head",
    "Iid",
    "LastLayers",
    "LoRA",
    "NoPrivacy",
    "OutputSettings",
    "OwnerSettings",
    "Partition",
    "PlainAggregation",
    "Policy",
    "Privacy",
    "Schedule",
    "SecAgg",
    "Section",
    "ServerOptimizer",
    "Settings",
    "Skewed",
    "SpeedSettings",
    "Stage",
    "TextClassifier",
    "TextSource",
    "TrainingMethod",
    "TrainingSettings",
    "WarmUpSettings",
    "describe_fields",
    "distributed_fault",
    "for_labels",
    "kind_fault",
    "load_owner",
    "load_settings",
    "owner_from",
    "read_toml",
    "reasons",
    "recipe_text",
    "register",
    "rounds_warning",
    "settings_from",
    "text_source",
    "to_toml",
    "unknown_key",
    "with_values",
]
