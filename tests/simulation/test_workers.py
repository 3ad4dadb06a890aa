"""PCs of a simulation in several processes: the same result, and nothing left behind."""

from __future__ import annotations

import logging
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Literal, cast

import psutil
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from fedaipc.client.client import OWNER_FILE
from fedaipc.client.client_app import pc_folder
from fedaipc.config import SpeedSettings, TrainingMethod, register
from fedaipc.errors import EngineError
from fedaipc.protocol.job_folder import CONFIG_FILE
from fedaipc.results import Results
from fedaipc.simulation import simulation, workers
from fedaipc.simulation.simulation import Run, prepare, reopen, simulate
from fedaipc.simulation.workers import WorkerGrid, workers_for
from tests.support.jobs import tiny
from tests.support.runs import ledgers, quiet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

needs_kill = pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9 there")


@pytest.mark.parametrize(
    ("speed", "pcs", "threads", "memory", "weights", "expected"),
    [
        ({}, 20, 8, 64, 90, 1),  # done before a second one has started
        ({}, 99, 8, 64, 90, 1),
        ({}, 100, 8, 64, 90, 2),
        ({}, 10_000, 2, 64, 90, 2),
        ({}, 10_000, 64, 64, 90, 8),
        ({}, 10_000, 64, 8, 90, 2),  # each holds a model, the coordinator too
        ({}, 10_000, 64, 64, 1700, 4),
        ({}, 10_000, 8, 1, 90, 1),
        ({"threads": 4}, 10_000, 8, 64, 90, 2),
        ({"workers": 3}, 20, 2, 1, 90, 3),
        ({"workers": 30}, 20, 2, 1, 90, 20),
        ({"workers": 1}, 10_000, 8, 64, 90, 1),
    ],
)
def test_how_many_processes(
    monkeypatch: pytest.MonkeyPatch,
    speed: dict[str, Any],
    pcs: int,
    threads: int,
    memory: int,
    weights: int,
    expected: int,
) -> None:
    monkeypatch.setattr(workers, "memory_available", lambda: memory << 30)
    assert workers_for(SpeedSettings(**speed), pcs, threads, weights << 20) == expected


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """Not all children: another test's fork server lives as long as the tests do."""
    return [
        child
        for child in process.children(recursive=True)
        if "fedaipc.simulation.workers" in child.cmdline()
    ]


class FakeWorker:
    """The other end of a worker's pipe, which answers when the test says so."""

    def __init__(self, number: int, replies: queue.SimpleQueue[Any]) -> None:
        out, into = os.pipe()
        self.messages = os.fdopen(out, "rb")
        process = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        self.own = workers._Worker(process, os.fdopen(into, "wb"))
        self._number, self._replies = number, replies
        self.seen: list[Message] = []

    def take(self) -> Message:
        self.seen.append(pickle.load(self.messages))
        return self.seen[-1]

    def answer(self, message: Message) -> None:
        reply = Message(RecordDict({"c": message.content["c"]}), reply_to=message)
        self._replies.put((self._number, reply))

    def die(self) -> None:
        self.own.process.kill()
        self._replies.put((self._number, None))

    def close(self) -> None:
        self.own.inbox.close()
        self.messages.close()
        self.own.process.kill()
        self.own.process.communicate()


class Bench:
    def __init__(self) -> None:
        replies: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.workers = [FakeWorker(number, replies) for number in range(2)]
        self.grid = WorkerGrid(5, [worker.own for worker in self.workers], replies)

    def push(self, *numbers: int) -> list[str]:
        nodes = self.grid.get_node_ids()
        return self.grid.push_messages(
            Message(RecordDict({"c": ConfigRecord({"n": n})}), nodes[n], "query.x") for n in numbers
        )


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    for worker in made.workers:
        worker.close()


def number(message: Message) -> Any:
    return cast("Any", message.content["c"])["n"]


def test_each_pc_has_its_worker_which_gets_two_messages_at_a_time(bench: Bench) -> None:
    first, second = bench.workers
    names = bench.push(0, 1, 2, 3, 4)
    assert [number(first.take()), number(first.take())] == [0, 2]
    assert [number(second.take()), number(second.take())] == [1, 3]
    second.answer(second.seen[0])
    (reply,) = bench.grid.pull_messages(names)
    assert number(reply) == 1
    assert reply.metadata.reply_to_message_id == names[1]
    first.answer(first.seen[0])
    assert [number(one) for one in bench.grid.pull_messages(names)] == [0]
    assert number(first.take()) == 4  # sent as soon as there was room


