"""`fedaipc server`: keeps the SuperLink, the front and the coordinators of wanted runs alive.

The server's folder, as the holder of the admission key wrote it, gets beside its own files:

state/          the SuperLink's database and secret, `running.json` while a server runs, logs
runs/NAME/      a run; it is wanted as long as the file `wanted` is in it

The folder is all that commands and supervisor share: `fedaipc train` puts a run there, `fedaipc
stop` takes the file away. Nothing listens for orders.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import httpx
from filelock import FileLock, Timeout

from fedaipc.config import NAME
from fedaipc.errors import AdmissionError, EngineError, OutputError
from fedaipc.federation.server_folder import (
    NODES_FILE,
    SERVER_FILE,
    SERVER_FILES,
    Facts,
    Nodes,
    server_until,
)
from fedaipc.files import write_atomic
from fedaipc.fleet.registry import Registry
from fedaipc.fleet.superlink import HOST, SECRET_FILE, environment
from fedaipc.results import RESULTS_FILE, Results
from fedaipc.sealing.roster import ROSTER_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

STATE_FOLDER, RUNS_FOLDER = "state", "runs"
RUNNING_FILE, WANTED_FILE, LOG_FILE = "running.json", "wanted", "coordinator.log"
_LOOK = 0.5  # s between two looks at processes and folders
_START = 60.0  # s that a process may take to be there
_STOP = 25.0  # s that it may take to go
_LONGEST_PAUSE = 60.0  # s before a process that keeps dying is started again
_LARGEST_LOG = 20 * 2**20  # bytes
_SOON = timedelta(days=30)


@dataclass(slots=True)
class _Child:
    """A process that is to be there: started again, later each time, where it dies."""

    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    pause: float = 1.0
    not_before: float = 0.0
    started: float = field(default=0.0)

    def keep(self, env: dict[str, str], say: Callable[[str], None]) -> None:
        """Start it where it is not there and its pause is over."""
        if self.process is not None and self.process.poll() is not None:
            lived = time.monotonic() - self.started
            self.pause = 1.0 if lived > _LONGEST_PAUSE else min(_LONGEST_PAUSE, self.pause * 2)
            say(f"{self.log.stem} ended with {self.process.returncode}: see {self.log}")
            self.not_before, self.process = time.monotonic() + self.pause, None
        if self.process is None and time.monotonic() >= self.not_before:
            self.process = subprocess.Popen(
                self.command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=_appended(self.log),
                stderr=subprocess.STDOUT,
                **_own_group(),
            )
            self.started = time.monotonic()

    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def stop(self) -> None:
        """Ask it to end, and then end it."""
        if self.process is None or self.has_ended():
            return
        with suppress(OSError):
            self.process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))
        try:
            self.process.wait(_STOP)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Server:
    """In `folder`, facing the network at `bind`:`port` (0: a free one).

    Raises AdmissionError where the folder is not a federation's server folder, or its certificate
    is over; EngineError where another server runs in it.
    """

    def __init__(self, folder: Path, bind: str, port: int, say: Callable[[str], None]) -> None:
        missing = [name for name in SERVER_FILES if not (folder / name).is_file()]
        if missing:
            raise AdmissionError(
                f"{folder}: {missing[0]} is missing; copy the server folder that `fedaipc "
                "federation init` made, as a whole"
            )
        self.facts = Facts.load(folder)
        self._check_certificate(folder, say)
        self._folder, self._say = folder, say
        self._bind = bind
        self._state = folder / STATE_FOLDER
        self._state.mkdir(mode=0o700, exist_ok=True)
        secret = self._state / SECRET_FILE
        if not secret.is_file():
            write_atomic(secret, secrets.token_hex(32).encode(), private=True)
        self._secret = secret.read_bytes()
        self._env = environment(self._state)
        self._ports = _free_port(HOST), port or _free_port(bind)
        self._nodes: bytes | None = None
        self._stop = False
        self._runs: dict[str, _Child] = {}
        python = [sys.executable, "-m"]
        inner, outer = map(str, self._ports)
        self._superlink = _Child(
            [*python, "fedaipc.fleet.superlink", str(self._state), inner],
            self._state / "superlink.log",
        )
        self._front = _Child(
            [*python, "fedaipc.fleet.front", bind, outer, str(folder), inner],
            self._state / "front.log",
        )

    @property
    def port(self) -> int:
        """The one that faces the network."""
        return self._ports[1]

    def serve(self) -> None:
        """Until SIGTERM or Ctrl-C; then every process of it is gone."""
        lock = FileLock(self._state / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise EngineError(f"{self._folder}: a server is running here already") from None
        with lock, _signals(self._ask_to_stop):
            try:
                self._start()
                while not self._stop:
                    self._look()
                    time.sleep(_LOOK)
                self._say("stopping")
            finally:
                for child in [*self._runs.values(), self._front, self._superlink]:
                    child.stop()
                (self._state / RUNNING_FILE).unlink(missing_ok=True)

    def _ask_to_stop(self) -> None:
        self._stop = True

    def _start(self) -> None:
        self._superlink.keep(self._env, self._say)
        _await_health(self._superlink, self._ports[0])
        self._let_in()
        self._front.keep(self._env, self._say)
        _await_port(self._front, self._bind, self._ports[1])
        running = {"pid": os.getpid(), "superlink": f"{HOST}:{self._ports[0]}", "port": self.port}
        write_atomic(self._state / RUNNING_FILE, json.dumps(running).encode(), private=True)
        for line in (
            f"federation {self.facts.federation}, {len(Nodes.load(self._folder).nodes)} members",
            f"listens on {self._bind}:{self.port}; PCs come to {self.facts.address}",
            f"logs and database in {self._state}; runs in {self._folder / RUNS_FOLDER}",
        ):
            self._say(line)

    def _look(self) -> None:
        was_there = self._superlink.process
        for child in (self._superlink, self._front):
            child.keep(self._env, self._say)
        if self._superlink.process is not was_there:
            self._nodes = None
        self._let_in()
        self._keep_runs()
        for child in (self._superlink, self._front):
            _rotate(child.log)

    def _let_in(self) -> None:
        """Register the members' keys where the list is new; those who left are shut out."""
        try:
            content = (self._folder / NODES_FILE).read_bytes()
            if content == self._nodes:
                return
            nodes = Nodes.load(self._folder).nodes
            registry = Registry(f"{HOST}:{self._ports[0]}", self._secret)
            try:
                refused = registry.let_in({node.node_key: node.name for node in nodes})
            finally:
                registry.close()
        except (OSError, httpx.HTTPError, AdmissionError) as error:
            if self._nodes is None and not isinstance(error, AdmissionError):
                return  # the SuperLink is on its way: the next look comes soon
            self._say(f"the list of members could not be taken: {error}")
            return
        self._nodes = content
        for name in refused:
            self._say(f"{name}: its key was shut out before; it has to enrol anew")
        self._say(f"{len(nodes) - len(refused)} members are let in")

    def _keep_runs(self) -> None:
        """A coordinator for each wanted run, one at a time: PCs train for one."""
        wanted = sorted((self._folder / RUNS_FOLDER).glob(f"*/{WANTED_FILE}"))
        names = [path.parent.name for path in wanted]
        for name in [name for name in self._runs if name not in names]:
            self._runs.pop(name).stop()
            self._say(f"{name}: stopped; `fedaipc train --resume {name}` goes on")
        if not names:
            return
        name, folder = names[0], wanted[0].parent
        status = run_status(folder)
        if status in {"finished", "stopped"}:
            child = self._runs.get(name)
            if child is None or child.has_ended():  # it still measures what it leaves
                self._runs.pop(name, None)
                (folder / WANTED_FILE).unlink(missing_ok=True)
                self._say(f"{name}: {status}")
            return
        if name not in self._runs:
            shutil.copyfile(self._folder / ROSTER_FILE, folder / ROSTER_FILE)
            self._runs[name] = _Child(
                [sys.executable, "-m", "fedaipc.fleet.coordinate", str(folder), str(self._state)],
                folder / LOG_FILE,
            )
            self._say(f"{name}: begins")
        self._runs[name].keep(self._env, self._say)

    @staticmethod
    def _check_certificate(folder: Path, say: Callable[[str], None]) -> None:
        until = server_until(folder / SERVER_FILE)
        if until < datetime.now(UTC):
            raise AdmissionError(
                f"{folder / SERVER_FILE}: out of date since {until:%Y-%m-%d}; give it a new one "
                "with `fedaipc federation renew --server` and copy the server folder again"
            )
        if until < datetime.now(UTC) + _SOON:
            say(f"the server's certificate ends on {until:%Y-%m-%d}: renew it soon")


