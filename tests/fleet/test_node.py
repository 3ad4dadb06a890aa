"""A PC's loop goes on whatever the server answers, and answers what it was asked."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.proto.fleet_pb2 import ActivateNodeResponse, PullMessagesResponse, PushMessagesResponse
from google.protobuf.message import DecodeError

from fedaipc.federation.authority import make_authority
from fedaipc.fleet import node as module
from fedaipc.fleet.node import FleetNode
from fedaipc.fleet.wire import pack, unpack
from fedaipc.simulation.flower_adapter import ensure_message_identity
from tests.support.node_keys import key_file

ensure_message_identity()


class FakeFleet:
    """Answers pulls with what is in `script`, one thing a call: an exception, or an answer."""

    def __init__(self, script: list[Any]) -> None:
        self.script = script
        self.pushed: list[Any] = []
        self.raw: list[bytes] = []

    def ActivateNode(self, _: Any) -> Any:  # noqa: N802 - Flower's name
        return ActivateNodeResponse(node_id=7)

    def PullMessages(self, _: Any) -> Any:  # noqa: N802
        found = self.script.pop(0) if self.script else PullMessagesResponse()
        if isinstance(found, Exception):
            raise found
        return found

    def PushMessages(self, request: Any) -> Any:  # noqa: N802
        self.raw.append(request.SerializeToString())
        self.pushed.append(unpack(request.messages_list[0]))
        return PushMessagesResponse()

    def __getattr__(self, _: str) -> Any:
        return lambda *_: SimpleNamespace(stored=True)


def asked(kind: str = "query.setup") -> PullMessagesResponse:
    message = Message(
        RecordDict({"ask": ConfigRecord({"x": 1})}), dst_node_id=7, message_type="query.setup"
    )
    message.metadata.__dict__["_message_type"] = kind  # which a liar writes as it likes
    parcel = pack(message)
    return PullMessagesResponse(messages_list=[parcel.head], message_object_trees=[parcel.tree])


def answer(message: Message, _: Any) -> Message:
    return Message(RecordDict({"answer": ConfigRecord({"y": 2})}), reply_to=message)


ANSWERING: Any = answer  # all of an app that a node calls


def refusal(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "https://localhost")
    return httpx.HTTPStatusError("", request=request, response=httpx.Response(status))


def serve(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: list[Any],
    app: Any = answer,
    largest: int = 10**6,
    may_work: Any = lambda: None,
    answer_slot: float = 0.0,
) -> FakeFleet:
    """Run a node until it has answered once."""
    make_authority(tmp_path, "test")
    node = FleetNode(
        "localhost:1", (tmp_path / "authority.pem").read_bytes(), key_file(tmp_path / "key"),
        tmp_path, app, largest=largest, may_work=may_work, answer_slot=answer_slot,
    )  # fmt: skip
    fake = FakeFleet(script)
    monkeypatch.setattr(node, "_fleet", fake)
    monkeypatch.setattr(module, "_LONGEST_PAUSE", 0.01)
    monkeypatch.setattr("fedaipc.fleet.node.random.uniform", lambda *_: 0.01)
    thread = threading.Thread(target=node.serve, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not fake.pushed and thread.is_alive() and time.monotonic() < end:
        time.sleep(0.01)
    assert thread.is_alive()
    node.stop()
    thread.join(10)
    assert not thread.is_alive()
    return fake


@pytest.mark.parametrize(
    "trouble",
    [
        *(refusal(status) for status in (400, 401, 403, 404, 412, 500, 503)),
        httpx.ConnectError("away"), DecodeError("no protobuf"), OSError("disk full"),
        PullMessagesResponse(messages_list=asked().messages_list),  # no tree
    ],
    ids=lambda t: f"{type(t).__name__} {getattr(getattr(t, 'response', None), 'status_code', '')}",
)  # fmt: skip
def test_no_answer_of_a_server_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Any
) -> None:
    fake = serve(tmp_path, monkeypatch, [trouble, asked()])
    assert fake.pushed[0].content.config_records["answer"]["y"] == 2
    assert not (tmp_path / "promised.bin").exists()


@pytest.mark.slow
def test_a_server_that_is_not_there_yet_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        serve(tmp_path, monkeypatch, [httpx.ConnectError("[Errno 111] Connection refused")])
    assert "the server cannot be reached (connection refused); tries again" in caplog.text


def test_what_a_server_writes_is_no_more_than_text_to_the_owners_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kind = "query.\x1b[2J\nall is well" + "x" * 1000
    with caplog.at_level(logging.INFO):
        serve(tmp_path, monkeypatch, [asked(kind), asked()])
    text = "".join(record.getMessage() for record in caplog.records)
    assert "a message cannot be read" in text
    assert "'query.setup': worked" in text
    assert text.isprintable()
    assert len(text) < 1000


def test_an_app_that_fails_answers_with_a_code_and_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Message:
        raise ValueError("zq7private")

    fake = serve(tmp_path, monkeypatch, [asked()], fails)
    assert fake.pushed[0].has_error()
    assert "zq7" not in str(fake.pushed[0].error)


def test_what_it_was_cut_off_from_is_answered_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(message: Message, _: Any) -> Message:
        kept.append((tmp_path / "promised.bin").read_bytes())
        return answer(message, _)

    kept: list[bytes] = []
    serve(tmp_path, monkeypatch, [asked()], dies)
    (tmp_path / "promised.bin").write_bytes(kept[0])
    fake = serve(tmp_path, monkeypatch, [])
    assert fake.pushed[0].has_error()
    assert not (tmp_path / "promised.bin").exists()


def test_what_cannot_be_read_is_answered_so_that_the_round_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a model that is larger than this PC takes."""
    large = Message(
        RecordDict({"model": ArrayRecord({"vector": Array(np.arange(200_000, dtype=np.float32))})}),
        dst_node_id=7, message_type="train.mask",
    )  # fmt: skip
    parcel = pack(large)
    announced = PullMessagesResponse(
        messages_list=[parcel.head], message_object_trees=[parcel.tree]
    )
    pieces = dict(parcel.take({x.object_id for x in _walk(parcel.tree)}))
    monkeypatch.setattr(
        FakeFleet, "PullObject",
        lambda _, r: SimpleNamespace(
            object_found=True, object_available=True, object_content=pieces[r.object_id]
        ),
        raising=False,
    )  # fmt: skip
    fake = serve(tmp_path, monkeypatch, [announced], largest=100_000)
    assert fake.pushed[0].has_error()
    assert fake.pushed[0].metadata.reply_to_message_id == large.metadata.message_id


