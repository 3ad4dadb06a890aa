"""Peak memory of a simulation with 20 and with 200 PCs over the same texts.

    python scripts/bench/memory.py            both jobs; writes results/memory.json beside this

Each run has a process of its own; its peak is the largest resident memory that the system saw of
it, from the import of the libraries to the exported model. Requirement: 200 PCs take at most 10 %
more than 20, because they share one copy of the frozen base.
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

from fedaipc.machine import facts

HERE = Path(__file__).resolve().parent
HEAD = HERE.parent.parent / "simulations" / "no-warm-up.toml"
COUNTS = (20, 200)
ALLOWED = 1.10
JOBS: dict[str, tuple[str, ...]] = {
    "head": ("rounds=2",),
    "bitfit": ("rounds=2", "model.train.kind=bitfit", "data.limit=3000"),
    # With 20 PCs each sample is ten times larger, which alone takes memory. Here no batch is
    # larger than 4, so what is left is what a PC costs by being there.
    "small batches": (
        "rounds=2",
        "data.limit=3000",
        "speed.micro_batch=4",
        "evaluation.batch=4",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory with 20 and with 200 PCs.")
    parser.add_argument("jobs", nargs="*", help=f"of {', '.join(JOBS)}; all by default")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "memory.json")
    parser.add_argument("--one", nargs=3, metavar=("JOB", "PCS", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        job, pcs, folder = arguments.one
        print(json.dumps(measured(job, int(pcs), Path(folder))))
        return
    found = {job: compared(job) for job in arguments.jobs or JOBS}
    report = {
        "allowed_ratio": ALLOWED,
        "machine": facts(),
        "jobs": found,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for job, numbers in found.items():
        print(f"{job}: 200 PCs take {numbers['ratio']:.3f} times the memory of 20")
    if any(numbers["ratio"] > ALLOWED for numbers in found.values()):
        sys.exit(1)


def compared(job: str) -> dict[str, Any]:
    """One fresh process per number of PCs, and the ratio of their peaks."""
    runs = []
    for pcs in COUNTS:
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, __file__, "--one", job, str(pcs), folder],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
        runs.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{job}, {pcs} PCs: {runs[-1]['peak_bytes'] / 2**20:.0f} MiB", flush=True)
    return {
        "settings": list(JOBS[job]),
        "runs": runs,
        "ratio": round(runs[1]["peak_bytes"] / runs[0]["peak_bytes"], 4),
    }


def measured(job: str, pcs: int, folder: Path) -> dict[str, Any]:
    """Run the job in this process; its peak so far, and how much of that is left at the end."""
    from fedaipc.config import load_settings
    from fedaipc.coordinator.server_app import peak_memory
    from fedaipc.simulation.simulation import prepare, simulate

    started = time.monotonic()
    settings = load_settings(
        HEAD, [*JOBS[job], f"federation.clients={pcs}", f"output.folder='{folder}'"]
    )
    run = prepare(settings)
    prepared = peak_memory()
    results = simulate(run, "in-process", lambda _: None)
    return {
        "pcs": pcs,
        "records": results.data.train,
        "peak_bytes": peak_memory(),
        "peak_bytes_when_prepared": prepared,
        "seconds": round(time.monotonic() - started, 1),
    }


if __name__ == "__main__":
    main()
