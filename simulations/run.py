"""Run the claims of the README and write simulations/results/NAME.json.

    python simulations/run.py                 all claims, seeds 1 2 3
    python simulations/run.py private-8       one claim
    python simulations/run.py --seeds 1 2     other seeds

Each claim is one config in this folder. A seed decides which PC holds which record, so the
deviation over seeds says what that and the noise do, which always comes from the operating system;
training in one place only draws other batches. The test set is the same in all runs and was used
for no choice: settings were tuned on the validation set (docs/explanation/recipe.md).
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fedaipc.config import Settings, load_settings
from fedaipc.results import Results
from fedaipc.simulation.simulation import prepare, simulate

HERE = Path(__file__).parent
OPEN = ("privacy.kind=none",)
EPSILON_3 = ("privacy.epsilon=3.0", "federation.lifetime_epsilon=3.0", "training.learning_rate=1.0")
EPSILON_1 = ("privacy.epsilon=1.0", "federation.lifetime_epsilon=1.0", "training.learning_rate=0.5")
IID = ("data.partition.kind=iid",)
MIXED = "20 PCs, mixed texts"
COLD = "20 PCs, base as published"
CLAIMS: dict[str, tuple[str, str, tuple[str, ...]]] = {  # name: what it is, config, changes
    # The base as it is before any PC is asked: a step too short to move it.
    "public-only": (
        "public reviews alone, no PC asked",
        "demo",
        (*OPEN, "rounds=1", "training.learning_rate=1e-9"),
    ),
    "alone-by-domain": ("each PC alone, not private, one domain each", "alone-by-domain", ()),
    "alone-iid": ("each PC alone, not private, mixed texts", "alone-iid", ()),
    "central": ("all texts in one place, not private", "central", ()),
    "federated": ("20 PCs, not private", "federated", ()),
    "private-8": ("20 PCs, epsilon 8", "demo", ()),
    "private-3": ("20 PCs, epsilon 3", "demo", EPSILON_3),
    "private-1": ("20 PCs, epsilon 1", "demo", EPSILON_1),
    "federated-iid": (f"{MIXED}, not private", "federated", IID),
    "private-8-iid": (f"{MIXED}, epsilon 8", "demo", IID),
    "private-3-iid": (f"{MIXED}, epsilon 3", "demo", (*EPSILON_3, *IID)),
    "private-1-iid": (f"{MIXED}, epsilon 1", "demo", (*EPSILON_1, *IID)),
    "private-8-bfloat16": (
        "20 PCs, epsilon 8, passes in bfloat16",
        "demo",
        ('speed.precision="bfloat16"',),
    ),
    "cold-open": (
        f"{COLD}, not private",
        "no-warm-up",
        (*OPEN, "training.learning_rate=0.1", "rounds=100"),
    ),
    "cold-8": (f"{COLD}, epsilon 8", "no-warm-up", ()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("claims", nargs="*", metavar="CLAIM", help=", ".join(CLAIMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    chosen = parser.parse_args()
    for claim in chosen.claims:
        if claim not in CLAIMS:
            parser.error(f"no claim {claim}; there are {', '.join(CLAIMS)}")
    with tempfile.TemporaryDirectory(prefix="fedaipc-") as scratch:
        for claim in chosen.claims or CLAIMS:
            runs = [_run(claim, seed, Path(scratch)) for seed in chosen.seeds]
            _write(claim, runs)


def _run(claim: str, seed: int, scratch: Path) -> dict[str, Any]:
    started = time.monotonic()
    over = [f"data.seed={seed}", f'output.folder="{scratch / "runs"}"', "output.plots=false",
            f'speed.cache_folder="{scratch / "cache"}"', "output.keep_pc_state=false",
            "evaluation.every=100000", "speed.threads=1"]  # fmt: skip
    _, config, changes = CLAIMS[claim]
    settings = load_settings(HERE / f"{config}.toml", [*changes, *over])
    if claim.startswith("alone"):
        scores = [_accuracies(_once(settings, [pc])) for pc in range(settings.federation.clients)]
        run = {
            "test_accuracy": statistics.mean(s["test_accuracy"] for s in scores),
            "validation_accuracy": statistics.mean(s["validation_accuracy"] for s in scores),
            "test_macro_f1": statistics.mean(s["test_macro_f1"] for s in scores),
            "pcs": scores,
        }
    else:
        results = _once(settings, None)
        run = {
            **_accuracies(results),
            "epsilon_charged": max((pc.epsilon for pc in results.pcs if pc.epsilon), default=None),
            "privacy": results.privacy.model_dump(mode="json"),
            "trainable_parameters": results.model.trainable_parameters,
            "bytes_up_per_pc_and_round": results.rounds[0].bytes_up // results.rounds[0].arrived,
        }
    run |= {"seed": seed, "seconds": round(time.monotonic() - started, 1)}
    print(f"{claim}, seed {seed}: test {run['test_accuracy']:.4f}", flush=True)
    return run


def _once(settings: Settings, only: list[int] | None) -> Results:
    if only is not None:
        federation = settings.federation.model_copy(update={"only": tuple(only)})
        settings = settings.model_copy(update={"federation": federation})
    run = prepare(settings)
    results = simulate(run, "in-process", lambda _: None)
    shutil.rmtree(run.folder)
    return results


def _accuracies(results: Results) -> dict[str, Any]:
    if results.test is None or results.validation is None:
        sys.exit("the run did not finish")
    return {
        "test_accuracy": results.test.accuracy,
        "test_macro_f1": results.test.macro_f1,
        "validation_accuracy": results.validation.accuracy,
        "not_private": list(results.not_private),
    }


def _write(claim: str, runs: list[dict[str, Any]]) -> None:
    accuracies = [run["test_accuracy"] for run in runs]
    summary = {
        "claim": claim,
        "what": CLAIMS[claim][0],
        "test_accuracy_mean": statistics.mean(accuracies),
        "test_accuracy_deviation": statistics.stdev(accuracies) if len(runs) > 1 else None,
        "test_macro_f1_mean": statistics.mean(run["test_macro_f1"] for run in runs),
        "runs": runs,
    }
    path = HERE / "results" / f"{claim}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}", flush=True)


if __name__ == "__main__":
    main()
