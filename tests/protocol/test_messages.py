"""Requests and replies: what goes through comes out equal; what a liar sends is refused."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import pickle
import sys
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedaipc.errors import EncodingError, RoundError, SecAggError
from fedaipc.protocol.job import Job, SignedJob
from fedaipc.protocol.messages import (
    REFUSALS,
    Description,
    MaskRequest,
    MemberRequest,
    SetupRequest,
    asked_for,
    contents,
    decode_answer,
    decode_update,
    encode_answer,
    encode_refusal,
    encode_update,
)
from fedaipc.secagg.keys import SigningKey
from fedaipc.simulation.flower_adapter import ensure_message_identity
from tests.support.jobs import ADMISSION, sent, signed, tiny_job

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

VECTOR = np.array([0.5, -1.5, 2.0**-30], np.float32)
RUN = "0123456789abcdef"
SETUP = SetupRequest(RUN, 3, b"a roster")
PC = Description("pc-0001", b"a bundle")
MASK = MaskRequest("a job", b"a signature", 2, b"some terms", b"some round keys", VECTOR)
MEMBER = MemberRequest(RUN, 5, b"a proposal")
REQUESTS: dict[str, SetupRequest | MaskRequest | MemberRequest] = {
    "setup": SETUP,
    "mask": MASK,
    "member": MEMBER,
}
DECODERS: list[Callable[[RecordDict], Any]] = [
    SetupRequest.decode,
    Description.decode,
    MaskRequest.decode,
    MemberRequest.decode,
    decode_answer,
    decode_update,
]


def travelled(records: RecordDict) -> RecordDict:
    """The records after Flower's own way through protobuf."""
    ensure_message_identity()
    return sent(Message(records, 7, "train.mask")).content


def request(kind: str, **changes: Any) -> RecordDict:
    """An encoded request with some fields of its record replaced, or left out if None."""
    records = REQUESTS[kind].encode()
    record = records.config_records["ask"]
    for key, value in changes.items():
        if value is None:
            del record[key]
        else:
            record[key] = value
    return records


# What goes through


@given(
    st.text("0123456789abcdef", min_size=16, max_size=16),
    st.integers(1, 2**63 - 1),
    st.binary(max_size=300),
)
def test_requests_of_keys_and_of_a_members_word_come_out_as_they_went_in(
    run: str, number: int, frame: bytes
) -> None:
    setup, member = SetupRequest(run, number, frame), MemberRequest(run, number, frame)
    assert SetupRequest.decode(travelled(setup.encode())) == setup
    assert MemberRequest.decode(travelled(member.encode())) == member


@pytest.mark.parametrize("run", ["", "a" * 15, "a" * 17, "A" * 16, "g" * 16, "a" * 16 + "\n"])
def test_what_is_no_run_gets_no_keys(run: str) -> None:
    """A PC would write it beside its keys."""
    with pytest.raises(RoundError, match="no run"):
        SetupRequest.decode(travelled(SetupRequest(run, 1, b"a roster").encode()))


@given(
    st.integers(1, 2**63 - 1),
    st.binary(max_size=300),
    st.lists(st.floats(width=32), max_size=20),
)
def test_a_request_for_an_update_comes_out_as_it_went_in(
    number: int, terms: bytes, values: list[float]
) -> None:
    job, vector = signed(tiny_job()), np.array(values, np.float32)
    sent_off = MaskRequest(job.text, job.signature, number, terms, terms[::-1], vector)
    got = MaskRequest.decode(travelled(sent_off.encode()))
    assert (got.job, got.signature, got.round, got.terms, got.round_keys) == (
        job.text, job.signature, number, terms, terms[::-1],
    )  # fmt: skip
    assert got.vector.dtype == np.float32
    assert got.vector.tobytes() == vector.tobytes()
    assert SignedJob.read(got.job, got.signature, ADMISSION.public) == job


@given(st.binary(max_size=300))
def test_frames_of_a_pc_come_out_as_they_went_in(frame: bytes) -> None:
    pc = Description("pc-0001", frame)
    assert Description.decode(travelled(pc.encode())) == pc
    assert decode_answer(travelled(encode_answer(frame))) == frame
    assert decode_update(travelled(encode_update(frame))) == frame


