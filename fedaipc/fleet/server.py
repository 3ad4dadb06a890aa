"""`fedaipc server`: keeps the SuperLink, the front and the coordinators of wanted runs alive.

The server's folder, as the holder of the admission key wrote it, gets beside its own files:

state/          the SuperLink's database and secret, `running.json` while a server runs, logs
runs/NAME/      a run: see runs.py

The folder is all that commands and supervisor share. No socket listens for orders.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from filelock import FileLock, Timeout

from fedaipc import bounds
from fedaipc.errors import AdmissionError, EngineError, FedaipcError, check_clock
from fedaipc.files import write_atomic
from fedaipc.fleet.ownership import check_user, foreign, server_user
from fedaipc.fleet.registry import Registry
from fedaipc.fleet.runs import (
    LOCK_FILE,
    LOG_FILE,
    RUNNING_FILE,
    RUNS_FOLDER,
    WANTED_FILE,
    in_order,
    run_status,
    tell_why,
    unwant,
)
from fedaipc.fleet.subprocesses import Child, free_port
from fedaipc.fleet.superlink import HOST, SECRET_FILE, environment
from fedaipc.protocol.server_folder import (
    NODES_FILE,
    SERVER_FILE,
    SERVER_FILES,
    STATE_FOLDER,
    Facts,
    Nodes,
    server_period,
)
from fedaipc.secagg.roster import ROSTER_FILE, read_roster
from fedaipc.stopping import Stop, signals

if TYPE_CHECKING:
    from collections.abc import Callable

_LOOK = 0.5  # s between two looks at processes and folders
_SOON = timedelta(days=30)
_STARTS = 30.0  # s that a SuperLink may take
_AGAIN = 3600.0  # s before a complaint is repeated
_MAX_COMPLAINTS = 100


class Server:
    """In `folder`, facing the network at `bind`:`port` (0: a free one).

    No more than `per_address` connections come from one address. Raises AdmissionError where the
    folder is not a federation's server folder, or its certificate has expired; OutputError where
    it belongs to another user; EngineError where another server runs in it, or the port is taken.
    """

    def __init__(
        self, folder: Path, bind: str, port: int, per_address: int, say: Callable[[str], None]
    ) -> None:
        missing = [name for name in SERVER_FILES if not (folder / name).is_file()]
        if missing:
            raise AdmissionError(
                f"{folder}: {missing[0]} is missing; copy the server folder that `fedaipc "
                "federation init` made, as a whole"
            )
        self.facts = Facts.load(folder)
        check_user(folder, SERVER_FILES)
        self._check_certificate(folder, say)
        self._folder, self._say = folder, say
        self._bind = bind
        self._state = folder / STATE_FOLDER
        self._state.mkdir(mode=0o700, exist_ok=True)
        self._state.chmod(0o700)  # perhaps somebody else made it
        secret = self._state / SECRET_FILE
        if not secret.is_file():
            write_atomic(secret, secrets.token_hex(32).encode(), private=True)
        self._secret = secret.read_bytes()
        self._env = environment(self._state)
        self._port, self._inner = port, 0
        self._nodes: bytes | None = None
        self._complaints: dict[str, float] = {}  # when they were made
        self._stop = Stop()
        self._runs: dict[str, Child] = {}
        self._per_address = per_address
        self._superlink = Child([], self._state / "superlink.log")
        self._front = Child([], self._state / "front.log")

    @property
    def port(self) -> int:
        """The one that faces the network."""
        return self._port

    def serve(self) -> None:
        """Until SIGTERM or Ctrl-C; then all of its processes end; a second signal ends them
        immediately.
        """
        try:
            lock = FileLock(self._state / LOCK_FILE, timeout=0).acquire()
        except Timeout:
            raise EngineError(f"{self._folder}: a server is running here already") from None
        with lock, signals(self._stop.set):
            try:
                self._start()
                while not self._stop.wait(_LOOK):
                    self._look()
                self._say("stopping")
            finally:
                for child in [*self._runs.values(), self._front, self._superlink]:
                    child.stop()
                (self._state / RUNNING_FILE).unlink(missing_ok=True)

    def _start(self) -> None:
        self._inner, self._port = free_port(HOST), free_port(self._bind, self._port)
        inner, outer = str(self._inner), str(self._port)
        module = [sys.executable, "-m"]
        self._superlink.command = [*module, "fedaipc.fleet.superlink", str(self._folder), inner]
        self._front.command = [
            *module, "fedaipc.fleet.front", self._bind, outer, str(self._folder), inner,
            "--per-address", str(self._per_address),
        ]  # fmt: skip
        self._superlink.keep(self._env, self._say)
        self._superlink.await_health(self._inner)
        self._let_in()
        self._front.keep(self._env, self._say)
        self._front.await_port(self._bind, self._port)
        running = {"pid": os.getpid(), "superlink": f"{HOST}:{self._inner}", "port": self.port}
        write_atomic(self._state / RUNNING_FILE, json.dumps(running).encode(), private=True)
        for line in (
            f"federation {self.facts.federation}, {len(Nodes.load(self._folder).nodes)} members",
            f"listens on {self._bind}:{self.port}; PCs come to {self.facts.address}",
            f"logs and database in {self._state}; runs in {self._folder / RUNS_FOLDER}",
        ):
            self._say(line)

    def _look(self) -> None:
        was_there = self._superlink.process
        try:
            for child in (self._superlink, self._front):
                child.keep(self._env, self._say)
        except OSError as error:
            self._complain(f"a process cannot be started: {error}")
        if self._superlink.process is not was_there:
            self._nodes = None
        self._let_in()
        try:
            self._keep_runs()
        except OSError as error:  # a full disk, perhaps: the next look comes soon
            self._complain(f"runs cannot be looked after: {error}")
        for child in (self._superlink, self._front):
            child.rotate_log()

    def _let_in(self) -> None:
        """Register the members' keys where the list is new; a member that left it is no longer let
        in.
        """
        if self._superlink.has_ended():  # another process might answer at its port
            return
        try:
            content = bounds.read_bytes(self._folder / NODES_FILE, bounds.MAX_NODES)
            if content == self._nodes:
                return
            nodes = Nodes.load(self._folder).nodes
            registry = Registry(f"{HOST}:{self._inner}", self._secret)
            try:
                refused = registry.let_in({node.node_key: node.name for node in nodes})
            finally:
                registry.close()
        except (OSError, httpx.HTTPError, AdmissionError) as error:
            age = time.monotonic() - self._superlink.started
            if isinstance(error, httpx.TransportError) and age < _STARTS:
                return  # the SuperLink is on its way: the next look comes soon
            self._complain(f"the list of members could not be taken: {error}")
            return
        self._nodes = content
        for name in refused:
            self._say(f"{name}: its key cannot be let in; it has to enroll again")
        self._say(f"{len(nodes) - len(refused)} members are let in")

    def _keep_runs(self) -> None:
        """A coordinator for each wanted run, one at a time: PCs train for one."""
        self._look_for_foreign()
        wanted = {run.name: run for run in in_order(self._folder)}
        for name in [name for name in self._runs if name not in wanted]:
            self._runs.pop(name).stop()
            again = f"fedaipc server train --resume {name} --server {self._folder}"
            self._say(f"{name}: halted; `{again}` goes on")
        for name in sorted(wanted, key=lambda name: name not in self._runs):  # stable
            folder = wanted[name]
            if name not in self._runs and (line := foreign(folder, self._folder)) is not None:
                self._complain(f"{name}: {line}")
                continue
            try:
                self._keep_run(name, folder)
            except FedaipcError as error:  # it can never continue; the others can
                tell_why(folder, str(error))
                unwant(folder)
                self._say(f"{name}: halted: {error}")
                continue
            except OSError as error:  # a full disk, perhaps: the others may have more luck
                line = f"{error.filename or folder}: {error.strerror or error}"
                self._complain(f"{name}: waits: {line}")
                with suppress(OSError):
                    tell_why(folder, line)
                if name not in self._runs:
                    continue
            return

    def _look_for_foreign(self) -> None:
        """Runs of other users, in which a server cannot even see whether they are wanted."""
        user = server_user(self._folder)
        for run in (self._folder / RUNS_FOLDER).glob("*/"):
            if run.stat().st_uid != user and (line := foreign(run, self._folder)) is not None:
                self._complain(f"{run.name}: {line}")

    def _keep_run(self, name: str, folder: Path) -> None:
        status = run_status(folder)
        if status in {"finished", "stopped"}:
            child = self._runs.get(name)
            if child is None or child.has_ended():  # it still measures what it leaves
                self._runs.pop(name, None)
                (folder / WANTED_FILE).unlink(missing_ok=True)
                self._say(f"{name}: {status}")
            return
        if name not in self._runs:
            members = bounds.read_bytes(self._folder / ROSTER_FILE, bounds.MAX_ROSTER)
            try:
                read_roster(members)
            except FedaipcError:  # it is being copied, perhaps
                self._complain(f"{self._folder / ROSTER_FILE}: cannot be read; {name} waits")
                return
            write_atomic(folder / ROSTER_FILE, members)
            self._runs[name] = Child(
                [sys.executable, "-m", "fedaipc.fleet.coordinate", str(folder), str(self._state)],
                folder / LOG_FILE,
            )
            self._say(f"{name}: begins")
        self._runs[name].keep(environment(self._state, proxies=True), self._say)  # to fetch a base

    def _complain(self, line: str) -> None:
        """Once in an hour, not twice in a second."""
        now = time.monotonic()
        if now - self._complaints.get(line, -_AGAIN) < _AGAIN:
            return
        if len(self._complaints) > _MAX_COMPLAINTS:
            self._complaints.clear()
        self._complaints[line] = now
        self._say(line)

    @staticmethod
    def _check_certificate(folder: Path, say: Callable[[str], None]) -> None:
        since, until = server_period(folder / SERVER_FILE)
        if since > datetime.now(UTC):
            raise AdmissionError(
                f"{folder / SERVER_FILE}: not valid before {since:%Y-%m-%d %H:%M} UTC: "
                f"{check_clock()}"
            )
        if until < datetime.now(UTC):
            raise AdmissionError(
                f"{folder / SERVER_FILE}: out of date since {until:%Y-%m-%d}; {check_clock()}, or "
                "give it a new one with `fedaipc federation renew FEDERATION --server` where the "
                "admission key is, and copy the server folder again"
            )
        if until < datetime.now(UTC) + _SOON:
            say(f"the server's certificate ends on {until:%Y-%m-%d}: renew it soon")
