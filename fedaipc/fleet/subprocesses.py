"""The server's processes: started again when they die, and ended when it ends."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fedaipc.errors import EngineError
from fedaipc.fleet.superlink import HOST

if TYPE_CHECKING:
    from collections.abc import Callable

_START = 60.0  # s that a process may take to start
_STOP = 25.0  # s that it may take to end
_LONGEST_PAUSE = 60.0  # s before a process that keeps dying is started again
_LARGEST_LOG = 20 * 2**20  # bytes


@dataclass(slots=True)
class Child:
    """A process that has to run: it is started again when it dies, after a longer pause each time.

    Its standard input is a pipe that nothing is written to: see parent_watch.py.
    """

    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    pause: float = 1.0
    not_before: float = 0.0
    started: float = field(default=0.0)

    def keep(self, env: dict[str, str], say: Callable[[str], None]) -> None:
        """Start it if it does not run and its pause is over."""
        if self.process is not None and self.process.poll() is not None:
            lived = time.monotonic() - self.started
            self.pause = 1.0 if lived > _LONGEST_PAUSE else min(_LONGEST_PAUSE, self.pause * 2)
            say(
                f"{self.log.stem} ended with {self.process.returncode} and is started again in "
                f"{self.pause:.0f} s: see {self.log}"
            )
            self._let_go()
            self.not_before, self.process = time.monotonic() + self.pause, None
        if self.process is None and time.monotonic() >= self.not_before:
            with _appended(self.log) as log:
                self.process = subprocess.Popen(
                    self.command,
                    env=env,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    **_own_group(),
                )
            self.started = time.monotonic()

    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def stop(self) -> None:
        """Ask it to end, and then end it."""
        if self.process is None:
            return
        if self.has_ended():
            self._let_go()
            return
        with suppress(OSError):
            self.process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))
        try:
            self.process.wait(_STOP)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._let_go()

    def _let_go(self) -> None:
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()

    def await_health(self, port: int) -> None:
        """Raises EngineError with the end of the log where the process does not come up."""

        def asks() -> bool:
            connection = http.client.HTTPConnection(HOST, port, timeout=2)
            try:
                connection.request("GET", "/health")
                return connection.getresponse().status == http.HTTPStatus.OK
            except (OSError, http.client.HTTPException):
                return False
            finally:
                connection.close()

        self._await(asks)

    def await_port(self, host: str, port: int) -> None:
        """As `await_health`, where only a connection shows that it runs."""
        there = {"0.0.0.0": HOST, "::": "::1"}.get(host, host)  # noqa: S104 - only compared with

        def connects() -> bool:
            try:
                with socket.create_connection((there, port), timeout=2):
                    return True
            except OSError:
                return False

        self._await(connects)

    def rotate_log(self) -> None:
        """Keep the last part: the process appends, so its log may be cut at any time."""
        with suppress(OSError):
            if self.log.stat().st_size > _LARGEST_LOG:
                shutil.copyfile(self.log, self.log.with_suffix(".1.log"))
                os.truncate(self.log, 0)

    def _await(self, is_there: Callable[[], bool]) -> None:
        end = time.monotonic() + _START
        while time.monotonic() < end and not self.has_ended():
            if is_there():
                return
            time.sleep(0.1)
        error = EngineError(f"{self.log.stem} did not start: see {self.log}")
        with suppress(OSError):
            lines = self.log.read_text("utf-8", errors="replace").splitlines()[-10:]
            error.add_note("\n".join(lines))
        raise error


def free_port(host: str, wanted: int = 0) -> int:
    """`wanted`, or a free one. Raises EngineError where it is taken, or `host` is not here."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        if sys.platform != "win32":  # a port that was used a minute ago is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, wanted))
        except (OSError, OverflowError) as error:
            raise EngineError(
                f"cannot listen on {host}:{wanted} ({getattr(error, 'strerror', error)}): give "
                "another --port or --bind, or stop what uses it"
            ) from None
        return int(probe.getsockname()[1])


def _appended(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")


def _own_group() -> dict[str, Any]:
    """Ctrl-C is for the supervisor, which stops the others in order."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}
