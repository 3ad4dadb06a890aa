"""A federation of real processes that a test can kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psutil

from fedaipc.config import load_owner, to_toml
from fedaipc.files import write_text
from fedaipc.results import Results
from scripts import fleet_demo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PCS, ROUNDS = 4, 8
CONFIG = """
rounds = 3
[model]
base = "minilm-l6"
keep_layers = 1
train = "head"
[data]
source = "sentiment-4"
limit = 600
validation_size = 60
test_size = 60
[privacy]
[training]
local_steps = 2
[federation]
lifetime_epsilon = 100.0   # attempts that a crash cut off are charged, too
clients = 4
round_timeout = 60         # after which a PC that was killed is not waited for
stage_timeout = 10
[output]
plots = false
[speed]
threads = 1
"""


class Fleet:
    """A server and clients that a test can kill."""

    def __init__(self, out: Path, port: int) -> None:
        self.out, self.port = out, port
        self.server = out / "acme" / "server"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    @classmethod
    def enrolled(cls, out: Path, config: Path, rounds: int) -> Fleet:
        out.mkdir()
        job = fleet_demo.give_out_texts(out, config, [f"rounds={rounds}"])
        fleet = cls(out, fleet_demo.free_port())
        fleet_demo.enroll_all(out, job, PCS, fleet.port)
        for number in range(PCS):
            path = out / f"pc-{number:04d}" / "owner.toml"
            owner = load_owner(path)
            speed = owner.speed.model_copy(update={"threads": 1})
            write_text(path, to_toml(owner.model_copy(update={"speed": speed})))
        return fleet

    def copied(self, out: Path) -> Fleet:
        """The same members and job in another folder: to enroll them takes half a minute."""
        shutil.copytree(self.out, out)
        return Fleet(out, self.port)

    def start_server(self) -> None:
        self._start(
            "server", "server", "start", self.server, "--bind", "127.0.0.1", "--port", self.port
        )
        fleet_demo.wait_for(self.server / "state" / "running.json")

    def start_client(self, number: int) -> None:
        name = f"pc-{number:04d}"
        self._start(name, "client", "start", "--folder", self.out / name)

    def _start(self, name: str, *command: Any) -> None:
        with (self.out / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*fleet_demo.FEDAIPC, *map(str, command)], stdout=log, stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1"}, start_new_session=True,
            )  # fmt: skip

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()

    def command(self, *words: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*fleet_demo.FEDAIPC, *map(str, words)], capture_output=True, text=True, check=False
        )

    def results(self) -> Results | None:
        folder = self.server / "runs" / "first-job"
        return Results.load(folder) if (folder / "results.json").is_file() else None

    def wait_for_round(self, number: int, seconds: float = 120) -> Results:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            results = self.results()
            if results is not None:
                done = max((r.round for r in results.rounds if not r.void), default=0)
                if done >= number:
                    return results
            time.sleep(0.2)
        logs = [path.read_text()[-2000:] for path in sorted(self.out.rglob("*.log"))]
        raise AssertionError("\n".join([f"round {number} does not come", *logs]))

    def stop(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            assert process.wait(60) == 0


@contextmanager
def running(fleet: Fleet) -> Iterator[Fleet]:
    """Its processes are stopped in order at the end, and killed where the test fails."""
    try:
        yield fleet
        fleet.stop()
    finally:
        for name in list(fleet.processes):
            if fleet.processes[name].poll() is None:
                fleet.kill(name)


def wait_for_line(path: Path, words: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.is_file() and words in path.read_text():
            return
        time.sleep(0.2)
    raise AssertionError(f"{words!r} is not in {path.read_text() if path.is_file() else path}")
