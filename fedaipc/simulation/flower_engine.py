"""Flower's own simulation runtime: start it, run one job on it, and leave nothing behind.

Only Flower's public command line is used. `flwr run` on its own would start a detached, shared
SuperLink that stays. So every job gets its own one here: on loopback, with a home, an app folder
and a Ray session in one temporary folder that is deleted when the job ends.

While a job runs, Flower's control port is open to other users of the same machine: loopback, but
not authenticated. Simulations hold no PC's real data; keep it that way.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import queue
import re
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import psutil
import tomli_w

import fedaipc
from fedaipc.errors import EngineError
from fedaipc.extras import need
from fedaipc.simulation.processes import (
    alive,
    environment,
    marked,
    signal_all,
    signals_unwind,
    undisturbed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Scalar = str | int | float | bool

SERVER_APP = "fedaipc.coordinator.server_app:app"
CLIENT_APP = "fedaipc.client.client_app:app"

_CONNECTION = "own"  # the name of the SuperLink in the job's own Flower home
_START_SECONDS = 90.0
_ASK_SECONDS = 10.0  # `flwr ls` costs a second of CPU: ask seldom while processes are at work
_STOP_SECONDS = 4.0
_TAIL_LINES = 40
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, kw_only=True)
class FlowerRun:
    """A run that Flower finished: its id, its final status and the seconds from start to end."""

    run_id: int
    status: str
    seconds: float


def uses_cluster() -> bool:
    """Whether a run would go to an existing Ray cluster, where folders may not be shared."""
    return bool(os.environ.get("RAY_ADDRESS"))


def run_on_flower_simulation(
    *,
    run_config: Mapping[str, Scalar],
    num_pcs: int,
    server_app: str = SERVER_APP,
    client_app: str = CLIENT_APP,
    cpus_per_pc: int = 1,
    num_cpus: int | None = None,
    import_paths: Sequence[Path] = (),
    on_log: Callable[[str], None] = lambda _: None,
    timeout: float | None = None,
) -> FlowerRun:
    """Run a pair of apps, named "module:attribute", with `num_pcs` virtual PCs; wait for the end.

    `num_cpus` is the size of the Ray session, by default all CPUs of the machine: it divided by
    `cpus_per_pc` PCs work at a time, each in a process of its own. If RAY_ADDRESS is set, that
    cluster is used and `num_cpus` is ignored. `import_paths` are searched for the apps' modules
    beside what is installed. `on_log` gets each line of the log, in the caller's thread.

    Whatever happens, also Ctrl-C and, in the main thread, SIGTERM, every process and folder of
    the job is removed when this returns or raises.

    Raises MissingExtra if Ray is missing, EngineError if the job cannot start, does not complete,
    or takes more than `timeout` seconds; the end of the log is the error's note (`__notes__`).
    """
    need("the engine flower", "ray")
    if num_pcs < 1:
        raise EngineError(f"num_pcs is {num_pcs}: give at least 1")
    cluster = uses_cluster()
    options = {
        "num-supernodes": num_pcs,
        "client-resources-num-cpus": cpus_per_pc,
        "client-resources-num-gpus": 0.0,
    }
    if num_cpus is not None and not cluster:
        options["init-args-num-cpus"] = num_cpus
    config = _checked_config(run_config)
    job = _Job(import_paths, cluster=cluster)
    with signals_unwind():
        try:
            job.write_app(config, server_app, client_app)
            job.start_superlink()
            job.submit(options)
            return job.wait(on_log, timeout)
        finally:
            with undisturbed():
                job.stop()


class _Job:
    """One SuperLink, one run, one temporary folder."""

    def __init__(self, import_paths: Sequence[Path], *, cluster: bool) -> None:
        self.began = time.monotonic()
        self.run_id = 0
        # Short, because Ray puts Unix sockets below it and their paths end at 107 characters.
        base = "/tmp" if os.name == "posix" else None  # noqa: S108 - mkdtemp makes it private
        self.folder = Path(tempfile.mkdtemp(prefix="fedaipc-", dir=base))
        self.mark = uuid.uuid4().hex
        self.env = environment(self.folder, self.mark, import_paths, cluster=cluster)
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self.seen: set[psutil.Process] = set()
        self.superlink: subprocess.Popen[bytes] | None = None

    def write_app(self, run_config: Mapping[str, Scalar], server_app: str, client_app: str) -> None:
        """A Flower app of one file: it names the installed modules and ships no code."""
        app = {
            "publisher": "fedaipc",
            "components": {"serverapp": server_app, "clientapp": client_app},
            "config": dict(run_config),
        }
        project = {
            "name": "fedaipc-job",
            "version": fedaipc.__version__,
            "description": "A fedaipc simulation",
            "license": "Apache-2.0",
            "dependencies": [],
        }
        folder = self.folder / "app"
        folder.mkdir()
        (folder / "pyproject.toml").write_text(
            tomli_w.dumps({"project": project, "tool": {"flwr": {"app": app}}}), encoding="utf-8"
        )

    def start_superlink(self) -> None:
        """Start it on a free port and wait until it answers; the port may be lost to a race."""
        for _ in range(3):
            port = _free_port()
            connection = {"address": f"127.0.0.1:{port}", "insecure": True}
            home = self.folder / "home"
            home.mkdir(exist_ok=True)
            (home / "config.toml").write_text(
                tomli_w.dumps({"superlink": {"default": _CONNECTION, _CONNECTION: connection}}),
                encoding="utf-8",
            )
            with (self.folder / "superlink.log").open("ab") as log:
                self.superlink = subprocess.Popen(
                    [
                        *(_command("flower-superlink"), "--insecure", "--simulation"),
                        *("--host", "127.0.0.1", "--port", str(port)),
                    ],
                    env=self.env,
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for us: we stop it in order
                )
            if self._answers(self.superlink, port):
                return
            self.superlink.kill()
            self.superlink.wait()
        raise self._error("Flower's SuperLink did not start")

    def _answers(self, superlink: subprocess.Popen[bytes], port: int) -> bool:
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end and superlink.poll() is None:
            self.watch()
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            try:
                connection.request("GET", "/health")
                if connection.getresponse().status == http.HTTPStatus.OK:
                    return True
            except (OSError, http.client.HTTPException):
                pass  # not listening yet
            finally:
                connection.close()
            time.sleep(0.2)
        return False

    def submit(self, options: Mapping[str, float]) -> None:
        """Hand the run to the SuperLink."""
        overrides = " ".join(f"{key}={value}" for key, value in options.items())
        answer = self._flwr(
            *("run", str(self.folder / "app"), _CONNECTION),
            *("--federation-config", overrides, "--format", "json"),
        )
        if not answer.get("success"):
            reason = answer.get("error-message", "no reason given")
            raise self._error(f"Flower did not take the run: {reason}")
        self.run_id = int(answer["run-id"])

    def wait(self, on_log: Callable[[str], None], timeout: float | None) -> FlowerRun:
        """Pass on the log until Flower says that the run is finished."""
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        stream = subprocess.Popen(
            [_command("flwr"), "log", str(self.run_id), _CONNECTION, "--stream"],
            env=self.env,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.seen.add(psutil.Process(stream.pid))
        reader = threading.Thread(target=_read_lines, args=(stream.stdout, lines), daemon=True)
        reader.start()
        try:
            status, details = self._await_end(lines, on_log, timeout)
            reader.join(timeout=5)  # the stream ends by itself once all is told
            self._drain(lines, on_log)
        finally:
            stream.kill()
            stream.wait()
            reader.join(timeout=5)
            if stream.stdout is not None:
                stream.stdout.close()
        if status != "finished:completed":
            raise self._error(f"Flower's run ended as {status}: {details}")
        seconds = time.monotonic() - self.began
        return FlowerRun(run_id=self.run_id, status=status, seconds=seconds)

    def _await_end(
        self, lines: queue.SimpleQueue[str], on_log: Callable[[str], None], timeout: float | None
    ) -> tuple[str, str]:
        asked = -math.inf
        while True:
            self._drain(lines, on_log)
            at_work = self.watch()
            now = time.monotonic()
            if timeout is not None and now - self.began > timeout:
                raise self._error(f"the run took more than {timeout:g} s and was stopped")
            if self.superlink is None or self.superlink.poll() is not None:
                raise self._error("Flower's SuperLink died during the run")
            if now - asked > (_ASK_SECONDS if at_work else 1.0):
                answer = self._flwr(
                    *("ls", _CONNECTION, "--run-id", str(self.run_id), "--format", "json")
                )
                runs = answer.get("runs") or [{}]
                status = str(runs[0].get("status", "unknown"))
                if status.startswith("finished"):
                    return status, str(runs[0].get("status-details"))
                asked = time.monotonic()
            time.sleep(0.25)

    def _drain(self, lines: queue.SimpleQueue[str], on_log: Callable[[str], None]) -> None:
        while not lines.empty():
            line = lines.get()
            self.tail.append(line)
            on_log(line)

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        """Call `flwr` and return the JSON that it prints; {} if it prints nothing."""
        try:
            done = subprocess.run(
                [_command("flwr"), *arguments],
                env=self.env,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                encoding="utf-8",
                errors="replace",
                check=False,
                timeout=_START_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise self._error(f"flwr {arguments[0]} did not answer; try again") from None
        start = done.stdout.find("{")
        try:
            answer, _ = json.JSONDecoder().raw_decode(done.stdout[start:])
        except (json.JSONDecodeError, IndexError):
            self.tail.extend((done.stdout + done.stderr).splitlines())
            return {}
        return dict(answer)

    def watch(self) -> bool:
        """Record all processes of the job; True while others than the idle SuperLink's run."""
        if self.superlink is not None:
            with contextlib.suppress(psutil.Error):
                self.seen.add(psutil.Process(self.superlink.pid))
        for process in list(self.seen):
            with contextlib.suppress(psutil.Error):
                self.seen.update(process.children(recursive=True))
        self.seen = {process for process in self.seen if alive(process)}
        return len(self.seen) > 3  # SuperLink, its SuperExec, the log stream

    def stop(self) -> None:
        """End every process of the job, first asking, then not; remove the folder."""
        self.watch()
        signal_all(self.seen, psutil.Process.terminate)
        if self.superlink is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.superlink.wait(_STOP_SECONDS)
        psutil.wait_procs(list(self.seen), timeout=_STOP_SECONDS)
        for _ in range(20):
            self.watch()
            self.seen.update(marked(self.mark))
            if not self.seen:
                break
            signal_all(self.seen, psutil.Process.kill)
            psutil.wait_procs(list(self.seen), timeout=0.5)
        if self.superlink is not None:
            self.superlink.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _error(self, what: str) -> EngineError:
        lines = list(self.tail)
        if not lines:
            with contextlib.suppress(OSError):
                text = (self.folder / "superlink.log").read_text("utf-8", errors="replace")
                lines = text.splitlines()[-_TAIL_LINES:]
        error = EngineError(" ".join(what.split()))
        error.add_note("\n".join(["the end of the log:", *(_COLOUR.sub("", x) for x in lines)]))
        return error


def _checked_config(run_config: Mapping[str, Scalar]) -> dict[str, Scalar]:
    for key, value in run_config.items():
        if not isinstance(value, str | int | float | bool):
            raise EngineError(f"run_config {key!r} is a {type(value).__name__}: use a plain value")
    return dict(run_config)


def _command(name: str) -> str:
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        wanted = f"flwr=={version('flwr')}"
        raise EngineError(
            f"the command {name} is missing: pip install --force-reinstall --no-deps {wanted}"
        )
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _read_lines(source: IO[bytes] | None, lines: queue.SimpleQueue[str]) -> None:
    with contextlib.suppress(ValueError):  # closed while reading
        for line in source or ():
            lines.put(_COLOUR.sub("", line.decode("utf-8", "replace")).rstrip())
