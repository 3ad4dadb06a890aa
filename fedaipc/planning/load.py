"""What one round asks of the PCs and of the server: seconds, bytes and thresholds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedaipc.config import SecAgg
from fedaipc.doctor.forecast import round_bytes
from fedaipc.errors import ConfigError, SecAggError
from fedaipc.planning.fleet import HOURS, read_doctor
from fedaipc.protocol.round_terms import colluding_members
from fedaipc.secagg.keys import KEY_BYTES
from fedaipc.secagg.roster import MAX_IN_A_GROUP
from fedaipc.secagg.terms import thresholds

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from fedaipc.config import Settings
    from fedaipc.planning.fleet import Fleet, SpeedClass

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]

_MBIT = 1e6 / 8  # bytes


@dataclass(frozen=True, slots=True)
class Pcs:
    """The speed classes in numbers, shape (classes,) each; `available` is (24, classes).

    Seconds are of one PC: `train` in each round, `prepare` once in its life (the frozen layers),
    `beside` in each round but not at the full power of training. Bytes are per second.
    """

    share: Floats
    texts: Floats
    train: Floats
    prepare: Floats
    beside: Floats
    watts: Floats
    down: Floats
    up: Floats
    latency: Floats
    available: Floats

    def counts(self, clients: int) -> Ints:
        """How many of `clients` PCs are in each class: the largest remainders round up."""
        exact = self.share * clients
        found = np.floor(exact + 1e-9).astype(np.int64)
        rest = np.argsort(found - exact, kind="stable")[: clients - int(found.sum())]
        found[rest] += 1
        return found


@dataclass(frozen=True, slots=True)
class Load:
    """One round of the job on a fleet of `clients`. Arrays have one number for each group of PCs.

    `up` and `down` are the bytes of a PC in a round, and `members` those of the list of members
    that each PC gets with the keys of an epoch. A group is asked where `least` PCs are there. With
    `sealed` updates, `colluding` of them are tolerated.
    """

    clients: int
    cohort: int
    parameters: int
    up: int
    down: int
    members: int
    sealed: bool
    groups: Ints
    least: Ints
    colluding: Ints


@dataclass(frozen=True, slots=True)
class _Speed:
    """Of one class: texts per second of training and through the frozen layers, and watts."""

    rate: float
    frozen: float | None
    watts: float


def make_pcs(job: Settings, fleet: Fleet, folder: Path, watts: float) -> tuple[Pcs, int | None]:
    """The classes for this job, and its trained values as the doctor files have them.

    `folder` is where doctor files are looked for, `watts` are of a PC where nothing else is known.
    Raises ConfigError.
    """
    passes = job.training.local_steps * job.privacy.sampling_rate
    found: dict[str, int] = {}
    speeds = [_speed(job, one, folder, watts, found) for one in fleet.classes]
    texts = [one.texts or fleet.texts for one in fleet.classes]
    hours = [one.available or fleet.available for one in fleet.classes]
    if len(set(found.values())) > 1:
        said = ", ".join(f"{name}: {count:,}" for name, count in found.items())
        raise ConfigError(
            f"the doctor files are of jobs with other models ({said} trained values): measure all "
            "classes with this job"
        )
    held, classes = np.array(texts, np.float64), fleet.classes
    pcs = Pcs(
        share=np.array([one.share for one in classes]),
        texts=held,
        train=held * passes / np.array([speed.rate for speed in speeds]),
        prepare=held / np.array([speed.frozen or np.inf for speed in speeds]),
        beside=np.array([one.round_seconds for one in classes]),
        watts=np.array([speed.watts for speed in speeds]),
        down=np.array([one.down_mbit * _MBIT for one in classes]),
        up=np.array([one.up_mbit * _MBIT for one in classes]),
        latency=np.array([one.latency_ms / 1000 for one in classes]),
        available=np.array([h if len(h) == HOURS else h * HOURS for h in hours]).T,
    )
    return pcs, next(iter(found.values()), None)


def trained_values(job: Settings) -> int:
    """Opens the job's model and counts what it trains. Raises AssetError or ModelError."""
    from fedaipc.model.classifier import Classifier

    return int(Classifier(job.model, job.data.labels or ("no", "yes")).layout.size)


def _speed(
    job: Settings, one: SpeedClass, folder: Path, watts: float, found: dict[str, int]
) -> _Speed:
    """Raises ConfigError; `found` gets the trained values of a doctor file, by class."""
    if one.doctor is None:
        assert one.texts_per_second is not None  # noqa: S101 - the class has one of both
        return _Speed(one.texts_per_second, one.frozen_texts_per_second, one.watts or watts)
    report = read_doctor(folder / one.doctor)
    found[one.name] = report.parameters
    speed = report.with_precision(job.speed.precision)
    rate = speed.ordinary if job.privacy.kind == "none" else speed.private
    measured = report.forecast.watts if report.forecast.watts_measured else watts
    frozen = None if speed.frozen is None else speed.frozen * one.factor
    return _Speed(rate * one.factor, frozen, one.watts or measured)


def make_load(job: Settings, clients: int, parameters: int) -> Load:
    """Raises ConfigError where a round of so many PCs cannot be unmasked, or is always void."""
    federation, secagg = job.federation, job.aggregation
    cohort = federation.cohort_size(clients)
    if cohort < federation.min_clients:
        raise ConfigError(
            f"a round asks {cohort:,} of {clients:,} PCs, and federation.min_clients = "
            f"{federation.min_clients:,}: every round would be void"
        )
    count = -(-cohort // MAX_IN_A_GROUP)
    groups = np.array([len(range(first, cohort, count)) for first in range(count)], np.int64)
    least, colluding = np.ones_like(groups), np.zeros_like(groups)
    if isinstance(secagg, SecAgg):
        attempts = job.rounds + federation.spare_attempts
        for size in set(groups.tolist()):
            try:
                bounds = thresholds(
                    size, group=size, members=clients, colluding=colluding_members(secagg, clients),
                    least=secagg.threshold, draws=count * attempts,
                )  # fmt: skip
            except SecAggError as error:
                raise ConfigError(str(error)) from None
            least[groups == size], colluding[groups == size] = bounds.least, bounds.colluding
    up, down = round_bytes(job, cohort, parameters)
    return Load(
        clients=clients,
        cohort=cohort,
        parameters=parameters,
        up=up,
        down=down,
        members=KEY_BYTES * clients,
        sealed=isinstance(secagg, SecAgg),
        groups=groups,
        least=least,
        colluding=colluding,
    )
