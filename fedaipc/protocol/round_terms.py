"""The public facts of a round, computed alike by the coordinator and by every PC.

A PC takes only the key bundles of its group from the coordinator: what it computes
from the signed job, the roster and the global vector must be what the coordinator states.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np

from fedaipc.config import DPSGD, SecAgg
from fedaipc.errors import ConfigError, SecAggError
from fedaipc.protocol.noise_share import check_scale, noise_room
from fedaipc.secagg.encoding import Encoding
from fedaipc.secagg.roster import MAX_IN_A_GROUP
from fedaipc.secagg.terms import PLAIN, Terms, capped, thresholds

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from fedaipc.config import Settings
    from fedaipc.protocol.job import Job, SignedJob
    from fedaipc.secagg.roster import Bundle, Roster
    from fedaipc.secagg.terms import Thresholds

_DEVIATIONS = 8  # of the noise: beyond, a Gaussian value is less likely than 1e-15
_ADAM_STEP = 10  # no step of Adam is longer than 7.3 learning rates
_PLAIN_STEP = 100  # of a gradient without clip, which has no bound; generous


def make_terms(
    signed: SignedJob,
    roster: Roster,
    number: int,
    group: Sequence[bytes],
    bundles: Sequence[Bundle],
    vector_hash: bytes,
    size: int,
) -> Terms:
    """The terms of the group of round `number` whose PCs with these bundles take part, ascending.

    `size` is the dimension of the global vector. Raises SecAggError where they are too few for
    the job's thresholds, or one claims a size class, and with it a weight, that the job has not.
    """
    job = signed.job
    for bundle in bundles:
        check_class(job, bundle)
    bounds = job_thresholds(job, len(roster.members), len(group), len(bundles))
    classes = [1 if job.weighting == "equal" else bundle.size_class for bundle in bundles]
    return Terms(
        federation=roster.federation,
        roster_hash=roster.hash,
        run=job.run,
        number=number,
        job_hash=signed.hash,
        vector_hash=vector_hash,
        size=size,
        bits=job.aggregation.bits,
        bound=update_bound(job),
        cohort=job.cohort,
        thresholds=bounds,
        bundles=tuple(bundles),
        weights=capped(classes, bounds),
    )


def check_class(job: Job, bundle: Bundle) -> None:
    """Raise SecAggError where the job is not for PCs of this size class."""
    if not job.smallest_class <= bundle.size_class <= job.largest_class:
        raise SecAggError("the job is not for PCs of this size class")


def job_thresholds(job: Job, members: int, group: int, count: int) -> Thresholds:
    """The thresholds of a group of `group` PCs of which `count` take part. Raises SecAggError."""
    if not isinstance(job.aggregation, SecAgg):
        return PLAIN
    return _thresholds(job.aggregation, job.cohort, job.max_attempts, members, group, count)


_ASK_MORE = (
    "ask more PCs (three at least), or send updates that the server can read: "
    'aggregation.kind = "plain", for which simulate asks for --insecure-plain-updates'
)


def check_secagg(settings: Settings, remedy: str = _ASK_MORE) -> Thresholds:
    """The thresholds of the smallest group of a job with these settings.

    Raises ConfigError, with the `remedy`, where a round has too few PCs for secure aggregation.
    """
    federation = settings.federation
    if not isinstance(settings.aggregation, SecAgg):
        return PLAIN
    cohort = federation.cohort_size(federation.clients)
    group = cohort // -(-cohort // MAX_IN_A_GROUP)
    asked = group if federation.only is None else min(group, len(federation.only))
    attempts = settings.rounds + federation.spare_attempts
    try:
        return _thresholds(settings.aggregation, cohort, attempts, federation.clients, group, asked)
    except SecAggError as error:
        raise ConfigError(f"{error}; {remedy}") from None


def honest_in_sums(settings: Settings) -> int:
    """How many honest PCs each sum of such a job has at least, whichever group it is of.

    Raises ConfigError as `check_secagg`, which looks at the smallest group.
    """
    bounds = [check_secagg(settings)]
    federation, secagg = settings.federation, settings.aggregation
    cohort = federation.cohort_size(federation.clients)
    largest = -(-cohort // -(-cohort // MAX_IN_A_GROUP))
    if isinstance(secagg, SecAgg):
        attempts = settings.rounds + federation.spare_attempts
        members = federation.clients
        bounds.append(_thresholds(secagg, cohort, attempts, members, largest, largest))
    return min(one.least - one.colluding for one in bounds)


def _thresholds(
    secagg: SecAgg, cohort: int, attempts: int, members: int, group: int, count: int
) -> Thresholds:
    return thresholds(
        count,
        group=group,
        members=members,
        colluding=colluding_members(secagg, members),
        least=secagg.threshold,
        draws=-(-cohort // MAX_IN_A_GROUP) * attempts,
    )


def colluding_members(secagg: SecAgg, members: int) -> int:
    """How many PCs of the whole federation may work for the coordinator."""
    return min(members, secagg.colluding or max(1, members // 10))


def update_bound(job: Job) -> float:
    """Bound L on one value of weight times update: the job's, or one that noise never reaches.

    A step of private SGD moves a value by at most rate * (C b + z) / (q n): b the records drawn,
    n the size class, z Gaussian of deviation sigma C. With twice the expected b, and 8 deviations,
    k steps stay below rate * (2 C k + 8 sigma C sqrt(k) / (q n)). Times a weight of n, or of 1, and
    with the largest or smallest n that a job can have. To move a value to L is post-processing of
    the noisy update: epsilon does not depend on L. Where noise is added to what is encoded, a value
    is one of a clipped sum or update, and moved before that to what L leaves beside the noise.
    """
    if job.aggregation.bound is not None:
        return job.aggregation.bound
    if isinstance(job.privacy, DPSGD) and job.privacy.noise_at_encoding:
        whole = job.privacy.unit == "client"
        records = 1 if whole else 2 * job.privacy.sampling_rate * job.largest_class
        return job.privacy.clip_norm * records + noise_room(job.privacy, job.cohort)
    steps, by_size = job.training.local_steps, job.weighting == "size-class"
    rate = max(job.training.learning_rate, job.training.head_learning_rate or 0.0)
    most = job.largest_class if by_size else 1
    if job.training.optimizer == "adam":
        return rate * steps * _ADAM_STEP * most
    if not isinstance(job.privacy, DPSGD):
        return rate * steps * _PLAIN_STEP * most
    per_record = 1 if by_size else 1 / job.smallest_class
    noise = job.privacy.multiplier * math.sqrt(steps) / job.privacy.sampling_rate * per_record
    return rate * job.privacy.clip_norm * (2 * steps * most + _DEVIATIONS * noise)


def check_noise(job: Job, size: int) -> None:
    """Raise ConfigError where no PC could add its noise to an encoded update of `size` values."""
    if isinstance(job.privacy, DPSGD) and job.privacy.noise_at_encoding:
        try:
            bits, bound = job.aggregation.bits, update_bound(job)
            check_scale(job.privacy, Encoding(bits=bits, count=job.cohort, bound=bound), size)
        except SecAggError as error:
            raise ConfigError(str(error)) from None


def hash_vector(vector: npt.NDArray[np.float32]) -> bytes:
    """SHA-256 of the global vector, shape (size,), as little-endian float32."""
    return hashlib.sha256(np.ascontiguousarray(vector, "<f4").data).digest()
