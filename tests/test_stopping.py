"""Programs end when they are asked to, whether or not anybody still reads what they print."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fedaipc.fleet import coordinate
from fedaipc.stopping import STOPPED, Stop

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.commands import Ran

TALKS = """
import logging, sys, time
from fedaipc.stopping import Stop, signals
from fedaipc.streams import forgiving
stop = Stop()
with forgiving(), signals(stop.set):
    logging.basicConfig(level="INFO")
    print("ready", flush=True)
    sys.stdin.readline()
    while not stop.wait(0.01):
        print("x" * 10_000, flush=True)
        logging.info("y")
        print("z", file=sys.stderr)
"""
DEAF = """
import time
from fedaipc.stopping import Stop, signals
stop = Stop()
with signals(stop.set):
    print("ready", flush=True)
    stop.wait()
    print("asked", flush=True)
    time.sleep(600)
"""
OPENS = """
import os, sys
from fedaipc.streams import forgiving
with forgiving():
    file = open({path!r}, "ab")
    print("printed")
    os.write(1, b"written")
    os.write(2, b"written")
sys.exit(7)
"""


@pytest.mark.parametrize("gone", ["stdout", "stderr", "both"])
def test_a_program_whose_reader_is_gone_ends_in_order(gone: str) -> None:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", TALKS], stdin=subprocess.PIPE, **pipes) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"ready\n"
        if gone in ("stdout", "both"):
            process.stdout.close()
        if gone in ("stderr", "both"):
            process.stderr.close()
        process.stdin.write(b"\n")
        process.stdin.close()
        left = process.stderr if gone == "stdout" else process.stdout
        if gone != "both":
            threading.Thread(target=_drain, args=(left,), daemon=True).start()
        time.sleep(0.3)
        assert process.poll() is None
        process.terminate()
        assert process.wait(20) == 0


def _drain(stream: Any) -> None:
    while os.read(stream.fileno(), 65536):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send twice")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_program_at_once(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == b"asked\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM


@pytest.mark.skipif(sys.platform == "win32", reason="there is no shell that closes a descriptor")
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_what_is_printed_to_a_closed_descriptor_ends_in_no_file(
    tmp_path: Path, closed: str
) -> None:
    """The next file to be opened would have its number."""
    path = tmp_path / "ledger.jsonl"
    path.touch()
    code = OPENS.format(path=str(path))
    shell = ["/bin/sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, code]
    done = subprocess.run(shell, capture_output=True, check=False)
    assert done.returncode == 7, done.stderr
    assert path.read_bytes() == b""


def test_a_flag_that_is_set_ends_a_wait() -> None:
    stop = Stop()
    assert not stop.wait(0.0)
    threading.Timer(0.05, stop.set).start()
    begun = time.monotonic()
    assert stop.wait(60)
    assert time.monotonic() - begun < 30


def test_a_coordinator_that_does_not_end_by_itself_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codes: list[int] = []
    monkeypatch.setattr("fedaipc.fleet.coordinate.os._exit", codes.append)
    monkeypatch.setattr(coordinate, "_LEAVE_SECONDS", 0.0)
    stop = Stop()
    stop.set()
    coordinate._end_soon(stop)
    assert codes == [STOPPED]


@pytest.mark.slow
def test_a_client_whose_reader_is_gone_ends_when_it_is_asked_to(
    fedaipc: Callable[..., Ran],
) -> None:
    assert fedaipc("federation", "init", "acme", "--address", "localhost:9").code == 0
    invite = fedaipc("federation", "invite", "acme").out
    rows = [f"text {n},{('no', 'yes')[n % 2]}" for n in range(40)]
    Path("mine.csv").write_text("text,label\n" + "\n".join(rows))
    assert (
        fedaipc(
            "client", "enroll", invite, "--data", "mine.csv", "--name", "pc", "--folder", "pc"
        ).code
        == 0
    )
    command = [sys.executable, "-m", "fedaipc.cli.main", "client", "start", "--folder", "pc"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as client:
        assert client.stdout is not None
        assert b"pc serves localhost:9" in client.stdout.readline()
        client.stdout.close()
        time.sleep(2)  # it logs that the server cannot be reached
        client.terminate()
        assert client.wait(20) == 0
