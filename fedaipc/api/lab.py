"""`fedaipc.privacy` for researchers: plan a budget, sweep, attack, bound epsilon from below."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedaipc.api.scratch import Scratch
from fedaipc.config import DPSGD
from fedaipc.errors import ConfigError, PrivacyError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fedaipc.api.data import Data
    from fedaipc.api.job import Job
    from fedaipc.lab.audit.bound import Bound
    from fedaipc.lab.audit.report import AuditReport
    from fedaipc.lab.planner import Plan, Unknown
    from fedaipc.lab.sweep.run import SweepResult

_ROUNDS = 30


def plan(
    *,
    find: Unknown | None = None,
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
    delta: float = 1e-5,
    records: int = 1000,
    batch: float | None = None,
    sampling_rate: float | None = None,
    rounds: int | None = None,
    steps: int = 1,
) -> Plan:
    """One unknown of a schedule from the others: "noise", "epsilon", "rounds" or "rate".

    Without `find` it is the noise where epsilon is given, and epsilon where the noise is. For
    rounds or the rate give both. `records` are a client's; its public size class counts. `batch` is
    how many a step draws on average, in place of `sampling_rate` (1 without both). `rounds` are 30
    where nobody says, and `steps` are those of one round. Met by RDP, as in a job.
    Raises ConfigError, or PrivacyError where nothing meets it.
    """
    from fedaipc.lab.planner import NEEDS, Plan, solve
    from fedaipc.privacy.budget import size_class

    if find is None and (epsilon is None) == (noise_multiplier is None):
        raise ConfigError("give one of epsilon and noise_multiplier, or say what to find")
    unknown: Unknown = find or ("epsilon" if epsilon is None else "noise")
    if unknown not in NEEDS:
        raise ConfigError(f"find = {unknown!r}: give one of {', '.join(NEEDS)}")
    if batch is not None and sampling_rate is not None:
        raise ConfigError("give one of batch and sampling_rate, not both")
    given = {
        "epsilon": epsilon, "noise": noise_multiplier, "rounds": rounds,
        "rate": sampling_rate if batch is None else batch,
    }  # fmt: skip
    if given[unknown] is not None:
        raise ConfigError(f"{unknown} is what is to be found: leave it out, or find another one")
    for needed in NEEDS[unknown]:
        if given[needed] is None:
            raise ConfigError(f"to find the {unknown}, give the {needed} as well")
    if epsilon is not None:
        DPSGD(epsilon=epsilon)  # raises where no job can have it
    public = size_class(records)
    rate = sampling_rate if batch is None else batch / public
    mechanism = DPSGD(
        noise_multiplier=1.0 if noise_multiplier is None else noise_multiplier,
        sampling_rate=1.0 if rate is None else rate,
        delta=delta,
    )
    if (rounds is not None and rounds < 1) or steps < 1:
        raise ConfigError("rounds and steps are 1 at least")
    asked = Plan(
        epsilon=epsilon or 0.0,
        mechanism=mechanism,
        steps=steps,
        rounds=_ROUNDS if rounds is None else rounds,
        records=public,
    )
    return solve(unknown, asked)


def sweep(
    job: Job | None = None,
    data: Data | None = None,
    *,
    grid: Mapping[str, Sequence[Any]] | None = None,
    cells: Sequence[Mapping[str, Any]] = (),
    search: Mapping[str, Any] | None = None,
    rules: Sequence[Mapping[str, Any]] = (),
    seeds: Sequence[int] = (1, 2, 3),
    name: str = "sweep",
    out: str | Path | None = None,
    parallel: int | None = None,
    progress: bool = True,
) -> SweepResult:
    """Run `job` with other settings over several seeds, and compare: `fedaipc privacy sweep`.

    Give one of `grid`, {"privacy.epsilon": [1, 8, inf]}; `cells`, a list of such settings; and
    `search`, {"trials": 20, "space": {"training.learning_rate": {"low": 0.1, "high": 2}}}. Where a
    cell has all the settings of a rule's `when`, it gets those of its `set`. Each cell is a process
    of its own, which knows what is installed but nothing that a notebook has registered; `parallel`
    run at a time, otherwise as many as there are cores. The same call with the same `out` continues
    where it was stopped, and runs nothing twice; without `out` the runs live as long as the result.
    Other cells go on where one fails. Raises FedaipcError.
    """
    from rich.console import Console

    from fedaipc.api.job import Job
    from fedaipc.lab.sweep.cells import sweep_from
    from fedaipc.lab.sweep.run import run_sweep

    wanted = sweep_from(
        {
            "name": name, "seeds": seeds, "grid": dict(grid or {}), "cells": cells,
            "rules": rules, "search": search,
        }
    )  # fmt: skip
    scratch = Scratch() if out is None else None
    folder = Path(str(out)) if scratch is None else scratch.folder / "sweep"
    found = run_sweep(
        wanted, (job or Job()).with_data(data), folder, Console(quiet=not progress),
        parallel=parallel, plain_updates=True,
    )  # fmt: skip
    return replace(found, keep=(scratch, data))


def audit(
    job: Job,
    data: Data | None = None,
    *,
    epsilons: Sequence[float | None] | None = None,
    canaries: int = 400,
    shadow_runs: int = 0,
    inversion: bool = False,
) -> AuditReport:
    """Attack real runs of `job`: what the attacks achieve, epsilon at least, beside the promise.

    `canaries` are planted over all clients; `epsilons` are the budgets that are tried (None: no
    privacy), otherwise the job's own. `shadow_runs` adds membership inference, `inversion` reads
    words from gradients. Takes minutes to hours. Raises FedaipcError.
    """
    from fedaipc.lab.audit.report import run_audit

    settings = job.with_data(data)
    if epsilons is None:
        own = settings.privacy
        if not isinstance(own, DPSGD) or own.epsilon is None:
            raise PrivacyError("name the budgets to attack in epsilons: the job has no target")
        epsilons = [own.epsilon]
    with tempfile.TemporaryDirectory(prefix="fedaipc-") as folder:
        return run_audit(
            settings, list(epsilons), Path(folder), canaries=canaries, runs=shadow_runs,
            inversion=inversion,
        )  # fmt: skip


def load_audit(path: str | Path) -> AuditReport:
    """The audit that `fedaipc privacy audit` left, by its folder or audit.json.

    Raises OutputError.
    """
    from fedaipc.lab.audit.report import load_report

    place = Path(path)
    return load_report(place / "audit.json" if place.is_dir() else place)


def lower_bound(
    scores_in: Any, scores_out: Any, *, delta: float, confidence: float = 0.95
) -> Bound:
    """The epsilon that an attack has reached, from its scores alone, of any system.

    `scores_in` and `scores_out` hold one number for each canary that was in the data, or not: by
    independent fair coins, and with higher scores where the attack believes "in". Any shape; they
    may differ in length. True epsilon at `delta` is at least `lower` with probability
    `confidence` over the coins. Steinke, Nasr and Jagielski (NeurIPS 2023), theorem 5.2. Raises
    PrivacyError where there are fewer than two scores.
    """
    from fedaipc.lab.audit.bound import audit_bound

    inside, outside = np.asarray(scores_in, float).ravel(), np.asarray(scores_out, float).ravel()
    scores = np.concatenate([inside, outside])
    included = np.arange(len(scores)) < len(inside)
    return audit_bound(scores, included, delta, confidence)
