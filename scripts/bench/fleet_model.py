"""What `fedaipc plan fleet` predicts of a real fleet on this machine, beside what it then takes.

    python scripts/bench/fleet_model.py      writes results/fleet_model.json beside this

Real processes on loopback with TLS and sealing run two jobs: a head, whose rounds are mostly
messages, and LoRA, whose rounds are mostly training. The prediction gets no number of these
rounds: it has the exchange of one small message with PCs that answer at once, and texts per second
from doctor's own probe, in as many processes at once as there are PCs, each with one thread and at
a PC's low priority: so they share the cores as PCs do.

Compared are the median seconds of a round after the first, without the evaluation, and bytes of a
PC. In the first round PCs load the model, which is not predicted. Requirement: both within 25 %.

Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from fedaipc.config import load_settings  # noqa: E402
from fedaipc.data.prepare import prepare_simulation  # noqa: E402
from fedaipc.doctor.forecast import read_prices  # noqa: E402
from fedaipc.doctor.probe import probe  # noqa: E402
from fedaipc.machine import facts  # noqa: E402
from fedaipc.planning.fleet import fleet_from  # noqa: E402
from fedaipc.planning.forecast import PHASES, plan_fleet  # noqa: E402
from fedaipc.planning.load import make_pcs  # noqa: E402
from scripts.bench.fleet import Fleet, computed, exchanges  # noqa: E402

if TYPE_CHECKING:
    from fedaipc.config import Settings
    from fedaipc.planning.forecast import FleetForecast
    from fedaipc.results import Results

RESULT = HERE / "results" / "fleet_model.json"
ALLOWED = 0.25
JOBS: dict[str, dict[str, object]] = {
    "head": {"model__train__kind": "head", "privacy__sampling_rate": 1.0},
    "lora": {"model__train__kind": "lora", "model__train__layers": 6,
             "privacy__sampling_rate": 0.25},
}  # fmt: skip
# Loopback: what a message takes there is measured whole, as `exchange_seconds`.
NEAR = {"down_mbit": 1e5, "up_mbit": 1e5, "latency_ms": 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description="The fleet model beside a real fleet.")
    parser.add_argument("jobs", nargs="*", help=f"of {', '.join(JOBS)}; all by default")
    parser.add_argument("--pcs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--dry", action="store_true", help="only print: the machine is busy")
    chosen = parser.parse_args()
    jobs = chosen.jobs or list(JOBS)
    if set(jobs) - set(JOBS):
        parser.error(f"jobs are {', '.join(JOBS)}")
    report: dict[str, Any] = {"pcs": chosen.pcs, "rounds": chosen.rounds}
    with tempfile.TemporaryDirectory(prefix="fedaipc-bench-") as folder:
        fleet = Fleet(Path(folder), chosen.pcs)
        with fleet.serving([sys.executable, str(HERE / "fleet.py"), "--client"]):
            report["exchange_seconds"] = round(statistics.median(exchanges(fleet)[1:]), 3)
        with fleet.serving():
            for name in jobs:
                report[name] = compared(fleet, name, report["exchange_seconds"], chosen.rounds)
                print(json.dumps({name: report[name]}, indent=2), flush=True)
    report["allowed"] = ALLOWED
    report["load_average"] = [round(one, 2) for one in os.getloadavg()]
    report["machine"] = facts()
    if not chosen.dry:
        RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    ratios = [ratio for name in jobs for ratio in report[name]["predicted_by_measured"].values()]
    print(f"predicted / measured: {min(ratios):.2f} to {max(ratios):.2f}")
    sys.exit(0 if all(abs(ratio - 1) <= ALLOWED for ratio in ratios) else 1)


def compared(fleet: Fleet, name: str, exchange_seconds: float, rounds: int) -> dict[str, Any]:
    """The prediction first: it knows nothing of the run."""
    changes = {**JOBS[name], "rounds": rounds}
    words = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    job = load_settings(fleet.job, words)
    data = prepare_simulation(job.data, fleet.pcs)
    with multiprocessing.get_context("spawn").Pool(fleet.pcs) as pool:
        speeds = pool.map(measured_speed, [job] * fleet.pcs)
    results = fleet.train(name, **changes)
    described = {
        "texts": round(sum(map(len, data.parts)) / fleet.pcs),
        "parameters": results.model.trainable_parameters,
        "server": {
            "down_mbit": 1e5, "up_mbit": 1e5, "exchange_seconds": exchange_seconds,
            "message_seconds": 0.0,
        },
        "classes": [
            {
                "name": "here", "share": 1.0, "texts_per_second": statistics.median(speeds), **NEAR,
            }
        ],
    }  # fmt: skip
    found = predicted(job, described, fleet.pcs)
    made, _ = make_pcs(job, fleet_from(described), HERE, 1.0)
    measured = _measured(results)
    ours = {
        "round_seconds": found.round_seconds.median if found.round_seconds else None,
        "bytes_up": found.bytes_up,
        "bytes_down": found.bytes_down,
    }
    ratios = {key: round(float(value or 0) / measured[key], 3) for key, value in ours.items()}
    return {
        "texts_per_second": [round(speed, 1) for speed in speeds],
        "predicted": {key: round(float(value or 0), 3) for key, value in ours.items()},
        "measured": measured,
        "phases_predicted": {key: round(value, 3) for key, value in found.phases.items()},
        "phases_measured": _phases(results),
        # Where a prediction is wrong: in a PC's own work, or in what lies between.
        "slowest_pc_seconds": {
            "predicted": round(float(made.train[0]), 3),
            "measured": _slowest(fleet, rounds),
        },
        "first_round_measured": round(results.rounds[0].seconds, 2),
        "predicted_by_measured": ratios,
    }


def measured_speed(job: Settings) -> float:
    """Texts per second of private training, as a PC of the bench would measure it."""
    os.nice(10)
    data = prepare_simulation(job.data, job.federation.clients)
    asked = job.speed.model_copy(update={"device": "cpu", "threads": 1, "micro_batch": 4})
    return probe(job.model_copy(update={"speed": asked}), data.train.texts)[0].private


def predicted(job: Settings, described: dict[str, Any], pcs: int) -> FleetForecast:
    """Of the rounds after the first: PCs hold their frozen layers' output already."""
    plan = plan_fleet(
        job,
        fleet_from(described),
        read_prices(None),
        parameters=lambda: 0,
        folder=HERE,
        clients=[pcs],
        repeats=5,
    )
    return plan.fleets[0]


def _measured(results: Results) -> dict[str, float]:
    """Medians over the rounds after the first; bytes of one PC."""
    later = [one for one in results.rounds[1:] if not one.void]
    return {
        "round_seconds": round(sum(_phases(results).values()), 3),
        "bytes_up": statistics.median(one.bytes_up / one.asked for one in later),
        "bytes_down": statistics.median(one.bytes_down / one.asked for one in later),
    }


def _slowest(fleet: Fleet, rounds: int) -> float:
    """Median over the rounds of the last job, but for its first: the slowest PC's own seconds."""
    took = [computed(fleet, number)["train.mask"][-rounds:][1:] for number in range(fleet.pcs)]
    slowest: list[float] = [max(one) for one in zip(*took, strict=True)]
    return round(float(statistics.median(slowest)), 3)


def _phases(results: Results) -> dict[str, float]:
    later = [one for one in results.rounds[1:] if not one.void]
    return {name: round(statistics.median(one.phases[name] for one in later), 3) for name in PHASES}


if __name__ == "__main__":
    main()
