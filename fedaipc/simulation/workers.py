"""Simulated PCs in several processes: `python -m fedaipc.simulation.workers` plays a share of them.

The coordinator stays in the first process. A worker answers for its PCs, one message after the
other, and first puts their texts through the frozen layers. It ends at once when its standard input
does: so no worker outlives the first process, whatever ended that.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import subprocess
import sys
import sysconfig
import threading
import time
import traceback
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from flwr.app import Message

import fedaipc
from fedaipc.errors import EngineError, FedaipcError
from fedaipc.machine import memory_available
from fedaipc.simulation.flower_adapter import InProcessGrid
from fedaipc.surroundings import inherited

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import NoReturn

    from fedaipc.config import SpeedSettings

_HELLO = b"fedaipc worker\n"  # before the first reply: what a library printed comes before it
_STOP_SECONDS = 5.0
_LOOK = 1.0  # seconds; an interrupt is seen in between, on Windows too
_AHEAD = 2  # messages at a worker: the one that it answers, and the next
_PCS_EACH = 50  # with fewer, loading the libraries takes longer than a second process saves
_LIBRARIES_BYTES = 3 << 29
_COPIES = 6  # of the weights: gradients, requests and the update as well
_MOST = 8
_log = logging.getLogger(__name__)


def workers_for(speed: SpeedSettings, pcs: int, threads: int, weights: int) -> int:
    """How many processes play `pcs` PCs on a CPU; 1 is the coordinator's own.

    Where the settings leave it open: as many as may compute at a time, `threads`, up to 8, if each
    has enough to do and memory for its copy of a model of `weights` bytes.
    """
    if speed.workers:
        return min(speed.workers, pcs)
    cores = threads // (speed.threads or 1)
    return max(1, min(cores, pcs // _PCS_EACH, room_for(weights), _MOST))


def room_for(weights: int) -> int:
    """How many processes beside the coordinator have memory for a model of `weights` bytes."""
    return memory_available() // (_LIBRARIES_BYTES + _COPIES * weights) - 1


class WorkerError(EngineError):
    """Another process cannot do what this job asks for; set speed.workers = 1."""


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    inbox: IO[bytes]
    listener: threading.Thread | None = None
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
        Raises WorkerError where one cannot play PCs of this job.
        """
        replies: queue.SimpleQueue[Any] = queue.SimpleQueue()
        workers: list[_Worker] = []
        try:
            for number in range(count):
                workers.append(_start(threads))
                stream = cast("IO[bytes]", workers[-1].process.stdout)
                workers[-1].listener = _listen(number, stream, replies)
                told = {"number": number, "workers": count, "pcs": pcs}
                workers[-1].send({**told, "folder": str(folder), "state": str(state)})
            for _ in range(count):
                number, fault = _next(replies)
                if fault is None:
                    workers[number].lost()
                if fault:
                    raise WorkerError(f"PCs cannot be played by processes of their own: {fault}")
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
        """Wait for a reply; return those that are there.

        A worker that says nothing is at work, however long: if it ends, that is an error. If the
        first id was never pushed, or its reply was taken, an error reply says so.
        """
        wanted = message_ids if isinstance(message_ids, (dict, set)) else dict.fromkeys(message_ids)
        first = next(iter(wanted), None)
        if first is None:
            return []
        if first not in self._open:
            return [self._unknown_reply(first)]
        while not (found := [name for name in self._ready if name in wanted]):
            self._receive()
        self._open.difference_update(found)
        return [self._ready.pop(name) for name in found]

    def forget(self, message_ids: Iterable[str]) -> None:
        for name in message_ids:
            self._open.discard(name)
            self._queue.pop(name, None)
            self._ready.pop(name, None)

    def _receive(self) -> None:
        number, reply = _next(self._replies)
        worker = self._workers[number]
        if reply is None:
            worker.lost()
        worker.sent -= 1
        self._feed(worker)
        name = reply.metadata.reply_to_message_id
        if name in self._open:  # otherwise it was forgotten
            self._ready[name] = reply

    def _feed(self, worker: _Worker) -> None:
        while worker.waiting and worker.sent < _AHEAD:
            message = self._queue.pop(worker.waiting.popleft(), None)
            if message is not None:
                worker.sent += 1
                worker.send(message)


def _elsewhere(*_: object) -> NoReturn:
    raise AssertionError("PCs are played by workers")


