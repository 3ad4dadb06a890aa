"""One whole job as settings: frozen types, every default and every allowed range.

The sections are types of their own so that a reader sees from a type what it can affect:
`Privacy` (and the schedule in `rounds` and `TrainingSettings`) decide what is promised,
`SpeedSettings` never change a promise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pydantic import Field, SerializeAsAny, model_validator

from fedaipc.config.data import DataSettings, WarmUpSettings
from fedaipc.config.model import TextClassifier
from fedaipc.config.owner import SpeedSettings
from fedaipc.config.privacy import DPSGD, NoPrivacy, Privacy
from fedaipc.config.recipe import filled
from fedaipc.config.rounds import Aggregation, FederationSettings, SecAgg, TrainingSettings
from fedaipc.config.section import NAME, Section
from fedaipc.config.server import FedAdam, ServerOptimizer


def mechanism_fault(
    privacy: Privacy, training: TrainingSettings, aggregation: Aggregation, weighting: str
) -> str | None:
    """Why the mechanism's unit, or where its noise sits, does not go with these settings; None
    where they do.
    """
    if not isinstance(privacy, DPSGD) or not privacy.noise_at_encoding:
        return None
    asks = 'privacy.noise = "distributed" needs '
    if privacy.distributed and not isinstance(aggregation, SecAgg):
        return asks + "secure aggregation: a single update has a share of the noise only"
    if privacy.unit == "client":
        asks = 'privacy.unit = "client" needs '
        if weighting != "equal":
            return asks + 'federation.weighting = "equal": each client is protected alike'
        if type(privacy) is not DPSGD:
            return f'{asks}privacy.kind = "dp-sgd", and not "{privacy.kind}"'
        return None
    if training.local_steps > 1 or training.optimizer != "sgd":
        return (
            asks + 'training.local_steps = 1 and training.optimizer = "sgd": a PC has no noisy '
            "gradient that it could step by; take more rounds, and Adam as server.kind"
        )
    if training.head_learning_rate is not None:
        return asks + "one learning rate: set training.learning_rate alone"
    if weighting != "size-class":
        return asks + 'federation.weighting = "size-class": all records count alike'
    if type(privacy).step is not DPSGD.step:
        return f'{asks}DP-SGD\'s own step, and "{privacy.kind}" has another'
    return None


class EvaluationSettings(Section):
    """When the coordinator measures the model on its own public validation set."""

    every: int = Field(1, ge=1, le=100_000, description="rounds between two evaluations")
    batch: int = Field(128, ge=1, le=65_536, description="texts at once")


class OutputSettings(Section):
    """Where results go."""

    folder: str = Field(
        "runs", min_length=1, description="holds the runs; counted from the working directory"
    )
    name: str = Field(
        "run",
        max_length=80,
        pattern=NAME,
        description="name of the run's folder; -2 is added if it is taken",
    )
    plots: bool = Field(True, description="draw plots/ and write report.html")
    trackers: tuple[str, ...] = Field(
        (),
        description="who is told of each round, such as tensorboard; other packages can add theirs",
    )
    keep_pc_state: bool = Field(True, description="keep simulated PCs' folders after the run")


class Settings(Section):
    """One whole job."""

    rounds: int = Field(
        30,
        ge=1,
        le=100_000,
        description="planned rounds; default: 30, or 60 with more than 10 labels",
    )
    model: TextClassifier = TextClassifier()
    warm_up: WarmUpSettings = WarmUpSettings()
    data: DataSettings = DataSettings()
    privacy: SerializeAsAny[Privacy] = DPSGD()
    training: TrainingSettings = TrainingSettings()
    federation: FederationSettings = FederationSettings()
    aggregation: SerializeAsAny[Aggregation] = SecAgg()
    server: SerializeAsAny[ServerOptimizer] = FedAdam()
    evaluation: EvaluationSettings = EvaluationSettings()
    output: OutputSettings = OutputSettings()
    speed: SpeedSettings = SpeedSettings()

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, tree: object) -> object:
        return filled(tree) if isinstance(tree, Mapping) else tree

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.aggregation.bits == 16 and isinstance(self.privacy, NoPrivacy):
            raise ValueError(
                "aggregation.bits = 16 needs the noise of a private mechanism, which is as large "
                "in every value: take 24 or 32"
            )
        if isinstance(self.privacy, DPSGD) and self.privacy.honest is not None:
            raise ValueError("privacy.honest follows from the job's thresholds: leave it out")
        if fault := mechanism_fault(
            self.privacy, self.training, self.aggregation, self.federation.weighting
        ):
            raise ValueError(fault)
        return self
