"""What the coordinator asks of a PC. Public, the same for every PC, and without any seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError

from fedaipc.config import (
    LEAST_CLIP,
    LEAST_NOISE,
    MOST_CLIP,
    MOST_NOISE,
    ModelSettings,
    Section,
    TrainingSettings,
)
from fedaipc.errors import RoundError
from fedaipc.privacy.plan import PrivacyPlan, make_plan

if TYPE_CHECKING:
    from fedaipc.config import Settings


class Job(Section):
    """One training job. A PC compares `layout_hash` with the model that it built itself."""

    version: Literal[1] = 1
    run: str = Field(pattern=r"^[0-9a-f]{16}$")
    model: ModelSettings
    training: TrainingSettings
    labels: tuple[str, ...] = Field(min_length=2)
    layout_hash: str
    mode: Literal["local", "none"]
    clip: float = Field(ge=LEAST_CLIP, le=MOST_CLIP)
    noise_multiplier: float | None = Field(ge=LEAST_NOISE, le=MOST_NOISE)
    sampling_rate: float = Field(gt=0, le=1)
    delta: float = Field(gt=0, lt=0.01)
    rounds: int = Field(ge=1)
    most_attempts: int = Field(ge=1)

    @property
    def plan(self) -> PrivacyPlan:
        """Raises PrivacyError where mode and noise do not fit."""
        return PrivacyPlan(
            mode=self.mode,
            clip=self.clip,
            noise_multiplier=self.noise_multiplier,
            sampling_rate=self.sampling_rate,
            local_steps=self.training.local_steps,
            delta=self.delta,
        )

    @classmethod
    def parse(cls, text: str) -> Job:
        """Raises RoundError on anything that is not a job of this version."""
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            raise RoundError("the job cannot be read: both sides need the same fedaipc") from None


def make_job(settings: Settings, labels: tuple[str, ...], layout_hash: str, run: str) -> Job:
    """Fix a job's public parameters. Raises PrivacyError where the target cannot be met."""
    plan = make_plan(settings)
    return Job(
        run=run,
        model=settings.model,
        training=settings.training,
        labels=labels,
        layout_hash=layout_hash,
        mode=plan.mode,
        clip=plan.clip,
        noise_multiplier=plan.noise_multiplier,
        sampling_rate=plan.sampling_rate,
        delta=plan.delta,
        rounds=settings.federation.rounds,
        most_attempts=settings.federation.rounds + settings.federation.spare_attempts,
    )
