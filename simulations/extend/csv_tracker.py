"""A tracker: one line of CSV for each attempt, in the run's folder."""

import csv
from pathlib import Path
from typing import Any

import fedaipc as fa


@fa.register_tracker("csv")
class CsvTracker:
    def __init__(self, run_folder: Path) -> None:
        self._file = (run_folder / "rounds.csv").open("w", newline="")
        self._table = csv.writer(self._file)
        self._table.writerow(("round", "clients", "epsilon", "accuracy"))

    def on_round(self, result: Any) -> None:
        score = result.validation
        accuracy = "" if score is None else score.accuracy
        self._table.writerow((result.round, result.arrived, result.epsilon, accuracy))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def main() -> fa.Run:
    data = fa.load_data("sms-spam", limit=600)
    job = fa.Job(rounds=3, output={"trackers": ["csv"]})
    return fa.simulate(job, data.partition(clients=4))


if __name__ == "__main__":
    run = main()
    print((run.folder / "rounds.csv").read_text())
