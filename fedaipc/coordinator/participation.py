"""Who is asked in an attempt, who is left out and why, and how often each PC was charged.

One PC must not cost the others. So every PC is asked whether it takes part before anybody is
charged; who refuses for good is not asked again; and who made attempts void by falling silent is
left out for a while that doubles each time; where the others do not suffice, the run waits.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from fedaipc.errors import BudgetExhausted, RoundError, RunOver
from fedaipc.federation.messages import EXHAUSTED, REFUSED

if TYPE_CHECKING:
    from collections.abc import Collection

    from fedaipc.coordinator.checkpoint import Checkpoint
    from fedaipc.coordinator.membership import Membership
    from fedaipc.federation.messages import Readiness

_REST, _LONGEST_REST = 300.0, 6 * 3600.0  # s, after the first void attempt, and at most
_MOST_NAMED = 5
_log = logging.getLogger(__name__)


class Participation:
    """Over one run of the coordinator; what must outlive it is in the checkpoint."""

    def __init__(self, membership: Membership, kept: Checkpoint) -> None:
        self._membership, self._kept = membership, kept
        self._exhausted: set[bytes] = set()
        self._refused: set[bytes] = set()
        self._not_now: dict[bytes, str] = {}  # in the attempt at hand, and why

    def begin(self, attempt: int, everybody: Collection[bytes]) -> None:
        """Before attempt number `attempt`. One that a crash cut off may have charged any PC."""
        kept = self._kept
        if cut_off := attempt - 1 - kept.attempt:
            kept.charges = {pc: kept.charges.get(pc, 0) + cut_off for pc in everybody}
            kept.attempt = attempt - 1
        self._not_now.clear()

    def candidates(self) -> list[set[bytes]]:
        """Whom to ask, best choice first: without PCs that rest, then with those that failed once.

        A second chance at once costs the others one attempt at most, and a PC that was only away
        for a moment nothing.
        """
        out = self._exhausted | self._refused | self._kept.banned | self._not_now.keys()
        there = self._membership.present() - out
        resting = {pc: n for pc, (n, until) in self._kept.failures.items() if until > time.time()}
        return [there - resting.keys(), there - {pc for pc, count in resting.items() if count > 1}]

    def hear(self, pc: bytes, said: Readiness, attempt: int) -> bool:
        """What a PC answers before it is charged in `attempt`; whether it takes part."""
        if said.charged is not None:  # the ledger knows best
            self._kept.charges[pc] = min(said.charged, attempt - 1)
        if said.refusal is not None:
            self.refuse(pc, said.refusal)
        return said.refusal is None

    def refuse(self, pc: bytes, word: str) -> None:
        """A PC declines: for good but for `UNABLE`."""
        _log.warning("%s does not take part (%s); its own log says why", self._name(pc), word)
        self._not_now[pc] = "is not able to now, as its log says"
        if word == EXHAUSTED:
            self._exhausted.add(pc)
        elif word == REFUSED:
            self._refused.add(pc)

    def miss(self, pcs: Collection[bytes]) -> None:
        """These did not say whether they take part."""
        self._not_now |= dict.fromkeys(pcs, "did not answer")

    def charge(self, pcs: Collection[bytes], attempt: int) -> None:
        """Attempt number `attempt` charges `pcs` from now on."""
        self._kept.attempt = attempt
        for pc in pcs:
            self._kept.charges[pc] = self._kept.charges.get(pc, 0) + 1

    def settle(
        self,
        *,
        declined: Collection[bytes],
        silent: Collection[bytes],
        served: Collection[bytes],
        void: bool,
    ) -> None:
        """After an attempt: who declined was not charged; `silent` PCs did not do their part."""
        for pc in declined:
            self._kept.charges[pc] -= 1
        failures = self._kept.failures
        for pc in served:
            failures.pop(pc, None)
        for pc in silent if void else ():
            count = failures.get(pc, (0, 0.0))[0] + 1
            rest = min(_LONGEST_REST, _REST * 2.0 ** (count - 1))
            failures[pc] = count, time.time() + rest
            _log.warning("%s fell silent in %d void attempts in a row", self._name(pc), count)

    @property
    def charged(self) -> int:
        """Most attempts of the run that any PC was charged for."""
        return max(self._kept.charges.values(), default=0)

    def too_few(self, reason: str) -> RoundError | BudgetExhausted:
        """What to raise where no sum could be unmasked: nobody was charged for finding out."""
        members = self._membership.members
        if members and self._refused >= members.keys():
            return RunOver(
                "every PC refuses this job: it breaks its owner's rules or is not for this PC's "
                "model; each PC's own log says why"
            )
        if self._exhausted:
            able = len(members.keys() - self._exhausted)
            return BudgetExhausted(
                f"{able} of {len(members)} PCs can afford another round at this noise: "
                "the lifetime budgets of the others are spent; the last checkpoint stands"
            )
        if not members:
            return RoundError("no PC can take part: start at least one, and look into its log")
        return RoundError(
            f"too few PCs take part, and none was charged: {reason}{self._who()}; start more, or "
            "mend it there, and go on with --resume"
        )

    def _who(self) -> str:
        """Those that are there and left out, by name."""
        now, failures = time.time(), self._kept.failures
        why = dict.fromkeys(self._kept.banned, "was proved wrong")
        for pc, (count, until) in failures.items():
            if until > now:
                back = datetime.fromtimestamp(until, UTC)
                times = f"{count} void attempts" if count > 1 else "a void attempt"
                why[pc] = f"fell silent in {times} and rests until {back:%H:%M} UTC"
        why |= self._not_now
        why |= dict.fromkeys(self._refused, "refuses the job, as its log says")
        lines = sorted(
            f"{self._name(pc)} {reason}"
            for pc, reason in why.items()
            if pc in self._membership.members
        )
        if len(lines) > _MOST_NAMED:
            lines = [*lines[:_MOST_NAMED], f"{len(lines) - _MOST_NAMED} more"]
        return "".join(f"; {line}" for line in lines)

    def _name(self, pc: bytes) -> str:
        member = self._membership.members.get(pc)
        return pc.hex()[:16] if member is None else member.name
