"""The 20-PC demo's wall time in pairs: what secure aggregation costs, and what shared noise does.

    python scripts/bench/demo_pairs.py [secagg|noise] [PAIRS]

Each run is the demo's own command in a process of its own, timed from its start to its end. The
order alternates, so that a slow moment of the machine meets both. `secagg` compares it with updates
that the server can read, `noise` distributed noise with local noise; each writes its own file in
results/. Requirement: at most 5 % more.
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
PAIRS: dict[str, dict[str, tuple[str, ...]]] = {
    "secagg": {"secagg": (), "plain": ("--insecure-plain-updates",)},
    "noise": {"distributed": ("--set", "privacy.noise=distributed"), "local": ()},
}
ALLOWED = 1.05


def main() -> None:
    what = sys.argv[1] if len(sys.argv) > 1 else "secagg"
    pairs = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    kinds = PAIRS[what]
    first, second = kinds
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    unmasking: list[float] = []
    # A first run downloads, and trains the base that it starts from; it is not counted.
    timed(kinds[second], "--set", "rounds=1")
    for pair in range(pairs):
        for kind in (first, second) if pair % 2 == 0 else (second, first):
            wall, phases = timed(kinds[kind])
            seconds[kind].append(wall)
            if kind == first:
                unmasking.append(phases)
            print(f"{kind}: {wall:.1f} s", flush=True)
    ratios = [a / b for a, b in zip(seconds[first], seconds[second], strict=True)]
    median = statistics.median(ratios)
    report = {
        "wall_seconds": {kind: [round(s, 1) for s in values] for kind, values in seconds.items()},
        "seconds_to_agree_and_unmask": [round(s, 2) for s in unmasking],
        "ratios": [round(ratio, 4) for ratio in ratios],
        "median_ratio": round(median, 4),
        "allowed": ALLOWED,
        "machine": facts(),
    }
    out = HERE / "results" / f"{what}_demo.json"
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))
    sys.exit(0 if median <= ALLOWED else 1)


def timed(options: tuple[str, ...], *more: str) -> tuple[float, float]:
    """Wall time of one demo, and what of it went into agreeing and unmasking."""
    command = [str(Path(sys.executable).parent / "fedaipc"), "simulate", str(DEMO)]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        subprocess.run(
            [*command, *options, *more, "--out", folder], stdout=subprocess.DEVNULL, check=True
        )
        wall = time.perf_counter() - started
        results = json.loads((Path(folder) / "demo" / "results.json").read_text())
    return wall, sum(one["phases"]["unmask"] for one in results["rounds"])


if __name__ == "__main__":
    main()
