"""Small fleets to plan for, and the job that they run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedaipc.config import Settings, settings_from
from fedaipc.doctor.forecast import GpuPrice, PcPrice, Prices
from fedaipc.planning.events import RunOutcome, simulate_run
from fedaipc.planning.fleet import Fleet, fleet_from
from fedaipc.planning.forecast import FleetPlan, plan_fleet
from fedaipc.planning.load import make_load, make_pcs

if TYPE_CHECKING:
    from collections.abc import Sequence

# A server and a line that take no time.
INSTANT = {
    "down_mbit": 1e9, "up_mbit": 1e9, "exchange_seconds": 0.0, "message_seconds": 0.0,
    "values_per_second": 1e9, "unmask_seconds": 0.0,
}  # fmt: skip
NEAR = {"down_mbit": 1e9, "up_mbit": 1e9, "latency_ms": 0.0}
ONE = {"name": "only", "share": 1.0, "texts_per_second": 10.0, **NEAR}
PRICES = Prices(
    pc=PcPrice(watts=50, dollars_per_kwh=0.2, dollars_per_hour=0.01),
    gpu=(
        GpuPrice(name="unmeasured", dollars_per_hour=0.4, watts=75),
        GpuPrice(name="measured", dollars_per_hour=2.0, watts=700, texts_per_second=800),
    ),
)
VALUES = 770


def a_job(**changes: Any) -> Settings:
    """`changes` are sections, of which federation's are laid on top."""
    federation = {"round_timeout": 5e4, "stage_timeout": 1e3, **changes.pop("federation", {})}
    tree = {"rounds": 3, "privacy": {"delta": 1e-6}, "federation": federation}
    return settings_from({**tree, **changes})


def a_fleet(*classes: dict[str, Any], **changes: Any) -> Fleet:
    """By default of one class, near and without randomness."""
    tree = {"texts": 1000, "parameters": VALUES, "server": INSTANT}
    return fleet_from({**tree, "classes": list(classes) or [ONE], **changes})


def a_run(job: Settings, fleet: Fleet, clients: int, seed: int = 0) -> RunOutcome:
    """One simulated run."""
    pcs, _ = make_pcs(job, fleet, Path(), PRICES.pc.watts)
    load = make_load(job, clients, VALUES)
    return simulate_run(job, fleet, pcs, load, np.random.default_rng(seed))


def a_plan(
    job: Settings, fleet: Fleet, clients: Sequence[int], folder: Path = Path(), **changes: Any
) -> FleetPlan:
    """As the command makes it; the model is never opened."""

    def never() -> int:
        raise AssertionError("the model was opened")

    return plan_fleet(
        job, fleet, PRICES, parameters=never, folder=folder, clients=clients, **changes
    )
