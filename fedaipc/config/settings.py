"""The settings themselves: frozen types, every default and every allowed range.

`Settings` describes a whole job. Its sections are types of their own so that a reader sees from a
type what it can affect: `PrivacySettings` (and the schedule in `TrainingSettings` and
`FederationSettings`) decide what is promised, `SpeedSettings` never change a promise.
`OwnerSettings` is what the owner of one PC decides; it never travels to the coordinator.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from fedaipc import strict_json
from fedaipc.config import remedy
from fedaipc.config.recipe import filled

Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Positive = Annotated[float, Field(gt=0, le=1e9)]
Share = Annotated[float, Field(gt=0, le=1)]
Stage = Literal["setup", "mask", "agree", "unmask"]
MIN_NOISE, MAX_NOISE = 0.1, 1e6  # noise multiplier; beyond, accountants lose their digits
MAX_KINDS = 100  # of steps: each costs the PLD accountant a second
# What a schedule can lose at a delta of 1e-15, by RDP. The PLD accountant's grid is about as wide,
# at 20,000 points for each 1: here it takes seconds and half a GB. Epsilon is 200 there, and more.
MAX_LOSS, LOSS_DELTA = 300.0, 1e-15
MIN_CLIP, MAX_CLIP = 1e-9, 1e9  # below, the float32 squares of a gradient vanish
RUN = r"^[0-9a-f]{16}$"  # the identifier of a run
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class Section(BaseModel):
    """Base of all settings: frozen, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True
    )

    @classmethod
    def from_json(cls, content: bytes | str, *, max_bytes: int = strict_json.MAX_BYTES) -> Self:
        """Raises ValueError (pydantic's is one): not strict JSON, or not of this type."""
        return cls.model_validate(strict_json.parse(content, max_bytes=max_bytes))

    @classmethod
    def from_file(cls, path: Path, *, max_bytes: int = strict_json.MAX_BYTES) -> Self:
        """Raises OSError, or ValueError as `from_json`."""
        return cls.model_validate(strict_json.load(path, max_bytes=max_bytes))

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and kind is not bool:
            raise PydanticCustomError("not_a_flag", "true and false are no value here")
        return value


class ModelSettings(Section):
    """Which model is trained, and which part of it. Public."""

    base: str = Field(
        "minilm-l6", min_length=1, description="asset, folder (from where you are) or hub id"
    )
    method: Literal["head", "bitfit", "lora", "last-k", "full"] = Field(
        "head", description="which parameters are trained, besides the head"
    )
    pooling: Literal["mean", "cls"] = Field("mean", description="what of the last layer is used")
    trained_layers: int = Field(1, ge=0, le=96, description="upper layers that are trained")
    keep_layers: int | None = Field(None, ge=1, le=96, description="use only the lowest layers")
    lora_rank: int = Field(8, ge=1, le=1024, description="of LoRA's matrices")
    lora_alpha: Positive = Field(16.0, description="LoRA's scale is alpha by rank")
    lora_targets: Literal["attention", "all-linear"] = Field(
        "attention", description="which layers LoRA adapts"
    )
    max_length: int = Field(64, ge=4, le=8192, description="tokens; longer texts are cut")
    seed: Seed = Field(0, description="public; initial values of head and adapters")


class TextSource(Section):
    """Where labelled texts are, and how their file is written.

    `source` is an asset, "hf:ID", a file or a folder with one sub-folder of .txt per label. What
    is below `label_column` matters to text files only; "auto" is what `data.sources` says.
    `section` is where these settings stand, for `remedy`.
    """

    section: ClassVar[str] = ""

    source: str | None = Field(None, min_length=1)
    text_column: str = Field(
        "text", min_length=1, coerce_numbers_to_str=True, description="column with the text"
    )
    label_column: str = Field(
        "label", min_length=1, coerce_numbers_to_str=True, description="column with the label"
    )
    encoding: str = Field(
        "auto", description="of a text file, as cp1252; auto: UTF-8, or UTF-16/32 with its mark"
    )
    quoting: Literal["auto", "csv", "line", "none"] = Field(
        "auto",
        description="csv: a quoted text may go over several lines; line: within one; none: "
        "quotation marks are text; auto: none for .tsv, else csv",
    )
    header: bool = Field(
        True, description="of a CSV or TSV; without one the columns are numbers: 1 is the first"
    )

    @field_validator("encoding")
    @classmethod
    def _is_an_encoding(cls, name: str) -> str:
        if name != "auto" and not _decodes_text(name):
            raise PydanticCustomError(
                "unknown_encoding",
                "no text encoding of this name is known; examples are utf-8 and cp1252",
            )
        return name

    @model_validator(mode="after")
    def _columns_are_numbers(self) -> Self:
        columns = self.text_column, self.label_column
        if not self.header and not all(column.isdecimal() and int(column) for column in columns):
            raise ValueError(
                "a file without a header needs column numbers (the first is 1): for example "
                + self.remedy(header=False, text_column="2", label_column="1")
            )
        return self

    @classmethod
    def remedy(cls, **values: str | bool) -> str:
        """How whoever gave these settings can give `values`; to be printed."""
        return remedy.given(cls.section, values)


