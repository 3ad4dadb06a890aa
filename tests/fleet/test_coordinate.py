"""How the coordinator's process ends: what is tried again, and what is left for people to read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Self

import pytest

from fedaipc.coordinator import server_app
from fedaipc.errors import (
    BudgetExhausted,
    EngineError,
    FedaipcError,
    ModelError,
    RoundError,
    RunOver,
    SecAggError,
)
from fedaipc.fleet import coordinate, grid
from fedaipc.fleet.runs import WANTED_FILE, why
from fedaipc.protocol.server_folder import Node, Nodes


class FakeGrid:
    def __init__(self, *_: Any) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.mark.parametrize(
    ("error", "code", "wanted"),
    [
        (None, 0, True),
        (RoundError("too few PCs are there"), 10, True),
        (EngineError("the SuperLink is away"), 11, True),
        (RunOver("every PC refuses this job"), 10, False),
        (ModelError("no such base"), 5, False),
        (SecAggError("the job is for other members"), 13, False),
        (BudgetExhausted("spent"), 7, True),  # the supervisor sees by the results that it stopped
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_waiting_does_not_mend_is_not_wanted_any_more(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: FedaipcError | None,
    code: int,
    wanted: bool,
) -> None:
    run, state = tmp_path / "run", tmp_path / "state"
    run.mkdir()
    state.mkdir()
    (run / WANTED_FILE).touch()
    (state / "running.json").write_text(json.dumps({"superlink": "127.0.0.1:1"}))
    (state / "superexec.secret").write_bytes(b"s")

    def job(*_: Any) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(sys, "argv", ["coordinate", str(run), str(state)])
    monkeypatch.setattr("fedaipc.parent_watch.hold", lambda: None)
    monkeypatch.setattr(coordinate, "_end_soon", lambda _: None)  # no thread stays
    monkeypatch.setattr(grid, "FleetGrid", FakeGrid)
    monkeypatch.setattr(server_app, "run_job", job)
    assert coordinate.main() == code
    assert (run / WANTED_FILE).exists() == wanted
    assert why(run) == (None if error is None else str(error))


def test_members_are_named_as_the_servers_list_names_them(tmp_path: Path) -> None:
    assert coordinate._names(tmp_path) == []  # it is being copied, perhaps
    nodes = Nodes(nodes=(Node(name="office-1", node_key="k"),))
    (tmp_path / "nodes.json").write_text(nodes.model_dump_json())
    assert coordinate._names(tmp_path) == ["office-1"]
