"""What the owner of one PC decides. It never travels to the coordinator."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from fedaipc.config import remedy
from fedaipc.config.data import TextSource
from fedaipc.config.rounds import Stage
from fedaipc.config.section import MAX_CLIP, MIN_NOISE, NAME, Positive, Section, Seed, Share


class SpeedSettings(Section):
    """What changes only speed and memory, never a promise. Decided by each PC for itself."""

    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = Field(
        "auto", description="where a PC computes"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="precision of forward and backward passes; norms, sums and noise "
        "use more digits",
    )
    threads: int = Field(0, ge=0, le=1024, description="0: torch's own choice")
    workers: int = Field(
        0,
        ge=0,
        le=256,
        description="processes that play the PCs (simulation only); 0: on a CPU one a core, at "
        "most 8, and one for every 50 PCs",
    )
    micro_batch: int = Field(
        0,
        ge=0,
        le=65_536,
        description="rows in memory at a time, rounded up to a power of two; 0: the default",
    )
    cache_frozen: bool = Field(True, description="compute frozen lower layers once per text")
    cache_folder: str | None = Field(None, description="share that cache (simulation only)")


class Policy(Section):
    """What the owner of a PC lets a job ask for; checked before anything is computed."""

    allow_not_private: bool = Field(False, description="train without clip and noise")
    allow_plain_updates: bool = Field(False, description="send updates that the server can read")
    allow_distributed_noise: bool = Field(
        False,
        description="send updates with a share of the noise, so that epsilon rests on secure "
        "aggregation",
    )
    min_sum: int = Field(3, ge=3, description="fewest PCs whose sum may be unmasked")
    max_share: Share = Field(
        0.5,
        description="largest share of the honest PCs' weight in a sum that this PC's update "
        "may have",
    )
    min_colluding: int = Field(1, ge=1, description="colluding PCs that a round must tolerate")
    min_threshold: Share = Field(0.5, description="share of a group that must agree on a sum")
    bits: tuple[Literal[32, 24, 16], ...] = Field((32, 24, 16), description="allowed rings")
    max_clip_norm: float = Field(MAX_CLIP, gt=0, description="clip bound")
    min_noise: float = Field(
        MIN_NOISE, ge=0, description="noise multiplier; with distributed noise that of a sum"
    )
    max_epsilon: Positive = Field(1000.0, description="of all attempts of one job")
    max_local_epsilon: Positive = Field(
        1000.0,
        description="with distributed noise: over this PC's life, against whoever reads its own "
        "updates in spite of secure aggregation",
    )
    max_rounds: int = Field(100_000, ge=1, description="of one job, void attempts included")
    max_local_steps: int = Field(1000, ge=1, description="of one round")
    max_length: int = Field(512, ge=4, description="tokens of one text")


class AvailabilitySettings(Section):
    """When a PC works for its federation, and with what priority."""

    only_on_mains: bool = Field(False, description="not on battery")
    max_load: float | None = Field(
        None, gt=0, le=1, description="not while others use more of the processor than this share"
    )
    min_free_gib: float = Field(0.0, ge=0, description="rest while less memory (GiB) is free")
    low_priority: bool = Field(True, description="run at low priority beside the owner's programs")
    answer_slot: float = Field(
        0.0,
        ge=0,
        le=86_400,
        description="send updates only each so many seconds after the request: hides training time",
    )


class OwnerSettings(TextSource):
    """What the owner of one PC decides. Stays on the PC.

    The base model is the owner's choice too. If a PC loaded the base that a job names, it could
    be given one that fails on a certain word, and its failure would tell that it holds that
    word. Delta and lifetime budget are in the PC's ledger and never change. `admission` is the
    public key, in hex, of whoever says who belongs to the federation and which jobs it runs.
    """

    section: ClassVar[str] = remedy.OWNER_FILE

    name: str = Field(max_length=80, pattern=NAME, description="public name of this PC")
    source: str = Field(min_length=1, description="where this PC's texts are")
    size_class: int = Field(ge=1, description="public upper end of the number of records")
    base: str = Field(min_length=1, description="the one base model that this PC trains")
    admission: str = Field(
        pattern=r"^[0-9a-f]{64}$", description="the federation's public key, 64 hex digits"
    )
    server: str | None = Field(None, description="host:port of the coordinator's server")
    policy: Policy = Policy()
    availability: AvailabilitySettings = AvailabilitySettings()
    insecure_test_seed: Seed | None = Field(
        None, description="tests only: repeatable noise, which protects nothing"
    )
    dropout_rate: float = Field(
        0.0, ge=0, le=1, description="simulation only: chance to vanish in a round"
    )
    dropout_stage: Stage = Field("mask", description="simulation only: when it vanishes")
    dropout_seed: Seed = Field(0, description="simulation only: in which rounds")
    speed: SpeedSettings = SpeedSettings()
