"""All bytes that PCs send in a real round are recorded, and each is of a field that is declared."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.supercore.task_identity import TaskIdentity

from fedaipc.fleet.answers import push
from fedaipc.fleet.wire import pack
from fedaipc.simulation.flower_adapter import ensure_message_identity
from scripts import fleet_demo
from tests.support.declared import CALLS, HEADERS, Seen, complaints
from tests.support.fleets import CONFIG, Fleet
from tests.support.recorder import Call, Recorder

if TYPE_CHECKING:
    from pathlib import Path

ensure_message_identity()
STAGES = {"query.setup", "query.ready", "train.mask", "query.agree", "query.unmask"}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Message:
    monkeypatch.setattr(TaskIdentity, "_node_id", 1)  # the server's; a PC ran here, perhaps
    message = Message(
        RecordDict({"ask": ConfigRecord({"x": 1})}), dst_node_id=7, message_type="query.agree"
    )
    pack(message)
    return message


def seen(asked: Message) -> Seen:
    """What a server that sent `asked` said."""
    made = Seen()
    for name in ("run_id", "dst_node_id", "message_id", "group_id", "ttl", "created_at",
                 "message_type", "src_task_id", "dst_task_id"):  # fmt: skip
        made.add(name, getattr(asked.metadata, name))
    return made


def call(asked: Message, change: Any = lambda _: None, key: str = "frame") -> Call:
    reply = Message(RecordDict({"answer": ConfigRecord({key: b"x"})}), reply_to=asked)
    request, _ = push(None, asked.metadata, reply)
    change(request)
    return Call("/v1/fleet/push-messages", [], request.SerializeToString(deterministic=True))


def test_an_honest_answer_is_as_declared(asked: Message) -> None:
    assert complaints([call(asked)], seen(asked)) == []


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("clientapp_runtime_list", lambda r: r.clientapp_runtime_list.__setitem__(0, 1.25)),
        ("created_at", lambda r: setattr(r.messages_list[0].metadata, "created_at", 1.8e9)),
        ("ttl", lambda r: setattr(r.messages_list[0].metadata, "ttl", 41_000.0)),
        ("group_id", lambda r: setattr(r.messages_list[0].metadata, "group_id", "31 records")),
        ("reason", lambda r: setattr(r.messages_list[0].error, "reason", "ValueError: text")),
        ("field-99", lambda r: r.messages_list[0].MergeFromString(b"\x9a\x06\x01x")),
    ],
)
def test_what_is_not_declared_is_found(asked: Message, what: str, change: Any) -> None:
    (line,) = complaints([call(asked, change)], seen(asked))
    assert what in line


def test_a_header_a_key_and_a_call_that_are_not_declared_are_found(asked: Message) -> None:
    good = call(asked)
    (line,) = complaints([replace(good, headers=[("X-Seconds", "1.25")])], seen(asked))
    assert line == "header X-Seconds is not declared"
    (line,) = complaints([call(asked, key="loss")], seen(asked))
    assert line == "query.agree answer loss is not declared"
    (line,) = complaints([replace(good, target="/v1/fleet/register-node")], seen(asked))
    assert line == "call /v1/fleet/register-node"


@pytest.mark.slow
@pytest.mark.alone
def test_every_byte_that_leaves_a_pc_in_a_round_is_declared(tmp_path: Path, minilm: Path) -> None:
    """Four PCs, one round, updates that are too large for a single message."""
    del minilm
    config = tmp_path / "config.toml"
    config.write_text(
        CONFIG.replace('train = "head"', 'train = { kind = "lora", rank = 32 }\nmax_length = 16')
        .replace("round_timeout = 60", "round_timeout = 200")
        .replace("stage_timeout = 10", "stage_timeout = 100")
    )
    fleet, inner = Fleet.enrolled(tmp_path / "fleet", config, 1), fleet_demo.free_port()
    recorder = Recorder(fleet.server, fleet.port, inner)
    fleet.port = inner
    try:
        with recorder.recording():
            fleet.start_server()
            for number in range(4):
                fleet.start_client(number)
            done = fleet.command(
                "server", "train", fleet.out / "first-job", "--server", fleet.server
            )
            assert done.returncode == 0, done.stdout + done.stderr
            fleet.stop()
    finally:
        for name in list(fleet.processes):
            if fleet.processes[name].poll() is None:
                fleet.kill(name)
    calls = [call for talk in recorder.talks for call in talk.calls()]
    assert complaints(calls) == []
    _check_that_all_was_seen(calls)


def _check_that_all_was_seen(calls: list[Call]) -> None:
    """Else the test could not fail."""
    assert {call.target.rpartition("/")[2] for call in calls} == CALLS.keys()
    headers = {name.lower() for call in calls for name, _ in call.headers}
    assert headers == HEADERS.keys()
    pushed = [
        PushMessagesRequest.FromString(call.body)
        for call in calls
        if call.target.endswith("push-messages")
    ]
    stages = {head.metadata.message_type for p in pushed for head in p.messages_list}
    assert stages == STAGES
    chunks = [
        PushObjectRequest.FromString(call.body)
        for call in calls
        if call.target.endswith("push-object")
    ]
    kinds = {chunk.object_content[:40].partition(b" ")[0] for chunk in chunks}
    assert kinds == {b"Message", b"RecordDict", b"ArrayRecord", b"Array", b"ArrayChunk"}
    sizes = {len(chunk.object_content) for chunk in chunks}
    assert len(sizes) <= 6  # an update's size is the same for all
