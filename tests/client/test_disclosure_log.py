"""What left a PC is on its disk before it leaves, and nothing else is in the log."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedaipc.client.disclosure_log import note, read
from fedaipc.errors import OutputError
from fedaipc.protocol.messages import asked_for, contents, encode_answer, encode_update

RUN = "0123456789abcdef"


def test_every_answer_is_a_line_with_what_it_weighed(tmp_path: Path) -> None:
    note(tmp_path, "mask", RUN, 3, [b"abc", b"de"], 0.5)
    note(tmp_path, "agree", None, None, [], None)
    first, second = read(tmp_path)
    assert (first.kind, first.run, first.number, first.bytes, first.epsilon) == (
        "mask", RUN, 3, 5, 0.5,
    )  # fmt: skip
    assert first.sha256 == hashlib.sha256(b"abcde").hexdigest()
    assert (second.bytes, second.epsilon) == (0, None)
    if os.name != "nt":
        assert stat.S_IMODE((tmp_path / "sent.jsonl").stat().st_mode) == 0o600


def test_half_a_last_line_is_passed_over_and_damage_is_told(tmp_path: Path) -> None:
    for number in range(3):
        note(tmp_path, "mask", RUN, number, [b"x"], None)
    path = tmp_path / "sent.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert [entry.number for entry in read(tmp_path)] == [0, 1]
    path.write_text("damaged\n" + path.read_text())
    with pytest.raises(OutputError, match="line 1: damaged"):
        read(tmp_path)


def test_no_log_yet_is_an_empty_one(tmp_path: Path) -> None:
    assert read(tmp_path) == []


def test_all_of_an_answer_is_counted() -> None:
    assert b"".join(contents(encode_update(b"frame"))) == b"frame"
    assert b"".join(contents(encode_answer(b"frame"))) == b"frame"
    mixed = RecordDict(
        {
            "b": ConfigRecord({"z": b"1", "y": "two"}),
            "a": ArrayRecord({"v": Array(dtype="uint8", shape=(1,), stype="bytes", data=b"3")}),
        }
    )
    assert list(contents(mixed)) == [b"3", b"two", b"1"]


@pytest.mark.parametrize(
    ("ask", "found"),
    [
        ({"run": RUN, "attempt": 2}, (RUN, 2)),
        ({"run": RUN, "epoch": 5}, (RUN, 5)),
        ({"job": f'{{"run": "{RUN}"}}', "round": 1}, (RUN, 1)),
        ({"run": "a\nb", "attempt": True}, (None, None)),
        ({"job": "[1]"}, (None, None)),
        ({"job": "{"}, (None, None)),
        ({}, (None, None)),
    ],
    ids=str,
)
def test_what_was_asked_for_is_told_as_far_as_it_is_known(
    ask: dict[str, Any], found: tuple[str | None, int | None]
) -> None:
    assert asked_for(RecordDict({"ask": ConfigRecord(ask)})) == found
