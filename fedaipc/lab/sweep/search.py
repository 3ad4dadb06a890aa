"""Choose settings by a tuner (Optuna's TPE) instead of a grid.

A trial is one point: a cell for each seed. What it maximises is the mean accuracy on the validation
set, never on the test set. Trials are kept in `search.log`; one that was cut off is continued.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedaipc.errors import ConfigError, OutputError
from fedaipc.extras import need
from fedaipc.lab.sweep.cells import MAX_CELLS, Cell, Search, Space, Sweep, Values, cells_of
from fedaipc.lab.sweep.table import Row, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fedaipc.config import Settings
    from fedaipc.lab.sweep.progress import Progress
    from fedaipc.lab.sweep.runner import Runner

_LOG_FILE, _RESULT, _FAILED = "search.log", "sweep.json", "failed"


def check_kind(folder: Path, *, search: bool) -> None:
    """Raise ConfigError where `out` holds a grid or list and this is a search, or vice versa."""
    if (folder / _RESULT).exists() and (folder / _LOG_FILE).exists() != search:
        held = "a search" if not search else "a grid or list"
        raise ConfigError(f"{folder}: holds {held}; give another --out")


def search(
    sweep: Sweep,
    wanted: Search,
    base: Path | Settings | None,
    folder: Path,
    runner: Runner,
    on_change: Callable[[Progress, Cell | None], None],
) -> tuple[list[Cell], Values | None]:
    """Run trials until there are so many; all cells, and the best trial's values.

    A trial of which a cell fails counts as failed, and the tuner learns nothing from it. Raises
    MissingExtra where Optuna is not installed, ConfigError where the space is another one than
    before.
    """
    optuna = _optuna()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror})") from None
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(folder / _LOG_FILE))
    )
    study = optuna.create_study(
        storage=storage, study_name=sweep.name, direction="maximize", load_if_exists=True
    )
    # With the same seed it would suggest what it has already tried.
    seed = wanted.seed * MAX_CELLS + len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=seed)
    states = optuna.trial.TrialState
    for trial in study.get_trials(deepcopy=False):
        if trial.state == states.RUNNING:
            study.tell(trial.number, state=states.FAIL)
            study.enqueue_trial(trial.params)
    cells: dict[str, Cell] = {}
    for trial in study.get_trials(deepcopy=False):
        if trial.state == states.COMPLETE or _FAILED in trial.user_attrs:
            cells |= {c.name: c for c in cells_of(sweep, base, [dict(trial.params)])}
    whole = _Whole(wanted.trials, len(sweep.seeds), on_change)
    while (ended := _ended(study, states)) < wanted.trials:
        trial = study.ask()
        try:
            values = {key: _suggest(trial, key, space) for key, space in wanted.space.items()}
        except ValueError as error:
            raise ConfigError(
                f"{folder / _LOG_FILE}: holds trials of another search ({error}); give another "
                "--out"
            ) from None
        own = cells_of(sweep, base, [values])
        whole.trial(ended)
        runner.run(own, whole.on_change)
        cells |= {cell.name: cell for cell in own}
        score = _score(rows_of(folder, own))
        if score is None:
            trial.set_user_attr(_FAILED, value=True)
            study.tell(trial, state=states.FAIL)
        else:
            study.tell(trial, score)
    done = [t for t in study.get_trials(deepcopy=False) if t.state == states.COMPLETE]
    best = dict(max(done, key=lambda t: t.value or 0.0).params) if done else None
    return list(cells.values()), best


class _Whole:
    """Reports for the whole search what a runner reports for one trial."""

    def __init__(
        self, trials: int, seeds: int, on_change: Callable[[Progress, Cell | None], None]
    ) -> None:
        self._total, self._seeds, self._tell = trials * seeds, seeds, on_change
        self._before, self._seconds, self._now = 0, list[float](), list[float]()
        self._told = False

    def trial(self, ended: int) -> None:
        """The next trial begins, after so many."""
        self._before = ended * self._seeds
        self._seconds += self._now
        self._now = []

    def on_change(self, progress: Progress, cell: Cell | None) -> None:
        if cell is None and self._told:
            return
        self._told = True
        self._now = list(progress.seconds)
        self._tell(
            replace(
                progress, total=self._total, done=self._before + progress.done,
                seconds=self._seconds + self._now,
            ),
            cell,
        )  # fmt: skip


def _score(rows: list[Row]) -> float | None:
    found = [row.validation_accuracy for row in rows]
    if any(score is None for score in found):
        return None
    return statistics.mean(score for score in found if score is not None)


def _ended(study: Any, states: Any) -> int:
    """Trials that have a score or failed; not those that were cut off, which are tried again."""
    trials = study.get_trials(deepcopy=False)
    return sum(t.state == states.COMPLETE or _FAILED in t.user_attrs for t in trials)


def _suggest(trial: Any, key: str, space: Space) -> Any:
    if space.choices:
        return trial.suggest_categorical(key, list(space.choices))
    if space.integer:
        return trial.suggest_int(key, int(space.low or 0), int(space.high or 0), log=space.log)
    return trial.suggest_float(key, space.low, space.high, log=space.log)


def _optuna() -> Any:
    need("[search]", "optuna")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
