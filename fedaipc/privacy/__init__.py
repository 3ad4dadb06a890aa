"""What is promised, what it costs, and training that keeps the promise.

budget.py           what a schedule costs over a job; public size classes
signal.py           whether the noise of a job drowns what it can learn
accountant.py       epsilon of a schedule by RDP, PRV and PLD; noise for a target epsilon
filters.py          what keeps a lifetime budget, whatever is asked later: Gaussian DP, or RDP
ledger.py           what a PC has spent over its life: durable, charged before training
randomness.py       AES-CTR keyed by the operating system: Gaussian noise, Poisson sampling
norms.py            norms of per-example gradients that rounding cannot make too small
layer_gradients.py  what each kind of layer knows of its per-example gradients
bookkeeping.py      an Opacus module that clips with them, without forming them
dp_sgd.py           a private step: sample, clip, sum, noise, divide, step
training.py         one PC's local steps of one round

Public names are `plan`, `sweep`, `audit` and `lower_bound`; they stand above all of this, in
`fedaipc.api`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["audit", "lower_bound", "plan", "sweep"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("fedaipc.api.lab"), name)
    raise AttributeError(f"module 'fedaipc.privacy' has no attribute {name!r}")
