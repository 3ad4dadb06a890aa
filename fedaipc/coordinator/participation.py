"""Who is asked in an attempt, who is left out and why, and how often each PC was charged.

The others must not pay for one PC. So every PC is asked whether it takes part before anybody is
charged, and a PC that refuses permanently is not asked again. A PC that did not do its part in
void attempts is left out for a while, which doubles each time. If the others are too few, the
run waits.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from fedaipc.errors import BudgetExhausted, RoundError, RunOver
from fedaipc.protocol.messages import EXHAUSTED, REFUSED

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from fedaipc.coordinator.checkpoint import Checkpoint
    from fedaipc.coordinator.membership import Membership
    from fedaipc.protocol.messages import Readiness

# s, after the first void attempt (or as long as that took), and at most
_REST, _LONGEST_REST = 300.0, 24 * 3600.0
_MAX_NAMED = 5
_log = logging.getLogger(__name__)


class Participation:
    """Over one run of the coordinator; what must outlive it is in the checkpoint.

    `everybody` are all members of the federation; `enough` says of a set of PCs whether a sum could
    be unmasked if all of them took part. `names` are those of all members, in a fleet.
    """

    def __init__(
        self,
        membership: Membership,
        kept: Checkpoint,
        everybody: Collection[bytes],
        enough: Callable[[Collection[bytes]], bool],
        names: Collection[str] | None,
    ) -> None:
        self._membership, self._kept, self._names = membership, kept, names
        self._everybody, self._enough = set(everybody), enough
        self._exhausted: set[bytes] = set()
        self._refused: set[bytes] = set()
        self._not_now: dict[bytes, str] = {}  # in the current attempt, and why
        self._missed: dict[bytes, tuple[int, float]] = {}  # as `Checkpoint.failures`

    def begin(self, attempt: int) -> None:
        """Before attempt number `attempt`. One that a crash cut off may have charged any PC."""
        kept = self._kept
        cut_off = attempt - 1 - kept.attempt
        if cut_off > 0:
            kept.charges = {pc: kept.charges.get(pc, 0) + cut_off for pc in self._everybody}
            kept.attempt = attempt - 1
        self._not_now.clear()

    def skip(self, attempt: int) -> None:
        """Attempt number `attempt` was drawn and charged nobody."""
        self._kept.attempt = attempt

    def candidates(self) -> list[set[bytes]]:
        """Whom to ask, best choice first: without PCs that rest, then with those that failed once.

        A second chance at once costs the others one attempt at most, and a PC that was only away
        for a moment nothing.
        """
        out = self._exhausted | self._refused | self._kept.banned | self._not_now.keys()
        there, now = self._membership.present() - out, time.time()
        rests = [*self._kept.failures.items(), *self._missed.items()]
        resting = {pc for pc, (_, until) in rests if until > now}
        again = {pc for pc, (count, until) in rests if until > now and count > 1}
        return [there - resting, there - again]

    def hear(self, pc: bytes, said: Readiness, attempt: int) -> bool:
        """What a PC answers before it is charged in `attempt`; whether it takes part."""
        self._missed.pop(pc, None)
        if said.charged is not None:  # the ledger knows best
            self._kept.charges[pc] = min(said.charged, attempt - 1)
        if said.refusal is not None:
            self.refuse(pc, said.refusal)
        return said.refusal is None

    def refuse(self, pc: bytes, word: str) -> None:
        """A PC declines: permanently, except for `UNABLE`."""
        _log.warning("%s does not take part (%s); its own log says why", self.name(pc), word)
        self._not_now[pc] = "cannot take part now; its log says why"
        if word == EXHAUSTED:
            self._exhausted.add(pc)
        elif word == REFUSED:
            self._refused.add(pc)

    def miss(self, pcs: Collection[bytes], seconds: float) -> None:
        """These did not say whether they take part, and others had to wait `seconds` for them.

        One that is away and costs nobody anything is asked again in the next attempt.
        """
        self._not_now |= dict.fromkeys(pcs, "did not answer")
        if seconds:
            _let_rest(self._missed, pcs, seconds)

    def charge(self, pcs: Collection[bytes], attempt: int) -> None:
        """Attempt number `attempt` charges `pcs` from now on."""
        self._kept.attempt = attempt
        for pc in pcs:
            self._kept.charges[pc] = self._kept.charges.get(pc, 0) + 1

    def release(self, declined: Collection[bytes]) -> None:
        """A PC that declined after it got the model was not charged."""
        for pc in declined:
            self._kept.charges[pc] -= 1

    def serve(self, pcs: Collection[bytes]) -> None:
        """`pcs` did their part in an attempt that was not void: they need not rest any more.

        How often they failed is not forgotten: else a PC could make every other attempt void.
        """
        failures = self._kept.failures
        for pc in failures.keys() & set(pcs):
            failures[pc] = failures[pc][0], 0.0

    def fail(self, pcs: Collection[bytes], seconds: float) -> None:
        """An attempt of `seconds` was void, and `pcs` did not do their part in it."""
        _let_rest(self._kept.failures, pcs, seconds)
        for pc in pcs:
            count = self._kept.failures[pc][0]
            _log.warning("%s did not do its part in %s", self.name(pc), _attempts(count))

    @property
    def charged(self) -> int:
        """Most attempts of the run that any PC was charged for."""
        return max(self._kept.charges.values(), default=0)

    def too_few(self, reason: str) -> RoundError | BudgetExhausted:
        """What to raise where no sum could be unmasked: nobody was charged for finding out."""
        in_fleet = self._names is not None
        if self._refused >= self._everybody:
            return RunOver(
                "every PC refuses this job: it breaks its owner's rules or is not for this PC's "
                "model; each PC's own log says why"
            )
        able = self._everybody - self._exhausted
        if self._exhausted and not self._enough(able):
            return BudgetExhausted(
                f"{len(able)} of {len(self._everybody)} PCs can afford another round at this "
                "noise: the lifetime budgets of the others (federation.lifetime_epsilon) are "
                "spent; the last checkpoint stands"
            )
        if not self._membership.members and not in_fleet:
            return RoundError("no PC can take part: start at least one, and look into its log")
        remedy = (
            "it goes on by itself when more do"
            if in_fleet
            else "solve what their logs name, and continue with --resume"
        )
        return RoundError(
            f"too few PCs take part, and none was charged: {reason}{self._away()}{self._who()}; "
            f"{remedy}"
        )

    def _away(self) -> str:
        """Those that have not answered since the keys were last asked for, by name."""
        there = {member.name for member in self._membership.members.values()}
        away = _first(sorted(set(self._names or ()) - there))
        return f"; not there: {', '.join(away)}" if away else ""

    def _who(self) -> str:
        """Those that are there and left out, by name."""
        now, failures = time.time(), self._kept.failures
        why: dict[bytes, str] = {}
        for pc, (count, until) in failures.items():
            if until > now:
                why[pc] = f"did not do its part in {_attempts(count)} and {_rests(until)}"
        for pc, (count, until) in self._missed.items():
            if until > now and count > 1:
                why.setdefault(pc, f"did not answer {count} times and {_rests(until)}")
        why |= dict.fromkeys(self._membership.late(), "has keys that end soon")
        why |= self._not_now
        why |= dict.fromkeys(self._exhausted, "has spent its budget")
        why |= dict.fromkeys(self._refused, "refuses the job; its log says why")
        why |= dict.fromkeys(
            self._kept.banned,
            "was proved wrong and is left out of this run (if it is waited for, revoke it, then "
            "stop and resume the run)",
        )
        lines = sorted(
            f"{self.name(pc)} {reason}"
            for pc, reason in why.items()
            if pc in self._membership.members
        )
        return "".join(f"; {line}" for line in _first(lines))

    def name(self, pc: bytes) -> str:
        """For people: its public name, or the beginning of its key where that is not known."""
        member = self._membership.members.get(pc)
        return pc.hex()[:16] if member is None else member.name


def _let_rest(
    rests: dict[bytes, tuple[int, float]], pcs: Collection[bytes], seconds: float
) -> None:
    """Each time twice as long as the last; at least as long as what `pcs` spoilt had taken."""
    for pc in pcs:
        count = rests.get(pc, (0, 0.0))[0] + 1
        # No more doublings than it takes to reach the longest rest.
        rest = min(_LONGEST_REST, max(_REST, seconds) * 2.0 ** min(count - 1, 20))
        rests[pc] = count, time.time() + rest


def _attempts(count: int) -> str:
    return f"{count} void attempts" if count > 1 else "a void attempt"


def _rests(until: float) -> str:
    return f"rests until {datetime.fromtimestamp(until, UTC):%H:%M} UTC"


def _first(lines: list[str]) -> list[str]:
    """As many as fit into one line for people."""
    more = len(lines) - _MAX_NAMED
    return [*lines[:_MAX_NAMED], f"{more} more"] if more > 0 else lines
