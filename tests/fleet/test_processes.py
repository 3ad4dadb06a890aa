"""The server's processes: kept alive, and gone with it, however it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedaipc.errors import EngineError
from fedaipc.fleet import subprocesses
from fedaipc.fleet.subprocesses import Child, free_port

PYTHON = sys.executable
HOLD = "from fedaipc import parent_watch; parent_watch.hold(); import time; time.sleep(600)"


def wait_until(says: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not says():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_process_that_dies_is_started_again_each_time_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("fedaipc.fleet.subprocesses.time.monotonic", lambda: now[0])
    said: list[str] = []
    child: Any = Child([PYTHON, "-c", "raise SystemExit(7)"], tmp_path / "child.log")
    pauses = []
    for _ in range(9):
        child.keep(dict(os.environ), said.append)
        assert child.process is not None
        child.process.wait(20)
        child.keep(dict(os.environ), said.append)
        assert child.process is None
        pauses.append(child.not_before - now[0])
        child.keep(dict(os.environ), said.append)
        assert child.process is None  # not before its pause is over
        now[0] = child.not_before
    child.stop()
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert "child ended with 7" in said[0]


def test_one_that_does_not_come_up_is_an_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    child = Child([PYTHON, "-c", "print('why it died'); raise SystemExit(1)"], tmp_path / "x.log")
    child.keep(dict(os.environ), lambda _: None)
    begun = time.monotonic()
    with pytest.raises(EngineError, match="did not start") as caught:
        child.await_port("127.0.0.1", free_port("127.0.0.1"))
    child.stop()
    assert "why it died" in caught.value.__notes__[0]
    assert time.monotonic() - begun < 20  # and not the minute that a slow one is given


def test_one_that_does_not_listen_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocesses, "_STOP", 0.5)
    code = "import signal,time; signal.signal(15, signal.SIG_IGN); print('up', flush=True)\n"
    child = Child([PYTHON, "-c", code + "time.sleep(600)"], tmp_path / "x.log")
    child.keep(dict(os.environ), lambda _: None)
    wait_until(lambda: "up" in child.log.read_text())
    child.stop()
    assert child.has_ended()
    assert child.process is not None
    assert child.process.returncode == -signal.SIGKILL


def test_a_log_is_cut_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocesses, "_LARGEST_LOG", 100)
    child = Child([], tmp_path / "x.log")
    child.rotate_log()  # none yet
    child.log.write_text("short")
    child.rotate_log()
    assert child.log.read_text() == "short"
    child.log.write_text("y" * 200)
    child.rotate_log()
    assert child.log.read_text() == ""
    assert (tmp_path / "x.1.log").read_text() == "y" * 200


def test_children_go_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    """At kill -9 of the server nobody can tell them."""
    code = (
        "import sys, time; from pathlib import Path; from fedaipc.fleet.subprocesses import Child\n"
        f"child = Child([sys.executable, '-c', {HOLD!r}], Path({str(tmp_path / 'c.log')!r}))\n"
        "child.keep(dict(__import__('os').environ), print)\n"
        "print(child.process.pid, flush=True); time.sleep(600)\n"
    )
    parent = subprocess.Popen([PYTHON, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    time.sleep(1)
    assert child.is_running()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_a_port_that_is_taken_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EngineError, match=f"cannot listen on 127.0.0.1:{port}"):
            free_port("127.0.0.1", port)
    assert free_port("127.0.0.1", port) == port
    with pytest.raises(EngineError, match="cannot listen"):
        free_port("203.0.113.7")
