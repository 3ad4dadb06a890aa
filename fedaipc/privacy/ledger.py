"""What a PC has spent over its life.

The ledger is a file of JSON lines that belongs to the PC: it outlives runs, restarts and
re-enrollment. A charge is on the disk before training starts, so a crash wastes budget and never
privacy. Lines are chained and signed (`chain`): an edited or reordered file is refused. Half a last
line (a crash while writing) is a charge that was never granted, and is dropped.

Line 1 fixes unit, delta, lifetime budget and the kind of privacy filter (`filters`); each further
line is one charge, or names another key that signs from there on. Rounds without privacy, and those
with a test seed, are entered too: after one, no epsilon can be claimed any more.
"""

from __future__ import annotations

import math
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from fedaipc import bounds, strict_json
from fedaipc.config import Privacy, Schedule, kind_fault
from fedaipc.errors import BudgetExhausted, LedgerError, os_errors_as
from fedaipc.files import append_durable, write_atomic
from fedaipc.privacy.accountant import epsilon_rdp, merged
from fedaipc.privacy.budget import NEIGHBOURS, local_epsilon, round_schedule
from fedaipc.privacy.chain import (
    RESTORE,
    Chain,
    check_chain,
    is_whole,
    key_line,
    parsed,
    signed_line,
)
from fedaipc.privacy.filters import filter_of, is_filter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fedaipc.config import FilterKind, Settings
    from fedaipc.privacy.chain import Signer

LEDGER_FILE = "ledger.jsonl"  # in a PC's folder
_LOCK_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """One line of the ledger.

    `schedule` may be without privacy; `seeded` says that the noise came from a test seed: it is
    charged as any other, so that tests see real ledgers, and protects nothing.
    """

    run: str
    round: int
    attempt: int
    schedule: Schedule
    seeded: bool = False