def submit(folder: Path, job: Path, name: str) -> Path:
    """Put a signed job into the server's folder as a wanted run. Raises OutputError."""
    from fedaipc.federation.job_folder import FILES, read_job

    Facts.load(folder)
    missing = [file for file in FILES if not (job / file).is_file()]
    if missing:
        raise OutputError(f"{job}: {missing[0]} is missing; give what `fedaipc job sign` made")
    target = run_folder(folder, name)
    try:
        target.mkdir(parents=True)
    except FileExistsError:
        raise OutputError(
            f"{target}: is there already; give another --name, or --resume {name}"
        ) from None
    try:
        for file in FILES:
            shutil.copyfile(job / file, target / file)
        shutil.copyfile(folder / ROSTER_FILE, target / ROSTER_FILE)
        read_job(target)  # signed by this federation, and not changed
        want(target)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return target


def run_folder(folder: Path, name: str) -> Path:
    """Of the run of this name, whether it is there or not. Raises OutputError."""
    if not re.fullmatch(NAME, name):
        raise OutputError(f"{name}: a run's name has letters, digits, dots and dashes")
    return folder / RUNS_FOLDER / name


def want(run: Path) -> None:
    """Let the server go on with a run. Raises OutputError."""
    if not run.is_dir():
        raise OutputError(f"{run}: no such run")
    write_atomic(run / WANTED_FILE, b"")


