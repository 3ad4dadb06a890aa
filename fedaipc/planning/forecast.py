"""Many runs of many fleets, summed up, beside a rented GPU."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fedaipc.doctor.forecast import on_gpu
from fedaipc.errors import ConfigError
from fedaipc.planning.events import simulate_run
from fedaipc.planning.load import make_load, make_pcs
from fedaipc.planning.tables import cost_table, gpu_table, time_table
from fedaipc.secagg.roster import KEY_SECONDS, MAX_MEMBERS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from fedaipc.config import Settings
    from fedaipc.doctor.forecast import Prices
    from fedaipc.planning.events import RunOutcome
    from fedaipc.planning.fleet import Fleet
    from fedaipc.planning.load import Pcs
    from fedaipc.report.table import Table

CLIENTS = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
MAX_CLIENTS = 10_000_000
REPEATS, MAX_REPEATS = 20, 10_000
PHASES = ("setup", "exchange", "unmask")  # as in results.json; a round may evaluate as well
_RANGE = (5, 50, 95)  # percent


@dataclass(frozen=True, slots=True)
class Spread:
    """The median over repeats, and what 5 and 95 % of them do not exceed."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class GpuComparison:
    """The same job on one rented GPU that has all texts, beside the fleet.

    `speed_up` is R = t_CPU / t_GPU: seconds of one PC of the fleet by seconds of the GPU, for the
    same texts. `time_ratio` is the fleet's wall-clock time by the GPU's, and `cost_ratio` the
    fleet's cost by the GPU's. These, `hours`, `dollars` and `watt_hours` are None where the price
    table has no texts_per_second. `break_even` is the R above which the GPU is cheaper; None where
    the fleet costs nothing.
    """

    name: str
    speed_up: float | None = None
    hours: float | None = None
    time_ratio: float | None = None
    watt_hours: float | None = None
    dollars: float | None = None
    cost_ratio: float | None = None
    break_even: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetForecast:
    """What the job takes on a fleet of `clients` PCs.

    `finished` is the share of the repeats that reached the last round, and `why` says why others,
    most of them, did not. What is of a run or of a round is of those that finished, and None where
    none did. `run_seconds` includes void rounds, and `waited_seconds` until enough PCs were there;
    `round_seconds` is of rounds that were not void, and `phases` are their mean seconds to set up,
    to exchange and to unmask. `void_rounds` is of all repeats. `bytes_up` and `bytes_down` are of
    one PC in one round, `server_bytes` of the server in a run, both ways.
    """

    clients: int
    finished: float
    why: str | None
    void_rounds: Spread | None
    gpus: tuple[GpuComparison, ...]
    arrived: Spread | None = None
    round_seconds: Spread | None = None
    phases: dict[str, float] = field(default_factory=dict)
    run_seconds: Spread | None = None
    waited_seconds: Spread | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    server_bytes: Spread | None = None
    round_server_bytes: float | None = None
    watt_hours: Spread | None = None
    round_watt_hours: float | None = None
    dollars: Spread | None = None
    round_dollars: float | None = None


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """What a job takes on fleets of several sizes: `fleets`, in the order that was asked for.

    `notes` are limits that the answer depends on.
    """

    rounds: int
    parameters: int
    repeats: int
    seed: int
    fleets: tuple[FleetForecast, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain values, as `fedaipc plan fleet --json` prints it."""
        return asdict(self)

    def tables(self) -> tuple[Table, ...]:
        """Time; traffic, energy and cost; the GPUs."""
        return time_table(self.fleets), cost_table(self.fleets), gpu_table(self.fleets)

    def lines(self) -> list[str]:
        """Which fleets do not finish and why, and the notes."""
        found = [
            f"{one.clients:,} PCs: {1 - one.finished:.0%} of the runs do not finish: {one.why}"
            for one in self.fleets
            if one.why is not None
        ]
        return [*found, *(f"note: {note}" for note in self.notes)]

    def figure(self) -> Figure:
        """Wall-clock time and cost over the number of PCs."""
        from fedaipc.planning.chart import fleet_figure

        return fleet_figure(self)

    def __str__(self) -> str:
        return "\n\n".join([*(table.to_markdown() for table in self.tables()), *self.lines()])

    def _repr_html_(self) -> str:
        from fedaipc.report.template import render

        tables = "".join(table.__html__() for table in self.tables())
        return tables + render("plain.html.j2", text="\n".join(self.lines()))


def plan_fleet(
    job: Settings,
    fleet: Fleet,
    prices: Prices,
    *,
    parameters: Callable[[], int],
    folder: Path,
    clients: Sequence[int] = CLIENTS,
    repeats: int = REPEATS,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> FleetPlan:
    """Simulate the job `repeats` times on each number of PCs.

    `parameters` counts the trained values, and is called where neither the fleet nor a doctor file
    in `folder` has them. Raises ConfigError.
    """
    if not clients or not all(1 <= count <= MAX_CLIENTS for count in clients):
        raise ConfigError(f"clients: give numbers of PCs from 1 to {MAX_CLIENTS:,}")
    if not 1 <= repeats <= MAX_REPEATS:
        raise ConfigError(f"repeats = {repeats}: give a number from 1 to {MAX_REPEATS:,}")
    if seed < 0:
        raise ConfigError(f"seed = {seed}: give a number from 0 on")
    if job.federation.only is not None:
        raise ConfigError(
            "federation.only names single PCs, which a fleet of any size has not: leave it out"
        )
    pcs, measured = make_pcs(job, fleet, folder, prices.pc.watts)
    values = fleet.parameters or measured or parameters()
    found = []
    for count in clients:
        say(f"simulating {count:,} PCs")
        found.append(_forecast(job, fleet, pcs, prices, count, values, repeats, seed))
    return FleetPlan(
        rounds=job.rounds,
        parameters=values,
        repeats=repeats,
        seed=seed,
        fleets=tuple(found),
        notes=tuple(_notes(job, clients, found)),
    )


def _forecast(
    job: Settings,
    fleet: Fleet,
    pcs: Pcs,
    prices: Prices,
    clients: int,
    values: int,
    repeats: int,
    seed: int,
) -> FleetForecast:
    try:
        load = make_load(job, clients, values)
    except ConfigError as error:  # this number of PCs cannot do it; others may
        return _nothing(clients, str(error), None, prices)
    # Each size has randomness of its own: another list of sizes changes no answer.
    runs = [
        simulate_run(job, fleet, pcs, load, np.random.default_rng([seed, clients, repeat]))
        for repeat in range(repeats)
    ]
    whys = Counter(run.why for run in runs if run.why is not None)
    why = whys.most_common(1)[0][0] if whys else None
    void = _spread([run.void for run in runs])
    done = [run for run in runs if run.why is None]
    if not done:
        return _nothing(clients, str(why), void, prices)
    costs = [_dollars(run, fleet, prices) for run in done]
    traffic = [run.bytes_in + run.bytes_out for run in done]
    energy = [run.watt_seconds / 3600 for run in done]
    seconds = _spread([run.seconds for run in done])
    return FleetForecast(
        clients=clients,
        finished=len(done) / repeats,
        why=why,
        void_rounds=void,
        arrived=_spread([one for run in done for one in run.arrived]),
        round_seconds=_spread([one for run in done for one in run.rounds]),
        phases=_phases(done),
        run_seconds=seconds,
        waited_seconds=_spread([run.waited for run in done]),
        bytes_up=load.up,
        bytes_down=load.down,
        server_bytes=_spread(traffic),
        round_server_bytes=float(np.mean(traffic)) / job.rounds,
        watt_hours=_spread(energy),
        round_watt_hours=float(np.mean(energy)) / job.rounds,
        dollars=_spread(costs),
        round_dollars=float(np.mean(costs)) / job.rounds,
        gpus=_compared(job, pcs, prices, clients, seconds.median, float(np.median(costs))),
    )


def _nothing(clients: int, why: str, void: Spread | None, prices: Prices) -> FleetForecast:
    """Of a fleet that never finishes."""
    unknown = tuple(GpuComparison(gpu.name) for gpu in prices.gpu)
    return FleetForecast(clients=clients, finished=0.0, why=why, void_rounds=void, gpus=unknown)


def _phases(runs: Sequence[RunOutcome]) -> dict[str, float]:
    seconds = np.mean([one for run in runs for one in run.phases], axis=0)
    return dict(zip(PHASES, seconds.tolist(), strict=True))


def _dollars(run: RunOutcome, fleet: Fleet, prices: Prices) -> float:
    """Electricity and hours of the PCs while they work, the server's hours and its traffic."""
    pc, server = prices.pc, fleet.server
    return (
        run.watt_seconds / 3.6e6 * pc.dollars_per_kwh
        + run.busy_seconds / 3600 * pc.dollars_per_hour
        + run.seconds / 3600 * server.dollars_per_hour
        + run.bytes_out / 2**30 * server.dollars_per_gib
    )


def _compared(
    job: Settings, pcs: Pcs, prices: Prices, clients: int, seconds: float, dollars: float
) -> tuple[GpuComparison, ...]:
    """The work of the job, without what is void or lost, on each GPU of the table."""
    counts = pcs.counts(clients)
    drawn = job.federation.cohort_size(clients) / clients
    asked, ever = job.rounds * drawn, 1 - (1 - drawn) ** job.rounds
    trained = float((counts * pcs.train).sum()) * asked
    passes = job.training.local_steps * job.privacy.sampling_rate
    texts = float((counts * pcs.texts).sum()) * asked * passes
    hours = (trained + float((counts * pcs.prepare).sum()) * ever) / 3600
    found = []
    for gpu in prices.gpu:
        one = on_gpu(gpu, texts / trained, hours, dollars / hours)
        found.append(
            GpuComparison(
                name=gpu.name,
                speed_up=one.speed_up,
                hours=one.hours,
                time_ratio=None if not one.hours else seconds / 3600 / one.hours,
                watt_hours=None if one.hours is None else one.hours * gpu.watts,
                dollars=one.dollars,
                cost_ratio=None if not one.dollars else dollars / one.dollars,
                break_even=one.break_even,
            )
        )
    return tuple(found)


def _spread(values: Sequence[float]) -> Spread:
    low, median, high = (float(one) for one in np.percentile(values, _RANGE))
    return Spread(median, low, high)


def _notes(job: Settings, clients: Sequence[int], fleets: Sequence[FleetForecast]) -> list[str]:
    found = []
    rounds = [one.round_seconds.median for one in fleets if one.round_seconds is not None]
    if max(rounds, default=0.0) > KEY_SECONDS:
        found.append(
            "a round that takes longer than a day outlives the PCs' keys: ask fewer PCs "
            "(federation.fraction)"
        )
    if max(clients) > MAX_MEMBERS:
        found.append(
            f"a federation of today has {MAX_MEMBERS:,} members at most: larger fleets are "
            "computed as if its formats allowed them"
        )
    if job.warm_up.source is not None:
        found.append("the warm-up on public texts, once, is not in these figures")
    if job.aggregation.kind == "plain":
        found.append("updates are not sealed: traffic and time are those of plain updates")
    return found