def _walk(tree: Any) -> Iterator[Any]:
    yield tree
    for child in tree.children:
        yield from _walk(child)


def test_a_garbled_farewell_does_not_end_a_client_that_rests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def garbled(*_: Any) -> None:
        raise ValueError("Invalid protobuf response payload")

    monkeypatch.setattr(FakeFleet, "DeactivateNode", garbled, raising=False)
    monkeypatch.setattr(module, "_REST", 0.01)
    asks = iter([None, None, "on battery", None])
    fake = serve(
        tmp_path, monkeypatch, [PullMessagesResponse(), asked()],
        may_work=lambda: next(asks, None),
    )  # fmt: skip
    assert fake.pushed


@pytest.mark.parametrize("app", [answer, None], ids=("answer", "error"))
def test_the_bytes_of_an_answer_do_not_tell_how_long_the_work_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, app: Any
) -> None:
    request = asked("train.mask")

    def slow(message: Message, context: Any) -> Message:
        time.sleep(0.05)
        return quick(message, context)

    def quick(message: Message, context: Any) -> Message:
        if app is None:
            raise ValueError
        return answer(message, context)

    kept: list[bytes] = []

    def keeps(message: Message, context: Any) -> Message:
        kept.append((tmp_path / "promised.bin").read_bytes())
        return quick(message, context)

    pushed = [serve(tmp_path, monkeypatch, [request], kind).raw[0] for kind in (quick, slow, keeps)]
    assert pushed[0] == pushed[1] == pushed[2]
    time.sleep(0.01)
    serve(tmp_path, monkeypatch, [request], keeps)
    assert kept[0] == kept[1]  # what it says after a crash


@pytest.mark.parametrize("kind", ["train.mask", "query.setup"])
@pytest.mark.parametrize("worked", [1.5, 31.0, 59.75])
def test_within_a_slot_the_time_of_sending_does_not_tell_how_long_training_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, worked: float
) -> None:
    now, times = [1000.0], []

    def train(message: Message, context: Any) -> Any:
        now[0] += worked
        return answer(message, context)

    def sleep(seconds: float) -> None:
        now[0] += seconds

    push = FakeFleet.PushMessages

    def note(self: FakeFleet, request: Any) -> Any:
        times.append(now[0] - 1000.0)
        return push(self, request)

    monkeypatch.setattr(FakeFleet, "PushMessages", note)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    serve(tmp_path, monkeypatch, [asked(kind)], train, answer_slot=60.0)
    assert times == [60.0 if kind == "train.mask" else worked]


def test_training_that_takes_longer_is_sent_at_the_end_of_a_later_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_authority(tmp_path, "test")
    node = FleetNode(
        "localhost:1", (tmp_path / "authority.pem").read_bytes(), key_file(tmp_path / "key"),
        tmp_path, ANSWERING, largest=1, answer_slot=60.0,
    )  # fmt: skip
    slept: list[float] = []
    monkeypatch.setattr(
        module, "time", SimpleNamespace(monotonic=lambda: 1130.0, sleep=slept.append)
    )
    node._await_slot(1000.0)
    node._slot = 0.0
    node._await_slot(1000.0)
    assert slept == [50.0]


def test_a_pc_that_finishes_its_last_message_stays_online_until_it_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the server would give it up within the training that it waits for."""
    beats = threading.Event()

    def train(message: Message, context: Any) -> Message:
        node.stop()
        time.sleep(0.05)
        beats.clear()
        assert beats.wait(20)
        return answer(message, context)

    app: Any = train
    make_authority(tmp_path, "test")
    node = FleetNode(
        "localhost:1", (tmp_path / "authority.pem").read_bytes(), key_file(tmp_path / "key"),
        tmp_path, app, largest=10**6,
    )  # fmt: skip
    fake = FakeFleet([asked()])
    monkeypatch.setattr(FakeFleet, "SendNodeHeartbeat", lambda *_: beats.set(), raising=False)
    monkeypatch.setattr(node, "_fleet", fake)
    monkeypatch.setattr("fedaipc.fleet.node.random.uniform", lambda *_: 0.001)
    node.serve()
    (reply,) = fake.pushed
    assert not reply.has_error()


def test_a_clock_that_is_a_day_ahead_makes_no_answer_out_of_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower takes the time that has passed from an answer's time limit; a SuperLink refuses it."""
    message = Message(
        RecordDict({"ask": ConfigRecord({"x": 1})}), dst_node_id=7, message_type="query.setup"
    )
    message.metadata.created_at -= 24 * 3600
    parcel = pack(message)
    request = PullMessagesResponse(messages_list=[parcel.head], message_object_trees=[parcel.tree])
    fake = serve(tmp_path, monkeypatch, [request])
    assert fake.pushed[0].metadata.ttl == message.metadata.ttl > 0
