"""Masked rounds of 10, 100 and 1000 PCs: the coordinator's memory, time, and traffic per PC.

    python scripts/bench/secagg_round.py      writes results/secagg_round.json beside this

The vector has the size of a LoRA adapter. A tenth of the PCs vanishes before it uploads, and after
it gave out shares. The PCs
live in a process of their own, so the coordinator's process holds nothing but what it holds in a
real round; its memory is the peak of its resident set during the round, less that at its start.
It depends on the size of a group, which is at most 100. Requirement: no more for 1000 PCs than for
100, to within a few megabytes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from fedaipc.coordinator.aggregation import MaskedSum
from fedaipc.coordinator.upload_store import UploadStore
from fedaipc.errors import SecAggError
from fedaipc.machine import facts
from fedaipc.protocol.messages import AGREE, MASK, READY, UNMASK, MemberRequest, encode_answer
from fedaipc.secagg.committee import Proposal, Unmask, agree, release
from fedaipc.secagg.keys import ExchangeKey, SigningKey
from fedaipc.secagg.roster import Bundle, Roster
from fedaipc.secagg.round_keys import Group, Keys, KeyShares, share_secrets
from fedaipc.secagg.terms import Terms, thresholds
from fedaipc.secagg.uploads import LedgerHead, mask_update

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from multiprocessing.connection import Connection

    from flwr.app import RecordDict

    from fedaipc.secagg.round_keys import RoundSecrets

RESULT = Path(__file__).resolve().parent / "results" / "secagg_round.json"
COUNTS, LORA, LOST = (10, 100, 1000), 78_594, 10  # every tenth PC is lost
ALLOWED_GROWTH = 16 << 20


class Pcs:
    """Every PC of the round; the same seed gives the same keys in both processes."""

    def __init__(self, count: int) -> None:
        self.keys = {}
        for number in range(count):
            seeds = [(1000 * kind + number).to_bytes(32, "big") for kind in (101, 303)]
            own = SigningKey(seeds[0])
            self.keys[own.public] = Keys(own, ExchangeKey(seeds[1]))
        roster = Roster.sign(
            SigningKey(bytes(32)), federation="bench", version=1, beacon=bytes(32),
            members=list(self.keys),
        )  # fmt: skip
        self.terms = []
        for group in roster.groups(1, count):
            bundles = tuple(self._bundle(identity) for identity in group)
            self.terms.append(
                Terms(
                    federation="bench", roster_hash=roster.hash, run="bench", number=1,
                    job_hash=bytes(32), vector_hash=bytes(32), size=LORA, bits=32, bound=8.0,
                    cohort=count, bundles=bundles, weights=(1,) * len(bundles),
                    thresholds=thresholds(len(group), group=len(group), members=count,
                                          colluding=max(1, count // 10), least=0.7, draws=1000),
                )
            )  # fmt: skip
        self.terms_of = {pc: terms for terms in self.terms for pc in terms.participants}

    def _bundle(self, identity: bytes) -> Bundle:
        keys = self.keys[identity]
        return Bundle(
            federation="bench", run="bench", epoch=1, not_after=2**40, identity=identity,
            size_class=32, share_key=keys.share.public,
        ).signed_by(keys.identity)  # fmt: skip


def play(count: int, pipe: Connection) -> None:
    """The PCs' process: key_shares and uploads on request, then answers as members."""
    pcs = Pcs(count)
    groups: dict[bytes, Group] = {}
    secrets: dict[bytes, RoundSecrets] = {}
    update = np.random.default_rng(1).normal(0, 0.1, LORA).astype(np.float32)
    while (asked := pipe.recv()) is not None:
        stage, pc, frame = asked
        terms, keys = pcs.terms_of[pc], pcs.keys[pc]
        started = time.perf_counter()
        if stage == READY:
            keys.check(terms.bundles)
            secrets[pc], shared = share_secrets(terms, keys)
            answer = shared.encode()
        elif stage == MASK:
            words = terms.encoding.encode(update, 1, os.urandom(32))
            groups[pc] = Group.of(terms, frame)
            groups[pc].check(secrets[pc])
            own = secrets.pop(pc)
            answer = mask_update(groups[pc], keys, own, words, LedgerHead(1, bytes(32))).encode()
        elif stage == AGREE:
            answer = agree(groups[pc], keys, Proposal.decode(frame), None, {}).encode()
        else:
            answer = release(groups[pc], keys, Unmask.decode(frame), None)[1].encode()
        pipe.send((time.perf_counter() - started, answer))


