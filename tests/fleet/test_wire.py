"""Messages whole or in pieces: what is sent is read, and hostile bytes are one clear error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedaipc.errors import EncodingError
from fedaipc.fleet import wire
from fedaipc.fleet.wire import fetch, is_whole, pack, unpack
from fedaipc.simulation.flower_adapter import ensure_message_identity

ensure_message_identity()
MOST = 10**9


def message(values: int, **config: Any) -> Message:
    vector = np.arange(values, dtype=np.float32)
    records = RecordDict({"ask": ConfigRecord(dict(config))})
    if values:
        records["model"] = ArrayRecord({"vector": Array(vector)})
    return Message(records, dst_node_id=7, message_type="train.mask")


def objects(sent: Message) -> tuple[str, dict[str, bytes]]:
    parcel = pack(sent)
    name = sent.metadata.message_id
    found = {x.object_id for x in _walk(parcel.tree)}
    return name, dict(parcel.take(found))


def _walk(tree: Any) -> Iterator[Any]:
    yield tree
    for child in tree.children:
        yield from _walk(child)


def test_a_small_message_travels_whole() -> None:
    sent = message(10, run="a", number=3)
    parcel = pack(sent)
    assert is_whole(parcel.tree)
    assert list(parcel.take({sent.metadata.message_id})) == []
    got = unpack(parcel.head)
    assert got.content == sent.content
    assert got.metadata.message_id == sent.metadata.message_id == sent.object_id


def test_an_error_travels_whole() -> None:
    asked = message(0)
    asked.metadata.__dict__["_message_id"] = "x"
    parcel = pack(Message(Error(code=100, reason=""), reply_to=asked))
    assert is_whole(parcel.tree)
    assert unpack(parcel.head).error.code == 100


@pytest.mark.parametrize("values", [60_000, 3_000_000])
def test_a_large_message_travels_in_pieces(values: int) -> None:
    sent = message(values, run="a")
    name, pieces = objects(sent)
    assert len(pieces) >= 4
    got = fetch(name, pieces.__getitem__, MOST)
    assert got.content.config_records["ask"]["run"] == "a"
    array = got.content.array_records["model"]["vector"]
    assert np.array_equal(array.numpy(), np.arange(values, dtype=np.float32))
    assert got.metadata.message_id == name


def test_pieces_are_let_go_of_as_they_are_taken_and_only_wanted_ones_are_made() -> None:
    sent = message(100_000)
    parcel = pack(sent)
    assert list(parcel.take(set())) == []
    assert list(parcel.take({sent.metadata.message_id})) == []


@settings(max_examples=300, deadline=None)
@given(
    which=st.integers(0, 10), place=st.integers(0, 10**6), byte=st.integers(0, 255),
    cut=st.booleans(),
)  # fmt: skip
def test_damaged_pieces_are_an_encoding_error_or_a_message(
    which: int, place: int, byte: int, cut: bool
) -> None:
    name, pieces = objects(LARGE)
    victim = sorted(pieces)[which % len(pieces)]
    content = bytearray(pieces[victim])
    place %= min(len(content), 400)  # the heads, mostly
    pieces[victim] = bytes(content[:place]) if cut else bytes(
        content[:place] + bytes([byte]) + content[place + 1 :]
    )  # fmt: skip

    def pull(wanted: str) -> bytes:
        if wanted not in pieces:
            raise EncodingError("not there")
        return pieces[wanted]

    with suppress(EncodingError):
        assert isinstance(fetch(name, pull, MOST), Message)


LARGE = message(60_000, run="a")


def test_a_tree_without_end_is_an_encoding_error() -> None:
    name, pieces = objects(LARGE)
    with pytest.raises(EncodingError):
        fetch(name, lambda _: pieces[name], MOST)


def test_too_many_pieces_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    name, pieces = objects(LARGE)
    monkeypatch.setattr(wire, "_MAX_OBJECTS", 3)
    with pytest.raises(EncodingError, match="too many"):
        fetch(name, pieces.__getitem__, MOST)


def test_what_pulling_raises_comes_through() -> None:
    class GoneError(Exception):
        pass

    def pull(_: str) -> bytes:
        raise GoneError

    with pytest.raises(GoneError):
        fetch("x", pull, MOST)


def test_a_message_that_is_larger_than_it_can_be_is_not_pulled_to_its_end() -> None:
    name, pieces = objects(message(3_000_000))
    size = sum(map(len, pieces.values()))
    assert isinstance(fetch(name, pieces.__getitem__, size), Message)
    with pytest.raises(EncodingError, match="larger than"):
        fetch(name, pieces.__getitem__, size - 1)


def test_a_chunk_that_is_named_often_counts_each_time() -> None:
    """One chunk of 5 MiB named a thousand times would be 5 GB in the receiver's memory."""
    name, pieces = objects(message(2_000_000))
    victim = next(key for key, piece in pieces.items() if piece.startswith(b"Array "))
    head, _, body = pieces[victim].partition(b"\0")
    body = json.dumps({**json.loads(body), "arraychunk_ids": [0] * 1000}).encode()
    pieces[victim] = head.rpartition(b" ")[0] + f" {len(body)}".encode() + b"\0" + body
    pulled: list[str] = []

    def pull(wanted: str) -> bytes:
        pulled.append(wanted)
        return pieces[wanted]

    with pytest.raises(EncodingError, match="larger than"):
        fetch(name, pull, 20_000_000)
    assert len(pulled) < 10


def test_an_honest_vector_of_equal_chunks_is_read() -> None:
    zeros = Message(
        RecordDict({"model": ArrayRecord({"vector": Array(np.zeros(4_000_000, np.float32))})}),
        dst_node_id=7, message_type="train.mask",
    )  # fmt: skip
    name, pieces = objects(zeros)
    assert sum(map(len, pieces.values())) < 11_000_000  # Flower sends equal chunks once
    got = fetch(name, pieces.__getitem__, 17_000_000)
    assert np.array_equal(
        got.content.array_records["model"]["vector"].numpy(), np.zeros(4_000_000, np.float32)
    )
