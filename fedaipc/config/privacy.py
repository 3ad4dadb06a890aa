"""Privacy mechanisms: what is promised. One type from settings to job, ledger and certificate.

`DPSGD` as somebody writes it may name a target; as a job holds it its noise is a number.
A `Schedule` is so many steps of such a mechanism: what a round, a run or a life costs.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, SerializeAsAny, model_validator

from fedaipc.config.section import (
    MAX_CLIP,
    MAX_NOISE,
    MIN_CLIP,
    MIN_NOISE,
    Choice,
    Section,
    Share,
    register,
)
from fedaipc.errors import ConfigError

MAX_STEPS = 1_000_000_000_000  # of a schedule; accountants multiply, and do not count


class Privacy(Choice):
    """What is promised. Everything here is public and part of the job.

    Neighbours: one record of one client is added or removed, or all of its records are, by `unit`.
    """

    usual: ClassVar[str] = "dp-sgd"
    private: ClassVar[bool] = True

    unit: Literal["record", "client"] = Field(
        "record", description="what is protected: one record, or all that a client holds"
    )
    delta: float = Field(
        1e-5,
        gt=0,
        lt=0.01,
        description="at most 1 / (10 n): of n records of any PC, or n clients, by unit",
    )
    sampling_rate: Share = Field(
        1.0,
        description="Poisson sampling rate q of one local step; default: 1 for a head, "
        "otherwise 0.1",
    )

    def noisy_steps(self, local_steps: int) -> int:
        """How many steps accountants count for a round of `local_steps` steps on a client."""
        return 1 if self.private and self.unit == "client" else local_steps


@register
class DPSGD(Privacy):
    """DP-SGD on each client, its noise included (Abadi et al., CCS 2016, algorithm 1).

    A step draws a Poisson sample, clips each record's gradient to L2 norm `clip_norm`, and adds
    Gaussian noise of standard deviation `noise_multiplier` times `clip_norm` to the sum. `epsilon`
    is the target over all planned rounds, at `delta`; `noise_multiplier` may be given instead.
    Raises ConfigError where both are.

    With `noise` "distributed" each client adds a share, and each sum that can be unmasked carries
    the whole noise once: that promise rests on secure aggregation
    (docs/explanation/distributed-noise.md).

    With `unit` "client" a client trains its local steps without noise, and clips its whole update
    of the round to `clip_norm`; then it adds the noise, or its share (McMahan et al., ICLR 2018).
    That protects all that the client holds. Its local sampling counts for nothing there.

    A mechanism of your own derives from this one, overrides `sample` or `step`, and says in `event`
    what accountants must count instead.
    """

    kind: Literal["dp-sgd"] = "dp-sgd"
    epsilon: float | None = Field(
        None, gt=0, le=1000, description="target over all rounds; default: 8 if no noise is given"
    )
    noise_multiplier: float | None = Field(
        None,
        ge=MIN_NOISE,
        le=MAX_NOISE,
        description="noise by clip bound, in place of epsilon",
    )
    clip_norm: float = Field(
        1.0,
        ge=MIN_CLIP,
        le=MAX_CLIP,
        description="L2 bound C on one record's gradient, or on a client's update, by unit",
    )
    noise: Literal["local", "distributed"] = Field(
        "local",
        description="each client adds all of it, or a share, so that each sum carries it once",
    )
    honest: int | None = Field(
        None,
        ge=1,
        description="with distributed noise: honest clients in each sum; a job takes it from its "
        "thresholds",
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **named: Any) -> None:
        super().__pydantic_init_subclass__(**named)
        if not cls.private:
            raise ConfigError(f"{cls.__name__}: a mechanism below DPSGD is private")
        changed = cls.sample is not DPSGD.sample or cls.step is not DPSGD.step
        if changed and cls.event is DPSGD.event:
            raise ConfigError(
                f"{cls.__name__}: samples or steps in its own way; say in `event` what accountants "
                "must count"
            )

    def with_noise(self, noise_multiplier: float) -> Self:
        """The same mechanism with this noise multiplier in place of a target."""
        return self.model_copy(update={"noise_multiplier": noise_multiplier, "epsilon": None})

    @property
    def multiplier(self) -> float:
        """The noise multiplier, of a mechanism whose noise is fixed."""
        assert self.noise_multiplier is not None  # noqa: S101 - `Schedule` sees to it
        return self.noise_multiplier

    @property
    def distributed(self) -> bool:
        """Whether a client adds a share of the noise, and only a sum carries all of it."""
        return self.noise == "distributed"

    @property
    def noise_at_encoding(self) -> bool:
        """Whether the noise is added to what a client encodes, and not within its steps."""
        return self.distributed or self.unit == "client"

    @property
    def local(self) -> Self:
        """The same with local noise: what holds against whoever opens one client's update.

        With distributed noise that is sigma / sqrt(`honest`), which may be almost nothing: then
        its sampling counts for nothing either, since accountants lose their digits there. Raises
        ValueError where `honest` is missing.
        """
        if not self.distributed:
            return self
        if self.honest is None:
            raise ValueError("distributed noise without a number of honest clients")
        own = self.multiplier / math.sqrt(self.honest)
        rate = self.sampling_rate if own >= MIN_NOISE else 1.0
        return self.model_copy(
            update={"noise": "local", "honest": None, "noise_multiplier": own, "epsilon": None,
                    "sampling_rate": rate}
        )  # fmt: skip

    def sample(self, draw: Any) -> Any:
        """Which records join a step: their numbers, ascending; secret. `draw` is a
        `privacy.dp_sgd.Draw`.
        """
        return draw.poisson(self.sampling_rate)

    def step(self, step: Any) -> None:
        """Train one step on one sample. `step` is a privacy.dp_sgd.Step."""
        step.dp_sgd(clip_norm=self.clip_norm, noise_multiplier=self.multiplier)

    def event(self) -> Any:
        """What an accountant needs to know of `sample` and `step`: an event of dp-accounting."""
        from dp_accounting import dp_event

        event: Any = dp_event.GaussianDpEvent(self.multiplier)
        if self.sampling_rate < 1 and self.unit == "record":
            event = dp_event.PoissonSampledDpEvent(self.sampling_rate, event)
        return event

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, tree: object) -> object:
        if isinstance(tree, dict) and tree.get("noise_multiplier") is None:
            return {**tree, "epsilon": 8.0 if tree.get("epsilon") is None else tree["epsilon"]}
        return tree

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.epsilon is not None and self.noise_multiplier is not None:
            raise ValueError("give one of privacy.epsilon and privacy.noise_multiplier, not both")
        return self


@register
class NoPrivacy(Privacy):
    """Neither clip nor noise: for comparison, on public data."""

    kind: Literal["none"] = "none"
    private: ClassVar[bool] = False


class Schedule(Section):
    """`steps` equal steps of a mechanism whose noise is fixed."""

    mechanism: SerializeAsAny[Privacy] = Field(
        description="as [privacy] of a configuration, with its noise as a number"
    )
    steps: int = Field(ge=1, le=MAX_STEPS, description="how many, all alike")

    @model_validator(mode="after")
    def _is_fixed(self) -> Self:
        if isinstance(self.mechanism, DPSGD) and self.mechanism.noise_multiplier is None:
            raise ValueError("a schedule needs the noise itself, not a target")
        return self

    @property
    def private(self) -> bool:
        return self.mechanism.private

    @property
    def local(self) -> Schedule:
        """The same steps with local noise (`DPSGD.local`)."""
        mechanism = self.mechanism
        if not isinstance(mechanism, DPSGD) or not mechanism.distributed:
            return self
        return self.model_copy(update={"mechanism": mechanism.local})

    def times(self, rounds: int) -> Schedule:
        """`rounds` times as many steps."""
        return Schedule(mechanism=self.mechanism, steps=self.steps * rounds)
