"""What a PC has spent over its life.

The ledger is a file of JSON lines that belongs to the PC: it outlives runs, restarts and
re-enrolment. A charge is on the disk before training starts, so a crash wastes budget and never
privacy. Each line carries the SHA-256 of the line before: an edited or reordered file is refused.
Half a last line (a crash while writing) is a charge that was never granted, and is dropped.

Line 1 fixes unit, delta, lifetime budget and the order of the RDP filter; every further line is
one charge. Rounds without privacy, and those with a test seed, are entered too: after one, no
epsilon can be claimed any more.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from fedaipc.errors import BudgetExhausted, LedgerError
from fedaipc.files import append_durable, write_atomic
from fedaipc.privacy.accountant import (
    ORDERS,
    Mechanism,
    epsilon_at,
    epsilon_rdp,
    filter_budget,
    merged,
    rdp,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

VERSION = 1
_LOCK_SECONDS = 30.0
_RESTORE = "restore the file from a copy that is not older than the last training"


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """One line of the ledger.

    `mechanism` is None for a round without privacy; `seeded` says that the noise came from a test
    seed: it is charged as any other, so that tests see real ledgers, and protects nothing.
    """

    run: str
    round: int
    attempt: int
    mechanism: Mechanism | None
    clip: float
    seeded: bool = False


class Ledger:
    """An open ledger: what the file held when it was last read, kept in step by `charge`."""

    def __init__(self, path: Path) -> None:
        """Open the ledger at `path`. Raises LedgerError: missing, damaged or unreadable."""
        self.path = path
        self._head = ""
        with _locked(self.path):
            self._load()

    @classmethod
    def create(cls, path: Path, *, lifetime_epsilon: float, delta: float, order: float) -> Ledger:
        """Start a ledger whose RDP filter has `order` for good. Never over an existing one.

        Any order gives a valid filter. It decides how much of the budget is of use: take the best
        one for the jobs that are expected (`plan.filter_order`). Raises LedgerError where a ledger
        exists, the order is unknown or leaves no budget, or the file cannot be written.
        """
        if order not in ORDERS or filter_budget(order, lifetime_epsilon, delta) <= 0:
            raise LedgerError(
                f"RDP order {order:g} cannot certify epsilon {lifetime_epsilon:g} "
                f"at delta {delta:g}"
            )
        header = {
            "version": VERSION,
            "kind": "ledger",
            "unit": "record",
            "delta": delta,
            "lifetime_epsilon": lifetime_epsilon,
            "order": order,
            "created": _now(),
            "previous": "",
        }
        with _locked(path):  # two enrolments at once: the second must not replace the first's
            if path.exists():
                raise LedgerError(f"{path}: there is a ledger already; it is never replaced")
            try:
                write_atomic(path, _line(header), private=True)
            except OSError as error:
                raise LedgerError(f"{path}: cannot be written ({error.strerror})") from None
        return cls(path)

    def charge(self, charge: Charge) -> None:
        """Enter `charge` durably; train only after this has returned.

        Raises BudgetExhausted (nothing is written) where the lifetime budget does not cover it,
        LedgerError where the attempt is not newer than the run's last one, the file changed
        underneath, or it cannot be written.
        """
        with _locked(self.path):
            self._load()
            if charge.attempt <= self.last_attempt(charge.run):
                raise LedgerError(
                    f"{self.path}: attempt {charge.attempt} of run {charge.run} is not newer "
                    "than the last one charged; each attempt is charged once"
                )
            if charge.mechanism is not None and not self.covers(charge.mechanism):
                raise BudgetExhausted(
                    f"the lifetime budget of epsilon {self.lifetime_epsilon:g} does not cover "
                    "this round; nothing was trained"
                )
            entry: dict[str, Any] = {
                "version": VERSION,
                "kind": "charge",
                "run": charge.run,
                "round": charge.round,
                "attempt": charge.attempt,
                "clip": charge.clip,
                "seeded": charge.seeded,
                "noise_multiplier": charge.mechanism and charge.mechanism.noise_multiplier,
                "sampling_rate": charge.mechanism and charge.mechanism.sampling_rate,
                "steps": charge.mechanism and charge.mechanism.steps,
                "time": _now(),
                "previous": self._head,
            }
            line = _line(entry)
            try:
                append_durable(self.path, line)
            except OSError as error:
                raise LedgerError(
                    f"{self.path}: the charge cannot be written ({error.strerror or error}); "
                    "nothing was trained"
                ) from None
            self._head = json.loads(line)["hash"]
            self.charges += (charge,)

    def rounds_left(self, mechanism: Mechanism) -> int:
        """How many more rounds of `mechanism` the filter has room for, to within one."""
        budget = filter_budget(self.order, self.lifetime_epsilon, self.delta)
        room = budget - rdp(self.mechanisms, self.order)
        cost = rdp([mechanism], self.order)
        return max(0, int(room / cost * (1 + 1e-9))) if cost else sys.maxsize

    @property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        """The whole life's schedule, equal steps counted together."""
        return merged(c.mechanism for c in self.charges if c.mechanism is not None)

    @property
    def unprotected(self) -> bool:
        """Whether this PC ever took part in a round without privacy, or with a test seed."""
        return any(charge.mechanism is None or charge.seeded for charge in self.charges)

    def spent_epsilon(self) -> float:
        """Epsilon so far by the RDP filter's order; infinite where `unprotected`."""
        if self.unprotected:
            return math.inf
        if not self.charges:
            return 0.0
        return epsilon_at(self.order, rdp(self.mechanisms, self.order), self.delta)

    def best_epsilon(self) -> float:
        """Epsilon so far by Opacus' RDP accountant at its best order."""
        return math.inf if self.unprotected else epsilon_rdp(self.mechanisms, self.delta)

    def last_attempt(self, run: str) -> int:
        """The newest attempt charged for `run`, 0 if there is none."""
        return max((c.attempt for c in self.charges if c.run == run), default=0)

    def covers(self, mechanism: Mechanism) -> bool:
        """Whether the filter has room for `mechanism` on top of all that was charged."""
        budget = filter_budget(self.order, self.lifetime_epsilon, self.delta)
        total = rdp(merged((*self.mechanisms, mechanism)), self.order)
        return total <= budget  # False for NaN as well

    def _load(self) -> None:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            raise LedgerError(f"{self.path}: no such ledger; enrol this PC first") from None
        except OSError as error:
            raise LedgerError(f"{self.path}: cannot be read ({error.strerror})") from None
        *lines, tail = content.split(b"\n")
        entries = self._verified(lines)
        if tail and self._mend(tail, len(content)):
            entries = self._verified([*lines, tail])
        header, *rest = entries
        self.delta = float(header["delta"])
        self.lifetime_epsilon = float(header["lifetime_epsilon"])
        self.order = float(header["order"])
        if self.order not in ORDERS:
            raise LedgerError(f"{self.path}: written by a newer fedaipc; update this one")
        self.charges = tuple(_charge(entry) for entry in rest)
        self._head = entries[-1]["hash"]

    def _verified(self, lines: Sequence[bytes]) -> list[dict[str, Any]]:
        """Header and charges of whole lines. Raises LedgerError, before anything is mended."""
        entries = []
        previous = ""
        for number, raw in enumerate(lines, start=1):
            entry = _parsed(raw)
            if entry is not None and entry.get("previous") != previous:
                entry = None
            if entry is None or entry.get("kind") != ("ledger" if number == 1 else "charge"):
                raise LedgerError(
                    f"{self.path}: line {number} is damaged or was changed; {_RESTORE}"
                )
            if entry["version"] != VERSION:
                raise LedgerError(f"{self.path}: written by a newer fedaipc; update this one")
            entries.append(entry)
            previous = entry["hash"]
        if not entries:
            raise LedgerError(f"{self.path}: holds no whole line; {_RESTORE}")
        return entries

    def _mend(self, tail: bytes, size: int) -> bool:
        """Deal with a last line that has no end; whether it is an entry all the same.

        Half a line is what a crash cut: `charge` never returned, so nothing was trained on it,
        and it is dropped. A whole one may have lost its end to a text editor: it is kept. Raises
        LedgerError where more follows a whole one, which no crash writes.
        """
        whole = _parsed(tail) is not None
        if not whole and _begins_with_an_entry(tail):
            raise LedgerError(f"{self.path}: the last line was changed; {_RESTORE}")
        try:
            if whole:
                append_durable(self.path, b"\n")
            else:
                with self.path.open("r+b") as file:
                    file.truncate(size - len(tail))
                    os.fsync(file.fileno())
        except OSError as error:
            raise LedgerError(f"{self.path}: cannot be mended ({error.strerror})") from None
        return whole


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    if not path.parent.is_dir():
        raise LedgerError(f"{path}: no such ledger; enrol this PC first")
    try:
        with FileLock(f"{path}.lock", timeout=_LOCK_SECONDS):
            yield
    except Timeout:
        raise LedgerError(f"{path}: another process holds the ledger") from None
    except OSError as error:
        raise LedgerError(f"{path}: cannot be locked ({error.strerror})") from None


