"""A run in a process of its own that is killed, as by kill -9, where the test says."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from pathlib import Path
from typing import Any

from fedaipc.client import client_app, key_store, trainer
from fedaipc.coordinator import checkpoint, membership, server_app
from fedaipc.coordinator.coordinator import Coordinator
from fedaipc.files import append_durable
from fedaipc.privacy import dp_sgd, ledger
from fedaipc.protocol.messages import encode_update
from fedaipc.simulation.simulation import reopen, simulate

# One line for each time a PC starts to train, each update that it sends, and each set that it is
# bound to.
TRACE = "trace.txt"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def replace(owner: Any, name: str, new: Any) -> None:
    """For the rest of this process's life."""
    setattr(owner, name, new)


def traced(folder: Path) -> None:
    """Let every PC note in the run folder when it starts to train and when it replies."""
    real_train, real_encode = trainer.Trainer.train, encode_update
    real_bind = key_store.Agreed.bind
    name = ""

    def note(what: str) -> None:
        with (folder / TRACE).open("a") as file:
            file.write(f"{what} {name}\n")

    def train(self: trainer.Trainer, admitted: Any) -> Any:
        nonlocal name
        name = self._pc.owner.name
        note("trains")
        return real_train(self, admitted)

    def bind(self: key_store.Agreed, set_hash: bytes, heads: Any = None) -> None:
        real_bind(self, set_hash, heads)
        with (folder / TRACE).open("a") as file:
            file.write(f"binds {self._path.parent.parent.name} {self._round} {set_hash.hex()}\n")

    def encode(update: Any) -> Any:
        note("sends")
        return real_encode(update)

    replace(trainer.Trainer, "train", train)
    replace(client_app, "encode_update", encode)
    replace(key_store.Agreed, "bind", bind)


def deadly(owner: Any, name: str, nth: int, *, before: bool) -> None:
    """Kill this process at the nth call of `owner.name`: before it, or when it has returned."""
    real = getattr(owner, name)
    calls = 0

    @functools.wraps(real)
    def call(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth and before:
            die()
        result = real(*args, **named)
        if calls == nth:
            die()
        return result

    replace(owner, name, call)


def half_written(nth: int) -> None:
    """Kill this process when half of the nth charge is on the disk."""
    real = append_durable
    calls = 0

    def append(path: Path, line: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == nth:
            real(path, line[: len(line) // 2])
            die()
        real(path, line)

    replace(ledger, "append_durable", append)


def victim(folder: Path, point: str, nth: float) -> None:
    replace(server_app, "planned_epsilon", lambda *_: {"rdp": 1.0, "prv": 1.0, "pld": 1.0})
    traced(folder)
    match point:
        case "while a charge is written":
            half_written(int(nth))
        case "after a charge":
            deadly(ledger.Ledger, "charge", int(nth), before=False)
        case "in training":
            deadly(dp_sgd, "private_step", int(nth), before=False)
        case "when an update is sent":
            deadly(client_app, "encode_update", int(nth), before=False)
        case "before a set is recorded":
            deadly(key_store.Agreed, "bind", int(nth), before=True)
        case "when a set is recorded":
            deadly(key_store.Agreed, "bind", int(nth), before=False)
        case "when a word is sent":
            deadly(client_app, "encode_answer", int(nth), before=False)
        case "when keys are made":
            deadly(key_store.KeyStore, "bundle", int(nth), before=False)
        case "before a checkpoint":
            deadly(checkpoint.Checkpoint, "save", int(nth), before=True)
        case "between a checkpoint and the results":
            deadly(checkpoint.Checkpoint, "save", int(nth), before=False)
        case "when an attempt is numbered":
            deadly(membership.Membership, "refresh", int(nth), before=True)
        case "when a counter is kept":
            deadly(checkpoint.Counters, "advance", int(nth), before=False)
        case "at the end":
            deadly(server_app, "export", int(nth), before=False)
        case "seconds after its start":
            real = Coordinator.run

            def run(self: Coordinator, grid: Any) -> Any:
                timer = threading.Timer(nth, die)
                timer.daemon = True
                timer.start()
                return real(self, grid)

            replace(Coordinator, "run", run)
    simulate(reopen(folder), "in-process", lambda _: None)


def kill(folder: Path, point: str, nth: float) -> bool:
    """Go on with the run in `folder` until it is killed; whether it was, before its end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=victim, args=(folder, point, nth))
    process.start()
    process.join(120)
    assert process.exitcode in (-signal.SIGKILL, 0), process.exitcode
    return process.exitcode != 0
