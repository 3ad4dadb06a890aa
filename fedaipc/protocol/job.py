"""What is asked of a PC: public, the same for all PCs, without any seed, and signed."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from fedaipc.config import (
    MAX_CLIP,
    MAX_NOISE,
    MIN_CLIP,
    MIN_NOISE,
    RUN,
    ModelSettings,
    SealingSettings,
    Section,
    TrainingSettings,
)
from fedaipc.errors import RoundError
from fedaipc.privacy.plan import PrivacyPlan, make_plan
from fedaipc.secagg.keys import SigningKey, verify

if TYPE_CHECKING:
    from collections.abc import Collection

    from fedaipc.config import Settings

_VALID_SECONDS = 30 * 24 * 3600


class Job(Section):
    """One training job. A PC compares `layout_hash` with the model that it built itself.

    `cohort` is how many PCs a round asks; their size classes lie from `smallest_class` to
    `largest_class`; a list of members older than version `min_roster` is refused, so that who was
    revoked before stays out; `not_after` is in seconds since 1970.
    """

    version: Literal[1] = 1
    run: str = Field(pattern=RUN)
    model: ModelSettings
    training: TrainingSettings
    labels: tuple[str, ...] = Field(min_length=2)
    layout_hash: str
    mode: Literal["local", "none"]
    clip_norm: float = Field(ge=MIN_CLIP, le=MAX_CLIP)
    noise_multiplier: float | None = Field(ge=MIN_NOISE, le=MAX_NOISE)
    sampling_rate: float = Field(gt=0, le=1)
    delta: float = Field(gt=0, lt=0.01)
    exact_sums: bool
    rounds: int = Field(ge=1, le=100_000)
    max_attempts: int = Field(ge=1, le=110_000)
    cohort: int = Field(ge=1, le=1_000_000)
    smallest_class: int = Field(ge=1)
    largest_class: int = Field(ge=1, le=2**40)
    weighting: Literal["equal", "size-class"]
    sealing: SealingSettings
    min_roster: int = Field(ge=1)
    not_after: int = Field(ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.sealing.bits == 16 and self.noise_multiplier is None:
            raise ValueError("16 bits need the noise of a private mode")
        return self

    @property
    def plan(self) -> PrivacyPlan:
        """Raises PrivacyError where mode and noise do not fit."""
        return PrivacyPlan(
            mode=self.mode,
            clip_norm=self.clip_norm,
            noise_multiplier=self.noise_multiplier,
            sampling_rate=self.sampling_rate,
            local_steps=self.training.local_steps,
            delta=self.delta,
            exact_sums=self.exact_sums,
        )

    @classmethod
    def parse(cls, text: str) -> Job:
        """Raises RoundError on anything that is not a job of this version."""
        try:
            return cls.from_json(text)
        except ValueError:
            raise RoundError("the job cannot be read: both sides need the same fedaipc") from None


def make_job(
    settings: Settings,
    labels: tuple[str, ...],
    layout_hash: str,
    run: str,
    size_classes: Collection[int],
    min_roster: int,
) -> Job:
    """Fix a job's public parameters. Raises PrivacyError where the target cannot be met."""
    plan = make_plan(settings)
    federation = settings.federation
    return Job(
        run=run,
        model=settings.model,
        training=settings.training,
        labels=labels,
        layout_hash=layout_hash,
        mode=plan.mode,
        clip_norm=plan.clip_norm,
        noise_multiplier=plan.noise_multiplier,
        sampling_rate=plan.sampling_rate,
        delta=plan.delta,
        exact_sums=plan.exact_sums,
        rounds=federation.rounds,
        max_attempts=federation.rounds + federation.spare_attempts,
        cohort=federation.cohort_size(federation.pcs),
        smallest_class=min(size_classes),
        largest_class=max(size_classes),
        weighting=federation.weighting,
        sealing=settings.sealing,
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
        """By the admission key."""
        text = job.model_dump_json()
        return cls(job, text, key.sign(_signed_part(text)))

    @classmethod
    def read(cls, text: str, signature: bytes, admission: bytes) -> SignedJob:
        """Raises SecAggError where `admission` did not sign it, RoundError where it is no job."""
        verify(admission, signature, _signed_part(text), "the job")
        return cls(Job.parse(text), text, signature)

    @property
    def hash(self) -> bytes:
        return hashlib.sha256(_signed_part(self.text)).digest()


def _signed_part(text: str) -> bytes:
    return b"fedaipc job" + text.encode()
