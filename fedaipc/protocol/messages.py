"""Requests and replies as Flower records. Nothing else ever travels.

| stage  | the coordinator sends                          | a PC answers                          |
|--------|------------------------------------------------|---------------------------------------|
| setup  | run, key epoch, roster                         | its public name, its signed bundle    |
| ready  | signed job, round, terms                       | how often the run has charged it, and |
|        |                                                | its shares, or one word of `REFUSALS` |
| mask   | the same, round keys, and the global vector    | its upload, or one word of `REFUSALS` |
| agree  | run, attempt, a proposal                       | an agreement or a complaint           |
| unmask | run, attempt, the agreed set, encrypted shares | shares                                |

What the frames hold is in secagg/SPEC.md. No count, loss, metric or exception text has a place
here.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedaipc import strict_json
from fedaipc.config import NAME, RUN
from fedaipc.errors import EncodingError, RoundError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

SETUP, READY, MASK = "query.setup", "query.ready", "train.mask"
AGREE, UNMASK = "query.agree", "query.unmask"
EXHAUSTED = "exhausted"  # the lifetime budget does not cover another round
REFUSED = "refused"  # permanent: owner's policy, another base, a machine that cannot do the job
UNABLE = "unable"  # not now: the ledger is locked, the disk is full, other keys are expected
REFUSALS = (EXHAUSTED, REFUSED, UNABLE)
_RAW = "bytes"


@dataclass(frozen=True, slots=True)
class SetupRequest:
    """Ask for the keys of one epoch of a run. `roster` is a signed frame."""

    run: str
    epoch: int
    roster: bytes

    def encode(self) -> RecordDict:
        ask = ConfigRecord({"run": self.run, "epoch": self.epoch, "roster": self.roster})
        return RecordDict({"ask": ask})

    @classmethod
    def decode(cls, records: RecordDict) -> SetupRequest:
        """Raises RoundError on anything else than an encoded request."""
        ask = _config(records, "ask")
        run = _text(ask, "run")
        if not re.fullmatch(RUN, run):
            raise RoundError("the request has no run")
        return cls(run, _number(ask, "epoch"), _bytes(ask, "roster"))


@dataclass(frozen=True, slots=True)
class Description:
    """What a PC says of itself: a public name, and its bundle."""

    name: str
    bundle: bytes

    def encode(self) -> RecordDict:
        return RecordDict({"pc": ConfigRecord({"name": self.name, "bundle": self.bundle})})

    @classmethod
    def decode(cls, records: RecordDict) -> Description:
        """Raises EncodingError on anything else than an encoded description."""
        pc = _config(records, "pc")
        name, bundle = pc.get("name"), pc.get("bundle")
        if not isinstance(name, str) or len(name) > 80 or not re.fullmatch(NAME, name):
            raise EncodingError("a PC described itself with a name that is not valid")
        if not isinstance(bundle, bytes):
            raise EncodingError("a PC described itself without its keys")
        return cls(name, bundle)


@dataclass(frozen=True, slots=True)
class RoundRequest:
    """Describe a round: the signed text of its job, and `terms`, the frame of the PC's group."""

    job: str
    signature: bytes
    round: int
    terms: bytes

    def encode(self) -> RecordDict:
        ask = ConfigRecord({"job": self.job, "signature": self.signature, "round": self.round,
                            "terms": self.terms})  # fmt: skip
        return RecordDict({"ask": ask})

    @classmethod
    def decode(cls, records: RecordDict) -> RoundRequest:
        """Raises RoundError on anything else than an encoded request."""
        ask = _config(records, "ask")
        return RoundRequest(
            job=_text(ask, "job"),
            signature=_bytes(ask, "signature"),
            round=_number(ask, "round"),
            terms=_bytes(ask, "terms"),
        )


