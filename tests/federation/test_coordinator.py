"""The coordinator among PCs that answer in any order, twice, wrongly, or never."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedaipc.errors import BudgetExhausted, RoundError
from fedaipc.federation import coordinator as module
from fedaipc.federation.checkpoint import Checkpoint
from fedaipc.federation.coordinator import Coordinator
from fedaipc.federation.flower_adapter import ensure_message_identity
from fedaipc.federation.messages import (
    DESCRIBE,
    EXHAUSTED,
    REFUSED,
    Description,
    TrainRequest,
    encode_refusal,
    encode_update,
)
from fedaipc.results import Score
from tests.federation.parts import sent, tiny, tiny_job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from fedaipc.results import RoundResult

SIZE = 5
Answer = RecordDict | Error | None


def update_of(node: int, request: TrainRequest) -> RecordDict:
    """A different update for every PC and round, the same in every run."""
    draw = np.random.default_rng([node, request.round])
    return encode_update(draw.normal(size=SIZE).astype(np.float32))


@dataclass
class FakePc:
    """Answers as `answer` says, by default with an update."""

    node: int
    name: str
    size_class: int = 32
    answer: Callable[[int, TrainRequest], Answer] = update_of
    description: Answer | str = "its own"
    asked: list[TrainRequest] = field(default_factory=list)

    def reply(self, message: Message) -> Answer:
        if message.metadata.message_type == DESCRIBE:
            if isinstance(self.description, str):
                return Description(self.name, self.size_class).encode()
            return self.description
        request = TrainRequest.decode(message.content)
        self.asked.append(request)
        return self.answer(self.node, request)


class FakeGrid(Grid):
    """Holds replies back, mixes, repeats and invents them."""

    def __init__(self, pcs: Iterable[FakePc], *, seed: int = 0, batch: int = 2, noise: int = 0):
        ensure_message_identity()
        self.pcs = {pc.node: pc for pc in pcs}
        self.random = random.Random(seed)
        self.batch = batch
        self.noise = noise  # how many old replies are repeated with every pull
        self.waiting: dict[str, Message] = {}
        self.told: list[Message] = []
        self.count = 0

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **named: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Any:
        raise NotImplementedError("it would hold all replies at once")

    def get_node_ids(self) -> list[int]:
        nodes = list(self.pcs)
        self.random.shuffle(nodes)
        return nodes

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        for message in messages:
            self.count += 1
            name = f"message-{self.count}"
            message.metadata.__dict__["_message_id"] = name
            self.waiting[name] = sent(message)
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        names = [name for name in message_ids if name in self.waiting]
        self.random.shuffle(names)
        replies = []
        for name in names[: self.batch]:
            message = self.waiting[name]
            answer = self.pcs[message.metadata.dst_node_id].reply(message)
            if answer is None:
                continue
            del self.waiting[name]
            reply = sent(Message(answer, reply_to=message))
            if isinstance(answer, Error):
                reply.metadata.__dict__["_src_node_id"] = 1  # as Flower's SuperLink may say
            replies.append(reply)
        again = [self.random.choice(self.told) for _ in range(self.noise) if self.told]
        self.told += replies
        return [*again, *replies, *replies] if self.noise else replies


class Ruler:
    """Stands for the validation set."""

    def __init__(self) -> None:
        self.scored = 0

    def score(self, vector: np.ndarray) -> tuple[Score, list]:
        self.scored += 1
        return Score(accuracy=0.5, macro_f1=0.5, loss=float(np.abs(vector).sum()), examples=1), []


@dataclass
class Ran:
    checkpoint: Checkpoint
    rounds: list[RoundResult]
    error: Exception | None
    scored: int


def run(folder: Path, grid: FakeGrid, *changes: str) -> Ran:
    """Run a job over the PCs of the grid; what is left, with the error that ended it."""
    folder.mkdir(exist_ok=True)
    pcs = f"federation.pcs={len(grid.pcs)}"
    checkpoint = Checkpoint.load(folder, "0" * 64) or Checkpoint(
        layout_hash="0" * 64, vector=np.zeros(SIZE, np.float32)
    )
    rounds: list[RoundResult] = []
    ruler: Any = Ruler()
    coordinator = Coordinator(
        folder=folder,
        settings=tiny(pcs, *changes),
        job=tiny_job(pcs, *changes),
        checkpoint=checkpoint,
        validation=ruler,
        claims_epsilon=True,
        on_round=rounds.append,
    )
    error = None
    try:
        coordinator.run(grid)
    except (RoundError, BudgetExhausted) as caught:
        error = caught
    return Ran(checkpoint, rounds, error, ruler.scored)


def pcs(count: int = 5) -> list[FakePc]:
    return [FakePc(2**63 + 7 * i, f"pc-{i}", 32 << (i % 3)) for i in range(count)]


# Order and repetition


@pytest.mark.parametrize("weighting", ["equal", "size-class"])
def test_replies_in_any_order_give_the_same_model(tmp_path: Path, weighting: str) -> None:
    vectors = set()
    for seed in range(6):
        grid = FakeGrid(pcs(), seed=seed, batch=1 + seed % 3)
        ran = run(tmp_path / str(seed), grid, f"federation.weighting={weighting}")
        assert ran.error is None
        vectors.add(ran.checkpoint.vector.tobytes())
    assert len(vectors) == 1


def test_the_model_moves_by_the_weighted_mean_of_the_updates(tmp_path: Path) -> None:
    members = pcs()
    ran = run(tmp_path, FakeGrid(members), "federation.rounds=1")
    weights = [pc.size_class for pc in members]
    updates = [
        np.random.default_rng([pc.node, 1]).normal(size=SIZE).astype(np.float32) for pc in members
    ]
    expected = np.average(updates, axis=0, weights=weights)
    np.testing.assert_allclose(ran.checkpoint.vector, expected, atol=1e-7)


def test_repeated_and_old_replies_count_once(tmp_path: Path) -> None:
    clean = run(tmp_path / "a", FakeGrid(pcs()))
    noisy = run(tmp_path / "b", FakeGrid(pcs(), noise=3))
    assert [r.arrived for r in noisy.rounds] == [5, 5]
    assert noisy.checkpoint.vector.tobytes() == clean.checkpoint.vector.tobytes()


def test_every_pc_gets_the_same_request(tmp_path: Path) -> None:
    members = pcs()
    run(tmp_path, FakeGrid(members))
    for number in range(2):
        requests = [pc.asked[number] for pc in members]
        assert {(r.round, r.attempt, r.job, r.vector.tobytes()) for r in requests} == {
            (number + 1, number + 1, requests[0].job, requests[0].vector.tobytes())
        }


# Broken replies


def zeros(size: int, value: float = 0.0) -> RecordDict:
    return encode_update(np.full(size, value, np.float32))


BROKEN: dict[str, Answer] = {
    "an error": Error(code=100, reason=""),
    "an error with a text": Error(code=7, reason="boom"),
    "nothing": RecordDict(),
    "an empty word": RecordDict({"refusal": ConfigRecord({"word": ""})}),
    "an empty text beside": RecordDict({"x": ConfigRecord({"y": ""}), **zeros(SIZE, 9.0)}),
    "another word": encode_refusal("perhaps"),
    "metrics": RecordDict({"update": MetricRecord({"vector": 1.0})}),
    "too short": zeros(SIZE - 1),
    "too long": zeros(SIZE + 1),
    "empty": zeros(0),
    "not a number": zeros(SIZE, float("nan")),
    "infinite": zeros(SIZE, float("inf")),
    "huge": zeros(SIZE, 1e30),
    "an archive": RecordDict(
        {
            "update": ArrayRecord(
                {
                    "vector": Array(
                        dtype="float32",
                        shape=(SIZE,),
                        stype="numpy.ndarray",
                        data=b"PK\x05\x06" + bytes(18),
                    )
                }
            )
        }
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_reply_costs_only_itself(tmp_path: Path, name: str) -> None:
    whole = pcs()
    without = run(tmp_path / "a", FakeGrid(whole[1:]), "federation.rounds=1")
    broken = pcs()
    broken[0].answer = lambda _node, _request: BROKEN[name]
    ran = run(tmp_path / "b", FakeGrid(broken), "federation.rounds=1")
    assert ran.error is None
    (result,) = ran.rounds
    assert (result.asked, result.arrived, result.declined, result.dropped) == (5, 4, 0, 1)
    assert ran.checkpoint.vector.tobytes() == without.checkpoint.vector.tobytes()


@pytest.mark.parametrize("name", [n for n in BROKEN if n not in ("an error", "huge")])
def test_a_pc_that_describes_itself_wrongly_is_left_out(tmp_path: Path, name: str) -> None:
    members = pcs(3)
    members[1].description = BROKEN[name]
    ran = run(tmp_path, FakeGrid(members), "federation.rounds=1")
    assert ran.error is None
    assert [len(pc.asked) for pc in members] == [1, 0, 1]


def test_two_pcs_of_one_name_are_refused(tmp_path: Path) -> None:
    members = pcs(3)
    members[2].name = "pc-0"
    ran = run(tmp_path, FakeGrid(members))
    assert isinstance(ran.error, RoundError)
    assert "two PCs call themselves pc-0" in str(ran.error)
    assert not any(pc.asked for pc in members)


def test_nobody_there_is_an_error(tmp_path: Path) -> None:
    members = pcs(2)
    for pc in members:
        pc.description = Error(code=100)
    ran = run(tmp_path, FakeGrid(members))
    assert isinstance(ran.error, RoundError)
    assert "no PC can take part" in str(ran.error)


# Too few


def test_a_void_round_leaves_the_model_and_spends_an_attempt(tmp_path: Path) -> None:
    members = pcs(3)
    members[0].answer = lambda node, request: (
        Error(code=100) if request.attempt == 2 else update_of(node, request)
    )
    ran = run(tmp_path, FakeGrid(members), "federation.min_pcs=3", "federation.rounds=3")
    assert ran.error is None
    assert [(r.round, r.attempt, r.void, r.arrived) for r in ran.rounds] == [
        (1, 1, False, 3), (2, 2, True, 2), (2, 3, False, 3), (3, 4, False, 3),
    ]  # fmt: skip
    assert ran.rounds[1].validation is None
    assert ran.scored == 3
    before, after = members[1].asked[1:3]
    assert before.vector.tobytes() == after.vector.tobytes()
    assert ran.rounds[2].epsilon > ran.rounds[1].epsilon > ran.rounds[0].epsilon
    unbroken = run(tmp_path / "b", FakeGrid(pcs(3)), "federation.rounds=3")
    assert ran.checkpoint.vector.tobytes() == unbroken.checkpoint.vector.tobytes()


def test_too_many_void_rounds_end_the_run(tmp_path: Path) -> None:
    members = pcs(3)
    for pc in members[:2]:
        pc.answer = lambda _node, _request: Error(code=100)
    changes = ("federation.min_pcs=2", "federation.spare_attempts=3")
    ran = run(tmp_path, FakeGrid(members), *changes)
    assert isinstance(ran.error, RoundError)
    assert "allows only 5 attempts" in str(ran.error)
    assert [r.void for r in ran.rounds] == [True] * 5
    assert len(members[2].asked) == 5
    np.testing.assert_array_equal(ran.checkpoint.vector, 0)
    again = run(tmp_path, FakeGrid(members), *changes)
    assert isinstance(again.error, RoundError)
    assert len(members[2].asked) == 5


def test_the_attempt_is_on_the_disk_before_anything_is_sent(tmp_path: Path) -> None:
    def answer(node: int, request: TrainRequest) -> Answer:
        assert json.loads((tmp_path / "attempt.json").read_text()) == request.attempt
        return update_of(node, request)

    members = pcs(2)
    for pc in members:
        pc.answer = answer
    assert run(tmp_path, FakeGrid(members)).error is None


def test_a_coordinator_that_comes_back_uses_new_attempts_and_ends_alike(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(_node: int, request: TrainRequest) -> Answer:
        if request.attempt == 2:
            raise Killed
        return update_of(_node, request)

    members = pcs(3)
    members[1].answer = kill
    changes = ("federation.rounds=3", "federation.server_optimizer=fedadam")
    with pytest.raises(Killed):
        run(tmp_path / "a", FakeGrid(members), *changes)
    ran = run(tmp_path / "a", FakeGrid(members), *changes)
    assert ran.error is None
    for pc in members:
        attempts = [request.attempt for request in pc.asked]
        assert attempts == sorted(set(attempts))
    unbroken = run(tmp_path / "b", FakeGrid(pcs(3)), *changes)
    assert ran.checkpoint.vector.tobytes() == unbroken.checkpoint.vector.tobytes()
    assert [r.round for r in ran.checkpoint.rounds] == [1, 2, 3]


# Who is asked


def test_a_fraction_asks_a_public_cohort_that_anyone_can_recompute(tmp_path: Path) -> None:
    changes = ("federation.fraction=0.4", "federation.rounds=6", "federation.seed=5")
    cohorts = []
    for seed in (1, 2):
        members = pcs(10)
        for number, pc in enumerate(members):
            pc.node = 2**63 + (number * 37 + seed) % 11  # other identifiers, another order
        assert run(tmp_path / str(seed), FakeGrid(members, seed=seed), *changes).error is None
        cohorts.append([(r.round, pc.name) for pc in members for r in pc.asked])
    assert sorted(cohorts[0]) == sorted(cohorts[1])
    assert set(Counter(number for number, _ in cohorts[0]).values()) == {4}
    assert len({name for _, name in cohorts[0]}) > 4
    other = pcs(10)
    run(tmp_path / "c", FakeGrid(other), *changes[:2], "federation.seed=6")
    assert sorted((r.round, pc.name) for pc in other for r in pc.asked) != sorted(cohorts[0])


def test_only_the_named_pcs_are_asked(tmp_path: Path) -> None:
    members = pcs(4)
    assert run(tmp_path, FakeGrid(members), "federation.only=[1, 3]").error is None
    assert [len(pc.asked) for pc in members] == [0, 2, 0, 2]


def test_a_pc_with_no_budget_is_not_asked_again_and_the_run_goes_on(tmp_path: Path) -> None:
    members = pcs(3)
    members[0].answer = lambda node, request: (
        encode_refusal(EXHAUSTED) if request.round == 2 else update_of(node, request)
    )
    ran = run(tmp_path, FakeGrid(members), "federation.rounds=4")
    assert ran.error is None
    assert [len(pc.asked) for pc in members] == [2, 4, 4]
    assert [(r.asked, r.arrived, r.declined) for r in ran.rounds] == [
        (3, 3, 0), (3, 2, 1), (2, 2, 0), (2, 2, 0),
    ]  # fmt: skip


def test_a_pc_that_refuses_once_is_asked_again(tmp_path: Path) -> None:
    members = pcs(2)
    members[0].answer = lambda node, request: (
        encode_refusal(REFUSED) if request.round == 1 else update_of(node, request)
    )
    ran = run(tmp_path, FakeGrid(members))
    assert ran.error is None
    assert [len(pc.asked) for pc in members] == [2, 2]


def test_when_all_budgets_are_spent_the_run_says_so_and_keeps_its_model(tmp_path: Path) -> None:
    members = pcs(3)
    for pc in members:
        pc.answer = lambda node, request: (
            encode_refusal(EXHAUSTED) if request.round == 2 else update_of(node, request)
        )
    ran = run(tmp_path, FakeGrid(members), "federation.rounds=4")
    assert isinstance(ran.error, BudgetExhausted)
    assert [(r.round, r.void) for r in ran.rounds] == [(1, False), (2, True)]
    assert [len(pc.asked) for pc in members] == [2, 2, 2]
    kept = Checkpoint.load(tmp_path, "0" * 64)
    assert kept is not None
    assert kept.round == 1
    assert np.abs(kept.vector).sum() > 0


def test_when_everybody_refuses_the_run_ends_at_once(tmp_path: Path) -> None:
    members = pcs(3)
    for pc in members:
        pc.answer = lambda _node, _request: encode_refusal(REFUSED)
    ran = run(tmp_path, FakeGrid(members))
    assert isinstance(ran.error, RoundError)
    assert "every PC refuses" in str(ran.error)
    assert [len(pc.asked) for pc in members] == [1, 1, 1]


# Silence


class Clock:
    """Time that passes only in `sleep`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.looks = 0

    def monotonic(self) -> float:
        self.looks += 1
        assert self.looks < 10_000, "it waits without end"
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_silent_pc_is_given_up_and_the_round_goes_on(tmp_path: Path, clock: Clock) -> None:
    members = pcs(3)
    members[1].answer = lambda _node, _request: None
    ran = run(tmp_path, FakeGrid(members), "federation.round_timeout=30")
    assert ran.error is None
    assert [(r.arrived, r.dropped) for r in ran.rounds] == [(2, 1), (2, 1)]
    assert 60 <= clock.now < 70


def test_a_pc_that_only_repeats_old_replies_counts_as_silence(tmp_path: Path, clock: Clock) -> None:
    members = pcs(3)
    members[1].answer = lambda _node, _request: None
    grid = FakeGrid(members, noise=1)
    ran = run(tmp_path, grid, "federation.round_timeout=30", "federation.rounds=1")
    assert ran.error is None
    assert [(r.arrived, r.dropped) for r in ran.rounds] == [(2, 1)]
    assert 30 <= clock.now < 35


def test_pcs_that_never_connect_do_not_hold_the_run_up_for_good(
    tmp_path: Path, clock: Clock
) -> None:
    grid = FakeGrid(pcs(2))
    seen = grid.get_node_ids
    grid.pcs, late = dict(list(grid.pcs.items())[:1]), grid.pcs
    grid.get_node_ids = lambda: (
        (  # type: ignore[method-assign]
            setattr(grid, "pcs", late) if clock.now > 5 else None
        )
        or seen()
    )
    ran = run(tmp_path, grid, "federation.pcs=9")
    assert ran.error is None
    assert [r.asked for r in ran.rounds] == [2, 2]
    assert 55 <= clock.now <= 65
