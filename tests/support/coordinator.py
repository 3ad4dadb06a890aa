"""PCs with real keys and no model, and a grid that answers in any order, twice, or never."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from fedaipc.client.client import OWNER_FILE, Client
from fedaipc.client.key_store import KeyStore
from fedaipc.config import OwnerSettings, to_toml
from fedaipc.coordinator.checkpoint import Checkpoint
from fedaipc.coordinator.coordinator import Coordinator
from fedaipc.errors import BudgetExhausted, RoundError, SecAggError
from fedaipc.protocol.job import SignedJob, make_job
from fedaipc.protocol.messages import (
    AGREE,
    MASK,
    READY,
    SETUP,
    MaskRequest,
    MemberRequest,
    Readiness,
    RoundRequest,
    SetupRequest,
    encode_answer,
    encode_update,
)
from fedaipc.results import Score
from fedaipc.secagg.roster import Roster
from fedaipc.secagg.round_keys import Group, share_secrets
from fedaipc.secagg.terms import Terms
from fedaipc.secagg.uploads import LedgerHead, mask_update
from fedaipc.simulation.flower_adapter import ensure_message_identity
from tests.support.jobs import ADMISSION, LABELS, sent, tiny

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from fedaipc.results import RoundResult

SIZE = 5
Answer = RecordDict | Error | None
GONE = Error(code=100, reason="")
ONE = "rounds=1"


class FakePc:
    """A PC whose updates are drawn from its number and the round; its keys and records are real.

    `answer` may replace what it says in a stage; it gets the request and says `pc.usual(request)`
    where it wants to answer as ever.
    """

    def __init__(self, folder: Path, number: int, size_class: int | None = None) -> None:
        self.number = number
        self.node = 2**63 + 7 * number
        self.name = f"pc-{number}"
        self.size_class = size_class or 32 << (number % 3)
        self.folder = folder / f"pc-{number:04d}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.identity = KeyStore.create(self.folder).identity.public
        self.asked: list[MaskRequest] = []
        self.offered: list[RoundRequest] = []
        self.charged = 0
        self.asked_member: list[str] = []
        self.setup: Callable[[SetupRequest], Answer] | None = None
        self.ready: Callable[[RoundRequest], Answer] | None = None
        self.mask: Callable[[MaskRequest], Answer] | None = None
        self.member: Callable[[str, MemberRequest], Answer] | None = None
        self.describe()

    def usual_ready(
        self, request: RoundRequest, refusal: str | None = None, charged: int | None = None
    ) -> RecordDict:
        """It says that it takes part, unless `refusal` says why not."""
        charged = self.charged if charged is None else charged
        if refusal is not None:
            return Readiness(refusal, charged).encode()
        terms = Terms.decode(request.terms)
        made = b""
        if terms.sealed:
            key_store = Client(self.folder).key_store
            own, shared = share_secrets(terms, key_store.keys(terms))
            key_store.keep_secrets(own)
            made = shared.encode()
        return Readiness(None, charged, made).encode()

    def describe(self) -> None:
        """Write the owner's file."""
        owner = OwnerSettings(
            name=self.name, source="none", size_class=self.size_class, base="none",
            admission=ADMISSION.public.hex(),
        )  # fmt: skip
        (self.folder / OWNER_FILE).write_text(to_toml(owner))

    def update(self, number: int) -> np.ndarray:
        """Different for every PC and round, the same in every run."""
        draw = np.random.default_rng([self.number, number])
        return draw.normal(size=SIZE).astype(np.float32)

    def words(self, request: MaskRequest) -> tuple[Terms, np.ndarray]:
        """The round's terms, and the encoded update."""
        terms = Terms.decode(request.terms)
        weight = terms.weights[terms.place(self.identity)]
        dither = bytes([self.number % 256, request.round % 256]) * 16
        return terms, terms.encoding.encode(self.update(request.round), weight, dither)

    def usual_mask(self, request: MaskRequest) -> RecordDict:
        terms, words = self.words(request)
        if not terms.sealed:
            return encode_update(bytes(terms.encoding.pack(words)))
        key_store = Client(self.folder).key_store
        group, own = Group.of(terms, request.round_keys), key_store.secrets()
        group.check(own)
        key_store.keep(group)
        key_store.forget_secrets()
        head = LedgerHead(terms.number, bytes(32))
        return encode_update(mask_update(group, key_store.keys(terms), own, words, head).encode())

    def usual_member(self, stage: str, request: MemberRequest) -> Answer:
        pc = Client(self.folder)
        try:
            return encode_answer(pc.agree(request) if stage == AGREE else pc.unmask(request))
        except SecAggError:
            return Error(code=100, reason="")

    def reply(self, message: Message) -> Answer:
        stage = message.metadata.message_type
        if stage == SETUP:
            described = SetupRequest.decode(message.content)
            return (
                self.setup(described)
                if self.setup
                else Client(self.folder).setup(described).encode()
            )
        if stage == READY:
            offer = RoundRequest.decode(message.content)
            self.offered.append(offer)
            return (self.ready or self.usual_ready)(offer)
        if stage == MASK:
            request = MaskRequest.decode(message.content)
            self.asked.append(request)
            self.charged += 1
            return (self.mask or self.usual_mask)(request)
        self.asked_member.append(stage)
        asked = MemberRequest.decode(message.content)
        return (self.member or self.usual_member)(stage, asked)


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
    """What a run left."""

    checkpoint: Checkpoint
    error: Exception | None
    scored: int
    rounds: list[RoundResult] = field(default_factory=list)