@pytest.mark.parametrize("word", REFUSALS)
def test_a_refusal_comes_out_as_it_went_in(word: str) -> None:
    assert decode_update(travelled(encode_refusal(word))) == word


def test_an_update_that_spells_a_refusal_is_an_update() -> None:
    for word in REFUSALS:
        assert decode_update(travelled(encode_update(word.encode()))) == word.encode()


def test_an_upload_of_megabytes_is_not_copied_in_this_process() -> None:
    frame = bytes(1 << 20)
    records = encode_update(frame)
    assert records.array_records["update"]["frame"].data is frame
    assert decode_update(records) is frame


@pytest.mark.parametrize(
    ("records", "names"),
    [
        (PC.encode(), {"pc": {"name", "bundle"}}),
        (encode_answer(b"frame"), {"answer": {"frame"}}),
        (encode_update(b"frame"), {"update": {"frame"}}),
        (encode_refusal("refused"), {"refusal": {"word"}}),
    ],
    ids=["description", "answer", "update", "refusal"],
)
def test_nothing_else_travels_from_a_pc(records: RecordDict, names: dict[str, set[str]]) -> None:
    assert {name: set(record) for name, record in travelled(records).items()} == names


# Requests of a lying coordinator


NO_NUMBERS: list[object] = [None, 0, -1, -(2**63), 1.0, "1", b"1", [1], True, False]
NO_TEXTS: list[object] = [None, 1, True, 1.5, b"text", ["text"]]
NO_BYTES: list[object] = [None, 1, True, "bytes", [b"bytes"]]
FIELDS = {
    "setup": {"run": NO_TEXTS, "epoch": NO_NUMBERS, "roster": NO_BYTES},
    "mask": {"job": NO_TEXTS, "signature": NO_BYTES, "round": NO_NUMBERS, "terms": NO_BYTES},
    "member": {"run": NO_TEXTS, "attempt": NO_NUMBERS, "frame": NO_BYTES},
}


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        pytest.param(kind, field, value, id=f"{kind}-{field}-{value!r}")
        for kind, fields in FIELDS.items()
        for field, values in fields.items()
        for value in values
    ],
)
def test_a_request_with_a_field_that_is_none_is_refused(
    kind: str, field: str, value: object
) -> None:
    """Above all True, which is an int to Python and would be entered into a ledger."""
    type(REQUESTS[kind]).decode(travelled(request(kind)))
    with pytest.raises(RoundError, match=f"no {field}"):
        type(REQUESTS[kind]).decode(travelled(request(kind, **{field: value})))


@pytest.mark.parametrize(
    ("kind", "field"), [("setup", "epoch"), ("mask", "round"), ("member", "attempt")]
)
def test_huge_numbers_are_numbers_all_the_same(kind: str, field: str) -> None:
    got = type(REQUESTS[kind]).decode(travelled(request(kind, **{field: 2**63 - 1})))
    assert getattr(got, field) == 2**63 - 1


def test_a_field_of_another_request_is_no_field_of_this_one() -> None:
    for kind, one in REQUESTS.items():
        for other in REQUESTS.keys() - {kind}:
            with pytest.raises((RoundError, EncodingError)):
                type(one).decode(travelled(request(other)))


@pytest.mark.parametrize("missing", ["ask", "model"])
def test_a_request_with_a_record_missing_is_refused(missing: str) -> None:
    records = request("mask")
    del records[missing]
    with pytest.raises((RoundError, EncodingError)):
        MaskRequest.decode(records)


@pytest.mark.parametrize("decode", DECODERS)
def test_records_of_the_wrong_kind_are_refused(decode: Callable[[RecordDict], Any]) -> None:
    array = ArrayRecord({"vector": Array(VECTOR), "frame": Array(VECTOR)})
    numbers = MetricRecord({"round": 1, "epoch": 1, "attempt": 1, "word": 1})
    names = ("pc", "answer", "update", "refusal")
    for records in (
        RecordDict({"ask": array, "model": array, **dict.fromkeys(names, array)}),
        RecordDict({"ask": numbers, "model": array, **dict.fromkeys(names, numbers)}),
        RecordDict({"ask": request("mask")["ask"], "model": ConfigRecord({"vector": 1}),
                    "update": ConfigRecord({"frame": b"frame"})}),
        RecordDict({"ask": request("mask")["ask"], "model": MetricRecord({"vector": 1.0})}),
        RecordDict({"model": array}),
        RecordDict(),
    ):  # fmt: skip
        with pytest.raises((RoundError, EncodingError)):
            decode(travelled(records))


