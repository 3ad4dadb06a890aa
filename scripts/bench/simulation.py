"""Simulations of 100, 200, 1,000 and 10,000 clients: seconds of a round by phase, and memory.

    python scripts/bench/simulation.py            writes results/simulation.json beside this
    python scripts/bench/simulation.py --one 1000 3     one size, so many rounds; prints JSON

Each client trains a head by one private step of all its texts, with secure aggregation. The texts
are those of the main task, given out evenly: of 10,000 clients each has one or two. Each size has a
process of its own. Seconds per client are of the last rounds, if there are several; the first also
makes the keys of the epoch. `frozen` is how long the frozen layers took for all texts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from fedaipc.machine import facts

HERE = Path(__file__).resolve().parent
JOB = HERE.parent.parent / "simulations" / "no-warm-up.toml"
SIZES = {100: 3, 200: 3, 1000: 3, 10_000: 1}  # clients, and rounds


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulations of many clients.")
    parser.add_argument("--one", type=int, nargs=2, metavar=("CLIENTS", "ROUNDS"))
    parser.add_argument("--most", type=int, default=10_000, help="leave larger sizes out")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "simulation.json")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measured(*arguments.one)))
        return
    runs = []
    for clients, rounds in SIZES.items():
        if clients > arguments.most:
            continue
        done = subprocess.run(
            [sys.executable, __file__, "--one", str(clients), str(rounds)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        runs.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(runs[-1]), flush=True)
    report = {"job": JOB.name, "runs": runs, "machine": facts()}
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measured(clients: int, rounds: int) -> dict[str, Any]:
    """One simulation in this process."""
    from fedaipc.client import trainer
    from fedaipc.config import load_settings
    from fedaipc.coordinator.server_app import peak_memory
    from fedaipc.results import RoundResult
    from fedaipc.simulation import simulation

    found: list[RoundResult] = []
    frozen = [0.0]
    real = trainer.freeze_for_all

    def timed(*args: Any) -> None:
        started = time.monotonic()
        real(*args)
        frozen[0] = time.monotonic() - started

    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(simulation, "freeze_for_all", timed),
    ):
        settings = load_settings(
            JOB,
            [
                f"rounds={rounds}", f"federation.clients={clients}", f"output.folder='{folder}'",
                "data.partition.kind=iid", "training.local_steps=1", "privacy.sampling_rate=1.0",
                "evaluation.every=1000", "federation.lifetime_epsilon=1e3", "privacy.epsilon=100.0",
            ],
        )  # fmt: skip
        run = simulation.prepare(settings)
        prepared = time.monotonic() - started
        results = simulation.simulate(run, "in-process", found.append)
    last = found[1:] or found
    phases = {
        name: round(sum(one.phases[name] for one in last) / len(last), 2) for name in last[0].phases
    }
    mean = sum(one.seconds for one in last) / len(last)
    return {
        "clients": clients,
        "rounds": rounds,
        "texts": results.data.train,
        "arrived": [one.arrived for one in found],
        "seconds": {
            "prepare": round(prepared, 1),
            "frozen": round(frozen[0], 1),
            "first round": round(found[0].seconds, 2),
            "a round": round(mean, 2),
            "all": round(time.monotonic() - started, 1),
        },
        "phases": phases,
        "milliseconds_per_client": round(1000 * mean / clients, 2),
        "bytes_per_client": {
            "up": last[-1].bytes_up // clients,
            "down": last[-1].bytes_down // clients,
        },
        "peak_bytes": peak_memory(),
    }


if __name__ == "__main__":
    main()