def attempt(request: MaskRequest) -> int:
    return Terms.decode(request.terms).number


def roster_of(members: Iterable[FakePc], version: int = 1) -> Roster:
    return Roster.sign(
        ADMISSION, federation="fakes", version=version, beacon=bytes(32),
        members=[pc.identity for pc in members],
    )  # fmt: skip


def run(
    folder: Path,
    grid: FakeGrid,
    *changes: str,
    members: Iterable[FakePc] = (),
    fleet: bool = False,
) -> Ran:
    """Run a job over the PCs of the grid; what is left, with the error that ended it.

    `members` are on the list too but not connected.
    """
    folder.mkdir(exist_ok=True)
    everybody = [*grid.pcs.values(), *members]
    settings = tiny(f"federation.clients={len(everybody)}", "aggregation.bound=1e4", *changes)
    classes = [pc.size_class for pc in everybody]
    job = make_job(settings, LABELS, "0" * 64, "0123456789abcdef", classes, 1)
    checkpoint = Checkpoint.load(folder, "0" * 64) or Checkpoint(
        layout_hash="0" * 64, vector=np.zeros(SIZE, np.float32)
    )
    rounds: list[RoundResult] = []
    ruler: Any = Ruler()
    coordinator = Coordinator(
        folder=folder,
        settings=settings,
        job=SignedJob.sign(ADMISSION, job),
        roster=roster_of(everybody),
        checkpoint=checkpoint,
        validation=ruler,
        claims_epsilon=True,
        on_round=rounds.append,
        names=[pc.name for pc in everybody] if fleet else None,
    )
    error = None
    try:
        coordinator.run(grid)
    except (RoundError, BudgetExhausted) as caught:
        error = caught
    return Ran(checkpoint, error, ruler.scored, rounds)


def in_the_open(folder: Path, members: list[FakePc], gone: set[int], *changes: str) -> bytes:
    """The model after one round of those that are not gone, without any sealing."""
    for pc in members:
        pc.mask = (lambda _: GONE) if pc.number in gone else None
    ran = run(folder / "open", FakeGrid(members), ONE, "aggregation.kind=plain", *changes)
    assert ran.error is None
    assert ran.rounds[0].arrived == len(members) - len(gone)
    return ran.checkpoint.vector.tobytes()


def vanish(stage: str, members: list[FakePc]) -> None:
    for pc in members:
        if stage == "setup":
            pc.setup = lambda _: GONE
        elif stage == "mask":
            pc.mask = lambda _: GONE
        else:
            pc.member = lambda now, request, pc=pc: (
                GONE if now == f"query.{stage}" else pc.usual_member(now, request)
            )