def unwant(run: Path) -> None:
    """Let the server stop a run; its checkpoint stays. Raises OutputError if it is not wanted."""
    try:
        (run / WANTED_FILE).unlink()
    except FileNotFoundError:
        raise OutputError(f"{run}: is not running") from None


def running(folder: Path) -> dict[str, Any] | None:
    """What a running server wrote of itself; None where none runs."""
    lock = FileLock(folder / STATE_FOLDER / ".lock", timeout=0)
    try:
        with lock:
            return None
    except Timeout:
        pass
    except OSError:
        return None
    try:
        return dict(json.loads((folder / STATE_FOLDER / RUNNING_FILE).read_text("utf-8")))
    except (OSError, ValueError):
        return None


def run_status(run: Path) -> str:
    """One word for people."""
    if not (run / RESULTS_FILE).is_file():
        return "waiting"
    return Results.load(run).status


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _await_health(child: _Child, port: int) -> None:
    def asks() -> bool:
        connection = http.client.HTTPConnection(HOST, port, timeout=2)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    _await(child, asks)


def _await_port(child: _Child, host: str, port: int) -> None:
    there = {"0.0.0.0": HOST, "::": "::1"}.get(host, host)  # noqa: S104 - only compared with

    def connects() -> bool:
        try:
            with socket.create_connection((there, port), timeout=2):
                return True
        except OSError:
            return False

    _await(child, connects)


def _await(child: _Child, is_there: Callable[[], bool]) -> None:
    """Raises EngineError with the end of the log where the process does not come up."""
    end = time.monotonic() + _START
    while time.monotonic() < end:
        if is_there():
            return
        if child.process is not None and child.process.poll() is not None:
            break
        time.sleep(0.1)
    error = EngineError(f"{child.log.stem} did not start: see {child.log}")
    with suppress(OSError):
        lines = child.log.read_text("utf-8", errors="replace").splitlines()[-10:]
        error.add_note("\n".join(lines))
    raise error


def _appended(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")


def _rotate(path: Path) -> None:
    """Keep the last part of a log: its writer appends, so it may be cut at any time."""
    with suppress(OSError):
        if path.stat().st_size > _LARGEST_LOG:
            shutil.copyfile(path, path.with_suffix(".1.log"))
            os.truncate(path, 0)


def _own_group() -> dict[str, Any]:
    """Ctrl-C is for the supervisor, which stops the others in order."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    names = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, n)]

    def handle(_number: int, _frame: FrameType | None) -> None:
        stop()

    before = {name: signal.signal(name, handle) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