# The job


def job_tree(**changes: Any) -> str:
    return json.dumps({**json.loads(tiny_job().model_dump_json()), **changes})


def test_a_job_comes_out_as_it_went_in() -> None:
    job = tiny_job()
    assert Job.parse(job.model_dump_json()) == job


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"insecure_test_seed": 1},
        {"noise_seed": 1},
        {"version": 2},
        {"version": "1"},
        {"privacy": {"kind": "distributed"}},
        {"run": "x"},
        {"run": "0123456789ABCDEF"},
        {"run": "0123456789abcdef\n"},
        {"privacy": {"noise_multiplier": 1.0, "clip_norm": 0}},
        {"privacy": {"noise_multiplier": 1.0, "clip_norm": -1}},
        {"privacy": {"noise_multiplier": 1.0, "clip_norm": float("nan")}},
        {"privacy": {"noise_multiplier": 1.0, "clip_norm": float("inf")}},
        {"privacy": {"noise_multiplier": 0}},
        {"privacy": {"noise_multiplier": 0.0999}},
        {"privacy": {"noise_multiplier": float("nan")}},
        {"privacy": {"noise_multiplier": 1.0, "sampling_rate": 0}},
        {"privacy": {"noise_multiplier": 1.0, "sampling_rate": 1.01}},
        {"privacy": {"noise_multiplier": 1.0, "delta": 0.5}},
        {"privacy": {"noise_multiplier": 1.0, "delta": 0}},
        {"rounds": 0},
        {"rounds": 1.5},
        {"max_attempts": 0},
        {"cohort": 0},
        {"cohort": 2.5},
        {"smallest_class": 0},
        {"largest_class": 0},
        {"largest_class": 2**40 + 1},
        {"weighting": "by-records"},
        {"not_after": -1},
        {"labels": ["one"]},
        {"labels": "ab"},
        {"training": {"local_steps": 0}},
        {"training": {"seed": 1}},
        {"model": {"base": ""}},
        {"model": {"trust_remote_code": True}},
        {"privacy": {"epsilon": 8.0}},
        {"privacy": "dp-sgd"},
        {"aggregation": {"kind": "off"}},
        {"aggregation": {"bits": 8}},
        {"aggregation": {"colluding": 0}},
        {"aggregation": {"threshold": 0}},
        {"aggregation": {"bound": 0}},
        {"aggregation": {"bound": float("inf")}},
        {"aggregation": {"mask_seed": 1}},
    ],
    ids=lambda changes: next(f"{k}-{v!r}"[:40] for k, v in changes.items()),
)
def test_a_job_with_an_unknown_field_or_a_value_out_of_range_is_refused(
    changes: dict[str, Any],
) -> None:
    other = any(isinstance(one, dict) and "kind" in one for one in changes.values())
    with pytest.raises(RoundError, match="is not installed here" if other else "cannot be read"):
        Job.parse(job_tree(**changes))


@pytest.mark.parametrize(
    "text",
    ["", "{}", "null", "[" * 100_000, '{"version": ' + "9" * 5000 + "}", "\udcff"],
    ids=["nothing", "empty", "null", "deep", "huge number", "half a character"],
)
def test_a_text_that_is_no_job_is_refused(text: str) -> None:
    with pytest.raises(RoundError, match="cannot be read"):
        Job.parse(text)


def test_a_job_with_a_key_twice_is_refused() -> None:
    """Another reader could take the first, and see another job under the same signature."""
    job = tiny_job()
    text = job.model_dump_json()
    assert Job.parse(text) == job
    with pytest.raises(RoundError, match="cannot be read"):
        Job.parse(text.replace('"rounds":', '"rounds":1,"rounds":', 1))


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