_ESCAPES = {"idna", "punycode", "unicode-escape", "raw-unicode-escape"}  # no file is written so


def _decodes_text(name: str) -> bool:
    try:
        return codecs.lookup(name).name not in _ESCAPES and "a,1".encode(name).decode(name) == "a,1"
    except (LookupError, ValueError):  # not known, or from bytes to bytes, as base64
        return False


class WarmUpSettings(TextSource):
    """Ordinary training of the whole base on public labelled texts, before any PC is asked.

    Not private, and it need not be: no PC's text is among them. It gives a new base model.
    """

    section: ClassVar[str] = "warm_up"

    source: str | None = Field(
        None, min_length=1, description="public texts, given as data.source is; else no warm-up"
    )
    passes: int = Field(2, ge=1, le=1000, description="over the public texts")
    batch: int = Field(32, ge=1, le=65_536, description="texts of one step")
    learning_rate: Positive = Field(1e-4, description="of AdamW; falls to 0 in a straight line")
    head_learning_rate: Positive = Field(1e-2, description="of the classifier")
    seed: Seed = Field(0, description="public; the order of the texts")


class DataSettings(TextSource):
    """Where simulated data comes from and how it is spread over PCs. Simulation only.

    A relative path counts from the working directory, not from the config file.
    """

    section: ClassVar[str] = "data"

    source: str = Field(
        "sentiment-4",
        min_length=1,
        description="asset, hf:ID, or a file or folder, counted from the working directory",
    )
    skip_unusable: bool = Field(
        False, description="leave out records that cannot be used (also of warm_up), and count them"
    )
    labels: tuple[str, ...] | None = Field(
        None, description="public label list, in order; else all that occur"
    )
    partition: Literal["iid", "dirichlet", "column", "skewed"] = Field(
        "iid", description="how records are spread over PCs"
    )
    partition_column: str | None = Field(
        None, min_length=1, description='column whose values are the PCs, for "column"'
    )
    alpha: Positive = Field(0.5, description="Dirichlet concentration: small is very uneven")
    skew: float = Field(1.0, ge=0, le=10, description="sizes fall as rank to this power")
    validation: str | None = Field(
        None, min_length=1, description="public validation data, given as source is"
    )
    test: str | None = Field(None, min_length=1, description="test data, given as source is")
    validation_size: int | None = Field(
        None, ge=1, le=10_000_000, description="split off; else a tenth, at most 2000"
    )
    test_size: int | None = Field(None, ge=1, le=10_000_000, description="as validation_size")
    limit: Count | None = Field(None, description="use only so many records (a public sample)")
    split_seed: Seed = Field(0, description="which texts are held back for validation and test")
    seed: Seed = Field(0, description="which PC holds which record")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.partition == "column" and self.partition_column is None:
            raise ValueError('data.partition = "column" needs data.partition_column')
        if self.labels is not None and len(set(self.labels)) < max(2, len(self.labels)):
            raise ValueError("data.labels must hold at least two different names, each once")
        return self


