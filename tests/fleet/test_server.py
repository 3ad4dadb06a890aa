"""The supervisor and its runs: one at a time, in order, and no broken one ends the server."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from fedaipc.errors import AdmissionError
from fedaipc.federation.federation import Federation
from fedaipc.fleet import server as module
from fedaipc.fleet.runs import WANTED_FILE, run_folder, run_status, unwant, want, why
from fedaipc.fleet.server import Server
from tests.support.supervisor import FakeChild


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def server(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr(module, "Child", FakeChild)
    Federation.create(tmp_path / "acme", "localhost:1", ["localhost"])
    return Server(tmp_path / "acme" / "server", "127.0.0.1", 0, 64, said.append)


def wanted(tmp_path: Path, name: str, at: int) -> Path:
    run = run_folder(tmp_path / "acme" / "server", name)
    run.mkdir(parents=True)
    want(run)
    os.utime(run / WANTED_FILE, (at, at))
    return run


def test_runs_go_one_at_a_time_and_first_come_first_served(
    server: Server, tmp_path: Path, said: list[str]
) -> None:
    late, early = wanted(tmp_path, "a", 2000), wanted(tmp_path, "b", 1000)
    server._keep_runs()
    server._keep_runs()
    assert list(server._runs) == ["b"]
    os.utime(early / WANTED_FILE, (3000, 3000))
    server._keep_runs()
    assert list(server._runs) == ["b"]  # what runs is not interrupted
    assert (early / "roster.bin").is_file()
    unwant(early)
    server._keep_runs()
    assert f"--resume b --server {tmp_path / 'acme' / 'server'}`" in " ".join(said)
    assert list(server._runs) == ["a"]
    assert (late / "roster.bin").is_file()


def test_a_run_that_cannot_be_read_is_halted_and_the_next_one_begins(
    server: Server, tmp_path: Path, said: list[str]
) -> None:
    bad = wanted(tmp_path, "bad", 1000)
    (bad / "results.json").write_text("{")
    wanted(tmp_path, "good", 2000)
    server._keep_runs()
    assert list(server._runs) == ["good"]
    assert not (bad / WANTED_FILE).exists()
    assert "results.json" in (why(bad) or "")
    assert any(line.startswith("bad: halted") for line in said)


def test_while_the_list_of_members_is_copied_runs_wait(
    server: Server, tmp_path: Path, said: list[str]
) -> None:
    roster = tmp_path / "acme" / "server" / "roster.bin"
    whole = roster.read_bytes()
    roster.write_bytes(whole[: len(whole) // 2])
    run = wanted(tmp_path, "a", 1000)
    for _ in range(3):
        server._keep_runs()
    assert server._runs == {}
    assert (run / WANTED_FILE).exists()
    assert len([line for line in said if "cannot be read; a waits" in line]) == 1
    roster.write_bytes(whole)
    server._keep_runs()
    assert list(server._runs) == ["a"]


def test_a_full_disk_is_said_and_waited_for(
    server: Server, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    wanted(tmp_path, "a", 1000)
    monkeypatch.setattr(server, "_let_in", lambda: None)
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomic", full)
        for _ in range(3):
            server._look()
    assert len([line for line in said if "No space left" in line]) == 1
    server._look()
    assert list(server._runs) == ["a"]


@pytest.mark.parametrize("name", ["server.key", "roster.bin", "nodes.json", "federation.json"])
def test_half_a_server_folder_is_refused(server: Server, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "acme" / "server"
    (folder / name).unlink()
    with pytest.raises(AdmissionError, match=f"{name} is missing"):
        Server(folder, "127.0.0.1", 0, 64, lambda _: None)


def test_nobody_else_reads_its_state(server: Server, tmp_path: Path) -> None:
    state = tmp_path / "acme" / "server" / "state"
    state.chmod(0o755)
    Server(tmp_path / "acme" / "server", "127.0.0.1", 0, 64, lambda _: None)
    assert state.stat().st_mode & 0o777 == 0o700
    assert (state / "superexec.secret").stat().st_mode & 0o777 == 0o600


def test_members_that_cannot_be_let_in_are_complained_about(
    server: Server, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that listens and lets nobody in, and says nothing, is a riddle."""

    class Deaf:
        def __init__(self, *_: Any) -> None: ...

        def let_in(self, _: Any) -> Any:
            raise httpx.ConnectError("refused")

        def close(self) -> None: ...

    monkeypatch.setattr(module, "Registry", Deaf)
    server._superlink.started = now = time.monotonic()
    server._let_in()
    assert said == []  # it may be on its way
    server._superlink.started = now - 60
    for _ in range(3):
        server._let_in()
    assert said == ["the list of members could not be taken: refused"]


def test_two_complaints_that_take_turns_are_made_once_each(
    server: Server, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("fedaipc.fleet.server.time.monotonic", lambda: now[0])
    for _ in range(10):
        server._complain("one")
        server._complain("another")
    assert said == ["one", "another"]
    now[0] += 4000
    server._complain("one")
    assert said == ["one", "another", "one"]


def test_a_run_that_fails_for_a_reason_of_the_system_holds_up_no_other(
    server: Server, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = wanted(tmp_path, "bad", 1000)
    wanted(tmp_path, "good", 2000)

    def full(run: Path) -> str:
        if run == bad:
            raise OSError(28, "No space left on device", str(run / "results.json"))
        return run_status(run)

    monkeypatch.setattr(module, "run_status", full)
    for _ in range(3):
        server._keep_runs()
    assert list(server._runs) == ["good"]
    line = f"{bad / 'results.json'}: No space left on device"
    assert why(bad) == line
    assert said == [f"bad: waits: {line}", "good: begins"]
