"""Settings: frozen, validated when they are made, the only home of defaults.

section.py   frozen sections, and choices between kinds of a thing
settings.py  a whole job: its sections are in model.py, data.py, privacy.py, rounds.py, server.py
owner.py     what the owner of a PC decides
recipe.py    defaults that follow from other settings or from the data
toml.py      from TOML, flags and --set; back to TOML
remedy.py    how a setting is given, for errors to say
explain.py   errors and allowed values in words
filter_kind.py  which privacy filter keeps a PC's lifetime budget
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
from fedaipc.config.filter_kind import GAUSSIAN, FilterKind, filter_name, filter_source
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
from fedaipc.config.privacy import DPSGD, NoPrivacy, Privacy, Schedule
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
    MAX_KINDS,
    MAX_LOSS,
    MAX_NOISE,
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
from fedaipc.config.settings import OutputSettings, Settings, mechanism_fault
from fedaipc.config.toml import (
    load_owner,
    load_settings,
    read_toml,
    settings_from,
    to_toml,
    validated,
    with_values,
)
