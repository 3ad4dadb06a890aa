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
from fedaipc.config import DPSGD, FilterKind, Frozen, Schedule
from fedaipc.errors import OutputError, os_errors_as
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

    accuracy: Fraction = Field(description="share of texts whose likeliest label is right")
    macro_f1: Fraction = Field(description="mean of the labels' F1, each label counted the same")
    loss: float | None = Field(
        description="mean cross-entropy per text, in nats; null where not finite"
    )
    examples: Number = Field(description="how many texts")


class ClassScore(Frozen):
    """How a model does on the texts of one label; `support` is how many there are."""

    label: str = Field(description="one of data.labels")
    precision: Fraction = Field(description="of the texts given this label, the share that has it")
    recall: Fraction = Field(description="of the texts that have this label, the share given it")
    f1: Fraction = Field(description="harmonic mean of precision and recall")
    support: Number = Field(description="how many texts have this label")


class PlannedEpsilon(Frozen):
    """Epsilon of the whole declared schedule, by three accountants. An upper bound each."""

    rdp: Amount = Field(description="by Renyi DP, which meets a target")
    prv: Amount = Field(description="by privacy random variables")
    pld: Amount = Field(description="by privacy loss distributions")


class PrivacyFacts(Frozen):
    """What was promised. `neighbours` is a phrase for a reader; `schedule` is of one round."""

    neighbours: str = Field(description="in words: which data sets the promise compares")
    schedule: Schedule = Field(description="mechanism and steps of one round")
    rounds: Number = Field(description="planned")
    target_epsilon: Amount | None = Field(
        description="that was asked for; null where the noise was given"
    )
    planned_epsilon: PlannedEpsilon | None = Field(
        description="of all planned rounds; null without privacy"
    )
    local_epsilon: Amount | None = Field(
        None,
        description="of all attempts that the job allows, by Renyi DP, against whoever reads one "
        "PC's own updates in spite of secure aggregation; null where noise is not distributed",
    )

    @property
    def dp_sgd(self) -> DPSGD | None:
        """The mechanism, None without privacy."""
        mechanism = self.schedule.mechanism
        return mechanism if isinstance(mechanism, DPSGD) else None

    @property
    def honest(self) -> int | None:
        """How many honest PCs the noise of a sum counts with; None where each PC adds all of it."""
        return None if self.dp_sgd is None else self.dp_sgd.honest

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

    kind: Literal["secagg", "plain"] = Field(description="secure aggregation, or in the open")
    bits: Number = Field(description="of one value as it is sent")
    bound: Amount = Field(description="on one value of a weighted update")
    colluding: Number | None = Field(
        description="PCs that may work for the coordinator; null with plain aggregation"
    )
    least: Number | None = Field(
        description="fewest updates whose sum may be unmasked; null with plain aggregation"
    )


class ModelFacts(Frozen):
    """Which model was trained, where, and hashes by which two runs can be compared.

    `vector_hash` is the SHA-256 of the final flat float32 vector; `reason` says why this device
    and dtype were taken, `notes` what was done to the base.
    """

    base: str = Field(description="as model.base names it")
    method: str = Field(description="kind of model.train")
    pooling: str = Field(description="as model.pooling")
    trainable_parameters: Number = Field(description="values that are trained, and sent")
    total_parameters: Number = Field(description="values of the whole model")
    base_hash: str = Field(description="SHA-256 over the files of the base")
    layout_hash: str = Field(description="SHA-256 over base, names and shapes of what is trained")
    vector_hash: str = Field(description="SHA-256 of the trained values: one flat float32 vector")
    device: str = Field(description="where passes were computed")
    dtype: str = Field(description="of forward and backward passes")
    reason: str = Field(description="why this device and dtype were taken")
    notes: tuple[str, ...] = Field((), description="what was done to the base")


class WarmUpFacts(Frozen):
    """Public texts on which `base` was trained, not privately, before any PC was asked.

    `seconds` is about 0 where the warmed-up base was there already.
    """

    base: str = Field(description="that was trained")
    source: str = Field(description="of the public texts")
    texts: Number = Field(description="how many")
    seconds: Amount = Field(description="that it took; about 0 where the warmed-up base was cached")


class TextFit(Frozen):
    """How texts fit a model: shares of tokens not in its vocabulary, and of texts that are cut."""

    unknown_tokens: Fraction = Field(description="share of tokens that are not in the vocabulary")
    cut_texts: Fraction = Field(description="share of texts longer than model.max_length")


class DataFacts(Frozen):
    """Labels and the sizes (in texts) of the sets; `majority` is the test set's largest share.

    `train_fit` is of what all PCs hold together: known to a simulator only.
    """

    source: str = Field(description="as data.source names it")
    labels: tuple[str, ...] = Field(description="public label list, in order")
    train: Number | None = Field(description="texts of all PCs; null over real PCs")
    validation: Number = Field(description="texts")
    test: Number = Field(description="texts")
    majority: Fraction | None = Field(description="share of the commonest label in the test set")
    notes: tuple[str, ...] = Field((), description="what was left out and why")
    train_fit: TextFit | None = Field(
        None, description="of what all PCs hold together; null over real PCs"
    )
    validation_fit: TextFit | None = Field(None, description="of the validation set")


class Traffic(Frozen):
    """Bytes of all PCs together, from the coordinator (`down`) and to it (`up`)."""

    down: Number = Field(description="bytes from the coordinator to all PCs")
    up: Number = Field(description="bytes from all PCs to the coordinator")


