"""`fedaipc config`: see what a config does before you run it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedaipc.cli.output import make_console, say
from fedaipc.config import (
    DPSGD,
    Settings,
    describe_fields,
    filter_name,
    for_labels,
    load_settings,
    reasons,
    recipe_text,
    rounds_warning,
    to_toml,
)
from fedaipc.report.table import Table

if TYPE_CHECKING:
    from fedaipc.data.prepare import HeldBack
    from fedaipc.model.classifier import Classifier

app = typer.Typer(help="Show or check a configuration.", no_args_is_help=True)
ConfigFile = Annotated[
    Path | None, typer.Argument(help="TOML file; defaults without one", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="section.key=value, may be repeated", show_default=False),
]


@app.command()
def show(
    config: ConfigFile = None,
    overrides: Overrides = None,
    keys: Annotated[bool, typer.Option("--keys", help="list all keys instead")] = False,
) -> None:
    """Print the resolved settings as TOML.

    Example: fedaipc config show --set privacy.epsilon=3
    """
    settings = load_settings(config, overrides or ())
    if not keys:
        say(*(f"# {line}" for line in reasons(settings)), "")
        say(*to_toml(settings).rstrip("\n").split("\n"))
        return
    rows = describe_fields(Settings)
    table = Table(("key", "allowed", "meaning"), rows, words=(0, 1, 2), whole=(0,))
    make_console().print(table)


@app.command()
def check(config: ConfigFile = None, overrides: Overrides = None) -> None:
    """Check a config, its data and its model, as simulate would; say what it promises.

    A config that names public texts for validation and test, and no source, is checked as
    `fedaipc federation sign` would. The exit code is that of the command.

    Example: fedaipc config check my.toml
    """
    from fedaipc.privacy.budget import (
        best_filter,
        charged_epsilon,
        check_delta,
        early_end,
        local_epsilon,
        planned_epsilon,
        size_class,
    )
    from fedaipc.privacy.signal import noise_warning
    from fedaipc.protocol.job import job_schedule, make_job
    from fedaipc.protocol.round_terms import check_noise, check_secagg
    from fedaipc.report.formatting import NOT_SEALED, at_most, distributed_text

    settings = load_settings(config, overrides or ())
    data, classifier = _opened(settings)
    settings = for_labels(settings, data.labels)
    bounds = check_secagg(settings)
    once = job_schedule(settings)
    rounds = settings.rounds
    sizes = [size_class(len(part)) for part in getattr(data, "parts", ())]
    if sizes and settings.privacy.private:
        check_delta(
            settings.privacy.delta,
            settings.privacy.unit,
            public_class=max(sizes),
            clients=len(sizes),
        )
    layout, classes = classifier.layout, sizes or [1024]  # a federation's PCs are not known here
    job = make_job(settings, data.labels, layout.hash, "0" * 16, classes, min_roster=1)
    check_noise(job, layout.size)
    say("the configuration is valid", f"recipe: {recipe_text(settings)}")
    if warning := rounds_warning(settings, data.labels):
        say(warning)
    say(*(f"note: {line}" for line in data.notes), *_fit_lines(data, classifier))
    if settings.aggregation.kind == "plain":
        say(f"{NOT_SEALED} (simulate asks for --insecure-plain-updates)")
    else:
        say(
            f"sealed, for {settings.federation.clients} PCs (federation.clients): no sum of fewer "
            f"than {bounds.least} PCs is unmasked; {bounds.colluding} of {bounds.count} may be on "
            f"the server's side, and {bounds.shares} must stay until the sum is unmasked"
        )
    mechanism = once.mechanism
    if not isinstance(mechanism, DPSGD):
        say("NOT PRIVATE: neither clip nor noise")
        return
    lifetime = settings.federation.lifetime_epsilon
    kind = best_filter(once, rounds, lifetime)
    epsilons = planned_epsilon(once, rounds)
    charged = charged_epsilon(once, rounds, kind)
    each = "1 step" if once.steps == 1 else f"{once.steps} steps"
    steps = f"{rounds} rounds of {each} at rate {mechanism.sampling_rate:g}"
    at = "at"
    if mechanism.unit == "client":
        steps, at = f"{rounds} whole updates of a PC", "per client at"
    say(
        f"noise multiplier {mechanism.multiplier:.4f}, {steps}: epsilon {at_most(charged)} charged "
        f"{at} delta {mechanism.delta:g} by {filter_name(kind)} (RDP {at_most(epsilons['rdp'])}, "
        f"PRV {at_most(epsilons['prv'])}, PLD {at_most(epsilons['pld'])})"
    )
    if mechanism.distributed:
        local = local_epsilon([once.times(rounds)], mechanism.delta)
        say(distributed_text(mechanism.honest, local))
    if line := early_end(once, rounds, lifetime):
        say(line)
    if sizes and (
        warning := noise_warning(
            once,
            settings,
            classifier.layout.size,
            len(data.labels),
            sizes,
        )
    ):
        say(warning)


def _opened(settings: Settings) -> tuple[HeldBack, Classifier]:
    """The data and the job's model. Raises DataError, AssetError or ModelError."""
    from fedaipc.data.prepare import prepare_held_back, prepare_simulation
    from fedaipc.model.base import with_whole_base
    from fedaipc.model.warm_up import check_model

    settings = settings.model_copy(update={"model": with_whole_base(settings.model)})
    data = settings.data
    given = "source" in data.model_fields_set or None in (data.validation, data.test)
    held_back = (
        prepare_simulation(data, settings.federation.clients) if given else prepare_held_back(data)
    )
    return held_back, check_model(settings, held_back)


def _fit_lines(data: HeldBack, classifier: Classifier) -> list[str]:
    """What the model makes of the texts."""
    from fedaipc.model.fit import measure_fit
    from fedaipc.report.formatting import fit_text, fit_warnings

    sets = {"training": getattr(data, "train", None), "validation": data.validation}
    fits = {
        name: measure_fit(classifier.tokenizer, records.texts, classifier.settings.max_length)
        for name, records in sets.items()
        if records is not None
    }
    lines = [f"{name} texts: {fit_text(fit)}" for name, fit in fits.items()]
    return lines + [f"note: {line}" for line in (*classifier.notes, *fit_warnings(**fits))]