def test_a_job_is_the_admission_keys_alone_word_for_word() -> None:
    """M4."""
    job = signed(tiny_job())
    assert SignedJob.read(job.text, job.signature, ADMISSION.public) == job
    with pytest.raises(SecAggError, match="the job"):
        SignedJob.read(job.text, job.signature, SigningKey().public)
    for place in range(len(job.text)):
        changed = job.text[:place] + chr(ord(job.text[place]) ^ 1) + job.text[place + 1 :]
        with pytest.raises(SecAggError, match="the job"):
            SignedJob.read(changed, job.signature, ADMISSION.public)
    for text in (job.text + " ", json.dumps(json.loads(job.text))):  # the same job otherwise spelt
        assert Job.parse(text) == job.job
        with pytest.raises(SecAggError, match="the job"):
            SignedJob.read(text, job.signature, ADMISSION.public)


def test_a_signed_text_that_is_no_job_is_refused() -> None:
    with pytest.raises(RoundError, match="cannot be read"):
        SignedJob.read("{}", ADMISSION.sign(b"fedaipc job{}"), ADMISSION.public)


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


def model(data: bytes, **changes: Any) -> RecordDict:
    """A request for an update whose global vector is `data`."""
    array = Array(**{"dtype": "float32", "shape": (3,), "stype": "numpy.ndarray", **changes},
                  data=data)  # fmt: skip
    records = request("mask")
    records["model"] = ArrayRecord({"vector": array})
    return records


def test_bytes_that_are_a_flat_float32_vector_are_taken() -> None:
    got = MaskRequest.decode(travelled(model(saved(VECTOR))))
    assert got.vector.tobytes() == VECTOR.tobytes()


@pytest.mark.parametrize("name", HOSTILE)
def test_bytes_that_are_no_flat_float32_vector_are_refused(name: str) -> None:
    with pytest.raises(EncodingError):
        MaskRequest.decode(travelled(model(HOSTILE[name])))


@pytest.mark.parametrize("stype", ["pickle", "torch", "", "numpy.ndarray2", "bytes"])
def test_another_way_of_serialising_a_vector_is_refused(stype: str) -> None:
    with pytest.raises(EncodingError):
        MaskRequest.decode(travelled(model(saved(VECTOR), stype=stype)))


def test_no_pickle_is_ever_opened(tmp_path: Path) -> None:
    bomb = Bomb()
    bomb.path = str(tmp_path / "opened")
    objects = io.BytesIO()
    np.save(objects, np.array([bomb], dtype=object), allow_pickle=True)
    hostile = (objects.getvalue(), pickle.dumps(bomb), pickle.dumps([bomb, VECTOR], protocol=0))
    for data in hostile:
        for stype in ("numpy.ndarray", "pickle"):
            with pytest.raises(EncodingError):
                MaskRequest.decode(travelled(model(data, stype=stype)))
        assert decode_update(travelled(encode_update(data))) == data
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
        got = MaskRequest.decode(model(bytes(content)))
    except EncodingError:
        return
    assert isinstance(got.vector, np.ndarray)
    assert got.vector.dtype == np.dtype(np.float32)
    assert got.vector.ndim == 1


# Replies and descriptions of anybody

SCALARS = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.booleans(),
    st.text(max_size=5),
    st.binary(max_size=5),
)
KEYS = [
    "word", "name", "bundle", "run", "epoch", "roster", "job", "signature", "round", "terms",
    "attempt", "frame", "vector", "x",
]  # fmt: skip
FIELDS_OF_ANYBODY: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.sampled_from(KEYS),
    st.one_of(SCALARS, st.lists(st.integers(-9, 9), max_size=3)),
    max_size=6,
)
NUMBERS_OF_ANYBODY: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.sampled_from(KEYS), st.integers(-9, 9), max_size=6
)
CONFIGS = FIELDS_OF_ANYBODY.map(ConfigRecord)
METRICS = NUMBERS_OF_ANYBODY.map(MetricRecord)
ARRAYS = st.dictionaries(
    st.sampled_from(["vector", "frame", "x"]),
    st.builds(
        lambda dtype, shape, stype, data: Array(dtype=dtype, shape=shape, stype=stype, data=data),
        st.sampled_from(["float32", "uint8", "object", ""]),
        st.lists(st.integers(-2, 2**62), max_size=3).map(tuple),
        st.sampled_from(["numpy.ndarray", "pickle", "bytes"]),
        st.one_of(st.binary(max_size=200), st.sampled_from(sorted(HOSTILE.values()))),
    ),
).map(ArrayRecord)
RECORDS = st.dictionaries(
    st.sampled_from(["ask", "model", "update", "refusal", "pc", "answer", "x"]),
    st.one_of(CONFIGS, METRICS, ARRAYS),
    max_size=4,
).map(RecordDict)


