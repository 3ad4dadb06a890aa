"""Privacy-preserving federated fine-tuning of BERT-class models on many AI PCs.

    import fedaipc as fa

What is in `__all__` is public, with `fedaipc.privacy`, `fedaipc.opacus` and `fedaipc.errors`;
everything else may change. A name is loaded when it is first used: `import fedaipc` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fedaipc import errors, opacus, privacy
    from fedaipc.api.data import Data, fetch, load_data
    from fedaipc.api.federation import Federation
    from fedaipc.api.fleet import plan_fleet
    from fedaipc.api.job import Job
    from fedaipc.api.lab import load_audit
    from fedaipc.api.run import Comparison, Run, compare, load_run
    from fedaipc.api.simulate import simulate
    from fedaipc.config import (
        DPSGD,
        BiTFiT,
        ByColumn,
        Dirichlet,
        FedAdam,
        FedAvg,
        FedAvgM,
        Full,
        Head,
        Iid,
        LastLayers,
        LoRA,
        NoPrivacy,
        PlainAggregation,
        SecAgg,
        ServerOptimizer,
        Skewed,
        TextClassifier,
        TrainingMethod,
        register,
    )
    from fedaipc.config.family import ModelFamily, register_family
    from fedaipc.data.registry import register_source
    from fedaipc.privacy.ledger import Ledger
    from fedaipc.report.tracking import Tracker, register_tracker

_HOMES = {
    "Comparison": "fedaipc.api.run",
    "Data": "fedaipc.api.data",
    "ModelFamily": "fedaipc.config.family",
    "Federation": "fedaipc.api.federation",
    "Job": "fedaipc.api.job",
    "Ledger": "fedaipc.privacy.ledger",
    "Run": "fedaipc.api.run",
    "Tracker": "fedaipc.report.tracking",
    "compare": "fedaipc.api.run",
    "fetch": "fedaipc.api.data",
    "load_audit": "fedaipc.api.lab",
    "load_data": "fedaipc.api.data",
    "load_run": "fedaipc.api.run",
    "plan_fleet": "fedaipc.api.fleet",
    "register_family": "fedaipc.config.family",
    "register_source": "fedaipc.data.registry",
    "register_tracker": "fedaipc.report.tracking",
    "simulate": "fedaipc.api.simulate",
}  # all others are settings
_MODULES = ("errors", "opacus", "privacy")

__all__ = [
    "DPSGD",
    "BiTFiT",
    "ByColumn",
    "Comparison",
    "Data",
    "Dirichlet",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "Federation",
    "Full",
    "Head",
    "Iid",
    "Job",
    "LastLayers",
    "Ledger",
    "LoRA",
    "ModelFamily",
    "NoPrivacy",
    "PlainAggregation",
    "Run",
    "SecAgg",
    "ServerOptimizer",
    "Skewed",
    "TextClassifier",
    "Tracker",
    "TrainingMethod",
    "compare",
    "errors",
    "fetch",
    "load_audit",
    "load_data",
    "load_run",
    "opacus",
    "plan_fleet",
    "privacy",
    "register",
    "register_family",
    "register_source",
    "register_tracker",
    "simulate",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fedaipc' has no attribute {name!r}")
    if name in _MODULES:
        return import_module(f"fedaipc.{name}")
    found = getattr(import_module(_HOMES.get(name, "fedaipc.config")), name)
    globals()[name] = found  # looked up once
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
