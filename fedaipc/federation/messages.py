"""Requests and replies as Flower records. Nothing else ever travels.

A PC's reply holds its update, or one word from `REFUSALS`, or (for `describe`) its public name and
size class. No count, loss, metric or exception text has a place here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedaipc.config import NAME
from fedaipc.errors import EncodingError, RoundError
from fedaipc.federation.job import Job

if TYPE_CHECKING:
    import numpy.typing as npt

DESCRIBE = "query.describe"
TRAIN = "train.round"
EXHAUSTED = "exhausted"
REFUSED = "refused"
REFUSALS = (EXHAUSTED, REFUSED)


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """Ask for one update. `attempt` grows with every attempt of the run and never repeats."""

    job: Job
    round: int
    attempt: int
    vector: npt.NDArray[np.float32]

    def encode(self) -> RecordDict:
        job = ConfigRecord({"job": self.job.model_dump_json(), "round": self.round,
                            "attempt": self.attempt})  # fmt: skip
        return RecordDict({"ask": job, "model": _vector_record(self.vector)})

    @classmethod
    def decode(cls, records: RecordDict) -> TrainRequest:
        """Raises RoundError or EncodingError on anything else than an encoded request."""
        ask = records.config_records.get("ask")
        if ask is None:
            raise RoundError("the request holds no job")
        number, attempt, job = ask.get("round"), ask.get("attempt"), ask.get("job")
        # Not isinstance: True counts as an int there, and would be entered into a ledger.
        if not (type(number) is int and type(attempt) is int and isinstance(job, str)):
            raise RoundError("the request lacks job, round or attempt")
        if number < 1 or attempt < 1:
            raise RoundError("rounds and attempts count from 1")
        return cls(Job.parse(job), number, attempt, _vector(records, "model"))


@dataclass(frozen=True, slots=True)
class Description:
    """What a PC says of itself: two public facts."""

    name: str
    size_class: int

    def encode(self) -> RecordDict:
        record = ConfigRecord({"name": self.name, "size-class": self.size_class})
        return RecordDict({"pc": record})

    @classmethod
    def decode(cls, records: RecordDict) -> Description:
        """Raises EncodingError on anything else than an encoded description."""
        pc = records.config_records.get("pc", ConfigRecord())
        name, size = pc.get("name"), pc.get("size-class")
        if not isinstance(name, str) or len(name) > 80 or not re.fullmatch(NAME, name):
            raise EncodingError("a PC described itself with a name that is none")
        if type(size) is not int or not 1 <= size <= 2**40:
            raise EncodingError("a PC described itself with a size class that is none")
        return cls(name, size)


def encode_update(update: npt.NDArray[np.float32]) -> RecordDict:
    return RecordDict({"update": _vector_record(update)})


def encode_refusal(word: str) -> RecordDict:
    return RecordDict({"refusal": ConfigRecord({"word": word})})


def decode_reply(records: RecordDict) -> npt.NDArray[np.float32] | str:
    """The update, or the word of a refusal. Raises EncodingError on anything else."""
    refusal = records.config_records.get("refusal")
    if refusal is not None:
        word = refusal.get("word")
        if word not in REFUSALS:
            raise EncodingError("a PC refused in a way this fedaipc cannot read")
        return str(word)
    return _vector(records, "update")


def _vector_record(vector: npt.NDArray[np.float32]) -> ArrayRecord:
    return ArrayRecord({"vector": Array(vector)})


def _vector(records: RecordDict, name: str) -> npt.NDArray[np.float32]:
    record = records.array_records.get(name)
    if record is None or "vector" not in record:
        raise EncodingError(f"the message holds no {name}")
    try:
        vector = record["vector"].numpy()
    except Exception:  # noqa: BLE001 - numpy's parser raises many kinds on hostile bytes
        raise EncodingError(f"the {name} cannot be read") from None
    # Not an array where the bytes are a zip file: numpy opens that as an archive of arrays.
    if not isinstance(vector, np.ndarray) or vector.dtype != np.float32 or vector.ndim != 1:
        raise EncodingError(f"the {name} is not a flat float32 vector")
    return vector
