"""Run a job over many clients on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedaipc.api.data import advice_in_python
from fedaipc.api.job import Job
from fedaipc.api.run import Run
from fedaipc.api.scratch import Scratch

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedaipc.api.data import Data
    from fedaipc.config import Settings
    from fedaipc.results import Engine, RoundResult


def simulate(
    job: Job | None = None,
    data: Data | None = None,
    *,
    out: str | Path | None = None,
    engine: Engine = "in-process",
    pc_state: str | Path | None = None,
    test_seed: int | None = None,
    progress: bool = True,
    on_round: Callable[[RoundResult], None] | None = None,
) -> Run:
    """Train `job` on `data` (else on what the job names) and return the run.

    `out` is the new folder that keeps the run, as the command line would write it; if it is there
    already, the run goes to `out`-2 and so on (`run.folder`). Without it the run lives as long as
    the object. `pc_state` keeps the clients and what their ledgers have spent
    over several runs. `test_seed` makes noise repeatable and the result NOT PRIVATE. `on_round` is
    called after every attempt. Raises FedaipcError as the command line does, in one line each;
    BudgetExhausted where the clients' budgets end: the run so far is in `out`.
    """
    from rich.console import Console

    from fedaipc.doctor.saved import with_saved
    from fedaipc.machine import processor
    from fedaipc.report.html import write_all
    from fedaipc.report.progress import Display, WarmUpBar
    from fedaipc.report.tracking import Trackers, check_trackers
    from fedaipc.simulation import simulation

    settings: Settings = (job or Job()).with_data(data)
    scratch = Scratch() if out is None else None
    place = Path(str(out)) if scratch is None else scratch.folder / "run"
    output = {"folder": str(place.parent), "name": place.name}
    settings = settings.model_copy(update={"output": settings.output.model_copy(update=output)})
    check_trackers(settings.output.trackers)
    simulation.check_engine(engine, None if pc_state is None else Path(pc_state))
    console = Console(quiet=not progress)
    with advice_in_python(), WarmUpBar(console) as warm_up:
        run = simulation.prepare(
            with_saved(settings, processor()),
            pc_state=None if pc_state is None else Path(pc_state),
            test_seed=test_seed,
            on_warm_up=warm_up.on_step,
        )
    trackers = Trackers(run.settings.output.trackers, run.folder)
    with trackers, Display(console, run.settings) as display:

        def tell(result: RoundResult) -> None:
            display.on_round(result)
            trackers.on_round(result)
            if on_round is not None:
                on_round(result)

        results = simulation.simulate(run, engine, tell)
    if out is not None and run.settings.output.plots:
        write_all(results, run.folder)
    return Run(run.folder, results, keep=scratch)