def test_a_reply_that_nobody_asked_for_yet_waits(bench: Bench) -> None:
    names = bench.push(0, 1)
    for worker in bench.workers:
        worker.answer(worker.take())
    assert [number(one) for one in bench.grid.pull_messages(names[1:])] == [1]
    assert [number(one) for one in bench.grid.pull_messages(names[:1])] == [0]
    (again,) = bench.grid.pull_messages(names[:1])
    assert again.has_error()


def test_what_is_forgotten_is_not_sent_and_its_reply_is_dropped(bench: Bench) -> None:
    first, second = bench.workers
    names = bench.push(0, 2, 4, 1)
    bench.grid.forget([names[0], names[2]])
    for _ in range(2):
        first.answer(first.take())
    second.answer(second.take())
    left = {names[1], names[3]}
    found = []
    while left:
        for reply in bench.grid.pull_messages(left):
            left.remove(reply.metadata.reply_to_message_id)
            found.append(number(reply))
    assert sorted(found) == [1, 2]
    assert first.own.sent == 0  # number 4 never left
    assert bench.grid.pull_messages([names[0]])[0].has_error()


def test_a_worker_that_is_long_at_work_is_waited_for(bench: Bench) -> None:
    names = bench.push(0)
    worker = bench.workers[0]
    late = threading.Timer(2.5, lambda: worker.answer(worker.take()))  # more than two looks
    late.start()
    assert [number(one) for one in bench.grid.pull_messages(iter(names))] == [0]
    late.join()


def test_an_unknown_id_is_answered_by_an_error(bench: Bench) -> None:
    assert bench.grid.pull_messages([]) == []
    (reply,) = bench.grid.pull_messages(["message-77"])
    assert isinstance(reply.error, Error)
    assert reply.metadata.reply_to_message_id == "message-77"


@needs_kill
def test_a_worker_that_is_lost_is_one_line(bench: Bench) -> None:
    names = bench.push(0)
    bench.workers[0].die()
    with pytest.raises(EngineError, match=r"killed by signal 9; if memory ran out, set workers"):
        bench.grid.pull_messages(names)
    bench.workers[1].own.inbox.close()
    with pytest.raises((EngineError, ValueError)):
        bench.push(1)


def settings(folder: Path, *changes: str) -> Any:
    return tiny(
        f"output.folder='{folder}'", "federation.clients=6", "privacy.sampling_rate=1.0", *changes
    )


@pytest.mark.slow
def test_two_workers_give_the_model_and_the_ledgers_of_one(tmp_path: Path, minilm: Path) -> None:
    found = []
    for count in (1, 2):
        run = prepare(settings(tmp_path / str(count), f"speed.workers={count}"), test_seed=5)
        results = simulate(run, "in-process", quiet)
        assert results.machine.workers == count
        assert [one.arrived for one in results.rounds] == [6, 6]
        assert len(list(run.pc_state.glob("pc-*/cache"))) == 0
        charges = {name: len(ledger.charges) for name, ledger in ledgers(run).items()}
        found.append((results.model.vector_hash, results.test, charges))
    assert found[0] == found[1]


