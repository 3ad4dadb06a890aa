"""Which keys the SuperLink lets in, and Flower runs: Flower's control API, on loopback.

The SuperLink asks nobody for a password there. `superlink.py` does, with a key that follows from
the secret in the server's own folder.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import httpx
from cryptography.hazmat.primitives import serialization
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CONTROL_HEADER = "fedaipc-control-key"


def control_key(secret: bytes) -> str:
    """What a caller of the control API shows."""
    return hashlib.sha256(b"fedaipc control key" + secret).hexdigest()


class Registry:
    """At the SuperLink with this address on loopback."""

    def __init__(self, address: str, secret: bytes) -> None:
        self._client = ControlHttpClient.from_server_address(
            address, True, None, interceptors=[_ControlKey(secret)]
        )

    def let_in(self, keys: Mapping[str, str]) -> tuple[str, ...]:
        """Register these nodes (OpenSSH public key -> name) and no others; who cannot be.

        A key that was shut out once is so for good: such a PC has to enrol anew.
        """
        wanted = {_pem(key): name for key, name in keys.items()}
        there = {
            bytes(node.public_key): node.node_id
            for node in self._client.ListNodes(ListNodesRequest()).nodes_info
            if node.status != "unregistered"
        }
        for key, node in there.items():
            if key not in wanted:
                self._client.UnregisterNode(UnregisterNodeRequest(node_id=node))
        refused = []
        for key, name in wanted.items():
            if key not in there:
                try:
                    self._client.RegisterNode(RegisterNodeRequest(public_key=key, name=name))
                except httpx.HTTPStatusError:
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


class _ControlKey:
    def __init__(self, secret: bytes) -> None:
        self._key = control_key(secret)

    def intercept(self, context: Any, call_next: Callable[[Any], Any]) -> Any:
        context.request.headers[CONTROL_HEADER] = self._key
        return call_next(context)


def _pem(key: str) -> bytes:
    """As Flower compares it, byte by byte."""
    return serialization.load_ssh_public_key(key.encode()).public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


_PROJECT = """
[project]
name = "fedaipc"
version = "0.1.0"
description = "{nonce}"

[tool.flwr.app]
publisher = "fedaipc"

[tool.flwr.app.components]
serverapp = "fedaipc.coordinator.server_app:app"
clientapp = "fedaipc.pc.client_app:app"

[tool.flwr.app.config]
"""
