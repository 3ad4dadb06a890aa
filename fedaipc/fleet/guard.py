"""The guard around Flower's SuperLink, as an ASGI application.

It closes what Flower leaves open: the control API to every user of the machine, and, to every
PC, any number of messages of any size, to anybody, in another's name.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import re
from collections import OrderedDict
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from flwr.proto.fleet_pb2 import PushMessagesRequest
from google.protobuf.message import DecodeError

from fedaipc.fleet.registry import CONTROL_HEADER, is_marked
from fedaipc.fleet.wire import CHUNK, MAX_INLINE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from fedaipc.fleet.admitted import Admitted

    Scope = dict[str, Any]
    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]

_LARGEST_BODY = CHUNK + 64 * 1024  # bytes: a chunk of an array, and who sends it
_LARGEST_ANNOUNCED = 2 * MAX_INLINE  # bytes of a message with its records, or with its tree
_FEW = 16  # objects of a large message beside the chunks of its vector
_HASH = re.compile("[0-9a-f]{64}")
_ANSWERS = 3  # to one request: the answer, and a notice that it will not come after all
_MAX_REMEMBERED = 20_000
_SERVER = 1  # the SuperLink's own node number
_LARGE = "-object"  # ends the calls that carry a chunk, of which Flower makes several copies
_LARGE_AT_ONCE = 2  # so that its memory does not grow with the PCs
_FLEET, _RUNTIME, _CONTROL = "/v1/fleet/", "/v1/runtime/", "/v1/control/"
_PUSH = "/v1/fleet/push-messages"
THREADS = 4  # of the server; each has a database connection and memory of its own


@dataclass(slots=True)
class _Announced:
    """An answer to `request` (node and message), with the hash of its tree of objects."""

    request: tuple[int, str]
    tree: bytes
    again: bool = False


class Uploads:
    """What a PC may announce: one answer at a time, its own, to the coordinator, of a size that the
    run's answers can have. The coordinator writes that size into the file `limit`.
    """

    def __init__(self, limit: Path) -> None:
        self._limit = limit
        self._answers: OrderedDict[tuple[int, str], set[bytes]] = OrderedDict()

    def allows(self, body: bytes) -> _Announced | None:
        """What `body`, a call to push messages, announces, if it announces only that; it is
        remembered.

        That `node` is who calls, the SuperLink knows; that the request was for it, too. So where
        the SuperLink refuses, `forget` it.
        """
        if len(body) > _LARGEST_ANNOUNCED:
            return None
        try:
            request = PushMessagesRequest.FromString(body)
        except DecodeError:
            return None
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            return None
        about, tree = request.messages_list[0].metadata, request.message_object_trees[0]
        objects = _count(tree)
        if (
            (about.src_node_id, about.dst_node_id) != (request.node.node_id, _SERVER)
            or not _HASH.fullmatch(about.reply_to_message_id)
            or not _HASH.fullmatch(about.message_id)
            or tree.object_id != about.message_id
            or (objects > 1 and objects > self._most_objects())
        ):
            return None
        said = _Announced(
            (request.node.node_id, about.reply_to_message_id),
            hashlib.sha256(tree.SerializeToString(deterministic=True)).digest(),
        )
        trees = self._answers.setdefault(said.request, set())
        if len(self._answers) > _MAX_REMEMBERED:
            self._answers.popitem(last=False)
        said.again = said.tree in trees  # for example where the answer to the first call was lost
        if len(trees) >= _ANSWERS and not said.again:
            return None
        trees.add(said.tree)
        return said

    def forget(self, said: _Announced) -> None:
        """The SuperLink did not take it."""
        trees = self._answers.get(said.request)
        if trees is not None and not said.again:
            trees.discard(said.tree)
            if not trees:
                del self._answers[said.request]

    def _most_objects(self) -> int:
        try:
            return int(self._limit.read_text("ascii")) // CHUNK + _FEW
        except (OSError, ValueError):
            return 0


def _count(tree: Any) -> int:
    return 1 + sum(_count(child) for child in tree.children)


def guarded(app: App, secret: bytes, admitted: Admitted, uploads: Uploads) -> App:
    """Members' fleet calls, runtime calls, control calls that are marked, and nothing else.

    Bodies are read whole, within a limit: uvicorn hands on pieces of 64 KiB, each of which would
    climb through all of Flower's middleware.
    """
    few = asyncio.Semaphore(_LARGE_AT_ONCE)

    async def in_turn(scope: Scope, receive: Receive, send: Send) -> None:
        events: list[dict[str, Any]] = []

        async def keep(event: dict[str, Any]) -> None:
            events.append(event)

        async with few:
            await app(scope, receive, keep)
        gc.collect()  # it refers to itself and the body, and would stay in memory for long
        for event in events:  # a slow reader must not keep the others waiting
            await send(event)

    def refusal(path: str, headers: Mapping[bytes, bytes], body: bytes) -> int | None:
        if path.startswith(_CONTROL):
            mark = headers.get(CONTROL_HEADER.encode(), b"").decode("latin-1")
            return None if is_marked(secret, path, body, mark) else 404
        return None

    async def announce(scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        said = uploads.allows(body)
        if said is None:
            await _refuse(send, 403)
            return

        async def judged(event: dict[str, Any]) -> None:
            if event["type"] == "http.response.start" and event["status"] != HTTPStatus.OK:
                uploads.forget(said)
            await send(event)

        await app(scope, _given(body, receive), judged)

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            import anyio.to_thread

            anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        path, headers = scope["path"], dict(scope["headers"])
        if path == "/health":
            await _refuse(send, 200)
        elif not path.startswith((_FLEET, _RUNTIME, _CONTROL)):
            await _refuse(send, 404)
        elif len(headers) != len(scope["headers"]):  # which of two would Flower read?
            await _refuse(send, 400)
        elif path.startswith(_FLEET) and not admitted.knows(headers):
            await _refuse(send, 401)
        else:
            body = await _whole(receive)
            status = 413 if body is None else refusal(path, headers, body)
            if status is not None:
                await _refuse(send, status)
            elif body is not None and path == _PUSH:
                await announce(scope, body, receive, send)
            elif body is not None:
                given = _given(body, receive)
                if path.endswith(_LARGE):
                    await in_turn(scope, given, send)
                else:
                    await app(scope, given, send)

    return guard


async def _whole(receive: Receive) -> bytes | None:
    """The body; None where it is too large or its sender left."""
    parts, size, more = [], 0, True
    while more:
        event = await receive()
        if event["type"] != "http.request":
            return None
        parts.append(event.get("body", b""))
        size += len(parts[-1])
        if size > _LARGEST_BODY:
            return None
        more = event.get("more_body", False)
    return b"".join(parts)


def _given(body: bytes, receive: Receive) -> Receive:
    """What hands on a body that was read already, in one piece."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> dict[str, Any]:
        return left.pop() if left else await receive()

    return again


async def _refuse(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})
