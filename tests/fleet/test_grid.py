"""The coordinator's end of a run, against a SuperLink that answers, is away, or has lies in it."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from fedaipc.errors import EngineError
from fedaipc.fleet import grid as module
from fedaipc.fleet.grid import FleetGrid
from fedaipc.fleet.wire import pack
from fedaipc.simulation.flower_adapter import ensure_message_identity

ensure_message_identity()


class FakeRuntime:
    """Holds replies as a SuperLink does; `trouble` are what the next calls end with."""

    def __init__(self) -> None:
        self.heads: list[Any] = []
        self.trees: list[Any] = []
        self.objects: dict[str, bytes] = {}
        self.announced: set[str] = set()
        self.confirmed: list[str] = []
        self.pushed: list[str] = []
        self.trouble: list[Exception] = []
        self.nodes = [7, 8]

    def put(self, reply: Message, *, uploaded: bool = True) -> str:
        parcel = pack(reply)
        self.heads.append(parcel.head)
        self.trees.append(parcel.tree)
        names = _names(parcel.tree)
        self.announced |= names
        self.later = dict(parcel.take(names))
        if uploaded:
            self.objects |= self.later
        return reply.metadata.message_id

    def PullMessages(self, request: Any) -> Any:  # noqa: N802 - Flower's name
        self._fail()
        heads, trees, self.heads, self.trees = self.heads, self.trees, [], []
        return SimpleNamespace(messages_list=heads, message_object_trees=trees)

    def PullObject(self, request: Any) -> Any:  # noqa: N802
        self._fail()
        name = request.object_id
        return SimpleNamespace(
            object_found=name in self.announced, object_available=name in self.objects,
            object_content=self.objects.get(name, b""),
        )  # fmt: skip

    def ConfirmMessageReceived(self, request: Any) -> None:  # noqa: N802
        self._fail()
        self.confirmed.append(request.message_object_id)

    def PushMessages(self, request: Any) -> Any:  # noqa: N802
        names = {name for tree in request.message_object_trees for name in _names(tree)}
        ids = [head.metadata.message_id for head in request.messages_list]
        return SimpleNamespace(objects_to_push=sorted(names), message_ids=ids, session_id="s")

    def PushObject(self, request: Any) -> None:  # noqa: N802
        self.pushed.append(request.object_id)

    def GetNodes(self, _: Any) -> Any:  # noqa: N802
        self._fail()
        return SimpleNamespace(nodes=[SimpleNamespace(node_id=node) for node in self.nodes])

    def _fail(self) -> None:
        if self.trouble:
            raise self.trouble.pop(0)


def _names(tree: Any) -> set[str]:
    return {tree.object_id}.union(*(_names(child) for child in tree.children))


def question(values: int = 0) -> Message:
    records = RecordDict({"ask": ConfigRecord({"x": 1})})
    if values:
        records["model"] = ArrayRecord({"vector": Array(np.arange(values, dtype=np.float32))})
    asked = Message(records, dst_node_id=7, message_type="train.mask")
    asked.metadata.__dict__["_message_id"] = asked.object_id
    return asked


def answer(asked: Message, values: int = 0) -> Message:
    records = RecordDict({"answer": ConfigRecord({"y": 2})})
    if values:
        records["update"] = ArrayRecord({"frame": Array(np.arange(values, dtype=np.float32))})
    return Message(records, reply_to=asked)


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def grid(tmp_path: Path, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> FleetGrid:
    made = FleetGrid("127.0.0.1:1", b"secret", tmp_path / "largest_upload")
    monkeypatch.setattr(made, "_client", runtime)
    monkeypatch.setattr("fedaipc.fleet.grid.time.sleep", lambda _: None)
    made.allow_uploads(10**7)
    return made


def test_how_large_an_answer_may_be_is_written_for_the_superlink(
    grid: FleetGrid, tmp_path: Path
) -> None:
    assert (tmp_path / "largest_upload").read_text() == str(10**7)
    grid.allow_uploads(5)
    assert (tmp_path / "largest_upload").read_text() == "5"


def test_a_vector_that_several_messages_share_is_sent_once(
    grid: FleetGrid, runtime: FakeRuntime
) -> None:
    one = question(100_000)
    other = Message(one.content, dst_node_id=8, message_type="train.mask")
    assert len(set(grid.push_messages([one, other]))) == 2
    assert len(runtime.pushed) == len(set(runtime.pushed))
    own = {one.metadata.message_id, other.metadata.message_id}
    assert own <= set(runtime.pushed)


def test_small_replies_come_at_once_and_are_confirmed(
    grid: FleetGrid, runtime: FakeRuntime
) -> None:
    asked = question()
    name = runtime.put(answer(asked))
    (reply,) = grid.pull_messages([asked.metadata.message_id])
    assert reply.content.config_records["answer"]["y"] == 2
    assert runtime.confirmed == [name]


def test_an_error_is_a_reply_too(grid: FleetGrid, runtime: FakeRuntime) -> None:
    asked = question()
    runtime.put(Message(Error(code=100, reason=""), reply_to=asked))
    (reply,) = grid.pull_messages([asked.metadata.message_id])
    assert reply.error.code == 100


def test_a_large_reply_is_waited_for_while_it_is_uploaded(
    grid: FleetGrid, runtime: FakeRuntime
) -> None:
    slow, quick = question(1), question(2)
    waiting = [slow.metadata.message_id, quick.metadata.message_id]
    runtime.put(answer(slow, 100_000), uploaded=False)
    later = runtime.later
    runtime.put(answer(quick, 100_001))
    first = [reply for _ in range(3) for reply in grid.pull_messages(waiting)]
    assert [r.metadata.reply_to_message_id for r in first] == [waiting[1]]
    runtime.objects |= later
    (second,) = grid.pull_messages(waiting[:1])
    assert second.metadata.reply_to_message_id == waiting[0]
    array = second.content.array_records["update"]["frame"]
    assert np.array_equal(array.numpy(), np.arange(100_000, dtype=np.float32))


def test_one_that_is_too_large_or_garbage_is_left_out_and_deleted(
    grid: FleetGrid, runtime: FakeRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    grid.allow_uploads(100_000)
    large, broken = question(1), question(2)
    names = [runtime.put(answer(large, 50_000)), runtime.put(answer(broken))]
    runtime.heads[1].content.Clear()
    runtime.heads[1].metadata.message_type = "no type"
    waiting = [large.metadata.message_id, broken.metadata.message_id]
    with caplog.at_level(logging.WARNING):
        assert [r for _ in range(3) for r in grid.pull_messages(waiting)] == []
    assert sorted(runtime.confirmed) == sorted(names)
    assert "larger than" in caplog.text


def test_an_upload_that_was_given_up_is_left_out(grid: FleetGrid, runtime: FakeRuntime) -> None:
    asked = question()
    name = runtime.put(answer(asked, 100_000))
    del runtime.objects[min(runtime.objects.keys() - {name})]
    assert list(grid.pull_messages([asked.metadata.message_id])) == []
    assert runtime.confirmed == [name]


def test_what_is_not_waited_for_any_more_is_deleted(grid: FleetGrid, runtime: FakeRuntime) -> None:
    asked, silent = question(1), question(2)
    name = runtime.put(answer(asked, 100_000), uploaded=False)
    grid.pull_messages([asked.metadata.message_id, silent.metadata.message_id])
    grid.forget([asked.metadata.message_id, silent.metadata.message_id])
    assert runtime.confirmed == [name, silent.metadata.message_id]


def refusal(status: int) -> httpx.HTTPStatusError:
    asked = httpx.Request("POST", "http://x")
    return httpx.HTTPStatusError("", request=asked, response=httpx.Response(status))


def test_a_superlink_that_is_away_is_waited_for(grid: FleetGrid, runtime: FakeRuntime) -> None:
    runtime.trouble = [httpx.ConnectError("away")] * 5 + [refusal(503), refusal(502)]
    assert grid.get_node_ids() == [7, 8]


def test_after_an_outage_pcs_are_waited_for_before_anything_is_sent(
    grid: FleetGrid, runtime: FakeRuntime
) -> None:
    runtime.trouble = [httpx.ConnectError("away")]
    grid.get_node_ids()
    runtime.nodes = [7]
    asked = question()
    runtime.put(answer(asked))
    assert len(list(grid.pull_messages([asked.metadata.message_id]))) == 1
    assert not grid._away.is_set()


@pytest.mark.parametrize(
    ("trouble", "why"),
    [(refusal(401), "gave the run up"), (refusal(400), "answers GetNodes with 400")],
    ids=str,
)
def test_a_run_that_is_lost_ends_the_job(
    grid: FleetGrid, runtime: FakeRuntime, trouble: Exception, why: str
) -> None:
    runtime.trouble = [trouble]
    with pytest.raises(EngineError, match=why):
        grid.get_node_ids()


def test_patience_has_an_end(
    grid: FleetGrid, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.0)
    runtime.trouble = [httpx.ConnectError("away")] * 3
    with pytest.raises(EngineError, match="does not answer"):
        grid.get_node_ids()


def test_a_coordinator_that_is_asked_to_stop_leaves_at_its_next_call(
    tmp_path: Path, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = [False]
    made = FleetGrid("127.0.0.1:1", b"secret", tmp_path / "largest_upload", lambda: stopped[0])
    monkeypatch.setattr(made, "_client", runtime)
    assert made.get_node_ids() == [7, 8]
    stopped[0] = True
    with pytest.raises(SystemExit) as left:
        made.get_node_ids()
    assert left.value.code == 143
