"""Requests and replies: what goes through comes out equal; what a liar sends is refused."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedaipc.errors import EncodingError, RoundError
from fedaipc.federation.flower_adapter import ensure_message_identity
from fedaipc.federation.job import Job
from fedaipc.federation.messages import (
    EXHAUSTED,
    REFUSED,
    Description,
    TrainRequest,
    decode_reply,
    encode_refusal,
    encode_update,
)
from tests.federation.parts import sent, tiny_job

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

VECTOR = np.array([0.5, -1.5, 2.0**-30], np.float32)


def travelled(records: RecordDict) -> RecordDict:
    """The records after Flower's own way through protobuf."""
    ensure_message_identity()
    return sent(Message(records, 7, "train.round")).content


def request(**changes: object) -> RecordDict:
    """An encoded request with some fields of its job record replaced, or left out if None."""
    records = TrainRequest(tiny_job(), 1, 1, VECTOR).encode()
    record = records["ask"]
    for key, value in changes.items():
        if value is None:
            del record[key]
        else:
            record[key] = value
    return records


# What goes through


def test_a_request_comes_out_as_it_went_in() -> None:
    job = tiny_job()
    got = TrainRequest.decode(travelled(TrainRequest(job, 2, 5, VECTOR).encode()))
    assert (got.job, got.round, got.attempt) == (job, 2, 5)
    assert got.vector.tobytes() == VECTOR.tobytes()


def test_an_update_comes_out_as_it_went_in() -> None:
    got = decode_reply(travelled(encode_update(VECTOR)))
    assert isinstance(got, np.ndarray)
    assert got.tobytes() == VECTOR.tobytes()


@pytest.mark.parametrize("word", [EXHAUSTED, REFUSED])
def test_a_refusal_comes_out_as_it_went_in(word: str) -> None:
    assert decode_reply(travelled(encode_refusal(word))) == word


def test_a_description_comes_out_as_it_went_in() -> None:
    pc = Description("pc-0001", 64)
    assert Description.decode(travelled(pc.encode())) == pc


# Requests of a lying coordinator


@pytest.mark.parametrize(
    "changes",
    [
        {"round": None},
        {"attempt": None},
        {"job": None},
        {"round": 0},
        {"round": -1},
        {"attempt": 0},
        {"attempt": -(2**63)},
        {"round": 1.0},
        {"round": "1"},
        {"round": [1]},
        {"round": True},
        {"attempt": True},
        {"attempt": b"1"},
        {"job": b"{}"},
        {"job": 1},
        {"job": ""},
        {"job": "{}"},
        {"job": "null"},
        {"job": "[" * 100_000},
        {"job": '{"version": ' + "9" * 5000 + "}"},
        {"job": "\udcff"},
    ],
    ids=lambda changes: next(f"{k}-{v!r}"[:30] for k, v in changes.items()),
)
def test_a_request_that_is_none_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RoundError):
        TrainRequest.decode(request(**changes))


def test_huge_numbers_of_rounds_are_numbers_all_the_same() -> None:
    got = TrainRequest.decode(request(round=2**63 - 1, attempt=2**63 - 1))
    assert got.round == got.attempt == 2**63 - 1


@pytest.mark.parametrize("missing", ["ask", "model"])
def test_a_request_with_a_record_missing_is_refused(missing: str) -> None:
    records = request()
    del records[missing]
    with pytest.raises((RoundError, EncodingError)):
        TrainRequest.decode(records)


def test_records_of_the_wrong_kind_are_refused() -> None:
    model = ArrayRecord({"vector": Array(VECTOR)})
    for records in (
        RecordDict({"ask": model, "model": model}),
        RecordDict({"ask": MetricRecord({"round": 1}), "model": model}),
        RecordDict({"ask": request()["ask"], "model": ConfigRecord({"vector": 1})}),
        RecordDict({"ask": request()["ask"], "model": MetricRecord({"vector": 1.0})}),
        RecordDict(),
    ):
        with pytest.raises((RoundError, EncodingError)):
            TrainRequest.decode(records)


# The job


def job_tree(**changes: object) -> str:
    return json.dumps({**json.loads(tiny_job().model_dump_json()), **changes})


