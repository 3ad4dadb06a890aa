"""The coordinator's side of a run. `_round` reads as a round goes.

It talks to PCs through Flower's public `Grid`, so it is the same in this process, on Flower's
simulation runtime and over real PCs. It sees updates one at a time and keeps only their sum.
"""

from __future__ import annotations

import hashlib
import logging
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flwr.app import Message, RecordDict

from fedaipc.errors import BudgetExhausted, EncodingError, RoundError
from fedaipc.federation.checkpoint import Checkpoint, next_attempt
from fedaipc.federation.exact_sum import ExactSum
from fedaipc.federation.messages import (
    DESCRIBE,
    EXHAUSTED,
    TRAIN,
    Description,
    TrainRequest,
    decode_reply,
)
from fedaipc.federation.server_optimizer import ServerOptimizer
from fedaipc.privacy.plan import charged_epsilon, filter_order
from fedaipc.results import RoundResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from flwr.serverapp import Grid

    from fedaipc.config import Settings
    from fedaipc.federation.evaluation import Evaluation
    from fedaipc.federation.job import Job

_START_SECONDS = 60.0  # for PCs to connect before the first round
_LONGEST_PAUSE = 1.0  # seconds between two looks for replies
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Member:
    """A PC of the roster: what is public of it."""

    node: int
    name: str
    size_class: int


@dataclass(slots=True)
class _Tally:
    """What became of the PCs that one round asked."""

    asked: int
    arrived: int = 0
    declined: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    exhausted: set[str] = field(default_factory=set)

    @property
    def dropped(self) -> int:
        return self.asked - self.arrived - self.declined


