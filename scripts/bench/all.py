#!/usr/bin/env python3
"""All benchmarks, each in a process of its own, then the tables of the documents.

    .venv/bin/python scripts/bench/all.py            every benchmark as committed, about an hour
    .venv/bin/python scripts/bench/all.py --quick    what clipping and noise cost, a few minutes

Result files lie in results/ beside this; a quick run prints and leaves them as they are. Nothing
else should run on the machine meanwhile. Exit code 1 where a benchmark misses what is required of
it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
QUICK = (["clipping", "--quick"],)
FULL = (
    ["clipping"],
    ["secagg_cost"],
    ["secagg_round"],
    ["ring"],
    ["memory"],
    ["demo_pairs", "secagg"],
    ["demo_pairs", "noise"],
    ["simulation"],
    ["simulators"],
    ["fleet"],
    ["fleet_model"],
    ["accountants"],
)


def main() -> None:
    parser = argparse.ArgumentParser(description="All benchmarks.")
    parser.add_argument("--quick", action="store_true", help="fewer benchmarks and repeats")
    chosen = QUICK if parser.parse_args().quick else FULL
    missed = []
    for name, *options in chosen:
        print(f"== {name}", flush=True)
        started = time.monotonic()
        done = subprocess.run([sys.executable, str(HERE / f"{name}.py"), *options], check=False)
        if done.returncode:
            missed.append(name)
        print(f"== {name}: {time.monotonic() - started:.0f} s", flush=True)
    if chosen is FULL:
        subprocess.run([sys.executable, str(HERE.parent / "readme_table.py")], check=True)
    if missed:
        sys.exit(f"missed what is required: {', '.join(missed)}")


if __name__ == "__main__":
    main()