def _next(replies: queue.SimpleQueue[Any]) -> Any:
    while True:
        with suppress(queue.Empty):
            return replies.get(timeout=_LOOK)


def _start(threads: int) -> _Worker:
    env = {**inherited(), "OMP_NUM_THREADS": str(threads)}
    source = Path(fedaipc.__file__).resolve().parent.parent
    # An installed package is found anyway, and site-packages must not come before the library.
    if source not in {Path(sysconfig.get_path(k)).resolve() for k in ("purelib", "platlib")}:
        paths = [str(source), env.get("PYTHONPATH", "")]
        env["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    # Ctrl-C is for the first process alone.
    flags = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
    process = subprocess.Popen(
        [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env,
        start_new_session=True, creationflags=flags,
    )  # fmt: skip
    return _Worker(process, cast("IO[bytes]", process.stdin))


def _listen(number: int, stream: IO[bytes], replies: queue.SimpleQueue[Any]) -> threading.Thread:
    """Hand over what a worker says, in a thread of its own, and None when it has ended."""

    def listen() -> None:
        try:
            with stream:
                if any(line.endswith(_HELLO) for line in iter(stream.readline, b"")):
                    for content in _received(stream):
                        if isinstance(content, logging.LogRecord):
                            logging.getLogger(content.name).handle(content)
                        else:
                            replies.put((number, content))
        finally:
            replies.put((number, None))

    thread = threading.Thread(target=listen, name="worker replies", daemon=True)
    thread.start()
    return thread


def _received(stream: IO[bytes]) -> Iterator[Any]:
    """What another process sends, until it ends, in the middle of a message or not."""
    with suppress(EOFError, OSError, ValueError, pickle.UnpicklingError):
        while True:
            yield pickle.load(stream)  # noqa: S301 - from our own process


def _stop(workers: Sequence[_Worker]) -> None:
    end = time.monotonic() + _STOP_SECONDS
    try:
        for worker in workers:
            with suppress(OSError):
                worker.inbox.close()
        for worker in workers:
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, end - time.monotonic()))
    finally:
        for worker in workers:
            worker.process.kill()  # does nothing to one that has ended
            worker.process.wait()
            if worker.listener is not None:
                worker.listener.join(_STOP_SECONDS)


class _Worked:
    """What a worker says: replies and log lines."""

    def __init__(self, replies: IO[bytes]) -> None:
        self._replies, self._lock = replies, threading.Lock()
        replies.write(_HELLO)

    def say(self, content: object) -> None:
        with self._lock:
            pickle.dump(content, self._replies, pickle.HIGHEST_PROTOCOL)
            self._replies.flush()


class _LogThere(logging.Handler):
    def __init__(self, worked: _Worked) -> None:
        super().__init__()
        self._worked = worked

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args = record.getMessage(), None
        record.exc_info = None
        with suppress(OSError):  # the first process has ended, and so will this one
            self._worked.say(record)


def play(inbox: IO[bytes], replies: IO[bytes]) -> None:
    """Answer for the PCs that the first process names; ends this process.

    The first reply is empty, or says why it cannot.
    """
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def listen() -> None:
        try:
            for content in _received(inbox):
                requests.put(content)
        finally:
            os._exit(0)  # all files of a PC survive a crash

    threading.Thread(target=listen, name="requests", daemon=True).start()
    worked = _Worked(replies)
    logging.getLogger().addHandler(_LogThere(worked))
    from fedaipc.client.client_app import app, pc_folder
    from fedaipc.client.trainer import freeze_for_all
    from fedaipc.protocol.job import Job
    from fedaipc.protocol.job_folder import JOB_FILE

    told = requests.get()
    state = Path(told["state"])
    own = [pc_folder(state, n) for n in range(told["number"], told["pcs"], told["workers"])]
    try:
        job = Job.parse((Path(told["folder"]) / JOB_FILE).read_text(encoding="utf-8"))
        freeze_for_all(own, job)
    except FedaipcError as error:
        worked.say(f"{error}; set speed.workers = 1")
        return
    worked.say("")
    grid = InProcessGrid(app, [{}] * told["pcs"], {"pc-state": str(state)})
    while True:
        worked.say(grid.answer(requests.get()))


def _main() -> NoReturn:
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a library may print
    code = 1
    try:
        play(sys.stdin.buffer, replies)
        code = 0
    except BaseException:  # noqa: BLE001 - said before this process ends
        traceback.print_exc()
    finally:  # not the usual way: a thread reads standard input
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _main()
