"""Settings of the rounds: what a client does in one, who takes part, how updates are added up."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from fedaipc.config.section import Choice, Positive, Section, Seed, Share, register

Stage = Literal["setup", "mask", "agree", "unmask"]
LIFETIME, MAX_LIFETIME = 8.0, 1000.0


class TrainingSettings(Section):
    """What one PC does in one round. Public; `local_steps` enters the privacy schedule."""

    local_steps: int = Field(1, ge=1, le=100_000, description="steps of one PC in one round")
    optimizer: Literal["sgd", "adam"] = Field("sgd", description="of a PC, within a round")
    learning_rate: Positive = Field(
        1.0, description="of a PC; default: 1 for a head, otherwise 0.5"
    )
    head_learning_rate: Positive | None = Field(None, description="of the classifier, if different")


class FederationSettings(Section):
    """How rounds are run. Public; `rounds` enters the privacy schedule."""

    clients: int = Field(20, ge=1, le=10_000, description="how many PCs")
    fraction: Share = Field(1.0, description="of the PCs asked in each round")
    min_clients: int = Field(1, ge=1, le=100_000, description="fewer updates: the round is void")
    weighting: Literal["equal", "size-class"] = Field(
        "size-class", description="of a PC's update in the average"
    )
    lifetime_epsilon: float = Field(
        LIFETIME,
        gt=0,
        le=MAX_LIFETIME,
        description="lifetime budget of each simulated PC; in an invite, what owners are advised; "
        "default: 8, or privacy.epsilon where that is given and larger",
    )
    dropout_rate: float = Field(
        0.0, ge=0, le=1, description="probability that a PC drops out of a round, injected"
    )
    dropout_stage: Stage = Field("mask", description="where in a round a PC drops out")
    only: tuple[int, ...] | None = Field(None, description="ask these PCs only (0 is the first)")
    spare_attempts: int = Field(10, ge=0, le=10_000, description="void or repeated rounds allowed")
    round_timeout: Positive = Field(
        3600.0, description="seconds without an update after which a round continues"
    )
    stage_timeout: Positive = Field(60.0, description="the same, for answers that need no training")
    seed: Seed = Field(0, description="public; decides who is asked and who drops out")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.only is not None:
            if not self.only or len(set(self.only)) < len(self.only):
                raise ValueError("federation.only must name at least one PC, each once")
            if not all(0 <= pc < self.clients for pc in self.only):
                raise ValueError(f"federation.only must lie within 0 to {self.clients - 1}")
        members = len(self.only) if self.only is not None else self.clients
        if self.min_clients > self.cohort_size(members):
            raise ValueError(
                f"federation.min_clients = {self.min_clients} can never be reached: a round asks "
                f"{self.cohort_size(members)} PCs (allowed: from 1 to {self.cohort_size(members)})"
            )
        return self

    def cohort_size(self, members: int) -> int:
        """How many of `members` PCs a round asks."""
        return max(1, round(self.fraction * members))


class Aggregation(Choice):
    """How updates are added up. Public; part of the job.

    `bound` limits what one value of an update, times the PC's weight, may be: what is larger is
    moved to it, so that no sum can wrap around. With distributed noise a value is moved before its
    share is added, and may wrap around with it.
    """

    usual: ClassVar[str] = "secagg"

    bits: Literal[32, 24, 16] = Field(
        32, description="bits of one value as it is sent; 16 needs noise"
    )
    bound: Positive | None = Field(
        None,
        description="bound on one value of a weighted update; default: from the other settings",
    )
    key_rounds: int = Field(100, ge=1, le=100_000, description="rounds with the same keys")


@register
class SecAgg(Aggregation):
    """Secure aggregation: the coordinator sees sums of several clients' updates only.

    Sums are exact: whole numbers modulo 2^bits are added (fedaipc/secagg/SPEC.md). Each is
    over `threshold` times the PCs asked in a group at least, and never over fewer than three.
    """

    kind: Literal["secagg"] = "secagg"
    threshold: Share = Field(
        0.7, description="of the PCs asked; with fewer updates no sum is unmasked"
    )
    colluding: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="PCs that may collude with the coordinator; default: a tenth",
    )


@register
class PlainAggregation(Aggregation):
    """The coordinator can read every client's update."""

    kind: Literal["plain"] = "plain"
