"""What a run writes: `results.json`, schema version 1. This module is its only definition.

Everything in it is public. Numbers that exist only because a simulator sees all PCs (the number
of examples on each) are None or empty in a run over real PCs. A value that is not known is None,
never zero and never NaN.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from filelock import FileLock, Timeout
from pydantic import AfterValidator, Field, ValidationError, model_validator

from fedaipc import strict_json
from fedaipc.config import DPSGD, Frozen, Schedule
from fedaipc.errors import OutputError
from fedaipc.files import write_atomic

SCHEMA_VERSION = 1  # and the Literal in `Results`
RESULTS_FILE = "results.json"
LOCK_FILE = ".lock"  # in a run's folder; held by the process that works on the run
_MAX_BYTES = 1 << 27  # 100,000 rounds


def _utc(text: str) -> str:
    if datetime.fromisoformat(text).utcoffset() != timedelta(0):
        raise ValueError("write times in UTC, as 2025-01-31T12:00:00+00:00")
    return text


Engine = Literal["in-process", "flower", "fleet"]
UtcTime = Annotated[str, AfterValidator(_utc)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]


class Score(Frozen):
    """How a model does on one set of texts. `loss` is None where it was not finite."""

    accuracy: Fraction
    macro_f1: Fraction
    loss: float | None
    examples: Number


class ClassScore(Frozen):
    """How a model does on the texts of one label; `support` is how many there are."""

    label: str
    precision: Fraction
    recall: Fraction
    f1: Fraction
    support: Number


class PlannedEpsilon(Frozen):
    """Epsilon of the whole declared schedule, by three accountants. An upper bound each."""

    rdp: Amount
    prv: Amount
    pld: Amount


class PrivacyFacts(Frozen):
    """What was promised. `neighbours` is a phrase for a reader; `schedule` is of one round."""

    neighbours: str
    schedule: Schedule
    rounds: Number
    target_epsilon: Amount | None
    planned_epsilon: PlannedEpsilon | None

    @property
    def dp_sgd(self) -> DPSGD | None:
        """The mechanism, None without privacy."""
        mechanism = self.schedule.mechanism
        return mechanism if isinstance(mechanism, DPSGD) else None

    @property
    def delta(self) -> float:
        return self.schedule.mechanism.delta

    @property
    def unit(self) -> str:
        return self.schedule.mechanism.unit


class AggregationFacts(Frozen):
    """What the coordinator could see. With plain aggregation: every PC's update.

    `colluding` PCs may work for it, and no sum of fewer than `least` updates is unmasked; `bound`
    is on one value of a weighted update.
    """

    kind: Literal["secagg", "plain"]
    bits: Number
    bound: Amount
    colluding: Number | None
    least: Number | None


class ModelFacts(Frozen):
    """Which model was trained, where, and hashes by which two runs can be compared.

    `vector_hash` is the SHA-256 of the final flat float32 vector; `reason` says why this device
    and dtype were taken, `notes` what was done to the base.
    """

    base: str
    method: str
    pooling: str
    trainable_parameters: Number
    total_parameters: Number
    base_hash: str
    layout_hash: str
    vector_hash: str
    device: str
    dtype: str
    reason: str
    notes: tuple[str, ...] = ()


class WarmUpFacts(Frozen):
    """Public texts on which `base` was trained, not privately, before any PC was asked.

    `seconds` is about 0 where the warmed-up base was there already.
    """

    base: str
    source: str
    texts: Number
    seconds: Amount


class TextFit(Frozen):
    """How texts fit a model: shares of tokens not in its vocabulary, and of texts that are cut."""

    unknown_tokens: Fraction
    cut_texts: Fraction


class DataFacts(Frozen):
    """Labels and the sizes (in texts) of the sets; `majority` is the test set's largest share.

    `train_fit` is of what all PCs hold together: known to a simulator only.
    """

    source: str
    labels: tuple[str, ...]
    train: Number | None
    validation: Number
    test: Number
    majority: Fraction | None
    notes: tuple[str, ...] = ()
    train_fit: TextFit | None = None
    validation_fit: TextFit | None = None


class Traffic(Frozen):
    """Bytes of all PCs together, from the coordinator (`down`) and to it (`up`)."""

    down: Number
    up: Number


class RoundResult(Frozen):
    """One attempt at one round. A void one left the model as it was, and says why.

    `blamed` names PCs whose uploads or shares were provably wrong. `asked`, `arrived`,
    `declined` and `dropped` count PCs; `phases` holds seconds by name, `traffic` bytes by stage.
    `charged` is the largest number of attempts of the run that a PC was charged for, and
    `epsilon` what they cost that PC.
    """

    round: Number
    attempt: Number
    void: bool
    why_void: str | None = None
    blamed: tuple[str, ...] = ()
    seconds: Amount
    phases: dict[str, Amount]
    asked: Number
    arrived: Number
    declined: Number
    dropped: Number
    bytes_down: Number
    bytes_up: Number
    traffic: dict[str, Traffic] = Field(default_factory=dict)
    charged: Number | None = None  # unknown before it was kept
    epsilon: Amount | None
    validation: Score | None


class PcResult(Frozen):
    """One PC at the end. `examples` and `groups` are known to a simulator only.

    `epsilon` is read from the ledger: all charges over the PC's life, not this run's alone, by
    the filter of order `filter_order`; None where the ledger can claim none.
    """

    name: str
    size_class: Number
    examples: Number | None = None
    groups: tuple[str, ...] = ()
    epsilon: Amount | None
    lifetime_epsilon: Amount | None
    filter_order: Amount | None = None
    charges: Number
    state: Literal["active", "exhausted", "absent"]


class MachineFacts(Frozen):
    """Where the coordinator (or the simulation) ran, and the versions that matter.

    Cores and memory are those that its process could use. `instructions` are the processor's.
    """

    cores: Number
    threads: Number
    memory_gb: Amount
    processor: str
    instructions: tuple[str, ...] = ()
    python: str
    torch: str
    flwr: str
    opacus: str
    transformers: str


class Results(Frozen):
    """One run. `not_private` holds the reasons why no promise can be made; empty is private.

    `start` and `validation` are scores on the validation set before the first round and after the
    last. `status` is never written as "interrupted": that is what "running" means where no process
    works on the run any more.
    """

    schema_version: Literal[1] = 1
    fedaipc: str
    name: str
    run_id: str
    engine: Engine
    status: Literal["running", "interrupted", "finished", "stopped"]
    started: UtcTime
    finished: UtcTime | None
    seconds: Amount
    resumed: Number = 0
    not_private: tuple[str, ...]
    privacy: PrivacyFacts
    aggregation: AggregationFacts
    model: ModelFacts
    warm_up: WarmUpFacts | None = None
    data: DataFacts
    rounds: tuple[RoundResult, ...] = ()
    pcs: tuple[PcResult, ...] = ()
    start: Score | None = None
    validation: Score | None = None
    test: Score | None = None
    test_classes: tuple[ClassScore, ...] = ()
    standard_error: Amount | None = None
    machine: MachineFacts
    peak_memory_bytes: Number | None = None

    @property
    def charged(self) -> int:
        """How many attempts cost the PC that was charged most often."""
        return max((one.attempt if one.charged is None else one.charged for one in self.rounds),
                   default=0)  # fmt: skip

    @model_validator(mode="after")
    def _check(self) -> Self:
        # A forgotten reason would print a promise over a run that has none.
        if not self.privacy.schedule.private and not self.not_private:
            raise ValueError('privacy mode "none" needs a reason in not_private')
        return self

    @classmethod
    def load(cls, run_folder: Path) -> Self:
        """Read a run's results.

        Raises OutputError: no such file, not readable, not JSON, of a newer schema, a field that
        is missing or has a value that cannot be.
        """
        path = Path(run_folder) / RESULTS_FILE
        try:
            tree = strict_json.load(path, max_bytes=_MAX_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            raise OutputError(
                f"{run_folder}: no {RESULTS_FILE} here; give the folder that a run wrote"
            ) from None
        except OSError as error:
            raise OutputError(f"{path}: cannot be read ({error.strerror})") from None
        except ValueError as error:
            raise OutputError(
                f"{path}: cannot be used: {error}; copy the file again or rerun"
            ) from None
        _check_version(path, tree)
        try:
            results = cls.model_validate(tree)
        except ValidationError as error:
            raise OutputError(f"{path}: {_first_fault(error)}; was it edited?") from None
        if results.status == "running" and not _is_worked_on(path.parent):
            return results.model_copy(update={"status": "interrupted"})
        return results

    @property
    def unfinished(self) -> bool:
        """Whether rounds may still come: now, or once the run is resumed."""
        return self.status in {"running", "interrupted"}

    def write(self, run_folder: Path) -> Path:
        """Write `results.json` atomically; make the folder if needed. Raises OutputError."""
        path = Path(run_folder) / RESULTS_FILE
        write_file(path, (self.model_dump_json(indent=2) + "\n").encode())
        return path


def write_file(path: Path, content: bytes) -> None:
    """Replace `path` by `content` so that a crash leaves the old file or the new one, whole.

    Makes missing folders. Raises OutputError that names the folder.
    """
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot write {path.name} ({error.strerror}); "
            "free some space or choose another folder"
        ) from None


def _is_worked_on(folder: Path) -> bool:
    """Whether a process holds the run; also where that cannot be found out."""
    path = folder / LOCK_FILE
    if not path.is_file():  # and looking must not create it
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except (Timeout, OSError):
        return True


def _check_version(path: Path, tree: Any) -> None:
    version = tree.get("schema_version") if isinstance(tree, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise OutputError(f"{path}: not a results file of fedaipc (no schema_version)")
    if version > SCHEMA_VERSION:
        raise OutputError(
            f"{path}: written by a newer fedaipc (schema {version}, this one reads "
            f"{SCHEMA_VERSION}); upgrade fedaipc"
        )


def _first_fault(error: ValidationError) -> str:
    detail = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in detail["loc"])
    return f"{place or 'results'}: {detail['msg'][:1].lower()}{detail['msg'][1:]}"
