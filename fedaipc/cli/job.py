"""`fedaipc federation sign` and `base`: sign the jobs that PCs will be asked to train, away from
the server.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedaipc.cli.output import make_console, say

Config = Annotated[Path, typer.Argument(help="TOML settings", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="section.key=value; repeat it", show_default=False),
]


def sign(
    config: Config,
    federation: Annotated[Path, typer.Option(help="the federation's folder", show_default=False)],
    out: Annotated[Path, typer.Option(help="folder for the signed job", show_default=False)],
    overrides: Overrides = None,
) -> None:
    """Sign a job for all current members. Copy the folder it makes to the server.

    The model is measured on data.validation and data.test, public texts that you name.

    Example: fedaipc federation sign job.toml --federation acme --out first-job
    """
    from fedaipc.cli.simulate import say_fit
    from fedaipc.config import load_settings
    from fedaipc.federation.federation import Federation
    from fedaipc.federation.jobs import sign_job
    from fedaipc.privacy.budget import best_filter, charged_epsilon, early_end, local_epsilon
    from fedaipc.protocol.job_folder import read_facts
    from fedaipc.protocol.round_terms import check_secagg
    from fedaipc.report.formatting import at_most
    from fedaipc.report.progress import WarmUpBar

    settings = load_settings(config, overrides or [])
    opened = Federation(federation)
    with WarmUpBar(make_console()) as bar:
        job = sign_job(opened, settings, out, bar.on_step)
    promise = "NOT PRIVATE"
    if job.privacy.private:
        kept = best_filter(job.schedule, job.rounds, settings.federation.lifetime_epsilon)
        epsilon = charged_epsilon(job.schedule, job.rounds, kept)
        promise = (
            f"epsilon {at_most(epsilon, 2)} at delta {job.privacy.delta:g} per {job.privacy.unit}"
        )
        promise += f" over {job.rounds} rounds"
        worst = charged_epsilon(job.schedule, job.max_attempts, kept)
    sealed = "NOT SEALED" if job.aggregation.kind == "plain" else "sealed"
    members = len(opened.members.active)
    say(f"signed {out}: run {job.run}, {members} PCs, {promise}, {sealed}")
    if job.aggregation.kind != "plain":
        asked = settings.federation.model_copy(update={"clients": members})
        bounds = check_secagg(settings.model_copy(update={"federation": asked}))
        say(
            f"no sum of fewer than {bounds.least} PCs is unmasked; {bounds.colluding} of "
            f"{bounds.count} may be on the server's side"
        )
    if job.privacy.private:
        say(
            f"at worst, if all {job.max_attempts} attempts that it allows are charged: epsilon "
            f"{at_most(worst, 2)}; owners whose policy.max_epsilon is lower refuse it, and so do "
            "PCs whose invite had another delta"
        )
        lifetime = settings.federation.lifetime_epsilon
        if line := early_end(job.schedule, job.rounds, lifetime):
            say(line)
        if job.schedule.local != job.schedule:
            local = local_epsilon([job.schedule.times(job.max_attempts)], job.privacy.delta)
            say(
                "distributed noise: against whoever reads one PC's own update, epsilon "
                f"{at_most(local, 2)} at worst; owners refuse it unless "
                "policy.allow_distributed_noise is true and policy.max_local_epsilon no lower"
            )
    facts = read_facts(out)
    for note in facts["notes"]:
        say(f"texts to measure on: {note}")
    say_fit(make_console(), facts)
    say(f"PCs need the base {job.model.base} to take part; copy {out} to the server")


def base(
    config: Config,
    out: Annotated[Path, typer.Option(help="folder for the base", show_default=False)],
    overrides: Overrides = None,
) -> None:
    """Warm the base up on public texts, as the config says, and copy it for the owners of PCs.

    They give it to `fedaipc client enroll --base`.

    Example: fedaipc federation base job.toml --out base
    """
    from fedaipc.config import load_settings
    from fedaipc.federation.jobs import hand_out_base
    from fedaipc.report.progress import WarmUpBar

    settings = load_settings(config, overrides or [])
    with WarmUpBar(make_console()) as bar:
        hand_out_base(settings, out, bar.on_step)
    say(f"made {out}: owners give it to `fedaipc client enroll --base`")
