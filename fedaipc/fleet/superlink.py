"""Flower's SuperLink on loopback, in plain HTTP: the front does TLS.

Started by `python -m fedaipc.fleet.superlink STATE PORT`. Flower's own command refuses node
authentication without TLS where it parses its arguments; the app itself does not. What Flower
leaves open to every user of the machine, the control API, asks for a key here.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedaipc.fleet.registry import CONTROL_HEADER, control_key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Scope = dict[str, Any]
    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]

HOST = "127.0.0.1"
SECRET_FILE, DATABASE_FILE = "superexec.secret", "state.db"
_LARGEST_BODY = 8_000_000  # bytes; Flower sends arrays in chunks of 5 MiB
_OPEN = ("/v1/fleet/", "/v1/runtime/")
_CONTROL = "/v1/control/"
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


def run(state: Path, port: int) -> None:
    """Serve until the process is told to stop."""
    import uvicorn
    from flwr.common.constant import ISOLATION_MODE_PROCESS, TRANSPORT_TYPE_GRPC_RERE
    from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig
    from flwr.superlink.main import create_app

    _tune()
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
    uvicorn.run(
        guarded(app, secret),
        host=HOST,
        port=port,
        workers=1,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=2,
    )


def guarded(app: App, secret: bytes) -> App:
    """Fleet and runtime calls as they come, control calls with the key, nothing else.

    Bodies are read whole, within a limit: uvicorn hands on pieces of 64 KiB, each of which would
    climb through all of Flower's middleware.
    """
    expected = control_key(secret).encode()

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            import anyio.to_thread

            anyio.to_thread.current_default_thread_limiter().total_tokens = _THREADS
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        path = scope["path"]
        shown = dict(scope["headers"]).get(CONTROL_HEADER.encode(), b"")
        if path == "/health":
            await _refuse(send, 200)
        elif path.startswith(_OPEN) or (
            path.startswith(_CONTROL) and secrets.compare_digest(shown, expected)
        ):
            whole = await _whole(receive)
            if whole is None:
                await _refuse(send, 413)
            else:
                await app(scope, whole, send)
        else:
            await _refuse(send, 404)

    return guard


async def _whole(receive: Receive) -> Receive | None:
    """The body in one piece; None where it is too large or its sender left."""
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
    body = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]

    async def again() -> dict[str, Any]:
        return body.pop() if body else await receive()

    return again


async def _refuse(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})


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
    run(Path(sys.argv[1]), int(sys.argv[2]))
