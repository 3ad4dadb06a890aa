"""What a run was: its numbers, its plots, its model; and several runs beside each other."""

from __future__ import annotations

import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedaipc.api.data import as_frame
from fedaipc.errors import ConfigError, OutputError
from fedaipc.results import Results

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.figure import Figure

    from fedaipc.api.job import Job
    from fedaipc.results import RoundResult, Score


class Run:
    """A finished run, or the part of it that has finished. `folder` holds its files.

    `results` is all that it wrote (results.json); the properties are the numbers that people look
    for first.
    """

    def __init__(self, folder: Path, results: Results, keep: object = None) -> None:
        self.folder, self.results = folder, results
        self._keep = keep  # a temporary folder, kept as long as the Run object exists

    @property
    def test(self) -> Score | None:
        """How the model does on the test set, looked at once; None before the end."""
        return self.results.test

    @property
    def validation(self) -> Score | None:
        """How the model does on the validation set after the last round; None before the end."""
        return self.results.validation

    @property
    def epsilon(self) -> float | None:
        """The most that any client has spent over its life. None where nothing is promised, and
        where it is not known: real PCs keep their ledgers to themselves (see `planned_epsilon`).
        """
        from fedaipc.report.formatting import spent_epsilon

        return None if self.results.not_private else spent_epsilon(self.results)

    @property
    def planned_epsilon(self) -> float | None:
        """What all rounds of this job cost a client that takes part in each, by RDP."""
        planned = self.results.privacy.planned_epsilon
        return None if planned is None or self.results.not_private else planned.rdp

    @property
    def delta(self) -> float:
        """At which every epsilon of this run holds."""
        return self.results.privacy.delta

    @property
    def model_hash(self) -> str:
        """SHA-256 of the trained values, hex."""
        return self.results.model.vector_hash

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know of its texts and its base: what was left out, what fits badly; a line each.

        Holds labels and places, and no text.
        """
        from fedaipc.report.formatting import results_warnings

        return (*self.results.data.notes, *results_warnings(self.results))

    @property
    def history(self) -> History:
        """One row for each attempt."""
        return History(self.results.rounds)

    @cached_property
    def model(self) -> Model:
        """The trained model. Raises OutputError where the run has no model yet."""
        return Model(self.folder / "model")

    @property
    def job(self) -> Job:
        """The job that was run, with all of its settings. Raises ConfigError."""
        from fedaipc.api.job import Job

        return Job.from_toml(self.folder / "config.toml")

    def predict(self, texts: Sequence[str]) -> list[str]:
        """The likeliest label of each text. Raises OutputError, DataError."""
        return self.model.predict(texts)

    def plot(self, name: str = "accuracy") -> Figure:
        """A matplotlib figure: "accuracy", "epsilon" or "examples". Raises ConfigError."""
        from fedaipc.report.plots import figures

        found = figures(self.results)
        if name not in found:
            raise ConfigError(f"no plot {name}; this run has {', '.join(found) or 'none'}")
        return found[name]

    def report(self) -> Path:
        """Write plots/ and report.html into the run's folder; the page. Raises OutputError."""
        from fedaipc.report.html import REPORT_FILE, write_all

        write_all(self.results, self.folder)
        return self.folder / REPORT_FILE

    def __repr__(self) -> str:
        from fedaipc.report.formatting import headline

        return f"<Run {self.folder.resolve().name}: {headline(self.results)}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the headline, the numbers and the plots."""
        from fedaipc.report.html import summary_html

        return summary_html(self.results)


class History:
    """The attempts of a run, in order; each has round, epsilon, validation and more."""

    def __init__(self, rounds: Sequence[RoundResult]) -> None:
        self._rounds = tuple(rounds)

    def __len__(self) -> int:
        return len(self._rounds)

    def __iter__(self) -> Iterator[RoundResult]:
        return iter(self._rounds)

    def __getitem__(self, place: int) -> RoundResult:
        return self._rounds[place]

    def rows(self) -> list[dict[str, Any]]:
        """Plain values, with those of the validation set beside the round's."""
        rows = []
        for one in self._rounds:
            row = one.model_dump(exclude={"validation", "traffic", "phases"})
            score = one.validation
            row["validation_accuracy"] = None if score is None else score.accuracy
            row["validation_macro_f1"] = None if score is None else score.macro_f1
            rows.append(row)
        return rows

    def to_pandas(self) -> Any:
        """A data frame. Raises MissingExtra where pandas is not installed."""
        return as_frame(self.rows())

    def __repr__(self) -> str:
        return f"<History of {len(self)} attempts>"

    def _repr_html_(self) -> str:
        from fedaipc.report.table import Table

        rows = self.rows()
        return Table.of_records(rows).__html__() if rows else "no round yet"


