"""What secure aggregation costs the 20-PC demo: its wall time with and without it, in pairs.

    python scripts/bench/secagg_demo.py [PAIRS]      writes results/secagg_demo.json beside this

Each run is the demo's own command in a process of its own, timed from its start to its end. The
order alternates, so that a slow moment of the machine meets both. Requirement: at most 5 % more.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fedaipc.machine import facts

HERE = Path(__file__).resolve().parent
DEMO = HERE.parent.parent / "simulations" / "demo.toml"
RESULT = HERE / "results" / "secagg_demo.json"
ALLOWED = 1.05


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    seconds: dict[str, list[float]] = {"secagg": [], "plain": []}
    unmasking: list[float] = []
    # A first run downloads, and trains the base that it starts from; it is not counted.
    timed("plain", "--set", "rounds=1")
    for pair in range(pairs):
        order = ("secagg", "plain") if pair % 2 == 0 else ("plain", "secagg")
        for kind in order:
            wall, phases = timed(kind)
            seconds[kind].append(wall)
            if kind == "secagg":
                unmasking.append(phases)
            print(f"{kind}: {wall:.1f} s", flush=True)
    ratios = [a / b for a, b in zip(seconds["secagg"], seconds["plain"], strict=True)]
    report = {
        "wall_seconds": {kind: [round(s, 1) for s in values] for kind, values in seconds.items()},
        "seconds_to_agree_and_unmask": [round(s, 2) for s in unmasking],
        "ratios": [round(ratio, 4) for ratio in ratios],
        "median_ratio": round(statistics.median(ratios), 4),
        "allowed": ALLOWED,
        "machine": facts(),
    }
    RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))
    sys.exit(0 if report["median_ratio"] <= ALLOWED else 1)  # type: ignore[operator]


def timed(kind: str, *options: str) -> tuple[float, float]:
    """Wall time of one demo, and what of it went into agreeing and unmasking."""
    command = [str(Path(sys.executable).parent / "fedaipc"), "simulate", str(DEMO), *options]
    with tempfile.TemporaryDirectory() as folder:
        command += ["--out", folder] + (["--insecure-plain-updates"] if kind == "plain" else [])
        started = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        wall = time.perf_counter() - started
        results = json.loads((Path(folder) / "demo" / "results.json").read_text())
    return wall, sum(one["phases"]["unmask"] for one in results["rounds"])


if __name__ == "__main__":
    main()
