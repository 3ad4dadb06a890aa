"""Members at Flower's control API: registered, never shut out, each call marked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from fedaipc.fleet.registry import CONTROL_HEADER, Registry, _ControlMark, is_marked
from fedaipc.protocol.node_key import pem
from tests.support.node_keys import node_key


class FakeControl:
    """As the SuperLink answers: a key that was unregistered can never be registered again."""

    def __init__(self) -> None:
        self.nodes: dict[bytes, str] = {}
        self.calls: list[str] = []
        self.unfinished = [1, 2]

    def ListNodes(self, _: Any) -> Any:  # noqa: N802 - Flower's name
        return SimpleNamespace(
            nodes_info=[
                SimpleNamespace(public_key=key, node_id=7, status=status)
                for key, status in self.nodes.items()
            ]
        )

    def RegisterNode(self, request: Any) -> None:  # noqa: N802
        self.calls.append(request.name)
        key = bytes(request.public_key)
        if key in self.nodes:
            asked = httpx.Request("POST", "http://x")
            raise httpx.HTTPStatusError("", request=asked, response=httpx.Response(409))
        self.nodes[key] = "registered"

    def ListRuns(self, _: Any) -> Any:  # noqa: N802
        status = [SimpleNamespace(status="running"), SimpleNamespace(status="finished")]
        return SimpleNamespace(
            run_dict={n: SimpleNamespace(run_id=n, status=s) for n, s in enumerate(status)}
        )

    def StopRun(self, request: Any) -> None:  # noqa: N802
        self.calls.append(f"stop {request.run_id}")


@pytest.fixture
def control() -> FakeControl:
    return FakeControl()


@pytest.fixture
def registry(control: FakeControl, monkeypatch: pytest.MonkeyPatch) -> Registry:
    made = Registry("127.0.0.1:1", b"secret")
    made.close()
    monkeypatch.setattr(made, "_client", control)
    return made


def test_who_left_and_came_back_is_not_shut_out(registry: Registry, control: FakeControl) -> None:
    both = {node_key(1): "a", node_key(2): "b"}
    assert registry.let_in(both) == ()
    assert registry.let_in({node_key(1): "a"}) == ()
    assert registry.let_in(both) == ()
    assert control.calls == ["a", "b"]
    assert set(control.nodes) == {pem(node_key(1)), pem(node_key(2))}


def test_one_that_cannot_be_let_in_is_named_and_costs_the_others_nothing(
    registry: Registry, control: FakeControl
) -> None:
    control.nodes[pem(node_key(2))] = "unregistered"
    keys = {"ecdsa-sha2-nistp384 AAAA": "bad", node_key(2): "gone", node_key(3): "good"}
    assert registry.let_in(keys) == ("bad", "gone")
    assert pem(node_key(3)) in control.nodes


def test_trouble_that_may_pass_is_not_taken_for_a_refusal(
    registry: Registry, control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Any) -> None:
        asked = httpx.Request("POST", "http://x")
        raise httpx.HTTPStatusError("", request=asked, response=httpx.Response(500))

    monkeypatch.setattr(control, "RegisterNode", fails)
    with pytest.raises(httpx.HTTPStatusError):
        registry.let_in({node_key(1): "a"})


def test_only_unfinished_runs_are_stopped(registry: Registry, control: FakeControl) -> None:
    registry.stop_unfinished()
    assert control.calls == ["stop 0"]


def test_each_call_has_a_mark_of_its_own() -> None:
    marks = []
    for body in (b"a", b"b"):
        request = httpx.Request("POST", "http://127.0.0.1:1/v1/control/start-run", content=body)
        _ControlMark(b"secret").intercept(SimpleNamespace(request=request), lambda _: None)
        marks.append(request.headers[CONTROL_HEADER])
        assert is_marked(b"secret", "/v1/control/start-run", body, marks[-1])
        assert not is_marked(b"secret", "/v1/control/start-run", b"c", marks[-1])
    assert marks[0] != marks[1]
    assert "secret" not in "".join(marks)
