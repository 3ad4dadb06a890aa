"""Membership inference on the released model: was this text trained on?

Two attacks. *By loss* (Yeom et al., CSF 2018): a text of small loss is called a member. *By
likelihood ratio* (Carlini et al., "Membership Inference Attacks From First Principles", S&P 2022).
The attacker trains shadow runs of its own, in each of which each text is in or out by a coin. It
then compares the target's confidence in a text with that of shadows that had the text and of
shadows that did not.

Every run is the target once while the others are the shadows, and the scores are pooled. What
counts is how many members are found while almost no outsider is called one: TPR at 0.1 % and 1 %
FPR.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedaipc.config import Settings
from fedaipc.data.prepare import SimulatedData
from fedaipc.data.records import Records
from fedaipc.errors import DataError
from fedaipc.lab.audit.bound import Floats
from fedaipc.lab.audit.canary_clients import CanaryClient, run_canaries
from fedaipc.model.export import Exported
from fedaipc.privacy.budget import size_class

MIN_RUNS = 4
_POINTS = 200  # of a curve
_MIN_DEVIATION = 1e-3
_BATCH = 256
_MAX = 96  # texts of one PC


@dataclass(frozen=True, slots=True)
class Curve:
    """How many members are found (`tpr`) while so many outsiders are called members (`fpr`)."""

    auc: float
    tpr_at_01_percent: float
    tpr_at_1_percent: float
    fpr: tuple[float, ...]
    tpr: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Membership:
    """Both attacks over `runs` runs; `members` and `outsiders` are pooled over them."""

    loss: Curve
    likelihood_ratio: Curve
    runs: int
    members: int
    outsiders: int


def membership_attack(
    settings: Settings, data: SimulatedData, folder: Path, runs: int
) -> Membership:
    """Train `runs` runs below the new `folder`, and attack each by the others.

    Raises DataError where there are too few runs or texts.
    """
    pools = membership_pools(data, runs)
    texts = [text for pool in pools for text in pool.texts]
    labels = [data.labels.index(label) for pool in pools for label in pool.labels]
    random = np.random.default_rng(0)
    # Fair and independent: were each text in exactly half of the runs, the others would tell.
    coins = random.random((runs, len(texts))) < 0.5
    confidence = np.empty((runs, len(texts)))
    for number in range(runs):
        parts, start = [], 0
        for pool in pools:
            own = coins[number, start : start + len(pool)]
            parts.append(CanaryClient(Records((), ()), pool, own))
            start += len(pool)
        done = run_canaries(settings, data, tuple(parts), folder / f"run-{number:03d}")
        confidence[number] = _confidences(done.folder / "model", texts, np.array(labels))
    return judge(confidence, coins)


def membership_pools(data: SimulatedData, runs: int) -> list[Records]:
    """The texts of each PC that are in or out. Raises DataError, as `membership_attack` does."""
    if runs < MIN_RUNS:
        raise DataError(f"{runs} runs are too few to compare: give {MIN_RUNS} or more")
    return [data.train.take(part[: _balanced(len(part))]) for part in data.parts]


def judge(confidence: Floats, coins: npt.NDArray[np.bool_]) -> Membership:
    """Both attacks from logit-scaled confidences and coins, both of shape (runs, texts)."""
    ratios = np.empty_like(confidence)
    for target in range(len(confidence)):
        others = np.arange(len(confidence)) != target
        ratios[target] = _ratio(confidence[target], confidence[others], coins[others])
    members = coins.ravel()
    return Membership(
        loss=curve(confidence.ravel(), members),
        likelihood_ratio=curve(ratios.ravel(), members),
        runs=len(confidence),
        members=int(members.sum()),
        outsiders=int((~members).sum()),
    )


def curve(scores: Floats, members: npt.NDArray[np.bool_]) -> Curve:
    """The ROC of calling the highest scores members; equal scores are called together."""
    order = np.argsort(-scores, kind="stable")
    ranked, inside = scores[order], members[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of each group of equals
    found = np.concatenate([[0.0], np.cumsum(inside)[last] / max(1, inside.sum())])
    wrong = np.concatenate([[0.0], np.cumsum(~inside)[last] / max(1, (~inside).sum())])
    grid = np.unique(np.concatenate([[0.0], np.geomspace(1e-5, 1, _POINTS)]))

    def best(fpr: float) -> float:
        return float(found[wrong <= fpr].max())

    return Curve(
        auc=float(np.trapezoid(found, wrong)),
        tpr_at_01_percent=best(0.001),
        tpr_at_1_percent=best(0.01),
        fpr=tuple(map(float, grid)),
        tpr=tuple(map(best, grid)),
    )


def _ratio(target: Floats, shadows: Floats, coins: npt.NDArray[np.bool_]) -> Floats:
    """Ln p(target | in) - ln p(target | out) for each text, by normal distributions.

    Means are the text's own, deviations are shared by all texts: with few shadows that is the
    better estimate (Carlini et al., section VI).
    """
    inside, outside = _mean(shadows, coins), _mean(shadows, ~coins)
    rest = np.where(coins, shadows - inside, shadows - outside)
    deviations = [
        max(_MIN_DEVIATION, float(np.sqrt(np.square(rest[which]).mean())))
        for which in (coins, ~coins)
    ]
    close = [
        -0.5 * np.square((target - mean) / deviation) - np.log(deviation)
        for mean, deviation in zip((inside, outside), deviations, strict=True)
    ]
    found: Floats = close[0] - close[1]
    return found


def _mean(values: Floats, which: npt.NDArray[np.bool_]) -> Floats:
    count = which.sum(axis=0)
    total = np.where(which, values, 0.0).sum(axis=0)
    # A text that fell one way in all shadows tells nothing: both means are then of all of them.
    means: Floats = np.where(count > 0, total / np.maximum(count, 1), values.mean(axis=0))
    return means


def _confidences(folder: Path, texts: list[str], labels: npt.NDArray[np.int64]) -> Floats:
    """ln(p / (1 - p)) of the true label by the released model."""
    model = Exported.load(folder)
    batches = [texts[start : start + _BATCH] for start in range(0, len(texts), _BATCH)]
    rows = np.concatenate([np.asarray(model.probabilities(b), dtype=np.float64) for b in batches])
    right = np.clip(rows[np.arange(len(texts)), labels], 1e-12, 1 - 1e-12)
    scaled: Floats = np.log(right) - np.log1p(-right)
    return scaled


def _balanced(records: int) -> int:
    """How many texts of a PC to use so that half of them, by coins, keep one size class.

    No more than _MAX: few texts are memorised sooner, and there are many runs.
    """
    public = size_class(min(records, _MAX)) // 2
    while public >= 32:
        if public * 3 // 2 <= records:
            return public * 3 // 2
        public //= 2
    raise DataError(f"{records} texts on a PC are too few for membership inference: 48 at least")