class Ledger:
    """An open ledger: what the file held when it was last read, kept in step by `charge`."""

    def __init__(self, path: Path, signer: Signer | None = None) -> None:
        """Open the ledger at `path`; only with a `signer` it can be charged or mended.

        Raises LedgerError: missing, damaged, unreadable, or signed by another key than `signer`.
        """
        self.path = path
        self._signer = signer
        with _locked(self.path):
            self._load()

    @classmethod
    def open(cls, place: str | Path) -> Ledger:
        """The ledger of a PC, by its folder or file, to be read. Raises LedgerError."""
        path = Path(place)
        return cls(path / LEDGER_FILE if path.is_dir() else path)

    @classmethod
    def create(
        cls,
        path: Path,
        signer: Signer,
        *,
        lifetime_epsilon: float,
        delta: float,
        filter_kind: FilterKind,
        unit: str = "record",
    ) -> Ledger:
        """Start a ledger of `unit` with a filter of `filter_kind`; neither ever changes. Never over
        an existing one.

        Any filter is valid. It decides how much of the budget is of use: take the best one for the
        jobs that are expected (`budget.best_filter`). Raises LedgerError where a ledger exists,
        unit or filter are unknown, the filter leaves no budget, or the file cannot be written.
        """
        if unit not in NEIGHBOURS:
            raise LedgerError(f"a ledger counts per record or per client, and not per {unit}")
        if not is_filter(filter_kind):
            raise LedgerError(f"there is no privacy filter {filter_kind!r}")
        kept = filter_of(filter_kind)
        if kept.budget(lifetime_epsilon, delta) <= 0:
            raise LedgerError(
                f"the privacy filter ({kept.name}) cannot certify epsilon {lifetime_epsilon:g} "
                f"at delta {delta:g}"
            )
        header = {
            "kind": "ledger",
            "unit": unit,
            "delta": delta,
            "lifetime_epsilon": lifetime_epsilon,
            "filter": kept.kind,
            "created": _now(),
            "key": signer.public.hex(),
        }
        with _locked(path):  # two enrollments at once: the second must not replace the first's
            if path.exists():
                raise LedgerError(f"{path}: a ledger exists already; it is never replaced")
            with os_errors_as(LedgerError, f"{path}: cannot be written"):
                write_atomic(path, signed_line(header, "", signer), private=True)
        return cls(path, signer)

    @classmethod
    def hand_over(cls, path: Path, old: Signer, new: Signer) -> Ledger:
        """Open the ledger at `path`, which `old` signs, and let `new` sign from here on.

        What was spent stays spent. To do it twice changes nothing. Raises LedgerError.
        """
        if cls(path).key != new.public.hex():
            ledger = cls(path, old)
            with _locked(path):
                ledger._load()
                ledger._write(key_line(ledger._head, _now(), old, new))
        return cls(path, new)

    @property
    def key(self) -> str:
        """The key that signs its lines, hex."""
        return self._chain.key

    @property
    def head(self) -> tuple[int, bytes]:
        """How many lines it has, and the last one's hash: what peers remember."""
        return len(self._chain.entries), bytes.fromhex(self._head)

    def charge(self, charge: Charge) -> None:
        """Enter `charge` durably; train only after this has returned.

        Raises BudgetExhausted (nothing is written) where the lifetime budget does not cover it,
        LedgerError where the attempt is not newer than the run's last one, the schedule has another
        unit, the file changed underneath, or it cannot be written.
        """
        if self._signer is None:
            raise LedgerError(f"{self.path}: was opened read-only")
        with _locked(self.path):
            self._load()
            self.check_new(charge.run, charge.attempt)
            mechanism = charge.schedule.mechanism
            if mechanism.private and mechanism.unit != self.unit:
                raise LedgerError(
                    f"{self.path}: counts per {self.unit} permanently, and the job per "
                    f"{mechanism.unit}; nothing was trained"
                )
            if mechanism.private:
                self.check_counted(charge.schedule)
            if mechanism.private and not self.covers(charge.schedule):
                raise BudgetExhausted(
                    f"the lifetime budget of epsilon {self.lifetime_epsilon:g} does not cover "
                    "this round; nothing was trained"
                )
            spent = charge.schedule.model_dump(mode="json", exclude_none=True)
            if Schedule.model_validate(spent) != charge.schedule:
                raise LedgerError(
                    f'the mechanism "{charge.schedule.mechanism.kind}" does not read back as it '
                    "was written: nothing was charged"
                )
            body = {
                "kind": "charge",
                "run": charge.run,
                "round": charge.round,
                "attempt": charge.attempt,
                "seeded": charge.seeded,
                **spent,
                "time": _now(),
            }
            self._write(signed_line(body, self._head, self._signer))
            self.charges += (charge,)

    def check_new(self, run: str, attempt: int) -> None:
        """Raise LedgerError where an attempt of `run` was charged that is not older."""
        if attempt <= self.last_attempt(run):
            raise LedgerError(
                f"{self.path}: attempt {attempt} of run {run} is not newer than the last one "
                "charged; each attempt is charged once"
            )

    def check_head(self, count: int, digest: bytes) -> None:
        """Raise LedgerError unless it still holds the head that somebody remembers."""
        self._chain.check_head(count, digest, self.path)

    @property
    def spent(self) -> float:
        """Epsilon so far, as it counts against the lifetime budget; infinite after a round without
        protection.
        """
        return self.spent_epsilon()

    def rounds_left(self, once: Schedule | Settings) -> int:
        """How many more rounds of a job, or a schedule, the filter has room for, to within one.

        Raises PrivacyError where the job's target cannot be met, or it is not private.
        """
        if not isinstance(once, Schedule):
            once = round_schedule(once)
        room = self._budget - self._filter.cost(self.schedules)
        cost = self._filter.cost([once])
        return max(0, int(room / cost * (1 + 1e-9))) if cost else sys.maxsize

    @property
    def schedules(self) -> tuple[Schedule, ...]:
        """The whole life's private steps, equal ones counted together."""
        return merged(c.schedule for c in self.charges if c.schedule.private)

    @property
    def unprotected(self) -> bool:
        """Whether this PC ever took part in a round without privacy, or with a test seed."""
        return any(not charge.schedule.private or charge.seeded for charge in self.charges)

    def spent_epsilon(self) -> float:
        """Epsilon so far by the privacy filter; infinite where `unprotected`."""
        if self.unprotected:
            return math.inf
        if not self.charges:
            return 0.0
        return self._filter.epsilon(self._filter.cost(self.schedules), self.delta)

    def best_epsilon(self) -> float:
        """Epsilon so far by Opacus' RDP accountant at its best order."""
        return math.inf if self.unprotected else epsilon_rdp(self.schedules, self.delta)

    def local_epsilon(self) -> float | None:
        """Epsilon so far, by RDP, against whoever read this PC's own updates in spite of secure
        aggregation. None where no noise was distributed: then `best_epsilon` holds there too.
        """
        if self.unprotected or not any(one.local != one for one in self.schedules):
            return None
        return local_epsilon(self.schedules, self.delta)

    def last_attempt(self, run: str) -> int:
        """The newest attempt charged for `run`, 0 before the first."""
        return max((c.attempt for c in self.charges if c.run == run), default=0)

    def attempts(self, run: str) -> int:
        """How many attempts of `run` were charged."""
        return sum(charge.run == run for charge in self.charges)

    def covers(self, schedule: Schedule) -> bool:
        """Whether the filter has room for `schedule` on top of all that was charged."""
        total = self._filter.cost(merged((*self.schedules, schedule)))
        return total <= self._budget  # False for NaN as well

    def check_counted(self, schedule: Schedule) -> None:
        """Raise BudgetExhausted where the filter cannot count `schedule` at all."""
        if fault := self._filter.fault(schedule):
            raise BudgetExhausted(
                f"the lifetime budget cannot cover this round: {fault}; nothing was trained"
            )

    @property
    def filter_kind(self) -> FilterKind:
        """The kind of its privacy filter, fixed for life."""
        return self._filter.kind

    @property
    def _budget(self) -> float:
        """In the filter's own unit."""
        return self._filter.budget(self.lifetime_epsilon, self.delta)

    def _load(self) -> None:
        try:
            content = bounds.read_bytes(self.path, bounds.MAX_LEDGER)
        except FileNotFoundError:
            raise LedgerError(f"{self.path}: no such ledger; enroll this PC first") from None
        except OSError as error:
            raise LedgerError(f"{self.path}: cannot be read ({error.strerror})") from None
        *lines, tail = content.split(b"\n")
        chain = check_chain(lines, self.path)
        if tail and is_whole(tail, self.path):
            chain = check_chain([*lines, tail], self.path)
        if tail and self._signer is not None:  # a reader changes nothing
            self._mend(tail, len(content))
        if self._signer is not None and chain.key != self._signer.public.hex():
            raise LedgerError(
                f"{self.path}: is signed by another key than this PC's; each PC has a ledger of "
                "its own, which must not be copied"
            )
        header, *rest = chain.entries
        try:
            self.unit, self.delta = str(header["unit"]), float(header["delta"])
            self.lifetime_epsilon = float(header["lifetime_epsilon"])
            kind = header["filter"]
            if not is_filter(kind) or self.unit not in NEIGHBOURS:
                raise LedgerError(f"{self.path}: written by a newer fedaipc; update this one")
            self._filter = filter_of(kind)
            _check_installed(rest)
            self.charges = tuple(_charge(entry) for entry in rest if entry["kind"] == "charge")
        except (KeyError, ValueError, TypeError):
            raise LedgerError(f"{self.path}: a line lacks what it must hold; {RESTORE}") from None
        self._take(chain)

    def _take(self, chain: Chain) -> None:
        self._chain, self._head = chain, chain.entries[-1]["hash"]

    def _write(self, line: bytes) -> None:
        """Durably; the caller holds the lock."""
        with os_errors_as(
            LedgerError, f"{self.path}: the charge cannot be written", "; nothing was trained"
        ):
            append_durable(self.path, line)
        entry = strict_json.parse(line)
        own = (entry["key"],) if "key" in entry else ()
        self._take(Chain((*self._chain.entries, entry), (*self._chain.keys, *own)))

    def _mend(self, tail: bytes, size: int) -> None:
        """End a last line that has no end, or drop half of one (`chain.is_whole`)."""
        with os_errors_as(LedgerError, f"{self.path}: cannot be mended"):
            if parsed(tail) is not None:
                append_durable(self.path, b"\n")
            else:
                with self.path.open("r+b") as file:
                    file.truncate(size - len(tail))
                    os.fsync(file.fileno())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    if not path.parent.is_dir():
        raise LedgerError(f"{path}: no such ledger; enroll this PC first")
    try:
        with FileLock(f"{path}.lock", timeout=_LOCK_SECONDS):
            yield
    except Timeout:
        raise LedgerError(f"{path}: another process holds the ledger") from None
    except OSError as error:
        raise LedgerError(f"{path}: cannot be locked ({error.strerror})") from None


def _check_installed(entries: Iterable[dict[str, Any]]) -> None:
    """Raise LedgerError where a charge is of a mechanism that nobody here can account for."""
    for entry in entries:
        mechanism = entry["mechanism"] if entry["kind"] == "charge" else None
        if fault := kind_fault(Privacy, mechanism):
            raise LedgerError(f"a charge is of the mechanism {fault}")


def _charge(entry: dict[str, Any]) -> Charge:
    schedule = {"mechanism": entry["mechanism"], "steps": entry["steps"]}
    return Charge(
        run=entry["run"],
        round=entry["round"],
        attempt=entry["attempt"],
        schedule=Schedule.model_validate(schedule),
        seeded=entry["seeded"],
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