def _charge(entry: dict[str, Any]) -> Charge:
    mechanism = None
    if entry["noise_multiplier"] is not None:
        mechanism = Mechanism(
            noise_multiplier=entry["noise_multiplier"],
            sampling_rate=entry["sampling_rate"],
            steps=entry["steps"],
        )
    return Charge(
        run=entry["run"],
        round=entry["round"],
        attempt=entry["attempt"],
        mechanism=mechanism,
        clip=entry["clip"],
        seeded=entry["seeded"],
    )


def _line(entry: dict[str, Any]) -> bytes:
    """The entry with the hash of its canonical form, as one line."""
    return _canonical({**entry, "hash": hashlib.sha256(_canonical(entry)).hexdigest()}) + b"\n"


def _parsed(raw: bytes) -> dict[str, Any] | None:
    """The entry of a line, or None where its hash is wrong."""
    try:
        entry = json.loads(raw)
        if not isinstance(entry, dict):
            return None
        body = {key: value for key, value in entry.items() if key != "hash"}
        expected = hashlib.sha256(_canonical(body)).hexdigest()
    except (ValueError, RecursionError):
        return None
    return entry if entry.get("hash") == expected else None


def _begins_with_an_entry(tail: bytes) -> bool:
    try:
        entry, _ = json.JSONDecoder().raw_decode(tail.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return False
    return isinstance(entry, dict)


def _canonical(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