def test_a_job_comes_out_as_it_went_in() -> None:
    assert Job.parse(tiny_job().model_dump_json()) == tiny_job()


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"insecure_test_seed": 1},
        {"noise_seed": 1},
        {"version": 2},
        {"version": "1"},
        {"mode": "distributed"},
        {"run": "x"},
        {"run": "0123456789ABCDEF"},
        {"run": "0123456789abcdef\n"},
        {"clip": 0},
        {"clip": -1},
        {"clip": float("nan")},
        {"clip": float("inf")},
        {"noise_multiplier": 0},
        {"noise_multiplier": 0.0999},
        {"noise_multiplier": float("nan")},
        {"sampling_rate": 0},
        {"sampling_rate": 1.01},
        {"delta": 0.5},
        {"delta": 0},
        {"rounds": 0},
        {"rounds": 1.5},
        {"most_attempts": 0},
        {"labels": ["one"]},
        {"labels": "ab"},
        {"training": {"local_steps": 0}},
        {"training": {"seed": 1}},
        {"model": {"base": ""}},
        {"model": {"trust_remote_code": True}},
    ],
    ids=lambda changes: next(f"{k}-{v!r}"[:40] for k, v in changes.items()),
)
def test_a_job_with_an_unknown_field_or_a_value_out_of_range_is_refused(changes: dict) -> None:
    with pytest.raises(RoundError, match="cannot be read"):
        Job.parse(job_tree(**changes))


def test_a_job_carries_no_seed_but_the_public_one_of_start_values() -> None:
    def names(tree: object, path: str = "") -> list[str]:
        if not isinstance(tree, dict):
            return [path]
        return [name for key, value in tree.items() for name in names(value, f"{path}.{key}")]

    fields = names(json.loads(tiny_job("federation.seed=77").model_dump_json()))
    assert [name for name in fields if "seed" in name] == [".model.seed"]


def test_a_jobs_error_does_not_repeat_what_was_sent() -> None:
    with pytest.raises(RoundError) as caught:
        Job.parse(job_tree(surprise="canary-7d1"))
    assert "canary" not in str(caught.value)
    assert caught.value.__suppress_context__


# Vectors that are none


class Bomb:
    """Makes a file where it is unpickled."""

    path = ""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, int]]:
        return os.open, (self.path, os.O_CREAT | os.O_WRONLY)


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def header(text: str) -> bytes:
    body = text.encode()
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body


def archive(name: str = "vector.npy") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(name, saved(VECTOR))
    return buffer.getvalue()


HOSTILE = {
    "nothing": b"",
    "noise": bytes(range(256)),
    "magic alone": b"\x93NUMPY",
    "an archive": archive(),
    "an empty archive": b"PK\x05\x06" + bytes(18),
    "half an archive": archive()[:40],
    "float64": saved(VECTOR.astype(np.float64)),
    "big-endian": saved(VECTOR.astype(">f4")),
    "integers": saved(np.arange(3)),
    "text": saved(np.array(["a", "b"])),
    "complex": saved(VECTOR.astype(np.complex64)),
    "a matrix": saved(VECTOR.reshape(1, 3)),
    "a scalar": saved(np.array(1, np.float32)),
    "records": saved(np.zeros(3, [("a", np.float32)])),
    "cut short": saved(VECTOR)[:-1],
    "a header that says more": header(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4000000000000000,)}"
    ),
    "a shape below zero": header("{'descr': '<f4', 'fortran_order': False, 'shape': (-3,)}"),
    "a shape of text": header("{'descr': '<f4', 'fortran_order': False, 'shape': 'x'}"),
    "code in the header": header("__import__('os').system('exit 1')"),
    "a deep header": header("(" * 9000),
    "an object header": header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}"),
}


def reply(data: bytes, **changes: Any) -> RecordDict:
    array = Array(**{"dtype": "float32", "shape": (3,), "stype": "numpy.ndarray", **changes},
                  data=data)  # fmt: skip
    return RecordDict({"update": ArrayRecord({"vector": array})})


@pytest.mark.parametrize("name", HOSTILE)
def test_bytes_that_are_no_flat_float32_vector_are_refused(name: str) -> None:
    with pytest.raises(EncodingError):
        decode_reply(travelled(reply(HOSTILE[name])))


