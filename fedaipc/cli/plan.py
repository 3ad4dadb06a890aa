"""`fedaipc privacy plan`: what a budget buys, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from fedaipc.cli.config import ConfigFile, Overrides
from fedaipc.cli.output import AsJson, make_console, say, say_json
from fedaipc.config import DPSGD, Schedule, load_settings
from fedaipc.errors import ConfigError, LedgerError, PrivacyError
from fedaipc.report.formatting import at_most, distributed_text, duration_text, size_text
from fedaipc.report.table import Table

if TYPE_CHECKING:
    from fedaipc.config import Settings
    from fedaipc.lab.planner import Plan, Unknown
    from fedaipc.privacy.ledger import Ledger

_RECORDS = 1000
_SCHEDULE = (
    "epsilon", "delta", "noise", "rate", "steps", "rounds", "records", "relative_noise",
)  # fmt: skip


def plan(
    config: ConfigFile = None,
    overrides: Overrides = None,
    find: Annotated[
        Literal["noise", "epsilon", "rounds", "rate"] | None,
        typer.Option(help="the one unknown (default: noise, or epsilon if the noise is given)"),
    ] = None,
    epsilon: Annotated[float | None, typer.Option(min=1e-3, max=1e6, help="of all rounds")] = None,
    delta: Annotated[float | None, typer.Option(help="of the PC's life")] = None,
    noise: Annotated[float | None, typer.Option(help="noise multiplier")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="that the PC takes part in")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="local steps of a round")] = None,
    rate: Annotated[float | None, typer.Option(help="sampling rate of a step")] = None,
    batch: Annotated[
        float | None, typer.Option(min=1e-9, help="texts in a step on average, instead of --rate")
    ] = None,
    records: Annotated[
        int | None,
        typer.Option(
            min=1, help="texts that the PC holds (default: --ledger's size class, or 1000)"
        ),
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(
            help="a PC's folder: use its size class, its delta and what is left in its ledger"
        ),
    ] = None,
    work: Annotated[
        bool,
        typer.Option(
            "--work",
            help="show minutes and bytes too: measures this PC on the config's texts, for a minute",
        ),
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="file for a plot, .png or .svg")] = None,
    as_json: AsJson = False,
) -> None:
    """Find the noise for a budget, or epsilon, rounds or sampling rate from the others.

    Reads no data. Values without a flag come from the config, or from fedaipc's defaults.

    Example: fedaipc privacy plan --epsilon 2 --delta 1e-6 --records 1000 --batch 50 --rounds 40
    """
    from fedaipc.lab.planner import GROUPS, Plan, solve
    from fedaipc.privacy.budget import NEIGHBOURS, size_class

    settings = load_settings(config, overrides or ())
    own = settings.privacy
    if not isinstance(own, DPSGD):
        raise PrivacyError('privacy.kind = "none" has nothing to plan')
    if type(own) is not DPSGD or own.unit != "record":
        other = f'kind = "{own.kind}"' if own.unit == "record" else f'unit = "{own.unit}"'
        raise PrivacyError(
            f"privacy.{other}: this plans DP-SGD on records; `fedaipc config check` says what "
            "another job costs"
        )
    opened = None if ledger is None else _opened(ledger)
    if opened is not None and delta is None:
        delta = opened.delta
    public = size_class(records or (None if ledger is None else _own_class(ledger)) or _RECORDS)
    if batch is not None and rate is not None:
        raise ConfigError("give --rate or --batch, and not both")
    if batch is not None:
        rate = batch / public
    given = _given(own, find, epsilon, noise)
    unknown = find or ("epsilon" if given["noise"] is not None else "noise")
    flags = {"epsilon": epsilon, "noise": noise, "rounds": rounds, "rate": rate}
    if flags[unknown] is not None:
        raise ConfigError(
            f"{unknown} is what is to be found, and was given too: leave it out, or name another "
            "unknown with --find"
        )
    if given["noise"] is not None and not given["noise"] > 0:
        raise ConfigError(f"--noise {given['noise']:g}: without noise no epsilon is finite")
    delta = own.delta if delta is None else delta
    rate = own.sampling_rate if rate is None else rate
    _check(unknown, given, rate, delta, public)
    asked = Plan(
        epsilon=given["epsilon"] or 0.0,
        mechanism=DPSGD(
            noise_multiplier=given["noise"] or 1.0,
            sampling_rate=rate,
            delta=delta,
            clip_norm=own.clip_norm,
        ),
        steps=steps or settings.training.local_steps,
        rounds=rounds or settings.rounds,
        records=public,
    )
    found = solve(unknown, asked)
    points, others = found.curve(), found.trade_offs()
    groups = {str(m): found.group_epsilon(m) for m in (*GROUPS, public)}
    report: dict[str, Any] = {
        "found": unknown,
        "schedule": {name: getattr(found, name) for name in _SCHEDULE},
        "epsilon": found.by_accountant(),
        "distributed": _distributed(settings, found) if own.distributed else None,
        "unit": NEIGHBOURS["record"],
        "curve": [{"rounds": r, "epsilon": e} for r, e in points],
        "trade_offs": [
            {"epsilon": o.epsilon, "noise": o.noise, "relative_noise": o.relative_noise}
            for o in others
        ],
        "records_of_one_person": groups,
        "ledger": None if opened is None else _ledger(opened, found),
        "work": _work(settings, found) if work else None,
    }
    if plot is not None:
        from fedaipc.lab.chart import plan_figure  # matplotlib takes a second or more to load
        from fedaipc.report.plot_style import save

        save(plan_figure(found, points, others), plot)
    if as_json:
        say_json(report)
        return
    _show(make_console(highlight=False), report, found)
    if plot is not None:
        say(f"wrote {plot}")


def _distributed(settings: Settings, plan: Plan) -> dict[str, Any]:
    """How many honest PCs a sum has, and epsilon against whoever reads one PC's own update.

    Raises ConfigError where there are too few PCs, or more than one step.
    """
    from fedaipc.privacy.budget import local_epsilon
    from fedaipc.protocol.round_terms import honest_in_sums

    if plan.steps > 1:
        raise ConfigError('privacy.noise = "distributed" takes one step a round: leave out --steps')
    honest = honest_in_sums(settings.model_copy(update={"rounds": plan.rounds}))
    shared = {"noise": "distributed", "honest": honest}
    mechanism = plan.mechanism.model_copy(update=shared)
    schedule = Schedule(mechanism=mechanism, steps=plan.rounds)
    return {"honest": honest, "local_epsilon": local_epsilon([schedule], plan.delta)}


def _work(settings: Settings, plan: Plan) -> dict[str, Any]:
    """What one PC computes and sends, at this machine's pace."""
    from fedaipc.config import settings_from
    from fedaipc.data.prepare import prepare_simulation
    from fedaipc.doctor.forecast import forecast, read_prices
    from fedaipc.doctor.probe import probe
    from fedaipc.model.classifier import Classifier

    tree = settings.model_dump(exclude_none=True)
    tree["rounds"] = plan.rounds
    tree["training"]["local_steps"] = plan.steps
    tree["privacy"] |= {"sampling_rate": plan.rate}
    job = settings_from(tree)
    data = prepare_simulation(job.data, job.federation.clients)
    with make_console(stderr=True).status("measuring") as status:
        speeds = probe(job, data.train.texts, status.update)
    own = next(speed for speed in speeds if speed.precision == job.speed.precision)
    pcs = job.federation.clients
    found = forecast(
        job, own, records=plan.records * pcs, held_back=0,
        parameters=Classifier(job.model, data.labels).layout.size, prices=read_prices(None),
        watts=None,
    )  # fmt: skip
    return {
        "minutes": found.fleet_minutes,
        "bytes_up": found.bytes_up // pcs,
        "bytes_down": found.bytes_down // pcs,
        "pcs": pcs,
    }


