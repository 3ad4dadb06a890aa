"""The coordinator's side of a run. `_round` reads as a round goes.

It talks to PCs through Flower's public `Grid`, so it is the same in this process, on Flower's
simulation runtime and over real PCs. Of sealed updates it sees the sum alone.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedaipc.coordinator.checkpoint import Checkpoint, next_attempt
from fedaipc.coordinator.exchange import Exchange
from fedaipc.coordinator.membership import Membership
from fedaipc.coordinator.quarrels import to_leave_out
from fedaipc.coordinator.server_optimizer import ServerOptimizer
from fedaipc.coordinator.sums import OpenSum, SealedSum
from fedaipc.errors import BudgetExhausted, EncodingError, RoundError, RunOver, SealingError
from fedaipc.federation.messages import (
    EXHAUSTED,
    MASK,
    MaskRequest,
    decode_update,
)
from fedaipc.federation.round_terms import hash_vector, make_terms
from fedaipc.privacy.plan import charged_epsilon, filter_order
from fedaipc.results import RoundResult, Traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from flwr.app import RecordDict
    from flwr.serverapp import Grid

    from fedaipc.config import Settings
    from fedaipc.coordinator.evaluation import Evaluation
    from fedaipc.federation.job import SignedJob
    from fedaipc.sealing.roster import Roster
    from fedaipc.sealing.terms import Terms

_UPLOADS = "uploads"
_BESIDE_VECTOR = 2**20  # bytes of an answer beside 32 bits a value: header, shares
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Tally:
    """What became of the PCs that one round asked, by identity."""

    asked: set[bytes]
    declined: set[bytes] = field(default_factory=set)
    exhausted: set[bytes] = field(default_factory=set)
    arrived: set[bytes] = field(default_factory=set)
    why_void: str | None = None
    blamed: tuple[str, ...] = ()

    @property
    def dropped(self) -> int:
        return len(self.asked - self.arrived - self.declined)


class Coordinator:
    """Runs the rounds that are left, from `checkpoint` on."""

    def __init__(
        self,
        *,
        folder: Path,
        settings: Settings,
        job: SignedJob,
        roster: Roster,
        checkpoint: Checkpoint,
        validation: Evaluation,
        claims_epsilon: bool,
        on_round: Callable[[RoundResult], None],
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._federation = settings.federation
        self._signed, self._job = job, job.job
        self._roster = roster
        self._checkpoint = checkpoint
        self._validation = validation
        self._claims_epsilon = claims_epsilon
        self._on_round = on_round
        self._optimizer = ServerOptimizer(settings.federation, checkpoint.optimizer)
        self._exchange: Exchange
        self._membership = Membership(settings.federation, self._job, roster)
        self._exhausted: set[bytes] = set()
        self._attempt = 0
        # As a PC chooses it that makes its ledger for this job.
        self._order = filter_order(
            self._job.plan, self._job.rounds, settings.privacy.lifetime_epsilon
        )

    def run(self, grid: Grid) -> Checkpoint:
        """Run to the last planned round; the checkpoint that is left.

        Raises BudgetExhausted where too few PCs can afford another round, RoundError where too few
        are there or too many attempts were void, OutputError where a file cannot be written.
        """
        self._exchange = Exchange(grid)
        self._exchange.allow_answers(4 * len(self._checkpoint.vector) + _BESIDE_VECTOR)
        while self._checkpoint.round < self._job.rounds:
            self._round()
        return self._checkpoint

    def _round(self) -> None:
        started = time.monotonic()
        self._exchange.reset()
        number = self._checkpoint.round + 1
        # 1. A new attempt number, on the disk before anything is sent.
        attempt = self._attempt = next_attempt(self._folder)
        if attempt > self._job.most_attempts:
            raise RunOver(
                f"round {number} is void once more and the job allows only "
                f"{self._job.most_attempts} attempts; ask for fewer PCs in federation.min_pcs"
            )
        # 2. Keys of PCs that have none in this epoch; then who takes part, by the public draw.
        self._membership.refresh(self._exchange, attempt)
        groups = self._groups(attempt)
        ready = time.monotonic()
        # 3. Send the job and the global vector; add up the updates as they arrive.
        total = (
            OpenSum(groups)
            if self._job.sealing.mode == "none"
            else SealedSum(groups, self._folder / _UPLOADS)
        )
        tally = _Tally({pc for terms in groups for pc in terms.participants})
        self._collect(groups, number, total, tally)
        collected = time.monotonic()
        self._exhausted |= tally.exhausted
        if tally.declined == tally.asked and not tally.exhausted:
            raise RunOver(
                "every PC refuses this job: it breaks its owner's rules or is not for this PC's "
                "model; each PC's own log says why"
            )
        # 4. Open the sum: members agree on the updates, then release the shares of the masks.
        self._open(total, tally)
        opened = time.monotonic()
        # 5. Too few: the round is void and the model stays as it was. Else move the model.
        if tally.why_void is None:
            mean = total.mean()
            del total  # a vector that nothing needs from here on
            self._checkpoint.vector = self._optimizer.step(self._checkpoint.vector, mean)
            self._checkpoint.round = number
            del mean
        aggregated = time.monotonic()
        # 6. Evaluate on the public validation set.
        last = number == self._job.rounds
        due = tally.why_void is None and (last or number % self._settings.evaluation.every == 0)
        validation = self._validation.score(self._checkpoint.vector)[0] if due else None
        evaluated = time.monotonic()
        # 7. Write the checkpoint in one step, then tell.
        result = RoundResult(
            round=number,
            attempt=attempt,
            void=tally.why_void is not None,
            why_void=tally.why_void,
            blamed=tally.blamed,
            seconds=evaluated - started,
            phases={
                "setup": ready - started,
                "exchange": collected - ready,
                "open": opened - collected,
                "aggregate": aggregated - opened,
                "evaluate": evaluated - aggregated,
            },
            asked=len(tally.asked),
            arrived=len(tally.arrived),
            declined=len(tally.declined),
            dropped=tally.dropped,
            bytes_down=self._exchange.bytes_down.total(),
            bytes_up=self._exchange.bytes_up.total(),
            traffic={
                stage.partition(".")[2]: Traffic(
                    down=self._exchange.bytes_down[stage], up=self._exchange.bytes_up[stage]
                )
                for stage in self._exchange.bytes_down
            },
            epsilon=self._epsilon(charged=tally.declined < tally.asked),
            validation=validation,
        )
        self._checkpoint.rounds.append(result)
        self._checkpoint.save(self._folder)
        self._on_round(result)

    def _groups(self, attempt: int) -> list[Terms]:
        """The groups that can take part. Raises BudgetExhausted or RoundError where none can."""
        members = self._membership.members
        there = self._membership.present() - self._exhausted - self._checkpoint.banned
        vector = self._checkpoint.vector
        vector_hash, found, reasons = hash_vector(vector), [], []
        for group in self._roster.groups(attempt, self._job.cohort):
            bundles = [members[pc].bundle for pc in group if pc in there]
            try:
                terms = make_terms(
                    self._signed, self._roster, attempt, group, bundles, vector_hash, len(vector)
                )
                terms.check(self._roster, group, time.time())  # as each PC will
                found.append(terms)
            except SealingError as error:
                reasons.append(str(error))
        asked = sum(len(terms.participants) for terms in found)
        if asked and asked >= self._federation.min_pcs:
            return found
        if self._exhausted:
            raise BudgetExhausted(
                f"{len(there)} of {len(members)} PCs can afford another round at this noise: "
                "the lifetime budgets of the others are spent; the last checkpoint stands"
            )
        if not members:
            raise RoundError("no PC can take part: start at least one, and look into its log")
        raise RoundError(
            f"too few PCs are there: {reasons[0] if reasons else f'{asked} of the cohort'}; start "
            "more and go on with --resume"
        )

    def _collect(self, groups: list[Terms], number: int, total: OpenSum, tally: _Tally) -> None:
        def requests() -> Iterator[tuple[bytes, RecordDict]]:
            for terms in groups:  # one group's request at a time: it holds the whole vector
                request = MaskRequest(
                    job=self._signed.text,
                    signature=self._signed.signature,
                    round=number,
                    terms=terms.encode(),
                    vector=self._checkpoint.vector,
                ).encode()
                yield from ((pc, request) for pc in terms.participants)

        for sender, reply in self._ask(MASK, requests(), self._federation.round_timeout):
            try:
                _count(sender, reply, total, tally)
            except (EncodingError, SealingError) as error:
                # Counted as dropped: a broken upload costs itself alone.
                _log.warning("%s: %s", self._membership.members[sender].name, error)
            del reply  # before the next one comes: each holds a vector

    def _open(self, total: OpenSum, tally: _Tally) -> None:
        def ask(
            stage: str, requests: Iterable[tuple[bytes, RecordDict]]
        ) -> Iterator[tuple[bytes, RecordDict]]:
            return self._ask(stage, requests, self._federation.stage_timeout)

        total.finish(ask)
        for reason in total.reasons:
            _log.warning("a group's sum is not opened: %s", reason)
        tally.arrived = total.inside
        kept = self._checkpoint
        kept.quarrels |= total.quarrels
        kept.banned |= total.blamed | to_leave_out(kept.quarrels)
        tally.blamed = tuple(sorted(self._membership.members[pc].name for pc in total.blamed))
        if len(tally.arrived) < max(1, self._federation.min_pcs):
            least = self._federation.min_pcs
            tally.why_void = "; ".join(total.reasons) or (
                f"{len(tally.arrived)} updates; federation.min_pcs = {least}"
            )

    def _ask(
        self, stage: str, requests: Iterable[tuple[bytes, RecordDict]], timeout: float
    ) -> Iterator[tuple[bytes, RecordDict]]:
        """As the exchange does, by identity."""
        members = self._membership.members
        asked: dict[int, bytes] = {}

        def by_node() -> Iterator[tuple[int, RecordDict]]:
            for pc, request in requests:
                asked[members[pc].node] = pc
                yield members[pc].node, request

        for node, reply in self._exchange.ask(stage, by_node(), timeout):
            yield asked[node], reply
            del reply

    def _epsilon(self, *, charged: bool) -> float | None:
        """What a PC that took part in every attempt so far has spent in this run.

        Attempts that a crash cut off are counted too: their number is in the newest attempt.
        """
        if not self._claims_epsilon:
            return None
        declined = sum(r.declined == r.asked for r in self._checkpoint.rounds)
        attempts = self._attempt - declined - (not charged)
        return charged_epsilon(self._job.plan, attempts, self._order) if attempts else 0.0


def _count(sender: bytes, reply: RecordDict, total: OpenSum, tally: _Tally) -> None:
    """Add an answer to the sum, or to those who declined. Raises EncodingError or SealingError."""
    answer = decode_update(reply)
    if isinstance(answer, str):
        tally.declined.add(sender)
        if answer == EXHAUSTED:
            tally.exhausted.add(sender)
    else:
        total.accept(sender, answer)
