"""The one-run audit: guess from each PC's updates which canaries it holds.

The auditor is a server that knows all of a PC's texts, but not the coins. With one local step an
update is the noisy sum of clipped gradients times a public factor, so the coins s follow from

    y_t - q R_t = q G_t s + noise of standard deviation sigma C,   t = 1, 2, ...

with G_t the canaries' clipped gradients at the model of round t (as columns), R_t the sum of the
real texts'. The score of a canary is the mean of its coin given all rounds, for coins with a
normal prior of mean 1/2 and variance 1/4. That is least squares which stay stable where canaries
are alike.
Without privacy PCs divide by how many texts there were, which the coins decide as well: that number
is one more unknown. The noise of a round is measured on what remains when all that is known is
explained. It is not taken from the promise, so a build with too little noise gives everything
away. Several local steps are treated as one long step, which weakens the attack.

Where noise is distributed the auditor is a server that keeps to secure aggregation. All that it has
are the models of all rounds. From two in succession it works out the sum over all PCs: y_t is that
sum, G_t has the canaries of all PCs, and the noise is that of the sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedaipc.config import DPSGD, FedAvg, FedAvgM, Settings
from fedaipc.data.records import Records
from fedaipc.errors import PrivacyError
from fedaipc.lab.audit.bound import Bound, Floats, audit_bound
from fedaipc.lab.audit.canary_clients import Audited, CanaryClient, is_distributed
from fedaipc.lab.audit.gradients import clipped, example_gradients
from fedaipc.model.classifier import Classifier
from fedaipc.model.inputs import Inputs, make_inputs
from fedaipc.privacy.budget import planned_epsilon, size_class
from fedaipc.protocol.job import job_schedule
from fedaipc.protocol.round_terms import check_secagg
from fedaipc.secagg.terms import capped
from fedaipc.simulation.recorder import ObservedUpdate

_TINY = 1e-9  # of the mean square: what float32 loses


@dataclass(frozen=True, slots=True)
class CanaryAudit:
    """`bound` against `promised`: PLD of the steps that were taken; None where nothing is."""

    bound: Bound
    promised: float | None
    delta: float
    accuracy: float

    @property
    def holds(self) -> bool:
        """Whether the attack is compatible with the promise."""
        return self.promised is None or self.bound.lower <= self.promised


def canary_audit(audited: Audited, cache: Path | None = None) -> CanaryAudit:
    """Score all canaries of all PCs and bound epsilon. Raises PrivacyError where it cannot."""
    settings = audited.settings
    check_sums_are_sent(settings)
    classifier = Classifier(settings.model, audited.labels)
    if is_distributed(settings):
        scores = [_scores_by_sums(classifier, audited, cache)]
    else:
        heard = [
            [one for one in audited.updates if one.pc == number]
            for number in range(len(audited.pcs))
        ]
        scores = [
            _scores(classifier, settings, client, updates, cache)
            for client, updates in zip(audited.pcs, heard, strict=True)
        ]
    included = np.concatenate([client.included for client in audited.pcs])
    whole = np.concatenate(scores)
    results, delta, promised = audited.results, audited.results.privacy.delta, None
    if not results.not_private and results.charged:
        promised = planned_epsilon(job_schedule(settings), results.charged)["pld"]
    bound = audit_bound(whole, included, delta)
    accuracy = float(((whole > np.median(whole)) == included).mean())
    return CanaryAudit(bound, promised, delta, accuracy)


def check_sums_are_sent(settings: Settings) -> None:
    """Raise PrivacyError where neither updates nor their sums are noisy sums of gradients."""
    privacy = settings.privacy
    if isinstance(privacy, DPSGD) and privacy.unit == "client":
        raise PrivacyError(
            'the audit plants single records, and privacy.unit = "client" protects all that a PC '
            'holds: set privacy.unit="record"'
        )
    if is_distributed(settings) and not isinstance(settings.server, FedAvg | FedAvgM):
        raise PrivacyError(
            "with distributed noise the canary audit reads sums out of the models of two rounds: "
            'set server.kind="fedavgm"'
        )
    if settings.training.optimizer != "sgd":
        raise PrivacyError(
            'the canary audit reads sums out of updates: set training.optimizer="sgd"'
        )


def _scores_by_sums(classifier: Classifier, audited: Audited, cache: Path | None) -> Floats:
    """Scores of all PCs' canaries at once, in the order of the PCs.

    The last round's sum is left out: its model is not sent to any PC.
    """
    settings, privacy = audited.settings, audited.settings.privacy
    assert isinstance(privacy, DPSGD)  # noqa: S101 - `is_distributed` says so
    classes = [size_class(len(client.held)) for client in audited.pcs]
    weights = capped(classes, check_secagg(settings))
    prepared = [
        (_prepared(classifier, client.canaries, cache),
         _prepared(classifier, client.real, cache), weight / own)
        for client, weight, own in zip(audited.pcs, weights, classes, strict=True)
    ]  # fmt: skip
    models = {one.round: one.vector for one in audited.updates}
    vectors = [models[number].astype(np.float64) for number in sorted(models)]
    momentum = settings.server.momentum if isinstance(settings.server, FedAvgM) else 0.0
    step = np.zeros(len(vectors[0]))
    rounds: list[_Reading] = []
    squares: list[float] = []
    for number, (before, after) in enumerate(pairwise(vectors), start=1):
        last, step = step, (after - before) / settings.server.learning_rate
        mean = step - momentum * last
        # What the server multiplied by -rate / q, and divided by all weights.
        total = mean * (-privacy.sampling_rate * sum(weights) / settings.training.learning_rate)
        model, own = models[number], []
        others = np.zeros(len(total))
        for canaries, real, factor in prepared:
            found, rest = (
                factor * clipped(example_gradients(classifier, *texts, model), privacy.clip_norm)
                for texts in (canaries, real)
            )
            own.append(found)
            others += rest.sum(axis=0, dtype=np.float64)
        sums = np.vstack([*own, others]).astype(np.float64)
        rounds.append(_Reading(sums @ sums.T, sums @ total, 0.0))
        squares.append(float(total @ total))
    noises = _joint_noises(rounds, squares, len(vectors[0]))
    rounds = [replace(one, noise=noise) for one, noise in zip(rounds, noises, strict=True)]
    return _posterior(rounds, privacy.sampling_rate, 1.0)


def _joint_noises(rounds: list[_Reading], squares: list[float], values: int) -> list[float]:
    """Noise of each round by what all rounds together leave unexplained.

    A single round has fewer values than all PCs have canaries.
    """
    found = _joint(rounds)
    free = max(1.0, values - len(found) / len(rounds))
    noises = []
    for one, square in zip(rounds, squares, strict=True):
        rest = square - 2 * float(found @ one.right) + float(found @ one.products @ found)
        noises.append(math.sqrt(max(rest, 0.0) / free + _TINY * square / values))
    return noises


def _scores(
    classifier: Classifier,
    settings: Settings,
    client: CanaryClient,
    updates: list[ObservedUpdate],
    cache: Path | None,
) -> Floats:
    privacy, training = settings.privacy, settings.training
    canaries, targets = _prepared(classifier, client.canaries, cache)
    real, truth = _prepared(classifier, client.real, cache)
    steps = _step_lengths(classifier, settings) * training.local_steps
    rounds = []
    for one in updates:
        own = example_gradients(classifier, canaries, targets, one.vector)
        others = example_gradients(classifier, real, truth, one.vector)
        if isinstance(privacy, DPSGD):
            own, others = clipped(own, privacy.clip_norm), clipped(others, privacy.clip_norm)
        sums = np.vstack([own, others.sum(axis=0, dtype=np.float64)]).astype(np.float64)
        rounds.append(_Reading.of(sums, -one.update / steps))
    if not isinstance(privacy, DPSGD):
        return _ratios(rounds)
    rate = privacy.sampling_rate
    return _posterior(rounds, rate, rate * size_class(len(client.held)))


@dataclass(frozen=True, slots=True)
class _Reading:
    """One round's normal equations for the coins and, last, the share of the real texts' sum.

    `noise` is the standard deviation of what they leave unexplained, for each value.
    """

    products: Floats
    right: Floats
    noise: float

    @classmethod
    def of(cls, sums: Floats, reading: Floats) -> _Reading:
        products, right = sums @ sums.T, sums @ reading
        found = _solved(products, right)
        rest = reading - found @ sums
        free = max(1, len(reading) - len(found))
        size = float(reading @ reading) / len(reading)
        return cls(products, right, math.sqrt(float(rest @ rest) / free + _TINY * size))


def _ratios(rounds: list[_Reading]) -> Floats:
    """The coins where the divisor is unknown: each canary's share over that of the real texts."""
    found = _joint(rounds)
    scores: Floats = found[:-1] / found[-1]
    return scores


