"""The guard around Flower's SuperLink: what asks for a key, what is open, what is not there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fedaipc.fleet import superlink
from fedaipc.fleet.registry import CONTROL_HEADER, control_key
from fedaipc.fleet.superlink import environment, guarded

SECRET = b"s" * 64


def ask(path: str, *parts: bytes, key: str | None = None) -> tuple[int, list[bytes]]:
    """Status, and the pieces of a body that the app behind saw; none where it was not asked."""
    seen: list[bytes] = []
    sent: list[dict[str, Any]] = []
    waiting = [
        {"type": "http.request", "body": part, "more_body": n < len(parts) - 1}
        for n, part in enumerate(parts or (b"",))
    ]

    async def receive() -> dict[str, Any]:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            event = await receive()
            seen.append(event.get("body", b""))
            more = event.get("more_body", False)
        await send({"type": "http.response.start", "status": 299, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    headers = [] if key is None else [(CONTROL_HEADER.encode(), key.encode())]
    scope = {"type": "http", "path": path, "headers": headers}
    asyncio.run(guarded(app, SECRET)(scope, receive, send))
    return sent[0]["status"] if sent else 0, seen


@pytest.mark.parametrize("path", ["/v1/fleet/pull-messages", "/v1/runtime/get-nodes"])
def test_fleet_and_runtime_calls_pass_with_their_body_in_one_piece(path: str) -> None:
    assert ask(path, b"a", b"b", b"c") == (299, [b"abc"])


def test_control_calls_want_the_key() -> None:
    path = "/v1/control/register-node"
    assert ask(path, key=control_key(SECRET)) == (299, [b""])
    for key in (None, "", "x", control_key(b"other"), control_key(SECRET)[:-1]):
        assert ask(path, key=key) == (404, [])


@pytest.mark.parametrize("path", ["/", "/docs", "/v1/control", "/v2/fleet/x", "/openapi.json"])
def test_nothing_else_is_there(path: str) -> None:
    assert ask(path, key=control_key(SECRET)) == (404, [])


def test_health_tells_nothing() -> None:
    assert ask("/health") == (200, [])


def test_a_body_that_is_too_large_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superlink, "_LARGEST_BODY", 10)
    assert ask("/v1/fleet/push-object", b"x" * 6, b"x" * 4) == (299, [b"x" * 10])
    assert ask("/v1/fleet/push-object", b"x" * 6, b"x" * 5) == (413, [])


def test_who_leaves_amid_a_body_reaches_nobody() -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    async def app(*_: Any) -> None:
        pytest.fail("the app was asked")

    scope = {"type": "http", "path": "/v1/fleet/pull-messages", "headers": []}
    asyncio.run(guarded(app, SECRET)(scope, receive, send))
    assert sent[0]["status"] == 413


def test_flower_tells_nobody_anything(tmp_path: Any) -> None:
    env = environment(tmp_path)
    assert env["FLWR_TELEMETRY_ENABLED"] == "0"
    assert env["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert env["FLWR_HOME"] == str(tmp_path)
