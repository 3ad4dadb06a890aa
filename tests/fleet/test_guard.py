"""The guard around Flower's SuperLink: what asks for a key, what is open, what is not there."""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree
from flwr.proto.node_pb2 import Node as NodeId

from fedaipc.fleet import guard as module
from fedaipc.fleet.admitted import Admitted
from fedaipc.fleet.guard import Uploads, guarded
from fedaipc.fleet.registry import CONTROL_HEADER, control_mark
from fedaipc.fleet.superlink import UPLOAD_FILE
from fedaipc.protocol.node_key import pem
from fedaipc.protocol.server_folder import NODES_FILE, Node, Nodes
from tests.support.node_keys import node_key

SECRET = b"s" * 64


class Guard:
    """The guard of a server's folder with one member, and what the app behind it saw."""

    def __init__(self, folder: Path) -> None:
        nodes = Nodes(nodes=(Node(name="pc-1", node_key=node_key(1)),))
        (folder / NODES_FILE).write_text(nodes.model_dump_json())
        self.folder, self.status = folder, 299
        self.seen: list[Any] = []
        self.member = {"flwr-public-key": b64encode(pem(node_key(1))).decode()}
        self.app: Any = guarded(self._app, SECRET, Admitted(folder), Uploads(folder / UPLOAD_FILE))

    async def _app(self, _: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            event = await receive()
            self.seen.append(event.get("body", b""))
            more = event.get("more_body", False)
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def ask(self, path: str, *parts: bytes, headers: Any = None) -> int:
        """The status; 0 where the asker left before there was one."""
        sent: list[dict[str, Any]] = []
        waiting = [
            {"type": "http.request", "body": part, "more_body": n < len(parts) - 1}
            for n, part in enumerate(parts or (b"",))
        ]

        async def receive() -> dict[str, Any]:
            return waiting.pop(0) if waiting else {"type": "http.disconnect"}

        async def send(event: dict[str, Any]) -> None:
            sent.append(event)

        headers = self.member if headers is None else headers
        pairs = headers if isinstance(headers, list) else list(headers.items())
        shown = [(name.encode(), value.encode()) for name, value in pairs]
        scope = {"type": "http", "path": path, "headers": shown}
        self.seen.clear()
        asyncio.run(self.app(scope, receive, send))
        return sent[0]["status"] if sent else 0


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    return Guard(tmp_path)


@pytest.mark.parametrize("path", ["/v1/fleet/pull-messages", "/v1/runtime/get-nodes"])
def test_fleet_and_runtime_calls_pass_with_their_body_in_one_piece(guard: Guard, path: str) -> None:
    assert guard.ask(path, b"a", b"b", b"c") == 299
    assert guard.seen == [b"abc"]


def test_fleet_calls_are_for_members(guard: Guard) -> None:
    path = "/v1/fleet/pull-messages"
    other = {"flwr-public-key": b64encode(pem(node_key(2))).decode()}
    for headers in ({}, other, {"flwr-public-key": ""}):
        assert guard.ask(path, headers=headers) == 401
    both = [*other.items(), *guard.member.items()]  # Flower would read the first
    assert guard.ask(path, headers=both) == 400
    assert guard.seen == []
    (guard.folder / NODES_FILE).write_text('{"nodes":[]}')
    assert guard.ask(path) == 401


def test_control_calls_are_marked_for_that_call_and_the_last_minute(guard: Guard) -> None:
    path, body, now = "/v1/control/register-node", b"ask", int(time.time())

    def marked(mark: str) -> int:
        return guard.ask(path, body, headers={CONTROL_HEADER: mark})

    assert marked(control_mark(SECRET, path, body)) == 299
    for wrong in (
        "", "x", "1 2", "9" * 400 + " x", control_mark(b"other", path, body),
        control_mark(SECRET, path + "x", body), control_mark(SECRET, path, body + b"x"),
        control_mark(SECRET, path, body, now - 90), control_mark(SECRET, path, body, now + 90),
        control_mark(SECRET, path, body)[:-1],
        control_mark(SECRET, path, body, now - 90).replace(str(now - 90), str(now)),
    ):  # fmt: skip
        assert marked(wrong) == 404
        assert guard.seen == []
    assert guard.ask(path, body) == 404


def name(text: str) -> str:
    """An identifier, as Flower's are."""
    return sha256(text.encode()).hexdigest()


def announced(guard: Guard, **changes: Any) -> int:
    """Announce an answer of node 7; `changes` are to it, to who calls, or its tree."""
    node, objects = changes.pop("node", 7), changes.pop("objects", 1)
    count, root = changes.pop("count", 1), changes.pop("root", None)
    about = {
        "src_node_id": 7, "dst_node_id": 1, "reply_to_message_id": name("r"),
        "message_id": name("m"), **changes,
    }  # fmt: skip
    tree = ObjectTree(
        object_id=root or about["message_id"],
        children=[ObjectTree(object_id=name(f"x{number}")) for number in range(objects - 1)],
    )
    request = PushMessagesRequest(
        node=NodeId(node_id=node),
        messages_list=[Message(metadata=Metadata(**about))] * count,
        message_object_trees=[tree] * count,
    )
    return guard.ask("/v1/fleet/push-messages", request.SerializeToString())


def test_a_pc_announces_its_own_answer_to_the_coordinator_and_nothing_else(guard: Guard) -> None:
    assert announced(guard) == 299
    for change in (
        {"src_node_id": 8}, {"src_node_id": 1}, {"dst_node_id": 8}, {"dst_node_id": 7},
        {"reply_to_message_id": ""}, {"reply_to_message_id": "r" * 64},
        {"reply_to_message_id": name("r") + "0"}, {"message_id": "m"}, {"root": name("other")},
        {"count": 2}, {"count": 0}, {"node": 8},
    ):  # fmt: skip
        assert announced(guard, **change) == 403, change
        assert guard.seen == []
    assert guard.ask("/v1/fleet/push-messages", b"no protobuf") == 403
    assert guard.ask("/v1/fleet/push-messages", b"\0" * 500_000) == 403


def test_an_answer_is_no_larger_than_the_runs_answers_can_be(guard: Guard) -> None:
    assert announced(guard, objects=2) == 403  # no run has begun
    (guard.folder / UPLOAD_FILE).write_text(str(90_000_000))
    assert announced(guard, objects=17 + 16) == 299
    assert announced(guard, objects=17 + 17) == 403


def test_a_request_is_answered_a_few_times_at_most(guard: Guard) -> None:
    guard.status = 200
    for number in (1, 2, 3, 1, 2, 3):  # again, where the first answer was lost
        assert announced(guard, message_id=name(f"m{number}")) == 200
    assert announced(guard, message_id=name("m4")) == 403
    assert announced(guard, message_id=name("m4"), reply_to_message_id=name("other")) == 200


def test_one_message_has_one_tree(guard: Guard) -> None:
    """Flower would take another tree for the same message each time, and store its objects."""
    guard.status = 200
    (guard.folder / UPLOAD_FILE).write_text(str(90_000_000))
    taken = [announced(guard, objects=number) for number in range(2, 30)]
    assert taken == [200] * 3 + [403] * 25


def test_what_the_superlink_refuses_takes_nobodys_place(guard: Guard) -> None:
    """Else one PC could use up the answers of another, whose number it names."""
    guard.status = 401
    for number in range(10):
        assert announced(guard, message_id=name(f"m{number}")) == 401
    guard.status = 200
    assert announced(guard) == 200
    guard.status = 503
    assert announced(guard) == 503  # the same again: what was taken stays taken
    guard.status = 200
    assert announced(guard, message_id=name("m1")) == 200
    assert announced(guard, message_id=name("m2")) == 200
    assert announced(guard, message_id=name("m3")) == 403


@pytest.mark.parametrize("path", ["/", "/docs", "/v1/control", "/v2/fleet/x", "/openapi.json"])
def test_nothing_else_is_there(guard: Guard, path: str) -> None:
    assert guard.ask(path) == 404
    assert guard.seen == []


def test_health_tells_nothing(guard: Guard) -> None:
    assert guard.ask("/health", headers={}) == 200
    assert guard.seen == []


def test_a_body_that_is_too_large_is_not_passed_on(
    guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LARGEST_BODY", 10)
    assert guard.ask("/v1/fleet/push-object", b"x" * 6, b"x" * 4) == 299
    assert guard.ask("/v1/fleet/push-object", b"x" * 6, b"x" * 5) == 413
    assert guard.seen == []


def test_who_leaves_amid_a_body_reaches_nobody(guard: Guard) -> None:
    async def left() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    assert asyncio.run(module._whole(left)) is None
