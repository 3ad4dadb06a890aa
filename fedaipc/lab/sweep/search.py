"""Choose settings by a tuner (Optuna's TPE) instead of a grid.

A trial is one point: a cell for each seed. What it maximises is the mean accuracy on the validation
set, never on the test set. Trials are kept in `search.log`; one that was cut off is continued.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from fedaipc.config import Settings
from fedaipc.errors import ConfigError
from fedaipc.extras import need
from fedaipc.lab.sweep.cells import MAX_CELLS, Cell, Search, Space, Sweep, Values, cells_of
from fedaipc.lab.sweep.progress import Progress
from fedaipc.lab.sweep.runner import Runner
from fedaipc.lab.sweep.table import rows_of

_LOG_FILE, _RESULT, _FAILED = "search.log", "sweep.json", "failed"


def check_kind(folder: Path, *, search: bool) -> None:
    """Raise ConfigError where `out` holds a grid or list and this is a search, or vice versa.

    Raises MissingExtra where a search has no Optuna.
    """
    if (folder / _RESULT).exists() and (folder / _LOG_FILE).exists() != search:
        held = "a search" if not search else "a grid or list"
        raise ConfigError(f"{folder}: holds {held}; give another --out")
    if search:
        need("[search]", "optuna")


def search(
    sweep: Sweep, wanted: Search, base: Path | Settings | None, runner: Runner
) -> tuple[list[Cell], Values | None]:
    """Run trials until there are so many; all cells, and the best trial's values.

    A trial of which a cell fails counts as failed, and the tuner learns nothing from it. Raises
    ConfigError where the space is another one than before.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    log = runner.folder / _LOG_FILE
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(log))),
        study_name=sweep.name, direction="maximize", load_if_exists=True,
    )  # fmt: skip
    # With the same seed it would suggest what it has already tried.
    seed = wanted.seed * MAX_CELLS + len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=seed)
    for cut_off in study.get_trials(states=[TrialState.RUNNING]):
        study.tell(cut_off.number, state=TrialState.FAIL)
        study.enqueue_trial(cut_off.params)
    seeds = len(sweep.seeds)
    progress = Progress(wanted.trials * seeds, done=len(_ended(study)) * seeds)
    while len(_ended(study)) < wanted.trials:
        try:
            trial = study.ask({key: _among(space) for key, space in wanted.space.items()})
        except ValueError as error:
            raise ConfigError(
                f"{log}: holds trials of another search ({error}); give another --out"
            ) from None
        cells = cells_of(sweep, base, [dict(trial.params)])
        runner.run(cells, progress)
        rows = rows_of(runner.folder, cells)
        known = [row.validation_accuracy for row in rows if row.validation_accuracy is not None]
        if len(known) < len(rows):
            trial.set_user_attr(_FAILED, value=True)
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, statistics.mean(known))
    ended = _ended(study)
    scored = any(trial.state == TrialState.COMPLETE for trial in ended)
    every = {c.name: c for t in ended for c in cells_of(sweep, base, [dict(t.params)])}
    return list(every.values()), dict(study.best_params) if scored else None


def _ended(study: Any) -> list[Any]:
    """Trials that have a score or failed; not those that were cut off, which are tried again."""
    trials = study.get_trials(deepcopy=False)
    return [t for t in trials if t.state.name == "COMPLETE" or _FAILED in t.user_attrs]


def _among(space: Space) -> Any:
    from optuna import distributions

    if space.choices:
        return distributions.CategoricalDistribution(space.choices)
    if space.integer:
        low, high = int(space.low or 0), int(space.high or 0)
        return distributions.IntDistribution(low, high, log=space.log)
    return distributions.FloatDistribution(space.low or 0.0, space.high or 0.0, log=space.log)