@pytest.mark.parametrize("stype", ["pickle", "torch", "", "numpy.ndarray2"])
def test_another_way_of_serialising_is_refused(stype: str) -> None:
    with pytest.raises(EncodingError):
        decode_reply(reply(saved(VECTOR), stype=stype))


def test_no_pickle_is_ever_opened(tmp_path: Path) -> None:
    bomb = Bomb()
    bomb.path = str(tmp_path / "opened")
    objects = io.BytesIO()
    np.save(objects, np.array([bomb], dtype=object), allow_pickle=True)
    hostile = (objects.getvalue(), pickle.dumps(bomb), pickle.dumps([bomb, VECTOR], protocol=0))
    for data in hostile:
        for record, decode in (("update", decode_reply), ("model", TrainRequest.decode)):
            records = request()
            records[record] = reply(data)["update"]
            with pytest.raises(EncodingError):
                decode(travelled(records))
    assert not (tmp_path / "opened").exists()
    os.close(pickle.loads(pickle.dumps(bomb)))
    assert (tmp_path / "opened").exists()  # the bomb works where it is unpickled


@settings(max_examples=300)
@given(st.data())
def test_a_vector_with_changed_bytes_is_a_vector_or_refused(data: st.DataObject) -> None:
    content = bytearray(saved(VECTOR))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 127))] = data.draw(st.integers(0, 255))
    try:
        got = decode_reply(reply(bytes(content)))
    except EncodingError:
        return
    assert isinstance(got, np.ndarray)
    assert (got.dtype, got.ndim) == (np.float32, 1)


# Replies and descriptions of anybody

SCALARS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.booleans(),
    st.text(max_size=5),
    st.binary(max_size=5),
)
CONFIGS = st.dictionaries(
    st.sampled_from(["word", "name", "size-class", "round", "attempt", "job", "vector", "x"]),
    st.one_of(SCALARS, st.lists(st.integers(-9, 9), max_size=3)),
    max_size=5,
).map(ConfigRecord)
METRICS = st.dictionaries(st.sampled_from(["vector", "word", "x"]), st.integers(-9, 9)).map(
    MetricRecord
)
ARRAYS = st.dictionaries(
    st.sampled_from(["vector", "x"]),
    st.builds(
        lambda dtype, shape, stype, data: Array(dtype=dtype, shape=shape, stype=stype, data=data),
        st.sampled_from(["float32", "object", ""]),
        st.lists(st.integers(-2, 2**62), max_size=3).map(tuple),
        st.sampled_from(["numpy.ndarray", "pickle"]),
        st.one_of(st.binary(max_size=200), st.sampled_from(sorted(HOSTILE.values()))),
    ),
).map(ArrayRecord)
RECORDS = st.dictionaries(
    st.sampled_from(["ask", "model", "update", "refusal", "pc", "x"]),
    st.one_of(CONFIGS, METRICS, ARRAYS),
    max_size=4,
).map(RecordDict)


@settings(max_examples=400)
@given(RECORDS)
def test_whatever_is_sent_decodes_or_is_refused_in_our_own_words(records: RecordDict) -> None:
    for decode in (TrainRequest.decode, Description.decode, decode_reply):
        with contextlib.suppress(RoundError, EncodingError):
            decode(records)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        (1, 32),
        ("", 32),
        ("a b", 32),
        ("a\n", 32),
        ("../pc", 32),
        ("x" * 81, 32),
        ("pc", 0),
        ("pc", -1),
        ("pc", 2**40 + 1),
        ("pc", 1.5),
        ("pc", True),
        ("pc", "32"),
    ],
)
def test_a_description_that_is_none_is_refused(name: object, size: object) -> None:
    records = RecordDict({"pc": ConfigRecord({"name": name, "size-class": size})})
    with pytest.raises(EncodingError):
        Description.decode(records)


@pytest.mark.parametrize("word", ["", "other", "Exhausted", 1, b"refused", ["refused"]])
def test_a_refusal_in_other_words_is_refused(word: object) -> None:
    with pytest.raises(EncodingError):
        decode_reply(RecordDict({"refusal": ConfigRecord({"word": word})}))