def _given(
    own: DPSGD, find: str | None, epsilon: float | None, noise: float | None
) -> dict[str, float | None]:
    """Flags before the config's, of which a budget or a noise does not count beside a flag's."""
    if noise is None and epsilon is None:
        return {"epsilon": own.epsilon, "noise": own.noise_multiplier}
    if noise is None and find not in (None, "noise"):
        noise = own.noise_multiplier
    return {"epsilon": epsilon, "noise": noise}


def _check(
    unknown: Unknown, given: dict[str, float | None], rate: float, delta: float, records: int
) -> None:
    from fedaipc.lab.planner import NEEDS

    for name in NEEDS[unknown]:
        if given[name] is None:
            raise ConfigError(f"--find {unknown} needs --{name}")
    if not 0 < rate <= 1:
        raise ConfigError(
            f"a sampling rate of {rate:g}: give --rate up to 1, or a --batch of at most "
            f"{records:,}, which is the size class of so many records"
        )
    if not 0 < delta < 1:
        raise ConfigError(f"--delta {delta:g}: give a number between 0 and 1")


def _opened(folder: Path) -> Ledger:
    from fedaipc.privacy.ledger import LEDGER_FILE, Ledger

    path = folder / LEDGER_FILE if folder.is_dir() else folder
    if not path.is_file():
        raise LedgerError(f"{folder}: holds no ledger; give the folder of one PC")
    return Ledger(path)


