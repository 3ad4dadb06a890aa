"""When noise drowns the signal: the ratio against real noise, and against committed runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedaipc.config import Settings, load_settings
from fedaipc.privacy.budget import round_schedule
from fedaipc.privacy.signal import DROWNED, noise_ratio, noise_warning

DEFAULTS = Path(__file__).parents[2] / "simulations" / "results" / "defaults"
TASKS = sorted(DEFAULTS.glob("*.json"))


def settings(*words: str) -> Settings:
    return load_settings(None, words)


@pytest.mark.parametrize("weighting", ["size-class", "equal"])
@pytest.mark.parametrize("sizes", [(32,) * 6, (32, 64, 512)])
def test_the_ratio_is_that_of_simulated_noise(weighting: str, sizes: tuple[int, ...]) -> None:
    job = settings(
        f"federation.weighting={weighting}", "privacy.sampling_rate=0.5", "privacy.clip_norm=3",
        "training.local_steps=2", "rounds=5", "privacy.noise_multiplier=4",
    )  # fmt: skip
    plan, values, random = round_schedule(job), 400, np.random.default_rng(1)
    weights = sizes if weighting == "size-class" else (1,) * len(sizes)
    noise, signal = np.zeros(values), 0.0
    for _ in range(5 * 2):
        for weight, size in zip(weights, sizes, strict=True):
            noise += random.normal(0, 4 * 3, values) * weight / (0.5 * size)
            signal += 3 * 0.5 * size * weight / (0.5 * size)  # q n records that all agree
    ratio = noise_ratio(plan, job, values, sizes)
    assert ratio == pytest.approx(np.linalg.norm(noise) / signal, rel=0.1)


def test_rounds_do_not_change_it_where_epsilon_is_given() -> None:
    jobs = [settings(f"rounds={rounds}") for rounds in (10, 30, 90)]
    ratios = [noise_ratio(round_schedule(job), job, 770, [128] * 20) for job in jobs]
    assert ratios == pytest.approx([ratios[0]] * 3, rel=0.02)


def test_without_noise_nothing_drowns() -> None:
    job = settings("privacy.kind=none")
    assert noise_ratio(round_schedule(job), job, 10**6, [32]) == 0
    assert noise_warning(round_schedule(job), job, 10**6, 2, [32]) is None


def test_a_head_is_advised_only_where_more_is_trained() -> None:
    for method, advised in (("bitfit", True), ("head", False)):
        job = settings(f"model.train.kind={method}")
        said = noise_warning(round_schedule(job), job, 10**6, 2, [32] * 3)
        assert said is not None
        assert ("fewer trained values" in said) == advised
        assert "\n" not in said


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_committed_runs_bear_the_bound_out(path: Path) -> None:
    """Beyond it a run keeps less than half of what it learns without noise; far below it, more."""
    recipes = json.loads(path.read_text(encoding="utf-8"))["recipes"]
    guess = recipes["not private"]["runs"][0]["majority"]
    most = recipes["not private"]["test_accuracy_mean"] - guess
    for name in recipes:
        if not name.startswith("epsilon"):
            continue
        kept = (recipes[name]["test_accuracy_mean"] - guess) / most
        ratio = recipes[name]["runs"][0]["noise_ratio"]
        if ratio >= DROWNED:
            assert kept < 0.5, name
        elif ratio < DROWNED / 2:
            assert kept > 0.4, name


def test_the_bound_is_tried_from_both_sides() -> None:
    ratios = [
        recipe["runs"][0]["noise_ratio"]
        for path in TASKS
        for name, recipe in json.loads(path.read_text(encoding="utf-8"))["recipes"].items()
        if name.startswith("epsilon")
    ]
    assert min(ratios) < DROWNED / 2 < DROWNED < max(ratios)