class PrivacySettings(Section):
    """What is promised. Everything here is public and part of the job.

    Unit: one record. Neighbours: add or remove one record of one PC. `epsilon` is the target over
    all planned rounds; `noise_multiplier` may be given instead of it. `lifetime_epsilon` is what
    each simulated owner allows for the life of their PC.
    """

    mode: Literal["local", "none"] = Field("local", description="noise on each PC, or no privacy")
    unit: Literal["record"] = Field("record", description="what is protected")
    epsilon: float | None = Field(
        None, gt=0, le=1000, description="target over all rounds; 8 if no noise is given"
    )
    noise_multiplier: float | None = Field(
        None,
        ge=MIN_NOISE,
        le=MAX_NOISE,
        description="noise by clip bound, in place of epsilon",
    )
    delta: float = Field(1e-5, gt=0, lt=0.01, description="at most 1 / (10 n) of any PC")
    clip_norm: float = Field(
        1.0, ge=MIN_CLIP, le=MAX_CLIP, description="L2 bound C on one record's gradient"
    )
    sampling_rate: Share = Field(
        1.0, description="Poisson sampling rate q of one local step; else 1, beyond a head 0.1"
    )
    exact_sums: bool = Field(
        False, description="last-k and full: add records up in float64, so that no rounding counts"
    )
    lifetime_epsilon: float = Field(
        8.0, gt=0, le=1000, description="what each simulated owner allows for good"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.mode == "local" and (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError(
                'privacy.mode = "local" needs exactly one of privacy.epsilon and '
                "privacy.noise_multiplier"
            )
        if self.mode == "none" and (self.epsilon or self.noise_multiplier):
            raise ValueError(
                'privacy.mode = "none" adds no noise: leave privacy.epsilon and '
                "privacy.noise_multiplier out"
            )
        return self


class TrainingSettings(Section):
    """What one PC does in one round. Public; `local_steps` enters the privacy schedule."""

    local_steps: int = Field(1, ge=1, le=100_000, description="steps of one PC in one round")
    optimizer: Literal["sgd", "adam"] = Field("sgd", description="of a PC, within a round")
    learning_rate: Positive = Field(1.0, description="of a PC; else 1, beyond a head 0.5")
    head_learning_rate: Positive | None = Field(None, description="of the classifier, if other")


class FederationSettings(Section):
    """How rounds are run. Public; `rounds` enters the privacy schedule."""

    pcs: int = Field(20, ge=1, le=10_000, description="how many PCs")
    rounds: int = Field(
        30, ge=1, le=100_000, description="planned; else 30, and 60 with more than 10 labels"
    )
    fraction: Share = Field(1.0, description="of the PCs asked in each round")
    min_pcs: int = Field(1, ge=1, le=100_000, description="fewer updates: the round is void")
    weighting: Literal["equal", "size-class"] = Field(
        "size-class", description="of a PC's update in the average"
    )
    server_optimizer: Literal["fedavg", "fedavgm", "fedadam"] = Field(
        "fedadam",
        description="what is done with the average (Reddi et al. 2021); beyond a head fedavg",
    )
    server_learning_rate: Positive = Field(
        0.05, description="of the server's optimizer; else 0.05 (FedAdam), 1 (the others)"
    )
    server_momentum: float = Field(0.9, ge=0, lt=1, description="beta 1 of FedAvgM and FedAdam")
    server_beta2: float = Field(0.99, ge=0, lt=1, description="beta 2 of FedAdam")
    server_tau: Positive = Field(1e-3, description="FedAdam's adaptivity")
    dropout_rate: float = Field(0.0, ge=0, le=1, description="injected chance to vanish in a round")
    dropout_stage: Stage = Field("mask", description="where in a round a PC vanishes")
    only: tuple[int, ...] | None = Field(None, description="ask these PCs only (0 is the first)")
    spare_attempts: int = Field(10, ge=0, le=10_000, description="void or repeated rounds allowed")
    round_timeout: Positive = Field(
        3600.0, description="seconds without any update after which a round goes on"
    )
    stage_timeout: Positive = Field(60.0, description="the same for answers that need no training")
    seed: Seed = Field(0, description="public; who is asked, who is made to vanish")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.only is not None:
            if not self.only or len(set(self.only)) < len(self.only):
                raise ValueError("federation.only must name at least one PC, each once")
            if not all(0 <= pc < self.pcs for pc in self.only):
                raise ValueError(f"federation.only must lie within 0 to {self.pcs - 1}")
        members = len(self.only) if self.only is not None else self.pcs
        if self.min_pcs > self.cohort_size(members):
            raise ValueError(
                f"federation.min_pcs = {self.min_pcs} can never be reached: a round asks "
                f"{self.cohort_size(members)} PCs (allowed: from 1 to {self.cohort_size(members)})"
            )
        return self

    def cohort_size(self, members: int) -> int:
        """How many of `members` PCs a round asks."""
        return max(1, round(self.fraction * members))


class SealingSettings(Section):
    """How updates are hidden from the coordinator. Public; part of the job.

    `bound` limits what one value of an update, times the PC's weight, may be: what is larger is
    moved to it, so that no sum can wrap around.
    """

    mode: Literal["secagg", "none"] = Field(
        "secagg", description="the coordinator sees sums only, or every PC's update"
    )
    bits: Literal[32, 24, 16] = Field(32, description="of one sealed value; 16 needs noise")
    colluding: int | None = Field(
        None, ge=1, le=10_000, description="PCs that may work for the coordinator; else a tenth"
    )
    least: Share = Field(0.7, description="of the PCs asked; with fewer updates no sum is opened")
    bound: Positive | None = Field(
        None, description="of one value of a weighted update; else from the other settings"
    )
    key_rounds: int = Field(100, ge=1, le=100_000, description="rounds with the same keys")


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
        "run", max_length=80, pattern=NAME, description="of the run's folder; -2 is added if taken"
    )
    plots: bool = Field(True, description="draw plots/ and write report.html")
    tensorboard: bool = Field(False, description="write scalars for TensorBoard too")
    keep_pc_state: bool = Field(True, description="keep simulated PCs' folders after the run")


class SpeedSettings(Section):
    """What changes only speed and memory, never a promise. Decided by each PC for itself."""

    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = Field(
        "auto", description="where a PC computes"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of forward and backward passes; norms, sums, noise stay wider"
    )
    threads: int = Field(0, ge=0, le=1024, description="0: as torch chooses")
    micro_batch: int = Field(
        0, ge=0, le=65_536, description="rows in memory at once, up to a power of two; 0: as usual"
    )
    cache_frozen: bool = Field(True, description="compute frozen lower layers once per text")
    cache_folder: str | None = Field(None, description="share that cache (simulation only)")


class Settings(Section):
    """One whole job."""

    model: ModelSettings = ModelSettings()
    warm_up: WarmUpSettings = WarmUpSettings()
    data: DataSettings = DataSettings()
    privacy: PrivacySettings = PrivacySettings(epsilon=8.0)
    training: TrainingSettings = TrainingSettings()
    federation: FederationSettings = FederationSettings()
    sealing: SealingSettings = SealingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    output: OutputSettings = OutputSettings()
    speed: SpeedSettings = SpeedSettings()

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, tree: object) -> object:
        return filled(tree) if isinstance(tree, Mapping) else tree

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.sealing.bits == 16 and self.privacy.mode == "none":
            raise ValueError(
                "sealing.bits = 16 needs the noise of a private mode, which is as large in every "
                "value: take 24 or 32"
            )
        return self