class Coordinator:
    """Runs the rounds that are left, from `checkpoint` on."""

    def __init__(
        self,
        *,
        folder: Path,
        settings: Settings,
        job: Job,
        checkpoint: Checkpoint,
        validation: Evaluation,
        claims_epsilon: bool,
        on_round: Callable[[RoundResult], None],
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._federation = settings.federation
        self._job = job
        self._checkpoint = checkpoint
        self._validation = validation
        self._claims_epsilon = claims_epsilon
        self._on_round = on_round
        self._optimizer = ServerOptimizer(settings.federation, checkpoint.optimizer)
        self._exhausted: set[str] = set()
        self._attempt = 0
        # As a PC chooses it that makes its ledger for this job.
        self._order = filter_order(job.plan, job.rounds, settings.privacy.lifetime_epsilon)

    def run(self, grid: Grid) -> Checkpoint:
        """Run to the last planned round; the checkpoint that is left.

        Raises BudgetExhausted where no PC can afford another round, RoundError where no PC is
        there or too many attempts were void, OutputError where a checkpoint cannot be written.
        """
        roster = self._roster(grid)
        while self._checkpoint.round < self._job.rounds:
            active = [m for m in roster if m.name not in self._exhausted]
            if len(active) < self._federation.min_pcs:
                raise BudgetExhausted(
                    f"{len(active)} of {len(roster)} PCs can afford another round at this noise: "
                    "the lifetime budgets of the others are spent; the last checkpoint stands"
                )
            self._round(grid, active)
        return self._checkpoint

    def _round(self, grid: Grid, active: list[Member]) -> None:
        started = time.monotonic()
        number = self._checkpoint.round + 1
        # 1. A new attempt number, on the disk before anything is sent; then who is asked.
        attempt = self._attempt = next_attempt(self._folder)
        if attempt > self._job.most_attempts:
            raise RoundError(
                f"round {number} is void once more and the job allows only "
                f"{self._job.most_attempts} attempts; ask for fewer PCs in federation.min_pcs"
            )
        cohort = self._cohort(active, number)
        # 2. Send the job and the global vector; add up the updates as they arrive.
        total = ExactSum(len(self._checkpoint.vector))
        tally = _Tally(asked=len(cohort))
        self._collect(grid, cohort, number, attempt, total, tally)
        collected = time.monotonic()
        self._exhausted |= tally.exhausted
        if tally.declined == tally.asked and not tally.exhausted:
            raise RoundError(
                "every PC refuses this job: it breaks its owner's rules or is not for this PC's "
                "model; each PC's own log says why"
            )
        # 3. Too few: the round is void and the model stays as it was.
        void = tally.arrived < self._federation.min_pcs
        # 4. Else move the model by the mean update.
        if not void:
            self._checkpoint.vector = self._optimizer.step(self._checkpoint.vector, total.mean())
            self._checkpoint.round = number
        aggregated = time.monotonic()
        # 5. Evaluate on the public validation set.
        last = number == self._job.rounds
        due = not void and (last or number % self._settings.evaluation.every == 0)
        validation = self._validation.score(self._checkpoint.vector)[0] if due else None
        evaluated = time.monotonic()
        # 6. Write the checkpoint in one step, then tell.
        result = RoundResult(
            round=number,
            attempt=attempt,
            void=void,
            seconds=evaluated - started,
            phases={
                "exchange": collected - started,
                "aggregate": aggregated - collected,
                "evaluate": evaluated - aggregated,
            },
            asked=tally.asked,
            arrived=tally.arrived,
            declined=tally.declined,
            dropped=tally.dropped,
            bytes_down=tally.bytes_down,
            bytes_up=tally.bytes_up,
            epsilon=self._epsilon(charged=tally.declined < tally.asked),
            validation=validation,
        )
        self._checkpoint.rounds.append(result)
        self._checkpoint.save(self._folder)
        self._on_round(result)

    def _roster(self, grid: Grid) -> list[Member]:
        """Ask every connected PC for its public name and size class; sorted by name."""
        nodes = self._nodes(grid)
        requests = [Message(RecordDict(), node, DESCRIBE) for node in nodes]
        roster: dict[str, Member] = {}
        for node, reply in self._exchange(grid, requests):
            if reply.has_error():
                continue
            try:
                pc = Description.decode(reply.content)
            except EncodingError as error:
                _log.warning("%s; it is left out", error)
                continue
            if pc.name in roster:
                raise RoundError(f"two PCs call themselves {pc.name}: each needs its own name")
            roster[pc.name] = Member(node, pc.name, pc.size_class)
        members = [roster[name] for name in sorted(roster)]
        if self._federation.only is not None:
            members = [m for i, m in enumerate(members) if i in self._federation.only]
        if not members:
            raise RoundError("no PC can take part: start at least one, and look into its log")
        return members

    def _nodes(self, grid: Grid) -> list[int]:
        """Connected PCs; where some are still on their way, wait for them a while."""
        deadline = time.monotonic() + _START_SECONDS
        nodes = list(grid.get_node_ids())
        while len(nodes) < self._federation.pcs and time.monotonic() < deadline:
            time.sleep(0.2)
            nodes = list(grid.get_node_ids())
        return nodes

    def _cohort(self, active: list[Member], number: int) -> list[Member]:
        """The PCs that a round asks: a public draw, which gives no privacy and claims none."""
        size = self._federation.cohort_size(len(active))
        seed = hashlib.sha256(f"cohort {self._federation.seed} {number}".encode()).digest()
        chosen = random.Random(seed).sample(active, size)  # noqa: S311 - public, on purpose
        return sorted(chosen, key=lambda member: member.name)

    def _collect(
        self,
        grid: Grid,
        cohort: list[Member],
        number: int,
        attempt: int,
        total: ExactSum,
        tally: _Tally,
    ) -> None:
        request = TrainRequest(self._job, number, attempt, self._checkpoint.vector).encode()
        tally.bytes_down = _size(request) * len(cohort)
        members = {member.node: member for member in cohort}
        messages = [Message(request, member.node, TRAIN) for member in cohort]
        equal = self._federation.weighting == "equal"
        for node, reply in self._exchange(grid, messages):
            if reply.has_error():
                continue
            member = members[node]
            try:
                tally.bytes_up += _size(reply.content)
                answer = decode_reply(reply.content)
                if isinstance(answer, str):
                    tally.declined += 1
                    if answer == EXHAUSTED:
                        tally.exhausted.add(member.name)
                else:
                    total.add(answer, 1 if equal else member.size_class)
                    tally.arrived += 1
            except EncodingError:
                continue  # counted as dropped: a broken upload costs itself alone

    def _exchange(self, grid: Grid, messages: list[Message]) -> Iterator[tuple[int, Message]]:
        """Send all; yield (node, reply) as they arrive, each once; give up on a long silence."""
        pushed = set(grid.push_messages(messages))  # a node that is gone gets no identifier
        waiting = {
            message.metadata.message_id: message.metadata.dst_node_id
            for message in messages
            if message.metadata.message_id in pushed
        }
        timeout = self._federation.round_timeout
        deadline = time.monotonic() + timeout
        pause = 0.01
        while waiting and time.monotonic() < deadline:
            replies = list(grid.pull_messages(list(waiting)))
            heard = False
            for reply in replies:
                # An error reply can name a wrong sender: only the message it answers counts.
                node = waiting.pop(reply.metadata.reply_to_message_id, None)
                if node is not None:
                    heard = True
                    yield node, reply
            if heard:
                pause, deadline = 0.01, time.monotonic() + timeout
            else:
                time.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause * 1.5)

    def _epsilon(self, *, charged: bool) -> float | None:
        """What a PC that took part in every attempt so far has spent in this run.

        Attempts that a crash cut off are counted too: their number is in the newest attempt.
        """
        if not self._claims_epsilon:
            return None
        declined = sum(r.declined == r.asked for r in self._checkpoint.rounds)
        attempts = self._attempt - declined - (not charged)
        return charged_epsilon(self._job.plan, attempts, self._order) if attempts else 0.0


def _size(records: RecordDict) -> int:
    """Bytes of all records. Raises EncodingError where one holds what cannot be counted."""
    try:
        return sum(record.count_bytes() for record in records.values())
    except ValueError:  # Flower's own count refuses an empty text, which anybody can send
        raise EncodingError("a message cannot be counted") from None