class RoundResult(Frozen):
    """One attempt at one round. A void one left the model as it was, and says why.

    `blamed` names PCs whose uploads or shares were provably wrong. `asked`, `arrived`,
    `declined` and `dropped` count PCs; `phases` holds seconds by name, `traffic` bytes by stage.
    `charged` is the largest number of attempts of the run that a PC was charged for, and
    `epsilon` what they cost that PC.
    """

    round: Number = Field(description="number of the round, from 1")
    attempt: Number = Field(
        description="number of the attempt, from 1; a void round is tried again"
    )
    void: bool = Field(description="whether the model stayed as it was")
    why_void: str | None = Field(None, description="in words")
    blamed: tuple[str, ...] = Field(
        (), description="public names of PCs whose uploads or shares were proved wrong"
    )
    seconds: Amount = Field(description="of the attempt")
    phases: dict[str, Amount] = Field(description="seconds by name")
    asked: Number = Field(description="PCs")
    arrived: Number = Field(description="PCs whose update is in the sum")
    declined: Number = Field(description="PCs that refused")
    dropped: Number = Field(description="PCs that did not answer")
    bytes_down: Number = Field(description="bytes from the coordinator to all PCs")
    bytes_up: Number = Field(description="bytes from all PCs to the coordinator")
    traffic: dict[str, Traffic] = Field(default_factory=dict, description="the same bytes by stage")
    charged: Number | None = Field(
        None, description="attempts of the run for which the PC charged most often was charged"
    )  # unknown before it was kept
    epsilon: Amount | None = Field(description="what these cost it; null without privacy")
    validation: Score | None = Field(
        description="of the model after the attempt; null where it was not measured"
    )


class PcResult(Frozen):
    """One PC at the end. `examples` and `groups` are known to a simulator only.

    `epsilon` is read from the ledger: all charges over the PC's life, not this run's alone, by
    its privacy filter; None where the ledger can claim none.
    """

    name: str = Field(description="public name")
    size_class: Number = Field(description="public upper end of its number of records")
    examples: Number | None = Field(None, description="records it holds; null over real PCs")
    groups: tuple[str, ...] = Field(
        (), description="values of data.client_column it holds; empty over real PCs"
    )
    epsilon: Amount | None = Field(
        description="charged over the PC's life, not this run alone; null where none can be claimed"
    )
    lifetime_epsilon: Amount | None = Field(description="its budget; null where not known")
    filter: FilterKind | None = Field(
        None,
        description='its privacy filter: "gaussian", or the order of an RDP filter; null where not '
        "known",
    )
    charges: Number = Field(description="lines of its ledger")
    state: Literal["active", "exhausted", "absent"] = Field(
        description="exhausted: no budget for another round; absent: not seen at the end"
    )


class MachineFacts(Frozen):
    """Where the coordinator (or the simulation) ran, and the versions that matter.

    Cores and memory are those that its process could use. `instructions` are the processor's.
    """

    cores: Number = Field(description="that the process could use")
    threads: Number = Field(description="that torch used in the coordinator's process")
    workers: Number | None = Field(
        None,
        description="processes that played the PCs, the coordinator's own where it is one; "
        "null where it did not start them",
    )
    memory_gb: Amount = Field(description="that the process could use, in GiB (2^30 bytes)")
    processor: str = Field(description="name")
    instructions: tuple[str, ...] = Field((), description="of the processor that matter for speed")
    python: str = Field(description="version")
    torch: str = Field(description="version")
    flwr: str = Field(description="version")
    opacus: str = Field(description="version")
    transformers: str = Field(description="version")


class Results(Frozen):
    """One run. `not_private` holds the reasons why no promise can be made; empty is private.

    `start` and `validation` are scores on the validation set before the first round and after the
    last. `status` is never written as "interrupted": that is what "running" means where no process
    works on the run any more.
    """

    schema_version: Literal[1] = Field(1, description="of this file")
    fedaipc: str = Field(description="version that wrote it")
    name: str = Field(description="of the run")
    run_id: str = Field(description="16 hex digits, drawn at random")
    engine: Engine = Field(description="how PCs were driven")
    status: Literal["running", "interrupted", "finished", "stopped"] = Field(
        description="stopped: budgets ended; interrupted: not finished and no process works on it"
    )
    started: UtcTime = Field(description="UTC, ISO 8601")
    finished: UtcTime | None = Field(description="UTC, ISO 8601; null before the end")
    seconds: Amount = Field(description="of work, pauses between resumptions left out")
    resumed: Number = Field(0, description="how often it was started again from its checkpoint")
    not_private: tuple[str, ...] = Field(
        description="reasons why no promise can be made; empty: private"
    )
    privacy: PrivacyFacts = Field(description="what was promised")
    aggregation: AggregationFacts = Field(description="what the coordinator could see")
    model: ModelFacts = Field(description="which model was trained")
    warm_up: WarmUpFacts | None = Field(None, description="null without a warm-up")
    data: DataFacts = Field(description="labels, and sizes of the sets")
    rounds: tuple[RoundResult, ...] = Field((), description="one entry an attempt, in order")
    pcs: tuple[PcResult, ...] = Field((), description="one entry a PC, at the end")
    start: Score | None = Field(None, description="on the validation set, before round 1")
    validation: Score | None = Field(
        None, description="on the validation set, after the last round"
    )
    test: Score | None = Field(None, description="on the test set, once, after the last round")
    test_classes: tuple[ClassScore, ...] = Field((), description="on the test set, by label")
    standard_error: Amount | None = Field(
        None, description="of the test accuracy, from the number of test texts"
    )
    machine: MachineFacts = Field(description="where the coordinator or the simulation ran")
    peak_memory_bytes: Number | None = Field(
        None, description="of the coordinator's process; null where not known"
    )

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
    with os_errors_as(
        OutputError,
        f"{folder}: cannot write {path.name}",
        "; free some space or choose another folder",
    ):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)


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
