"""Flower's SuperLink on loopback, in plain HTTP: the front does TLS.

Started by `python -m fedaipc.fleet.superlink FOLDER PORT`. Flower's own command refuses node
authentication without TLS where it parses its arguments; the app itself does not. A guard around it
closes what Flower leaves open: the control API to every user of the machine, and to every PC
messages in another's name, to anybody, of any size.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import os
import re
import sqlite3
import sys
import time
from collections import OrderedDict
from contextlib import closing, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.proto.fleet_pb2 import PushMessagesRequest
from google.protobuf.message import DecodeError

from fedaipc.federation.server_folder import STATE_FOLDER
from fedaipc.fleet import lifeline
from fedaipc.fleet.admitted import Admitted
from fedaipc.fleet.registry import CONTROL_HEADER, is_marked
from fedaipc.fleet.wire import CHUNK, MOST_INLINE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    Scope = dict[str, Any]
    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]

HOST = "127.0.0.1"
SECRET_FILE, DATABASE_FILE = "superexec.secret", "state.db"
UPLOAD_FILE = "largest_upload"  # bytes of the largest answer that the run at hand can have
_LARGEST_BODY = CHUNK + 64 * 1024  # bytes: a chunk of an array, and who sends it
_LARGEST_ANNOUNCED = 2 * MOST_INLINE  # bytes of a message with its records, or with its tree
_FEW = 16  # objects of a large message beside the chunks of its vector
_HASH = re.compile("[0-9a-f]{64}")
_ANSWERS = 3  # to one request: the answer, and word that it will not come after all
_MOST_REMEMBERED = 20_000
_SERVER = 1  # the SuperLink's own node number
_LARGE = "-object"  # ends the calls that carry a chunk, of which Flower makes several copies
_LARGE_AT_ONCE = 2  # so that its memory does not grow with the PCs
_FLEET, _RUNTIME, _CONTROL = "/v1/fleet/", "/v1/runtime/", "/v1/control/"
_PUSH = "/v1/fleet/push-messages"
_THREADS = 4  # of the server; each has a database connection and memory of its own


def environment(state: Path) -> dict[str, str]:
    """For every process that loads Flower: no telemetry, nothing outside `state`."""
    return {
        **os.environ,
        "FLWR_HOME": str(state),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "MALLOC_MMAP_THRESHOLD_": "1000000",  # glibc: give the memory of vectors back
    }


def run(folder: Path, port: int) -> None:
    """Serve until the process is told to stop. `folder` is the server's."""
    import uvicorn
    from flwr.common.constant import ISOLATION_MODE_PROCESS, TRANSPORT_TYPE_GRPC_RERE
    from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig
    from flwr.superlink.main import create_app

    _tune()
    _escape_logs()
    state = folder / STATE_FOLDER
    _shrink(state / DATABASE_FILE)
    secret = (state / SECRET_FILE).read_bytes()
    config = SuperLinkLifespanConfig(
        control_address=f"{HOST}:0",
        health_server_address=None,
        host=HOST,
        port=port,
        insecure=True,
        certificates=None,
        superexec_auth_secret=secret,
        authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,  # closes the fleet's own calls to register and unregister
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=str(state / DATABASE_FILE),
        isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )
    app: Any = create_app(config, SuperLinkLifespan)
    gc.collect()
    gc.freeze()  # so that collecting looks at the objects of requests alone
    uvicorn.run(
        guarded(app, secret, Admitted(folder), Uploads(state / UPLOAD_FILE)),
        host=HOST,
        port=port,
        workers=1,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=2,
    )


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
        """What `body`, a call to push messages, announces, if just that; and it is remembered.

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
        if len(self._answers) > _MOST_REMEMBERED:
            self._answers.popitem(last=False)
        said.again = said.tree in trees  # as where the answer to the first call was lost
        if len(trees) >= _ANSWERS and not said.again:
            return None
        trees.add(said.tree)
        return said

    def forget(self, said: _Announced) -> None:
        """The SuperLink did not take it."""
        if not said.again:
            self._answers.get(said.request, set()).discard(said.tree)

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
        gc.collect()  # what holds a body holds itself, too, and would stay for long
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

            anyio.to_thread.current_default_thread_limiter().total_tokens = _THREADS
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


def _escape_logs() -> None:
    """Flower logs what PCs send; to whoever reads the log it must not be more than text."""
    before = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        with suppress(TypeError, ValueError):  # a wrong format is logging's own to complain about
            text = record.getMessage()
            record.msg, record.args = text if text.isprintable() else ascii(text), ()
        return record

    logging.setLogRecordFactory(factory)


def _shrink(database: Path) -> None:
    """Give the disk back what messages took that are gone."""
    if not database.is_file():
        return
    with suppress(sqlite3.Error), closing(sqlite3.connect(database)) as connection:
        pages, free = (
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count")
        )
        if free > pages // 2:
            connection.execute("VACUUM")


def _tune() -> None:
    """Less memory and time, by values that Flower keeps in variables."""
    from flwr.supercore import sql_mixin as untyped
    from flwr.supercore.corestate.sql_corestate import SqlCoreState

    # 64 MB of page cache and 256 MB of mapping for each connection are too much here.
    sql_mixin: Any = untyped
    less = {"cache_size": "-4000", "mmap_size": "0"}
    sql_mixin.SQLITE_PRAGMAS = (
        *((name, less.get(name, value)) for name, value in sql_mixin.SQLITE_PRAGMAS),
        ("journal_size_limit", "16000000"),
    )
    clean, last = SqlCoreState._cleanup_expired_task_tokens, [0.0]  # noqa: SLF001

    def sometimes(self: SqlCoreState) -> None:
        """Two writes to the disk on each call; once in a second is enough."""
        if time.monotonic() - last[0] > 1:
            last[0] = time.monotonic()
            clean(self)

    SqlCoreState._cleanup_expired_task_tokens = sometimes  # type: ignore[method-assign]  # noqa: SLF001


if __name__ == "__main__":
    lifeline.hold()
    run(Path(sys.argv[1]), int(sys.argv[2]))