@settings(max_examples=400)
@given(RECORDS)
def test_whatever_is_sent_decodes_or_is_refused_in_our_own_words(records: RecordDict) -> None:
    for decode in DECODERS:
        with contextlib.suppress(RoundError, EncodingError):
            decode(records)


@settings(max_examples=200)
@given(RECORDS, st.sampled_from(REFUSALS), st.binary(max_size=20))
def test_what_is_read_of_an_update_is_bytes_or_one_of_the_known_words(
    records: RecordDict, word: str, frame: bytes
) -> None:
    for more in (RecordDict(), encode_refusal(word), encode_update(frame)):
        for name, record in more.items():
            records[name] = record
        with contextlib.suppress(EncodingError):
            got = decode_update(records)
            assert got in REFUSALS if isinstance(got, str) else type(got) is bytes


@pytest.mark.parametrize(
    ("name", "bundle"),
    [
        (1, b"bundle"),
        (None, b"bundle"),
        (["pc"], b"bundle"),
        (b"pc", b"bundle"),
        ("", b"bundle"),
        ("a b", b"bundle"),
        ("a\n", b"bundle"),
        ("../pc", b"bundle"),
        ("x" * 81, b"bundle"),
        ("pc", None),
        ("pc", "bundle"),
        ("pc", 1),
        ("pc", True),
        ("pc", [b"bundle"]),
    ],
)
def test_a_description_that_is_none_is_refused(name: Any, bundle: Any) -> None:
    fields = {"name": name, "bundle": bundle}
    record = ConfigRecord({key: value for key, value in fields.items() if value is not None})
    with pytest.raises(EncodingError):
        Description.decode(travelled(RecordDict({"pc": record})))


@pytest.mark.parametrize("frame", [None, "frame", 1, True, 1.5, [b"frame"]])
def test_an_answer_without_a_frame_is_refused(frame: Any) -> None:
    record = ConfigRecord({} if frame is None else {"frame": frame})
    with pytest.raises(EncodingError):
        decode_answer(travelled(RecordDict({"answer": record})))


@pytest.mark.parametrize("word", [None, "", "other", "Exhausted", 1, True, b"refused", ["refused"]])
def test_a_refusal_in_other_words_is_refused(word: Any) -> None:
    """Though an update comes with it."""
    records = encode_update(b"frame")
    records["refusal"] = ConfigRecord({} if word is None else {"word": word})
    with pytest.raises(EncodingError):
        decode_update(travelled(records))


@pytest.mark.parametrize("stype", ["numpy.ndarray", "pickle", "torch", "", "Bytes"])
def test_an_update_in_another_way_of_serialising_is_refused(stype: str) -> None:
    array = Array(dtype="uint8", shape=(256,), stype=stype, data=saved(VECTOR))
    with pytest.raises(EncodingError):
        decode_update(travelled(RecordDict({"update": ArrayRecord({"frame": array})})))


def test_an_update_under_another_name_is_refused() -> None:
    array = encode_update(b"frame").array_records["update"]["frame"]
    for records in (
        RecordDict({"update": ArrayRecord({"vector": array})}),
        RecordDict({"answer": ArrayRecord({"frame": array})}),
        RecordDict({"update": ArrayRecord()}),
    ):
        with pytest.raises(EncodingError):
            decode_update(travelled(records))


def test_a_vector_is_let_go_of_without_a_collection_of_garbage() -> None:
    """Which comes seldom in a process with torch in it: vectors would pile up."""
    gc.collect()
    gc.disable()
    try:
        frame = bytes(1000)
        before = sys.getrefcount(frame)
        records = encode_update(frame)
        assert decode_update(records) is frame
        assert asked_for(records) == (None, None)
        assert len(list(contents(records))) == 1
        del records
        assert sys.getrefcount(frame) == before
    finally:
        gc.enable()
