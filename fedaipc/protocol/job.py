"""What is asked of a PC: public, the same for all PCs, without any seed, and signed."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, SerializeAsAny, model_validator

from fedaipc import strict_json
from fedaipc.config import (
    DPSGD,
    RUN,
    Aggregation,
    Frozen,
    Privacy,
    Schedule,
    TextClassifier,
    TrainingMethod,
    TrainingSettings,
    kind_fault,
    mechanism_fault,
)
from fedaipc.errors import RoundError
from fedaipc.privacy.budget import check_delta, round_schedule
from fedaipc.protocol.round_terms import honest_in_sums
from fedaipc.secagg.keys import SigningKey, verify

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from fedaipc.config import Settings

_VALID_SECONDS = 30 * 24 * 3600


class Job(Frozen):
    """One training job. A PC compares `layout_hash` with the model that it built itself.

    `cohort` is how many PCs a round asks; their size classes lie from `smallest_class` to
    `largest_class`. A list of members older than version `min_roster` is refused, so that PCs
    that were revoked before stay out. `not_after` is in seconds since 1970.
    """

    version: Literal[1] = 1
    run: str = Field(pattern=RUN)
    model: TextClassifier
    training: TrainingSettings
    labels: tuple[str, ...] = Field(min_length=2)
    layout_hash: str
    privacy: SerializeAsAny[Privacy]
    rounds: int = Field(ge=1, le=100_000)
    max_attempts: int = Field(ge=1, le=110_000)
    cohort: int = Field(ge=1, le=1_000_000)
    smallest_class: int = Field(ge=1)
    largest_class: int = Field(ge=1, le=2**40)
    weighting: Literal["equal", "size-class"]
    aggregation: SerializeAsAny[Aggregation]
    min_roster: int = Field(ge=1)
    not_after: int = Field(ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.aggregation.bits == 16 and not self.privacy.private:
            raise ValueError("16 bits need the noise of a private mechanism")
        if isinstance(self.privacy, DPSGD):
            if self.privacy.noise_multiplier is None:
                raise ValueError("a job holds the noise itself, not a target")
            if self.privacy.distributed is (self.privacy.honest is None):
                raise ValueError("distributed noise, and it alone, counts honest clients")
        if fault := mechanism_fault(self.privacy, self.training, self.aggregation, self.weighting):
            raise ValueError(fault)
        return self

    @property
    def schedule(self) -> Schedule:
        """What one round, void or not, asks of a PC that takes part."""
        steps = self.privacy.noisy_steps(self.training.local_steps)
        return Schedule(mechanism=self.privacy, steps=steps)

    @classmethod
    def parse(cls, text: str) -> Job:
        """Raises RoundError on anything that is not a job of this version, and names what it asks
        for that is not installed here.
        """
        try:
            tree = strict_json.parse(text)
            for fault in _faults(tree):
                raise RoundError(f"the job cannot be run: {fault}")
            return cls.model_validate(tree)
        except ValueError:
            raise RoundError("the job cannot be read: both sides need the same fedaipc") from None


def _faults(tree: object) -> Iterator[str]:
    if not isinstance(tree, dict):
        return
    model = tree.get("model")
    train = model.get("train") if isinstance(model, dict) else None
    asked = ((TrainingMethod, train), (Privacy, tree.get("privacy")),
             (Aggregation, tree.get("aggregation")))  # fmt: skip
    for family, given in asked:
        if fault := kind_fault(family, given):
            yield fault


def job_schedule(settings: Settings) -> Schedule:
    """As `round_schedule`; with distributed noise, how many honest clients it counts with too.

    Raises PrivacyError where the target cannot be met, ConfigError where there are too few PCs.
    """
    once = round_schedule(settings)
    mechanism = once.mechanism
    if not isinstance(mechanism, DPSGD) or not mechanism.distributed:
        return once
    honest = {"honest": honest_in_sums(settings)}
    return once.model_copy(update={"mechanism": mechanism.model_copy(update=honest)})


def make_job(
    settings: Settings,
    labels: tuple[str, ...],
    layout_hash: str,
    run: str,
    size_classes: Collection[int],
    min_roster: int,
) -> Job:
    """Fix a job's public parameters.

    Raises PrivacyError where the target cannot be met, or delta is too large for so many clients.
    """
    federation, unit = settings.federation, settings.privacy.unit
    if settings.privacy.private and unit == "client":  # of its records each PC sees to it itself
        check_delta(settings.privacy.delta, unit, public_class=1, clients=federation.clients)
    return Job(
        run=run,
        model=settings.model,
        training=settings.training,
        labels=labels,
        layout_hash=layout_hash,
        privacy=job_schedule(settings).mechanism,
        rounds=settings.rounds,
        max_attempts=settings.rounds + federation.spare_attempts,
        cohort=federation.cohort_size(federation.clients),
        smallest_class=min(size_classes),
        largest_class=max(size_classes),
        weighting=federation.weighting,
        aggregation=settings.aggregation,
        min_roster=min_roster,
        not_after=int(time.time()) + _VALID_SECONDS,
    )


@dataclass(frozen=True, slots=True)
class SignedJob:
    """A job as the federation's admission key signed it: word for word, so that it has one hash."""

    job: Job
    text: str
    signature: bytes

    @classmethod
    def sign(cls, key: SigningKey, job: Job) -> SignedJob:
        """The job, signed with the admission key."""
        text = job.model_dump_json()
        return cls(job, text, key.sign(_signed_part(text)))

    @classmethod
    def read(cls, text: str, signature: bytes, admission: bytes) -> SignedJob:
        """Raises SecAggError if `admission` did not sign it, RoundError if it is not a job."""
        verify(admission, signature, _signed_part(text), "the job")
        return cls(Job.parse(text), text, signature)

    @property
    def hash(self) -> bytes:
        return hashlib.sha256(_signed_part(self.text)).digest()


def _signed_part(text: str) -> bytes:
    return b"fedaipc job" + text.encode()
