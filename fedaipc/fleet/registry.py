"""Which keys the SuperLink lets in, and Flower runs: Flower's control API, on loopback.

The SuperLink asks nobody for a password there. `superlink.py` asks that each call is marked by
the secret in the server's own folder. A mark is valid for that call alone, so that a program that
takes the port of a dead SuperLink learns nothing useful.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab

from fedaipc.fleet.clients import loopback
from fedaipc.protocol.node_key import pem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CONTROL_HEADER = "fedaipc-control-mark"
_MARK_SECONDS = 60


def control_mark(secret: bytes, path: str, body: bytes, at: int | None = None) -> str:
    """What a caller of the control API shows with a call; `at` in seconds since 1970, otherwise
    now.
    """
    at = int(time.time()) if at is None else at
    said = f"fedaipc control {at} {path} ".encode() + hashlib.sha256(body).digest()
    return f"{at} {hmac.new(secret, said, 'sha256').hexdigest()}"


def is_marked(secret: bytes, path: str, body: bytes, mark: str) -> bool:
    """Whether a mark is for exactly this call, and from the last minute."""
    at = mark.partition(" ")[0]
    if not at.isdecimal() or len(at) > 12 or abs(int(at) - time.time()) > _MARK_SECONDS:
        return False
    expected = control_mark(secret, path, body, int(at))
    return hmac.compare_digest(expected.encode(), mark.encode())


class Registry:
    """At the SuperLink with this address on loopback."""

    def __init__(self, address: str, secret: bytes) -> None:
        self._client = loopback(ControlHttpClient, address, [_ControlMark(secret)])

    def let_in(self, keys: Mapping[str, str]) -> tuple[str, ...]:
        """Register these nodes (OpenSSH public key -> name); returns the names of those that cannot
        be registered.

        Nobody is unregistered, which could never be undone: `admitted.py` keeps out whoever left.
        """
        there = {
            bytes(node.public_key)
            for node in self._client.ListNodes(ListNodesRequest()).nodes_info
            if node.status != "unregistered"
        }
        refused = []
        for key, name in keys.items():
            try:
                if pem(key) not in there:
                    request = RegisterNodeRequest(public_key=pem(key), name=name)
                    self._client.RegisterNode(request)
            except ValueError:
                refused.append(name)
            except httpx.HTTPStatusError as error:
                if error.response.is_server_error:  # it may pass
                    raise
                refused.append(name)
        return tuple(refused)

    def start_run(self, nonce: str) -> tuple[int, str]:
        """A run whose bundle holds no code: its number, and the hash by which it is claimed."""
        fab = build_fab_from_files({"pyproject.toml": _PROJECT.format(nonce=nonce).encode()})[0]
        name = hashlib.sha256(fab).hexdigest()
        run = self._client.StartRun(StartRunRequest(fab=fab_to_proto(Fab(name, fab, {})))).run_id
        return run, name

    def stop_unfinished(self) -> None:
        """End the runs that a killed coordinator left behind."""
        for run in self._client.ListRuns(ListRunsRequest()).run_dict.values():
            if run.status.status != "finished":
                with suppress(httpx.HTTPStatusError):
                    self._client.StopRun(StopRunRequest(run_id=run.run_id))

    def close(self) -> None:
        self._client.close()


class _ControlMark:
    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def intercept(self, context: Any, call_next: Callable[[Any], Any]) -> Any:
        request = context.request
        mark = control_mark(self._secret, request.url.path, request.content)
        request.headers[CONTROL_HEADER] = mark
        return call_next(context)


_PROJECT = """
[project]
name = "fedaipc"
version = "0.1.0"
description = "{nonce}"

[tool.flwr.app]
publisher = "fedaipc"

[tool.flwr.app.components]
serverapp = "fedaipc.coordinator.server_app:app"
clientapp = "fedaipc.client.client_app:app"

[tool.flwr.app.config]
"""