class Model:
    """A model of transformers, or of peft, and its labels; its card says how to load it."""

    def __init__(self, folder: Path) -> None:
        """Raises OutputError where the run has no model."""
        from fedaipc.model.export import Exported

        self._folder = folder
        self._exported = Exported.load(folder)

    @property
    def labels(self) -> tuple[str, ...]:
        """The public label list, in the order of `probabilities`' columns."""
        return self._exported.labels

    @property
    def transformer(self) -> Any:
        """The model as transformers has it, on the CPU, to look into."""
        return self._exported.hf

    def predict(self, texts: Sequence[str]) -> list[str]:
        """The likeliest label of each text. Raises DataError on an empty text."""
        chances = self.probabilities(texts)
        return [self.labels[int(row.argmax())] for row in chances]

    def probabilities(self, texts: Sequence[str]) -> Any:
        """Probability of each label for each text, shape (texts, labels). Raises DataError on an
        empty text.
        """
        import numpy as np

        from fedaipc.errors import DataError

        if isinstance(texts, str) or not all(isinstance(t, str) and t.strip() for t in texts):
            raise DataError("give a list of texts, none of them empty")
        parts = [self._exported.probabilities(texts[i : i + 64]) for i in range(0, len(texts), 64)]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.labels)), np.float32)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Copy the model, its tokenizer and its card to the new `folder`. Raises OutputError."""
        target = Path(folder)
        try:
            shutil.copytree(self._folder, target)
        except FileExistsError:
            raise OutputError(f"{target}: is there already; give a new folder") from None
        except OSError as error:
            raise OutputError(f"{target}: cannot be written ({error.strerror})") from None
        return target


class Comparison:
    """Several runs, a row each."""

    def __init__(self, runs: Sequence[Results]) -> None:
        self._runs = tuple(runs)

    def rows(self) -> list[dict[str, Any]]:
        """One a run: method, clients, rounds, epsilon spent at delta, and test scores.

        `epsilon` and the scores are None where they are not known, or nothing is promised.
        """
        from fedaipc.report.formatting import done_rounds, pc_count, run_names, spent_epsilon

        return [
            {
                "run": name,
                "method": run.model.method,
                "clients": pc_count(run),
                "rounds": done_rounds(run),
                "epsilon": None if run.not_private else spent_epsilon(run),
                "delta": run.privacy.delta,
                "secure_aggregation": run.aggregation.kind == "secagg",
                "test_accuracy": None if run.test is None else run.test.accuracy,
                "standard_error": run.standard_error,
                "test_macro_f1": None if run.test is None else run.test.macro_f1,
                "seconds": run.seconds,
            }
            for name, run in zip(run_names(self._runs), self._runs, strict=True)
        ]

    def to_pandas(self) -> Any:
        """A data frame. Raises MissingExtra where pandas is not installed."""
        return as_frame(self.rows())

    def __repr__(self) -> str:
        from rich.console import Console

        from fedaipc.report import run_tables

        # Plain, also where Rich would take a notebook or an environment for a terminal of colours.
        console = Console(width=120, color_system=None, force_terminal=False, force_jupyter=False)
        with console.capture() as captured:
            console.print(run_tables.compare(self._runs))
        return captured.get()

    def _repr_html_(self) -> str:
        from fedaipc.report.table import Table

        return Table.of_records(self.rows()).__html__()


def load_run(folder: str | Path) -> Run:
    """The run that `folder` holds. Raises OutputError."""
    return Run(Path(folder), Results.load(Path(folder)))


def compare(runs: Sequence[Run]) -> Comparison:
    """Runs beside each other. Raises ConfigError if no run is given."""
    if not runs:
        raise ConfigError("give one run or more to compare")
    return Comparison([run.results for run in runs])