@pytest.mark.slow
def test_the_time_of_a_run_counts_the_frozen_layers(
    tmp_path: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare(settings(tmp_path, "speed.workers=1", "rounds=1"))
    monkeypatch.setattr(simulation, "freeze_for_all", lambda *_: time.sleep(8))
    results = simulate(run, "in-process", quiet)
    assert results.seconds > 8 + results.rounds[0].seconds


@pytest.fixture
def known_here_only() -> Iterator[str]:
    """A training method that no installed package brings."""

    class OnlyHere(TrainingMethod):
        kind: Literal["only-here"] = "only-here"
        version: Literal["1"] = "1"

        def frozen_layers(self, depth: int) -> int:
            return depth

        def trained_layers(self) -> int:
            return 0

        def trains(self, name: str, part: str) -> bool:
            return part == "head"

    register(OnlyHere)
    yield "only-here"
    del TrainingMethod.kinds["only-here"]


@pytest.mark.slow
def test_what_only_this_process_knows_is_played_here(
    tmp_path: Path,
    minilm: Path,
    known_here_only: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    change = f"model.train.kind={known_here_only}"
    run = prepare(settings(tmp_path, change, "speed.workers=2"))
    with pytest.raises(EngineError, match=r"only-here.*set speed\.workers = 1$"):
        simulate(run, "in-process", quiet)
    assert workers_of(psutil.Process()) == []
    monkeypatch.setattr(workers, "_PCS_EACH", 2)
    run = prepare(settings(tmp_path, change))
    with caplog.at_level(logging.WARNING):
        assert simulate(run, "in-process", quiet).machine.workers == 1
    assert [line for line in caplog.messages if "one process plays all PCs: " in line]
    assert workers_of(psutil.Process()) == []
    assert capfd.readouterr().err == ""  # no crash of a worker that could not


@pytest.mark.slow
def test_what_a_worker_logs_is_logged_here(
    tmp_path: Path, minilm: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = prepare(settings(tmp_path, "speed.workers=2"))
    owner = pc_folder(run.pc_state, 1) / OWNER_FILE
    text = owner.read_text(encoding="utf-8")
    assert text.count("max_rounds = 100000") == 1
    owner.write_text(text.replace("max_rounds = 100000", "max_rounds = 1"), encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        results = simulate(run, "in-process", quiet)
    assert [one.arrived for one in results.rounds] == [5, 5]
    assert [line for line in caplog.messages if line.startswith("pc-0001 does not take part: ")]


_PRINTS = """
import sys
print("configured by site", end="")
"""


def test_what_is_printed_before_a_worker_speaks_is_no_reply() -> None:
    process = subprocess.Popen([sys.executable, "-c", _PRINTS], stdout=subprocess.PIPE)
    replies: queue.SimpleQueue[Any] = queue.SimpleQueue()
    workers._listen(3, cast("Any", process.stdout), replies).join(10)
    process.wait()
    assert replies.get(timeout=10) == (3, None)  # it ended without a word


def children(wanted: int, of: psutil.Process) -> list[psutil.Process]:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = workers_of(of)
        if len(found) == wanted:
            return found
        time.sleep(0.02)
    raise AssertionError("the workers did not start")


@pytest.mark.slow
@needs_kill
def test_a_run_goes_on_after_a_worker_was_killed(tmp_path: Path, minilm: Path) -> None:
    run = prepare(settings(tmp_path, "speed.workers=2", "rounds=3"))

    def kill_one(_: object) -> None:
        children(2, psutil.Process())[0].kill()

    with pytest.raises(EngineError, match="killed by signal 9"):
        simulate(run, "in-process", kill_one)
    assert workers_of(psutil.Process()) == []
    config = run.folder / CONFIG_FILE  # what the error says
    text = config.read_text(encoding="utf-8")
    assert text.count("workers = 2") == 1
    config.write_text(text.replace("workers = 2", "workers = 1"), encoding="utf-8")
    results = simulate(reopen(run.folder), "in-process", quiet)
    assert (results.status, results.machine.workers) == ("finished", 1)
    assert len([one for one in results.rounds if not one.void]) == 3


_KILLED = """
import sys
from pathlib import Path
from fedaipc.simulation.simulation import reopen, simulate
simulate(reopen(Path(sys.argv[1])), "in-process", lambda _: None)
"""


@pytest.mark.slow
@needs_kill
def test_no_worker_outlives_the_first_process(tmp_path: Path, minilm: Path) -> None:
    run: Run = prepare(
        settings(tmp_path, "speed.workers=2", "rounds=20", "training.local_steps=20")
    )
    process = subprocess.Popen([sys.executable, "-c", _KILLED, str(run.folder)])
    started = children(2, psutil.Process(process.pid))
    end = time.monotonic() + 60
    while not (run.folder / "results.json").is_file() and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    gone, left = psutil.wait_procs(started, timeout=10)
    assert left == []
    assert len(gone) == 2
    assert Results.load(run.folder).status == "interrupted"
