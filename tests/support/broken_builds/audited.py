"""A small canary audit of a real run, for builds that are right and builds that are not."""

from __future__ import annotations

import tempfile
from pathlib import Path

from fedaipc.config import load_settings
from fedaipc.lab.audit.canary import CanaryAudit, canary_audit
from fedaipc.lab.audit.canary_clients import plant, read_data, run_canaries

EPSILON, CANARIES = 2.0, 40
JOB = (
    "federation.clients=20", "rounds=10", "data.limit=3000", "data.partition.kind=iid",
    "model.keep_layers=1", "model.train.kind=head", "model.max_length=32", "speed.threads=1",
    "privacy.delta=1e-5", "privacy.clip_norm=0.1", "privacy.sampling_rate=1.0",
    "training.local_steps=1", "training.learning_rate=2.0", "evaluation.every=1000",
)  # fmt: skip


def audited(epsilon: float | None = EPSILON, seed: int = 1) -> CanaryAudit:
    """20 real PCs, 40 canaries each, 10 rounds; about 20 seconds."""
    budget = (
        ("privacy.kind=none",)
        if epsilon is None
        else (f"privacy.epsilon={epsilon}", f"federation.lifetime_epsilon={epsilon}")
    )
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        job = [word for word in JOB if epsilon is not None or "clip" not in word]
        settings = load_settings(None, [*job, *budget, f"speed.cache_folder='{cache}'"])
        data = read_data(settings)
        pcs = plant(data, CANARIES, seed=seed)
        return canary_audit(run_canaries(settings, data, pcs, Path(folder) / "runs"), cache)
