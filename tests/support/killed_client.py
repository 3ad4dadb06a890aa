"""One PC that is killed in the midst of rounds, again and again: run by test_ledger_kills.py.

`python -m tests.support.killed_client FOLDER KILLS` makes a real PC, forks a process that answers
one mask request after the other through the PC's own app, kills it with SIGKILL after a random
time, and compares the ledger with what that process had begun and sent. Prints one line of JSON.

Forking spares the seconds that torch takes to load; the parent has one thread.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from fedaipc.client import trainer
from fedaipc.client.key_store import KeyStore
from fedaipc.data.assets import fetch_asset
from fedaipc.privacy.ledger import LEDGER_FILE, Ledger
from tests.support.clients import asker, enroll, gave, owner

_LONGEST = 0.3  # seconds that a process lives


def main(folder: Path, kills: int) -> None:
    fetch_asset("minilm-l6")
    torch.set_num_threads(1)
    federation = enroll(
        folder, 260, "federation.clients=5", "rounds=1000", "privacy.noise_multiplier=20"
    )
    pc = federation.folders[federation.bundles[0].identity]
    owner(pc, policy={"max_epsilon": 1e9})
    ask, ledger = asker(federation, pc), pc / LEDGER_FILE
    assert gave(ask(attempt=1))  # loads the model and the texts
    chance = random.Random(1)
    ends: Counter[str] = Counter()
    sent, over, asked = 1, 0, 1
    for _ in range(kills):
        first = asked + 1  # an attempt that was cut off is never asked for again
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _answers(ask, first, writer)
        os.close(writer)
        time.sleep(chance.uniform(0, _LONGEST))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(reader) as pipe:
            said = [line.split() for line in pipe.read().splitlines()]
        done = {word: {int(n) for w, n in said if w == word} for word in ("asks", "trains", "sent")}
        charged = {c.attempt for c in Ledger(ledger, KeyStore(pc).identity).charges}
        if not done["trains"] | done["sent"] <= charged:
            sys.exit(f"trained or sent without a charge: {done}, charged {sorted(charged)[-5:]}")
        sent += len(done["sent"])
        extra = len(charged) - sent - over
        if extra not in (0, 1):
            sys.exit(f"{extra} charges more than updates after one kill")
        over += extra
        last = max(done["asks"], default=0)
        asked = max(asked, last)
        ends["sent" if last in done["sent"] else "training" if last in done["trains"]
             else "charged" if last in charged else "before the charge"] += 1  # fmt: skip
    charges = len(Ledger(ledger).charges)
    told = {"kills": kills, "charges": charges, "sent": sent, "over": over, "killed_while": ends}
    sys.stdout.write(json.dumps(told) + "\n")


def _answers(ask: Any, first: int, pipe: int) -> None:
    """Until this process is killed."""
    real = trainer.Trainer.train
    attempt = first

    def say(word: str) -> None:
        os.write(pipe, f"{word} {attempt}\n".encode())

    def train(self: trainer.Trainer, admitted: Any) -> bytes:
        say("trains")
        return real(self, admitted)

    trainer.Trainer.train = train
    while True:
        say("asks")
        if not gave(ask(attempt=attempt, number=1)):
            os._exit(1)
        say("sent")
        attempt += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