def _joint(rounds: list[_Reading]) -> Floats:
    """What explains all rounds together best."""
    products = np.sum([one.products for one in rounds], axis=0)
    return _solved(products, np.sum([one.right for one in rounds], axis=0))


def _posterior(rounds: list[_Reading], rate: float, divisor: float) -> Floats:
    """Mean of the coins less 1/2, given all rounds, each weighted by its own noise."""
    count = len(rounds[0].right) - 1
    precision: npt.NDArray[Any] = 4.0 * np.eye(count)
    pull: npt.NDArray[Any] = np.zeros(count)
    for one in rounds:
        weight = (rate / (divisor * one.noise)) ** 2
        among, real = one.products[:-1, :-1], one.products[:-1, -1]
        precision += weight * among
        pull += weight * (one.right[:-1] * divisor / rate - real - among.sum(axis=1) / 2)
    scores: Floats = np.linalg.solve(precision, pull)
    return scores


def _solved(products: Floats, right: Floats) -> Floats:
    """A little is added to the diagonal, so that similar texts do not stop the solver."""
    firm = products + np.eye(len(products)) * _TINY * np.trace(products) / len(products)
    found: Floats = np.linalg.solve(firm, right)
    return found


def _prepared(
    classifier: Classifier, records: Records, cache: Path | None
) -> tuple[Inputs, npt.NDArray[np.int64]]:
    labels = {label: number for number, label in enumerate(classifier.labels)}
    inputs = make_inputs(classifier, records.texts, cache)
    return inputs, np.array([labels[label] for label in records.labels], dtype=np.int64)


def _step_lengths(classifier: Classifier, settings: Settings) -> Floats:
    """The learning rate of each value of the flat vector."""
    training = settings.training
    head = training.head_learning_rate or training.learning_rate
    return np.concatenate(
        [
            np.full(parameter.numel(), head if "classifier" in name else training.learning_rate)
            for name, parameter in classifier.trainable()
        ]
    )