@dataclass(frozen=True, slots=True)
class MaskRequest(RoundRequest):
    """Ask for one update to the global vector, shape (size,).

    `round_keys` is the frame of those of the PC's group; of none where updates are not masked.
    """

    round_keys: bytes
    vector: npt.NDArray[np.float32]

    def encode(self) -> RecordDict:
        records = RoundRequest.encode(self)
        records["round-keys"] = ConfigRecord({"frame": self.round_keys})
        records["model"] = ArrayRecord({"vector": Array(self.vector)})
        return records

    @classmethod
    def decode(cls, records: RecordDict) -> MaskRequest:
        """Raises RoundError or EncodingError on anything else than an encoded request."""
        about = RoundRequest.decode(records)
        keys = _bytes(_config(records, "round-keys"), "frame")
        return cls(about.job, about.signature, about.round, about.terms, keys, _vector(records))


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether a PC takes part in a round: `refusal` is None or one of `REFUSALS`.

    `charged` is how many attempts of the run its ledger holds; None where it could not look.
    `shares` is the frame of what it shares out; empty where it declines, or updates are not masked.
    """

    refusal: str | None
    charged: int | None
    shares: bytes = b""

    def encode(self) -> RecordDict:
        said = ConfigRecord()
        if self.refusal is not None:
            said["refusal"] = self.refusal
        if self.charged is not None:
            said["charged"] = self.charged
        if self.shares:
            said["shares"] = self.shares
        return RecordDict({"ready": said})

    @classmethod
    def decode(cls, records: RecordDict) -> Readiness:
        """Raises EncodingError on anything else than an encoded readiness."""
        said = _config(records, "ready")
        refusal, charged = said.get("refusal"), said.get("charged")
        shares = said.get("shares", b"")
        if refusal is not None and refusal not in REFUSALS:
            raise EncodingError("a PC refused in a way this fedaipc cannot read")
        if charged is None and refusal is None:
            raise EncodingError("a PC does not say how often it was charged")
        if charged is not None and (type(charged) is not int or charged < 0):
            raise EncodingError("a PC names a number of charges that cannot be")
        if not isinstance(shares, bytes):
            raise EncodingError("a PC's shares are not a frame")
        return cls(None if refusal is None else str(refusal), charged, shares)


@dataclass(frozen=True, slots=True, repr=False)
class MemberRequest:
    """Ask a member of a group to agree or to unmask."""

    run: str
    attempt: int
    frame: bytes

    def encode(self) -> RecordDict:
        ask = ConfigRecord({"run": self.run, "attempt": self.attempt, "frame": self.frame})
        return RecordDict({"ask": ask})

    @classmethod
    def decode(cls, records: RecordDict) -> MemberRequest:
        """Raises RoundError on anything else than an encoded request."""
        ask = _config(records, "ask")
        return cls(_text(ask, "run"), _number(ask, "attempt"), _bytes(ask, "frame"))


def encode_answer(frame: bytes) -> RecordDict:
    return RecordDict({"answer": ConfigRecord({"frame": frame})})


def decode_answer(records: RecordDict) -> bytes:
    """The frame. Raises EncodingError on anything else than an encoded answer."""
    frame = _config(records, "answer").get("frame")
    if not isinstance(frame, bytes):
        raise EncodingError("a PC's answer holds no frame")
    return frame


def encode_update(frame: bytes) -> RecordDict:
    """An upload; as an array, which Flower sends in pieces and never copies in this process."""
    array = Array(dtype="uint8", shape=(len(frame),), stype=_RAW, data=frame)
    return RecordDict({"update": ArrayRecord({"frame": array})})


def encode_refusal(word: str) -> RecordDict:
    return RecordDict({"refusal": ConfigRecord({"word": word})})


def decode_update(records: RecordDict) -> bytes | str:
    """The frame, or the word of a refusal. Raises EncodingError on anything else."""
    refusal = records.get("refusal")
    if isinstance(refusal, ConfigRecord):
        word = refusal.get("word")
        if word not in REFUSALS:
            raise EncodingError("a PC refused in a way this fedaipc cannot read")
        return str(word)
    record = records.get("update")
    if (
        not isinstance(record, ArrayRecord)
        or "frame" not in record
        or record["frame"].stype != _RAW
    ):
        raise EncodingError("a PC's answer holds no update")
    return record["frame"].data


def contents(records: RecordDict) -> Iterator[bytes]:
    """Every byte of an answer that leaves the PC, by record and key in order."""
    for name in sorted(records):
        record: Any = records[name]
        for key in sorted(record):
            value = record[key]
            if isinstance(value, Array):
                yield value.data
            else:
                yield value if isinstance(value, bytes) else str(value).encode()


def asked_for(records: RecordDict) -> tuple[str | None, int | None]:
    """Run and number of a request, as far as it tells."""
    ask = _config(records, "ask")
    run, number = ask.get("run"), ask.get("attempt", ask.get("epoch", ask.get("round")))
    if run is None:
        with suppress(ValueError, TypeError, KeyError):
            run = strict_json.parse(str(ask["job"]))["run"]
    return (
        run if isinstance(run, str) and re.fullmatch(RUN, run) else None,
        number if type(number) is int else None,
    )


def _config(records: RecordDict, name: str) -> ConfigRecord:
    """The record of this name, or an empty one.

    Not by `records.config_records`: what that gives refers to itself and to all records, so that a
    vector would stay in memory until garbage is collected.
    """
    record = records.get(name)
    return record if isinstance(record, ConfigRecord) else ConfigRecord()


def _vector(records: RecordDict) -> npt.NDArray[np.float32]:
    record = records.get("model")
    if not isinstance(record, ArrayRecord) or "vector" not in record:
        raise EncodingError("the message holds no model")
    try:
        vector = record["vector"].numpy()
    except Exception:  # noqa: BLE001 - numpy's parser raises many kinds on hostile bytes
        raise EncodingError("the model cannot be read") from None
    # Not an array where the bytes are a zip file: numpy opens that as an archive of arrays.
    if not isinstance(vector, np.ndarray) or vector.dtype != np.float32 or vector.ndim != 1:
        raise EncodingError("the model is not a flat float32 vector")
    return vector


def _text(ask: ConfigRecord, key: str) -> str:
    value = ask.get(key)
    if not isinstance(value, str):
        raise RoundError(f"the request has no {key}")
    return value


def _number(ask: ConfigRecord, key: str) -> int:
    value = ask.get(key)
    # Not isinstance: True counts as an int there, and would be entered into a ledger.
    if type(value) is not int or value < 1:
        raise RoundError(f"the request has no {key} from 1 on")
    return value


def _bytes(ask: ConfigRecord, key: str) -> bytes:
    value = ask.get(key)
    if not isinstance(value, bytes):
        raise RoundError(f"the request has no {key}")
    return value