def _own_class(folder: Path) -> int | None:
    from fedaipc.client.client import OWNER_FILE
    from fedaipc.config import load_owner

    file = folder / OWNER_FILE
    return load_owner(file).size_class if file.is_file() else None


def _ledger(opened: Ledger, plan: Plan) -> dict[str, Any]:
    return {
        "lifetime_epsilon": opened.lifetime_epsilon,
        "delta": opened.delta,
        "spent": None if opened.unprotected else opened.spent_epsilon(),
        "unprotected": opened.unprotected,
        "rounds_left": min(opened.rounds_left(plan.once), 2**53),
        "same_delta": opened.delta == plan.delta,
    }


def _show(console: Console, report: dict[str, Any], found: Plan) -> None:
    epsilons = report["epsilon"]
    console.print(
        f"noise multiplier {found.noise:.4f}, {found.rounds:,} rounds of {found.steps} "
        f"step{'s' * (found.steps != 1)} at "
        f"rate {found.rate:.4g} ({found.rate * found.records:.1f} texts on average where the PC's "
        f"size class, {found.records:,}, is full): found the {report['found']}"
    )
    others = (
        f"{name} {at_most(epsilons[name.lower()])}"
        if epsilons[name.lower()] is not None
        else f"{name} not computed: too large"
        for name in ("RDP", "PRV", "PLD")
    )
    console.print(
        f"epsilon {at_most(found.epsilon)} at delta {found.delta:g}, {report['unit']} "
        f"({', '.join(others)}; "
        "all three are upper bounds, RDP is what meets a target)"
    )
    if (shared := report["distributed"]) is not None:
        console.print(distributed_text(shared["honest"], shared["local_epsilon"]))
    rows = [
        (at_most(row["epsilon"], 2), f"{row['noise']:.3f}", f"{row['relative_noise']:.4g} clips")
        for row in report["trade_offs"]
    ]
    columns = ("epsilon", "noise multiplier", "noise on the mean gradient")
    console.print()
    console.print("other budgets for the same rounds and rate")
    console.print(Table(columns, rows, words=()))
    of_one = [
        (f"{int(records):,}", "no bound" if value is None else at_most(value, 2))
        for records, value in report["records_of_one_person"].items()
    ]
    console.print()
    console.print(
        "for somebody who has several of this PC's records (group privacy, same delta; by PLD "
        "or, without sampling, exact; for more than 50 sampled ones by a looser bound)"
    )
    console.print(Table(("records", "epsilon"), of_one, words=()))
    held, work = report["ledger"], report["work"]
    if held is not None:
        _show_ledger(console, held, found)
    if work is not None:
        console.print()
        console.print(
            f"work of one of {work['pcs']} PCs, at this machine's pace: "
            f"{duration_text(60 * work['minutes'])}, {size_text(work['bytes_up'])} up, "
            f"{size_text(work['bytes_down'])} down"
        )


def _show_ledger(console: Console, held: dict[str, Any], found: Plan) -> None:
    if held["unprotected"]:
        console.print()
        console.print("the ledger: NOT PRIVATE already, no epsilon can be claimed for this PC")
        return
    console.print()
    console.print(
        f"the ledger: {at_most(held['spent'])} of {held['lifetime_epsilon']:g} spent; it covers "
        f"{held['rounds_left']:,} more rounds of this plan, which has {found.rounds:,}"
    )
    if not held["same_delta"]:
        console.print(f"but its delta is {held['delta']:g}: a job must have the same")
