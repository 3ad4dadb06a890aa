"""`fedaipc simulate`: many PCs on one machine."""

from __future__ import annotations

import sys
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from fedaipc.cli.config import Overrides
from fedaipc.cli.output import make_console
from fedaipc.cli.source import (
    By,
    Encoding,
    Label,
    NoHeader,
    Pcs,
    Quoting,
    SkipUnusable,
    Source,
    Text,
    as_given,
    read_settings,
)
from fedaipc.config import DPSGD, recipe_text
from fedaipc.errors import BudgetExhausted, ConfigError

if TYPE_CHECKING:
    from fedaipc.config import Settings
    from fedaipc.results import Results, RoundResult
    from fedaipc.simulation.simulation import Run


def simulate(
    source: Source = None,
    text: Text = None,
    label: Label = None,
    by: By = None,
    pcs: Pcs = None,
    encoding: Encoding = None,
    quoting: Quoting = None,
    no_header: NoHeader = False,
    skip_unusable: SkipUnusable = False,
    rounds: Annotated[int | None, typer.Option(help="how many rounds")] = None,
    epsilon: Annotated[float | None, typer.Option(help="privacy target over all rounds")] = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="folder that gets the run's folder")] = None,
    name: Annotated[str | None, typer.Option(help="name of the run's folder")] = None,
    pc_state: Annotated[
        Path | None,
        typer.Option(help="keep the PCs and their ledgers here, over several runs"),
    ] = None,
    engine: Annotated[
        Literal["in-process", "flower"], typer.Option(help="how PCs are driven")
    ] = "in-process",
    resume: Annotated[Path | None, typer.Option(help="continue the run in this folder")] = None,
    insecure_test_seed: Annotated[
        int | None, typer.Option(help="repeatable noise: the result is NOT PRIVATE")
    ] = None,
    insecure_plain_updates: Annotated[
        bool,
        typer.Option(
            "--insecure-plain-updates", help="the server can read every PC's update: NOT SEALED"
        ),
    ] = False,
) -> None:
    """Fine-tune over many simulated PCs, each with its own data, noise and ledger.

    Example: fedaipc simulate reviews.csv --text body --label stars --by customer
    """
    from fedaipc.doctor.saved import with_saved
    from fedaipc.machine import processor
    from fedaipc.report.html import write_all
    from fedaipc.report.progress import Display, WarmUpBar
    from fedaipc.report.tracking import Trackers, check_trackers
    from fedaipc.results import Results
    from fedaipc.simulation import simulation

    console = make_console()
    if resume is not None:
        own = {"--text": text, "--label": label, "--by": by, "--clients": pcs, "--rounds": rounds,
               "--encoding": encoding, "--quoting": quoting, "--no-header": no_header or None,
               "--skip-unusable": skip_unusable or None,
               "--epsilon": epsilon, "--set": overrides, "--out": out, "--name": name,
               "--pc-state": pc_state, "--insecure-test-seed": insecure_test_seed,
               "--insecure-plain-updates": insecure_plain_updates or None,
               "a source": source}  # fmt: skip
        given = [flag for flag, value in own.items() if value not in (None, [])]
        if given:
            raise ConfigError(f"--resume keeps the run's own settings: leave out {given[0]}")
        run = simulation.reopen(resume)
    else:
        flags = {
            "rounds": rounds,
            "privacy.epsilon": epsilon,
            "federation.lifetime_epsilon": epsilon,
            "output.folder": None if out is None else str(out),
            "output.name": name,
            "aggregation.kind": "plain" if insecure_plain_updates else None,
        }
        settings = read_settings(
            source, overrides, flags, text=text, label=label, by=by, pcs=pcs, encoding=encoding,
            quoting=quoting, no_header=no_header, skip_unusable=skip_unusable,
        )  # fmt: skip
        check_trackers(settings.output.trackers)
        if settings.aggregation.kind == "plain" and not insecure_plain_updates:
            raise ConfigError(
                'aggregation.kind = "plain" lets the server read every update: confirm with '
                "--insecure-plain-updates"
            )
        simulation.check_engine(engine, pc_state)
        settings = with_saved(settings, processor())
        with WarmUpBar(console) as warm_up:
            run = simulation.prepare(
                settings,
                pc_state=pc_state,
                test_seed=insecure_test_seed,
                on_warm_up=warm_up.on_step,
            )
    _announce(console, run)
    stopped, trackers = None, Trackers(run.settings.output.trackers, run.folder)
    with trackers, Display(console, run.settings) as display:

        def on_round(result: RoundResult) -> None:
            display.on_round(result)
            trackers.on_round(result)

        try:
            simulation.simulate(run, engine, on_round)
        except BudgetExhausted as error:
            stopped = error
    results = Results.load(run.folder)
    if stopped is not None and results.test is None:
        raise stopped
    show_results(console, run.settings, results)
    if run.settings.output.plots:
        write_all(results, run.folder)
        console.print(f"report: {run.folder / 'report.html'}", highlight=False, markup=False)
    # The command as it was called, where the shell would not find it by its name.
    command = "fedaipc" if which("fedaipc") else sys.argv[0]
    console.print(
        f'try it: {command} predict {run.folder} "some text"', highlight=False, markup=False
    )
    if stopped is not None:
        raise stopped


