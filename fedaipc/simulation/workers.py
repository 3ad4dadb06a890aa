"""Simulated PCs in several processes: `python -m fedaipc.simulation.workers` plays a share of them.

The coordinator stays in the first process. A worker answers for its PCs, one message after the
other, and first puts their texts through the frozen layers. It ends at once when its standard input
does: so no worker outlives the first process, whatever ended that.
"""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import sysconfig
import threading
import time
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from flwr.app import Message

import fedaipc
from fedaipc.errors import EngineError, FedaipcError
from fedaipc.machine import cpus, memory_total
from fedaipc.simulation.flower_adapter import InProcessGrid
from fedaipc.surroundings import inherited

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from typing import NoReturn

    from fedaipc.config import SpeedSettings

_STOP_SECONDS = 5.0
_PAUSE = 1.0  # seconds that a pull waits for a reply
_AHEAD = 2  # messages at a worker: the one that it answers, and the next
_PCS_EACH = 50  # with fewer, loading the libraries takes longer than a second process saves
_MEMORY_EACH = 2 << 30
_MOST = 8


def workers_for(speed: SpeedSettings, pcs: int, device: str) -> int:
    """How many processes play `pcs` PCs; 1 is the coordinator's own.

    Where the settings leave it open: one for each core of a CPU, if each has enough to do and
    memory for its copy of the model.
    """
    if speed.workers:
        return min(speed.workers, pcs)
    if device != "cpu":
        return 1
    cores = cpus() // (speed.threads or 1)
    return max(1, min(cores, pcs // _PCS_EACH, memory_total() // _MEMORY_EACH, _MOST))


class WorkerError(EngineError):
    """Another process cannot do what this job asks for; set speed.workers = 1."""


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    inbox: IO[bytes]
    waiting: deque[str] = field(default_factory=deque)  # messages that it has not been sent
    sent: int = 0  # and those that it has not answered

    def send(self, content: object) -> None:
        try:
            pickle.dump(content, self.inbox, pickle.HIGHEST_PROTOCOL)
            self.inbox.flush()
        except OSError:
            self.lost()

    def lost(self) -> NoReturn:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_STOP_SECONDS)
        code = self.process.returncode
        how = "ended" if code is None else f"ended with code {code}"
        if code is not None and code < 0:
            how = f"was killed by signal {-code}"
        raise EngineError(
            f"a process that plays PCs {how}; if memory ran out, set workers = 1 in the run's "
            "config.toml; --resume goes on with the run"
        )


class WorkerGrid(InProcessGrid):
    """A grid whose node i is played by worker i modulo their number.

    `with WorkerGrid.started(...) as grid:` stops them at the end. Replies come as they are made.
    Raises EngineError where a worker is lost. Not safe for use by several threads.
    """

    def __init__(self, pcs: int, workers: list[_Worker], replies: queue.SimpleQueue[Any]) -> None:
        super().__init__(_elsewhere, [{}] * pcs, {})
        self._workers = workers
        self._replies = replies
        self._place = {node: i % len(workers) for i, node in enumerate(self.get_node_ids())}
        self._open: set[str] = set()  # not answered, or nobody asked for the answer
        self._ready: dict[str, Message] = {}

    @classmethod
    @contextmanager
    def started(
        cls, count: int, folder: Path, state: Path, pcs: int, threads: int
    ) -> Iterator[WorkerGrid]:
        """Start `count` workers for the job in `folder`, whose PCs are in `state`; then stop them.

        Each computes on `threads` threads. Returns once the frozen layers have seen all texts.
        """
        replies: queue.SimpleQueue[Any] = queue.SimpleQueue()
        workers: list[_Worker] = []
        try:
            for number in range(count):
                workers.append(_start(number, replies, threads))
                told = {"number": number, "workers": count, "pcs": pcs}
                workers[-1].send({**told, "folder": str(folder), "state": str(state)})
            for _ in range(count):
                number, message = replies.get()
                if message is None:
                    workers[number].lost()
                if message:
                    raise WorkerError(f"PCs cannot be played by processes of their own: {message}")
            yield cls(pcs, workers, replies)
        finally:
            _stop(workers)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """As in one process; what a worker can take is on its way when this returns."""
        messages = list(messages)
        names = super().push_messages(messages)
        for name, message in zip(names, messages, strict=True):
            if name:
                self._open.add(name)
                worker = self._workers[self._place[message.metadata.dst_node_id]]
                worker.waiting.append(name)
                self._feed(worker)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Wait a second at most for a reply; return those that are there.

        If the first id was never pushed, or its reply was taken, an error reply says so.
        """
        first = next(iter(message_ids), None)
        if first is None:
            return []
        if first not in self._open:
            return [self._unknown_reply(first)]
        wanted: Collection[str] = (
            message_ids if isinstance(message_ids, (dict, set)) else set(message_ids)
        )
        end = time.monotonic() + _PAUSE
        while not (found := [name for name in self._ready if name in wanted]):
            try:
                self._receive(end - time.monotonic())
            except queue.Empty:
                return []
        self._open.difference_update(found)
        return [self._ready.pop(name) for name in found]

    def _receive(self, seconds: float) -> None:
        """The next reply. Raises queue.Empty where none comes in this time."""
        number, reply = self._replies.get(timeout=max(0.0, seconds))
        worker = self._workers[number]
        if reply is None:
            worker.lost()
        worker.sent -= 1
        self._feed(worker)
        name = reply.metadata.reply_to_message_id
        if name in self._open:  # otherwise it was forgotten
            self._ready[name] = reply

    def forget(self, message_ids: Iterable[str]) -> None:
        for name in message_ids:
            self._open.discard(name)
            self._queue.pop(name, None)
            self._ready.pop(name, None)

    def _feed(self, worker: _Worker) -> None:
        while worker.waiting and worker.sent < _AHEAD:
            message = self._queue.pop(worker.waiting.popleft(), None)
            if message is not None:
                worker.sent += 1
                worker.send(message)


def _elsewhere(*_: object) -> NoReturn:
    raise AssertionError("PCs are played by workers")


def _start(number: int, replies: queue.SimpleQueue[Any], threads: int) -> _Worker:
    env = {**inherited(), "OMP_NUM_THREADS": str(threads)}
    source = Path(fedaipc.__file__).resolve().parent.parent
    # An installed package is found anyway, and site-packages must not come before the library.
    if source not in {Path(sysconfig.get_path(k)).resolve() for k in ("purelib", "platlib")}:
        paths = [str(source), env.get("PYTHONPATH", "")]
        env["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    process = subprocess.Popen(
        [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env,
        start_new_session=True,  # Ctrl-C is for the first process alone
    )  # fmt: skip
    inbox, outbox = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
    threading.Thread(
        target=_listen, args=(number, outbox, replies), name="worker replies", daemon=True
    ).start()
    return _Worker(process, inbox)


def _listen(number: int, replies: IO[bytes], to: queue.SimpleQueue[Any]) -> None:
    """Hand over what a worker says, and None when it has ended."""
    with replies:
        for content in _received(replies):
            to.put((number, content))
    to.put((number, None))


def _received(stream: IO[bytes]) -> Iterator[Any]:
    with suppress(EOFError, OSError, ValueError, pickle.UnpicklingError):
        while True:
            yield pickle.load(stream)  # noqa: S301 - from our own process


def _stop(workers: list[_Worker]) -> None:
    for worker in workers:
        with suppress(OSError):
            worker.inbox.close()
    for worker in workers:
        try:
            worker.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()


def play(inbox: IO[bytes], replies: IO[bytes]) -> None:
    """Answer for the PCs that the first process names, until this process is ended.

    The first reply is empty, or says why it cannot.
    """
    from fedaipc.client.client_app import app, pc_folder
    from fedaipc.client.trainer import freeze_for_all
    from fedaipc.protocol.job import Job
    from fedaipc.protocol.job_folder import JOB_FILE

    def say(content: object) -> None:
        pickle.dump(content, replies, pickle.HIGHEST_PROTOCOL)
        replies.flush()

    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def listen() -> None:
        for content in _received(inbox):
            requests.put(content)
        os._exit(0)  # all files of a PC survive a crash

    threading.Thread(target=listen, name="requests", daemon=True).start()
    told = requests.get()
    state = Path(told["state"])
    own = [pc_folder(state, n) for n in range(told["number"], told["pcs"], told["workers"])]
    try:
        job = Job.parse((Path(told["folder"]) / JOB_FILE).read_text(encoding="utf-8"))
        freeze_for_all(own, job)
    except FedaipcError as error:
        say(f"{error}; set speed.workers = 1")
        return
    say("")
    grid = InProcessGrid(app, [{}] * told["pcs"], {"pc-state": str(state)})
    while True:
        say(grid.answer(requests.get()))


def _main() -> None:
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no reply
    play(sys.stdin.buffer, replies)


if __name__ == "__main__":
    _main()