class Policy(Section):
    """What the owner of a PC lets a job ask for; checked before anything is computed."""

    allow_not_private: bool = Field(False, description="train without clip and noise")
    allow_plain_updates: bool = Field(False, description="send updates that the server can read")
    min_sum: int = Field(3, ge=3, description="fewest PCs whose sum may be opened")
    max_share: Share = Field(
        0.5, description="of the honest PCs' weight in a sum that this PC's update may have"
    )
    min_colluding: int = Field(1, ge=1, description="colluding PCs that a round must bear")
    min_threshold: Share = Field(0.5, description="of a group, that must agree on a sum")
    bits: tuple[Literal[32, 24, 16], ...] = Field((32, 24, 16), description="allowed rings")
    max_clip_norm: float = Field(MAX_CLIP, gt=0, description="clip bound")
    min_noise: float = Field(MIN_NOISE, ge=0, description="noise multiplier")
    max_epsilon: Positive = Field(1000.0, description="of all attempts of one job")
    max_rounds: int = Field(100_000, ge=1, description="of one job, void attempts included")
    max_local_steps: int = Field(1000, ge=1, description="of one round")
    max_length: int = Field(512, ge=4, description="tokens of one text")


class WorkSettings(Section):
    """When a PC works for its federation, and how modestly."""

    only_on_mains: bool = Field(False, description="not on battery")
    max_load: float | None = Field(
        None, gt=0, le=1, description="not while others use more of the processor than this share"
    )
    min_free_gib: float = Field(0.0, ge=0, description="rest while less memory (GiB) is free")
    low_priority: bool = Field(True, description="give way to the owner's own programs")
    answer_slot: float = Field(
        0.0,
        ge=0,
        le=86_400,
        description="send updates only each so many seconds after the request: hides training time",
    )


class OwnerSettings(TextSource):
    """What the owner of one PC decides. Stays on the PC.

    The base model is the owner's choice too: a PC that loaded what a job names could be given one
    that fails on a certain word, and would tell by failing. Delta and lifetime budget are in the
    PC's ledger, for good. `admission` is the public key, in hex, of whoever says who belongs to the
    federation and which jobs it runs.
    """

    section: ClassVar[str] = remedy.OWNER_FILE

    name: str = Field(max_length=80, pattern=NAME)
    source: str = Field(min_length=1, description="where this PC's texts are")
    size_class: int = Field(ge=1, description="public upper end of the number of records")
    base: str = Field(min_length=1, description="the one base model that this PC trains")
    admission: str = Field(pattern=r"^[0-9a-f]{64}$")
    server: str | None = Field(None, description="host:port of the coordinator's server")
    policy: Policy = Policy()
    work: WorkSettings = WorkSettings()
    insecure_test_seed: Seed | None = None
    dropout_rate: float = Field(0.0, ge=0, le=1)
    dropout_stage: Stage = "mask"
    dropout_seed: Seed = 0
    speed: SpeedSettings = SpeedSettings()