def measured(count: int) -> dict[str, Any]:
    """One round, as its coordinator sees it."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=play, args=(count, theirs), daemon=True
    )
    process.start()
    pcs = Pcs(count)
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    up: Counter[str] = Counter()
    down: Counter[str] = Counter()

    def call(stage: str, pc: bytes, frame: bytes) -> bytes:
        ours.send((stage, pc, frame))
        took, answer = ours.recv()
        seconds[f"a PC, {stage}"] += took
        calls[stage] += 1
        up[stage] += len(answer)
        down[stage] += len(frame)
        return bytes(answer)

    def ask(
        stage: str, requests: Iterable[tuple[bytes, RecordDict]]
    ) -> Iterator[tuple[bytes, RecordDict]]:
        for pc, request in requests:
            yield pc, encode_answer(call(stage, pc, MemberRequest.decode(request).frame))

    call(READY, next(iter(pcs.keys)), b"")  # both processes have loaded all that they need
    for counter in (seconds, calls, up, down):
        counter.clear()
    with tempfile.TemporaryDirectory() as folder:
        store = UploadStore(Path(folder) / "uploads")
        terms_bytes = max(len(terms.encode()) for terms in pcs.terms)
        watch = Peak()
        started = time.perf_counter()
        cards = {}
        for pc, terms in pcs.terms_of.items():
            frame = call(READY, pc, terms.encode())
            shared = KeyShares.decode(frame)
            shared.verify(terms)
            store.keep_shares(pc, frame)
            cards[pc] = shared.card
        groups = [
            Group(terms, tuple(cards[pc] for pc in terms.participants)) for terms in pcs.terms
        ]
        shared_at, sharing = time.perf_counter(), sum(seconds.values())
        total = MaskedSum(groups, store)
        frames = {pc: keys for one in groups for keys in [one.encode_keys()] for pc in one.members}
        lost = 0
        for number, pc in enumerate(pcs.keys):
            if number % LOST == LOST - 1:
                lost += 1
                continue
            total.accept(pc, call(MASK, pc, frames[pc]))
        collected = time.perf_counter()
        waited = sum(seconds.values())
        total.finish(ask)
        ended = time.perf_counter()
        peak = watch.stop()
        exact = check(total, count - lost, pcs.terms[0].encoding.scale)
    ours.send(None)
    process.join()
    per_pc = {stage: round(seconds[f"a PC, {stage}"] / calls[stage], 4) for stage in calls}
    return {
        "pcs": count,
        "lost": lost,
        "groups": len(groups),
        "exact": exact,
        "coordinator_memory_over_idle_bytes": peak,
        "seconds_per_pc": per_pc,
        "coordinator_seconds": {
            "check and keep shares": round(shared_at - started - sharing, 3),
            "add and keep uploads": round(collected - shared_at - (waited - sharing), 3),
            "agree, unmask, sum": round(
                ended - collected - (sum(seconds.values()) - waited), 3
            ),
        },
        "bytes_per_pc": {
            "vector": LORA * 4,
            "header, up": round(up[MASK] / calls[MASK]) - LORA * 4,
            "terms, down": terms_bytes,
            "mask keys, down": round(down[MASK] / calls[MASK]),
            **{
                f"{stage.partition('.')[2]}, {way}": round(counter[stage] / calls[stage])
                for stage in calls if stage != MASK
                for way, counter in (("down", down), ("up", up))
            },
        },
        "members_asked": {stage: calls[stage] for stage in calls if stage in (AGREE, UNMASK)},
    }  # fmt: skip


def check(total: MaskedSum, arrived: int, scale: float) -> bool:
    """The mean of equal updates is the update, to within the rounding of each."""
    update = np.random.default_rng(1).normal(0, 0.1, LORA).astype(np.float32)
    if total.reasons or len(total.inside) != arrived:
        raise SecAggError(f"the round failed: {total.reasons}")
    return bool(np.abs(total.mean() - update).max() <= 1.0 / scale + 1e-7)


class Peak:
    """Largest resident memory of this process, over that at the start."""

    def __init__(self) -> None:
        self._process, self._running = psutil.Process(), True
        self._idle = self._peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while self._running:
            self._peak = max(self._peak, self._process.memory_info().rss)
            time.sleep(0.005)

    def stop(self) -> int:
        self._running = False
        self._thread.join()
        return int(self._peak - self._idle)


def main() -> None:
    parser = argparse.ArgumentParser(description="Masked rounds of many PCs.")
    parser.add_argument("--one", type=int, help="print one round of so many PCs as JSON")
    parser.add_argument(
        "--before", type=Path, nargs="*", default=(),
        help="what another version of fedaipc printed with --one, to keep beside the figures",
    )  # fmt: skip
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measured(arguments.one)))
        return
    rounds = []
    for count in COUNTS:
        done = subprocess.run(
            [sys.executable, __file__, "--one", str(count)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        rounds.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rounds[-1], indent=2), flush=True)
    memory = [one["coordinator_memory_over_idle_bytes"] for one in rounds]
    report = {
        "values": LORA,
        "rounds": rounds,
        "before": [json.loads(path.read_text(encoding="utf-8")) for path in arguments.before],
        "memory_growth_bytes": memory[-1] - memory[1],
        "allowed_growth_bytes": ALLOWED_GROWTH,
        "machine": facts(),
    }
    RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    sys.exit(0 if report["memory_growth_bytes"] <= ALLOWED_GROWTH else 1)


if __name__ == "__main__":
    main()
