"""What a job takes on fleets of any size, before there is one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedaipc.config import Settings
from fedaipc.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedaipc.planning.forecast import FleetPlan


def plan_fleet(
    job: Settings,
    fleet: str | Path | Mapping[str, Any],
    *,
    clients: Sequence[int] | None = None,
    prices: str | Path | None = None,
    repeats: int = 20,
    seed: int = 0,
) -> FleetPlan:
    """Predict time, traffic, energy and cost of `job` on so many `clients`: `fedaipc plan fleet`.

    `fleet` is a fleet file, or the same keys as a mapping; doctor files that it names are looked
    for beside the file, otherwise in the working directory. `clients` are 10 to 1,000,000 by
    default, `prices` a price table in place of fedaipc's own. Each run is simulated `repeats` times
    by events, without a model. The model is opened only where neither the fleet nor a doctor file
    says how many values it trains. Raises ConfigError, AssetError or ModelError.
    """
    from fedaipc.doctor.forecast import read_prices
    from fedaipc.planning import forecast
    from fedaipc.planning.fleet import fleet_from, read_fleet
    from fedaipc.planning.load import trained_values

    if not isinstance(job, Settings):
        raise ConfigError("job: give a Job, as fa.Job.from_toml reads it from a config file")
    return forecast.plan_fleet(
        job,
        fleet_from(fleet) if isinstance(fleet, Mapping) else read_fleet(Path(fleet)),
        read_prices(None if prices is None else Path(prices)),
        parameters=lambda: trained_values(job),
        folder=Path() if isinstance(fleet, Mapping) else Path(fleet).parent,
        clients=forecast.CLIENTS if clients is None else tuple(clients),
        repeats=repeats,
        seed=seed,
    )
