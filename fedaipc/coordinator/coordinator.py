"""The coordinator's side of a run. `_round` reads as a round goes.

It talks to PCs through Flower's public `Grid`, so it is the same in this process, on Flower's
simulation runtime and over real PCs. Of sealed updates it sees the sum alone.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fedaipc.config import DPSGD, SecAgg
from fedaipc.coordinator.aggregation import MaskedSum, PlainSum
from fedaipc.coordinator.checkpoint import Checkpoint, Counters
from fedaipc.coordinator.disputes import to_leave_out
from fedaipc.coordinator.exchange import Exchange
from fedaipc.coordinator.membership import Membership
from fedaipc.coordinator.participation import Participation
from fedaipc.coordinator.readiness import Gathering
from fedaipc.coordinator.upload_store import UploadStore
from fedaipc.errors import EncodingError, RunOver, SecAggError
from fedaipc.privacy.budget import best_filter, charged_epsilon
from fedaipc.protocol.messages import (
    MASK,
    UNABLE,
    MaskRequest,
    decode_update,
)
from fedaipc.protocol.round_terms import colluding_members, hash_vector, job_thresholds, make_terms
from fedaipc.results import RoundResult, Traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from pathlib import Path

    import numpy.typing as npt
    from flwr.app import RecordDict
    from flwr.serverapp import Grid

    from fedaipc.config import Settings
    from fedaipc.coordinator.evaluation import Evaluation
    from fedaipc.protocol.job import SignedJob
    from fedaipc.secagg.roster import Roster
    from fedaipc.secagg.round_keys import Group
    from fedaipc.secagg.terms import Terms

_UPLOADS = "uploads"
_BESIDE_VECTOR = 2**20  # bytes of an answer beside 32 bits a value: header, shares
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Outcome:
    """What happened to the PCs of one attempt, by identity.

    `asked` whether they take part; `charged` those that said so and got the model; `uploaded` those
    whose upload came, `arrived` those whose update is in the sum; `silent` fell silent on the way.
    `unsure` declined with the model in hand, and the charge may be in their ledgers all the same.
    """

    asked: set[bytes] = field(default_factory=set)
    charged: set[bytes] = field(default_factory=set)
    declined: set[bytes] = field(default_factory=set)
    uploaded: set[bytes] = field(default_factory=set)
    arrived: set[bytes] = field(default_factory=set)
    silent: set[bytes] = field(default_factory=set)
    unsure: set[bytes] = field(default_factory=set)
    why_void: str | None = None
    blamed: tuple[str, ...] = ()

    @property
    def dropped(self) -> int:
        return len(self.asked - self.arrived - self.declined)


class Coordinator:
    """Runs the rounds that are left, from `checkpoint` on. `names`: of all members, in a fleet."""

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
        names: Collection[str] | None = None,
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
        self._exchange: Exchange
        self._membership = Membership(settings.federation, self._job, roster)
        self._participation = Participation(
            self._membership, checkpoint, roster.members, self._enough, names
        )
        self._counters = Counters(folder)
        secagg = self._job.aggregation
        members = len(roster.members)
        self._colluding = colluding_members(secagg, members) if isinstance(secagg, SecAgg) else 0
        self._tried: set[bytes] = set()  # those that had the time to try out what is asked
        # As a PC chooses it that makes its ledger for this job.
        self._filter = best_filter(
            self._job.schedule, self._job.rounds, settings.federation.lifetime_epsilon
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
        attempt = max(self._counters.attempt, self._checkpoint.attempt) + 1
        if attempt > self._job.max_attempts:
            raise RunOver(
                f"round {number} is void, and the job allows no more than "
                f"{self._job.max_attempts} attempts; mend what made them void, then sign a job "
                "with more federation.spare_attempts, or start a new simulation"
            )
        # 1. Keys of PCs that have none in this epoch; then who takes part, by the public draw.
        self._membership.refresh(self._exchange, attempt, self._counters)
        self._participation.begin(attempt)
        outcome = _Outcome()
        # 2. Ask them whether they do. Nobody is charged before a sum of them can be unmasked.
        store = UploadStore(self._folder / _UPLOADS)
        try:
            groups = self._ready_groups(attempt, number, store, outcome)
        except BaseException:
            store.remove()
            raise
        ready = time.monotonic()
        # 3. The attempt's number on the disk; then the global vector: who gets it is charged.
        self._counters.advance(attempt=attempt)
        self._participation.charge(outcome.charged, attempt)
        if self._job.aggregation.kind == "plain":
            store.remove()
            total = PlainSum(groups)
        else:
            total = MaskedSum(groups, store, self._participation.name)
        self._collect(groups, number, total, outcome)
        collected = time.monotonic()
        # 4. Unmask the sum: members agree on the updates, then release the shares of the masks.
        self._unmask(total, outcome)
        unmasked = time.monotonic()
        # 5. Too few: the round is void and the model stays as it was. Else move the model.
        if outcome.why_void is None:
            mean = self._as_update(total.mean())
            del total  # this vector is no longer needed
            self._checkpoint.vector = self._settings.server.step(
                self._checkpoint.vector, mean, self._checkpoint.optimizer
            )
            self._checkpoint.round = number
            del mean
        aggregated = time.monotonic()
        # 6. Evaluate on the public validation set.
        last = number == self._job.rounds
        due = outcome.why_void is None and (last or number % self._settings.evaluation.every == 0)
        validation = self._validation.score(self._checkpoint.vector)[0] if due else None
        evaluated = time.monotonic()
        # 7. Write the checkpoint in one step, then tell.
        broke = outcome.declined & outcome.charged  # after it had said that it takes part
        self._participation.release(broke - outcome.unsure)
        if outcome.why_void is None:
            self._participation.serve(outcome.charged - outcome.silent - broke)
        elif not self._federation.dropout_rate:  # not where a simulation makes it so
            self._participation.fail(outcome.silent | broke, evaluated - ready)
        result = RoundResult(
            round=number,
            attempt=attempt,
            void=outcome.why_void is not None,
            why_void=outcome.why_void,
            blamed=outcome.blamed,
            seconds=evaluated - started,
            phases={
                "setup": ready - started,
                "exchange": collected - ready,
                "unmask": unmasked - collected,
                "aggregate": aggregated - unmasked,
                "evaluate": evaluated - aggregated,
            },
            asked=len(outcome.asked),
            arrived=len(outcome.arrived),
            declined=len(outcome.declined),
            dropped=outcome.dropped,
            bytes_down=self._exchange.bytes_down.total(),
            bytes_up=self._exchange.bytes_up.total(),
            traffic={
                stage.partition(".")[2]: Traffic(
                    down=self._exchange.bytes_down[stage], up=self._exchange.bytes_up[stage]
                )
                for stage in self._exchange.bytes_down
            },
            charged=self._participation.charged,
            epsilon=self._epsilon(),
            validation=validation,
        )
        self._checkpoint.rounds.append(result)
        self._checkpoint.save(self._folder)
        self._on_round(result)

    def _ready_groups(
        self, attempt: int, number: int, store: UploadStore, outcome: _Outcome
    ) -> list[Group]:
        """Groups of PCs that all said that they take part, with their round keys.

        Raises as `Participation.too_few`.
        """
        gathering = Gathering(self._signed, self._membership, self._participation, store, self._ask)

        def patience(pcs: set[bytes]) -> float:
            # For the first time a PC tries out whether its machine can do the job.
            first = not pcs <= self._tried
            self._tried |= pcs
            return self._federation.round_timeout if first else self._federation.stage_timeout

        found = gathering.run(
            lambda: self._groups(attempt), self._federation.min_clients, patience, attempt, number
        )
        outcome.asked, outcome.charged = found.asked, found.there
        outcome.declined |= found.declined
        return found.groups

    def _groups(self, attempt: int) -> list[Terms]:
        """The groups that can take part. Raises as `Participation.too_few` where no group can."""
        reason = ""
        for there in self._participation.candidates():
            found, reasons = self._formed(attempt, there)
            asked = sum(len(terms.participants) for terms in found)
            if asked and asked >= self._federation.min_clients:
                return found
            least = f"{asked}, and federation.min_clients = {self._federation.min_clients}"
            reason = reasons[0] if reasons else least
        if self._may_skip(attempt):  # the next attempt draws others
            self._counters.advance(attempt=attempt)
            self._participation.skip(attempt)
            self._checkpoint.save(self._folder)
        raise self._participation.too_few(reason)

    def _may_skip(self, attempt: int) -> bool:
        """Whether another draw could do, and half of the spare attempts are left for void ones."""
        job = self._job
        spare = job.max_attempts - attempt - (job.rounds - self._checkpoint.round)
        there = self._participation.candidates()[0]
        return (
            job.cohort < len(self._roster.members)
            and 2 * spare >= job.max_attempts - job.rounds
            and self._enough(there)
        )

    def _enough(self, pcs: Collection[bytes]) -> bool:
        """Whether a sum could be unmasked if all of `pcs` took part, by some draw of the cohort."""
        members, cohort = len(self._roster.members), self._job.cohort
        if not pcs or min(len(pcs), cohort) < self._federation.min_clients:
            return False
        for group in self._roster.groups(1, cohort):
            count = min(len(group), len(pcs))
            if cohort == members:
                count = len(set(pcs).intersection(group))
            with suppress(SecAggError):
                job_thresholds(self._job, members, len(group), count)
                return True
        return False

    def _formed(self, attempt: int, there: set[bytes]) -> tuple[list[Terms], list[str]]:
        """The groups of those that are `there`, and why the others cannot be."""
        members, vector = self._membership.members, self._checkpoint.vector
        vector_hash, found, reasons = hash_vector(vector), [], []
        everybody = len(self._roster.members)
        for group in self._roster.groups(attempt, self._job.cohort):
            bundles = [members[pc].bundle for pc in group if pc in there]
            try:
                least = job_thresholds(self._job, everybody, len(group), len(group)).least
                if len(bundles) < least:
                    drawn = "" if len(group) == everybody else " that were drawn"
                    reasons.append(f"{len(bundles)} of {len(group)}{drawn}, and {least} are needed")
                    continue
                terms = make_terms(
                    self._signed, self._roster, attempt, group, bundles, vector_hash, len(vector)
                )
                terms.check(self._roster, group, time.time())  # as each PC will
                found.append(terms)
            except SecAggError as error:
                reasons.append(str(error))
        return found, reasons

    def _collect(
        self, groups: list[Group], number: int, total: PlainSum, outcome: _Outcome
    ) -> None:
        def requests() -> Iterator[tuple[bytes, RecordDict]]:
            for group in groups:  # one group's request at a time: it holds the whole vector
                request = MaskRequest(
                    job=self._signed.text,
                    signature=self._signed.signature,
                    round=number,
                    terms=group.terms.encode(),
                    round_keys=group.encode_keys(),
                    vector=self._checkpoint.vector,
                ).encode()
                there = outcome.charged.intersection(group.terms.participants)
                yield from ((pc, request) for pc in sorted(there))

        for sender, reply in self._ask(MASK, requests(), self._federation.round_timeout):
            try:
                answer = decode_update(reply)
                if isinstance(answer, str):
                    outcome.declined.add(sender)
                    self._participation.refuse(sender, answer)
                    if answer == UNABLE:
                        outcome.unsure.add(sender)
                else:
                    total.accept(sender, answer)
                    outcome.uploaded.add(sender)
                del answer
            except (EncodingError, SecAggError) as error:
                # Counted as dropped: a broken upload costs only itself.
                _log.warning("%s: %s", self._membership.members[sender].name, error)
            del reply  # before the next one comes: each holds a vector
        outcome.silent = outcome.charged - outcome.uploaded - outcome.declined

    def _unmask(self, total: PlainSum, outcome: _Outcome) -> None:
        def ask(
            stage: str, requests: Iterable[tuple[bytes, RecordDict]]
        ) -> Iterator[tuple[bytes, RecordDict]]:
            return self._ask(stage, requests, self._federation.stage_timeout)

        total.finish(ask)
        for reason in total.reasons:
            _log.warning("a group's sum is not unmasked: %s", reason)
        outcome.arrived = total.inside
        outcome.silent |= total.silent
        kept = self._checkpoint
        kept.disputes |= total.disputes
        kept.banned |= total.blamed
        kept.banned |= to_leave_out(kept.disputes, kept.banned, self._colluding)
        outcome.blamed = tuple(sorted(self._membership.members[pc].name for pc in total.blamed))
        if len(outcome.arrived) < max(1, self._federation.min_clients):
            least = self._federation.min_clients
            outcome.why_void = "; ".join(total.reasons) or (
                f"{len(outcome.arrived)} updates; federation.min_clients = {least}"
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

    def _as_update(self, mean: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What PCs would have sent that can step by themselves; `mean` may be changed in place."""
        privacy = self._job.privacy
        if isinstance(privacy, DPSGD) and privacy.distributed and privacy.unit == "record":
            # It is of sums of gradients.
            mean *= np.float32(-self._job.training.learning_rate / privacy.sampling_rate)
        return mean

    def _epsilon(self) -> float | None:
        """What this run has cost the PC that was charged most often.

        As a ledger has it that was made for this job. One with another privacy filter (another
        lifetime budget, another job before) may certify more for the same charges: its owner sees
        that.
        """
        charged = self._participation.charged
        if not self._claims_epsilon:
            return None
        return charged_epsilon(self._job.schedule, charged, self._filter) if charged else 0.0
