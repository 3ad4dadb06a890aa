"""A small canary audit of a real run, for builds that are right and builds that are not."""

from __future__ import annotations

import tempfile
from pathlib import Path

from fedaipc.config import load_settings
from fedaipc.lab.audit.canary import CanaryAudit, canary_audit
from fedaipc.lab.audit.planted import plant, read_data, run_planted

EPSILON, CANARIES = 2.0, 40
JOB = (
    "federation.pcs=20", "federation.rounds=10", "data.limit=3000", "data.partition=iid",
    "model.keep_layers=1", "model.method=head", "model.max_length=32", "speed.threads=1",
    "privacy.delta=1e-5", "privacy.clip_norm=0.1", "privacy.sampling_rate=1.0",
    "training.local_steps=1", "training.learning_rate=2.0", "evaluation.every=1000",
)  # fmt: skip


def audited(epsilon: float | None = EPSILON, seed: int = 1) -> CanaryAudit:
    """20 real PCs, 40 canaries each, 10 rounds; about 20 seconds."""
    budget = (
        ("privacy.mode=none",)
        if epsilon is None
        else (f"privacy.epsilon={epsilon}", f"privacy.lifetime_epsilon={epsilon}")
    )
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        settings = load_settings(None, [*JOB, *budget, f"speed.cache_folder='{cache}'"])
        data = read_data(settings)
        pcs = plant(data, CANARIES, seed=seed)
        return canary_audit(run_planted(settings, data, pcs, Path(folder) / "runs"), cache)