def _announce(console: Console, run: Run) -> None:
    from fedaipc.protocol.job_folder import read_facts
    from fedaipc.report.formatting import NOT_SEALED

    settings = run.settings
    privacy = settings.privacy
    facts = read_facts(run.folder)
    for reason in facts["not_private"]:
        console.print("[bold red]NOT PRIVATE[/]:", escape(reason), highlight=False)
    if settings.aggregation.kind == "plain":
        console.print(f"[bold red]{NOT_SEALED}[/]", highlight=False)
    for note in facts["notes"]:
        console.print(f"note: {as_given(note)}", highlight=False, markup=False)
    say_fit(console, facts)
    promise = "no privacy"
    if isinstance(privacy, DPSGD) and not facts["not_private"]:
        promise = f"noise multiplier {privacy.noise_multiplier}"
        if privacy.epsilon is not None:
            promise = f"epsilon {privacy.epsilon:g}"
    if run.covered_rounds < settings.rounds:
        console.print(
            f"the PCs' budgets end after {run.covered_rounds} of {settings.rounds} rounds",
            highlight=False,
        )
    console.print(
        f"{run.folder}: {_base(facts, settings)}, {settings.model.train.kind}, "
        f"{settings.federation.clients} PCs, {settings.rounds} rounds, {promise}",
        highlight=False,
        markup=False,
    )
    console.print(f"recipe: {recipe_text(settings)}", highlight=False, markup=False)


def show_results(console: Console, settings: Settings, results: Results) -> None:
    """The tables of a run that has ended, and a line if noise drowned what it could learn."""
    from fedaipc.privacy.signal import noise_warning
    from fedaipc.protocol.job import job_schedule
    from fedaipc.report.run_tables import classes, summary

    console.print(summary(results))
    if results.test is not None:
        console.print(classes(results))
    sizes = [pc.size_class for pc in results.pcs]
    values, labels = results.model.trainable_parameters, len(results.data.labels)
    if sizes and (
        warning := noise_warning(job_schedule(settings), settings, values, labels, sizes)
    ):
        console.print(warning, style="yellow", highlight=False, markup=False)


def say_fit(console: Console, facts: dict[str, Any]) -> None:
    """What was done to the base, and a warning where texts fit the model badly."""
    from fedaipc.report.formatting import fit_warnings
    from fedaipc.results import TextFit

    fits = {
        name: TextFit(**facts[f"{key}_fit"])
        for name, key in (("training", "train"), ("validation", "validation"))
        if facts.get(f"{key}_fit")
    }
    for line in (*facts.get("model_notes", ()), *fit_warnings(**fits)):
        console.print(f"note: {line}", style="yellow", highlight=False, markup=False)


def _base(facts: dict[str, Any], settings: Settings) -> str:
    warm = facts["warm_up"]
    return settings.model.base if warm is None else f"{warm['base']} warmed up on {warm['source']}"
