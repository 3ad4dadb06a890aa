"""What rounding to a ring of 32, 24 or 16 bits costs the demo's model.

    python scripts/bench/ring.py              writes results/ring.json beside this

The demo's private job with one test seed, so that all three runs have the same samples and the same
noise and differ in nothing but the rounding of updates. Also what one PC's rounding is beside the
noise that it adds, in each value of its weighted update.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import numpy as np

from fedaipc.config import DPSGD, load_settings
from fedaipc.coordinator.checkpoint import Checkpoint
from fedaipc.machine import facts
from fedaipc.protocol.job import Job
from fedaipc.secagg.encoding import Encoding
from fedaipc.simulation.simulation import prepare, simulate

HERE = Path(__file__).resolve().parent
DEMO = HERE.parent.parent / "simulations" / "demo.toml"
RESULT = HERE / "results" / "ring.json"
BITS = (32, 24, 16)


def main() -> None:
    rows, vectors = [], {}
    for bits in BITS:
        with tempfile.TemporaryDirectory() as folder:
            changes = [
                f"aggregation.bits={bits}", f"output.folder='{folder}'", "output.plots=false",
                "evaluation.every=1000", "speed.threads=1",
            ]  # fmt: skip
            run = prepare(load_settings(DEMO, changes), test_seed=1)
            results = simulate(run, "in-process", lambda _: None)
            checkpoint = Checkpoint.load(run.folder, results.model.layout_hash)
            job = Job.parse((run.folder / "job.json").read_text())
        privacy = job.privacy
        if checkpoint is None or results.test is None or not isinstance(privacy, DPSGD):
            raise SystemExit("the run did not finish")
        vectors[bits] = checkpoint.vector
        encoding = Encoding(bits=bits, count=job.cohort, bound=results.aggregation.bound)
        # Of the noise of k steps, times the PC's weight: rate sigma C sqrt(k) / q.
        training = job.training
        noise = (
            training.learning_rate * privacy.multiplier * privacy.clip_norm / privacy.sampling_rate
        )
        noise *= math.sqrt(training.local_steps)
        distance = np.linalg.norm(checkpoint.vector - vectors[32])
        rows.append(
            {
                "bits": bits,
                "test_accuracy": results.test.accuracy,
                "distance_to_32_bits": float(distance / np.linalg.norm(vectors[32])),
                "rounding_over_noise": 0.5 / encoding.scale / noise,
                "bytes_per_value": encoding.width,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    RESULT.write_text(
        json.dumps({"rings": rows, "machine": facts()}, indent=2) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
