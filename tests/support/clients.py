"""PCs that have enrolled, and a coordinator that asks them whatever a test wants."""

from __future__ import annotations

import csv
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from flwr.app import Message, RecordDict

from fedaipc.client.client import OWNER_FILE, Client
from fedaipc.client.client_app import PC_FAILED, app, pc_folder
from fedaipc.client.key_store import KeyStore
from fedaipc.config import RUN
from fedaipc.data.records import Records
from fedaipc.federation.key import Admission
from fedaipc.model.classifier import Classifier, read_vector
from fedaipc.privacy.ledger import LEDGER_FILE, Ledger
from fedaipc.protocol import round_terms
from fedaipc.protocol.job import Job, SignedJob
from fedaipc.protocol.messages import (
    MASK,
    READY,
    REFUSED,
    SETUP,
    UNABLE,
    Description,
    MaskRequest,
    RoundRequest,
    SetupRequest,
    decode_update,
)
from fedaipc.protocol.round_terms import hash_vector, make_terms
from fedaipc.secagg.keys import ExchangeKey, SigningKey
from fedaipc.secagg.roster import ROSTER_FILE, Bundle, Roster, read_roster
from fedaipc.secagg.round_keys import Group, RoundKey, RoundSecrets
from fedaipc.secagg.terms import Terms, capped
from fedaipc.simulation.flower_adapter import InProcessGrid
from fedaipc.simulation.simulation import prepare
from tests.support.jobs import on_the_wire, tiny
from tests.support.schedules import mechanism_of

CANARY = "canary-5f3a-zebra"
TEXT = f"the {CANARY} told nobody"


@dataclass(frozen=True)
class Federation:
    """PCs that have made their keys for a run, and the admission key that signs its jobs.

    `folders` are by identity, `bundles` ascend by it.
    """

    folders: dict[bytes, Path]
    job: Job
    admission: SigningKey
    roster: Roster
    bundles: tuple[Bundle, ...]

    @cached_property
    def vector(self) -> np.ndarray:
        return read_vector(Classifier(self.job.model, self.job.labels))

    def terms(
        self,
        signed: SignedJob,
        attempt: int = 1,
        model: np.ndarray | None = None,
        bundles: Iterable[Bundle] | None = None,
    ) -> Terms:
        """Those of the only group, as an honest coordinator states them."""
        model = self.vector if model is None else model
        (group,) = self.roster.groups(attempt, signed.job.cohort)
        asked = [b for b in bundles or self.bundles if b.identity in group]
        return make_terms(
            signed, self.roster, attempt, group, asked, hash_vector(model), len(model)
        )

    def signed_by_its_pc(self, bundle: Bundle) -> Bundle:
        """As a PC that works for the coordinator would sign it."""
        return bundle.signed_by(KeyStore(self.folders[bundle.identity]).identity)


@dataclass(frozen=True)
class Answer:
    """A PC's reply to a mask request, and the group that was stated to it."""

    reply: Message
    group: Group

    @property
    def terms(self) -> Terms:
        return self.group.terms

    @property
    def content(self) -> bytes | str:
        return decode_update(self.reply.content)

    @property
    def frame(self) -> bytes:
        content = self.content
        assert isinstance(content, bytes)
        return content

    @property
    def update(self) -> np.ndarray:
        """Of the only PC of an open round, shape (size,)."""
        encoding, (weight,) = self.terms.encoding, self.terms.weights
        return encoding.decode(encoding.unpack(self.frame, self.terms.size)) / weight


def enroll(folder: Path, rows: int, *changes: str) -> Federation:
    """Prepare a run and let its PCs make their keys."""
    with (folder / "texts.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["text", "label"])
        for number in range(rows):
            mood = ("negative", "positive")[number % 2]
            out.writerow([f"{TEXT} {number} {mood}", mood])
    run = prepare(
        tiny(
            f"data.source='{folder / 'texts.csv'}'",
            "rounds=3",
            "federation.spare_attempts=2",
            f"output.folder='{folder}'",
            "privacy.delta=1e-5",
            *changes,
        )
    )
    job = Job.parse((run.folder / "job.json").read_text())
    _, roster = read_roster((run.folder / ROSTER_FILE).read_bytes())
    folders = [pc_folder(run.pc_state, number) for number in range(run.settings.federation.clients)]
    return Federation(
        folders={KeyStore(folder).identity.public: folder for folder in folders},
        job=job,
        admission=Admission(run.pc_state / "federation").key,
        roster=roster,
        bundles=tuple(
            sorted((set_up(f, job.run, roster) for f in folders), key=lambda b: b.identity)
        ),
    )


def copies(federation: Federation, folder: Path) -> dict[bytes, Path]:
    """Its PCs, fresh, by identity and ascending."""
    return {
        identity: Path(shutil.copytree(federation.folders[identity], folder / identity.hex()[:8]))
        for identity in sorted(federation.folders)
    }


def send(folder: Path, stage: str, content: RecordDict) -> Message:
    """The PC's reply to one request."""
    grid = InProcessGrid(app, [{"pc-folder": str(folder)}], {})
    (reply,) = grid.send_and_receive([Message(content, grid.get_node_ids()[0], stage)])
    return reply


def set_up(folder: Path, run: str, roster: Roster, epoch: int = 1) -> Bundle:
    """The keys that the PC makes."""
    request = SetupRequest(run, epoch, roster.encode())
    return Bundle.decode(Description.decode(send(folder, SETUP, request.encode()).content).bundle)


def job_with(federation: Federation, **changes: Any) -> Job:
    """Its job with changes, some of them of its mechanism, checked by nobody."""
    privacy = changes.pop("privacy", federation.job.privacy)
    names = ("noise_multiplier", "sampling_rate", "clip_norm", "delta")
    own = {name: changes.pop(name) for name in names if name in changes}
    changes["privacy"] = privacy.model_copy(update=own)
    return Job.model_construct(**{**dict(federation.job), **changes})


def asker(federation: Federation, folder: Path) -> Callable[..., Answer]:
    """Sends the PC mask requests as a coordinator would, with jobs that the admission key signs.

    `state` changes the terms, other names the job. All PCs of the round are ready for these terms,
    whether or not they would be, unless the test says which `group` is.
    """

    def ask(
        *,
        number: int = 1,
        attempt: int = 1,
        model: np.ndarray = federation.vector,
        where: Path = folder,
        state: Callable[[Terms], Terms] = lambda terms: terms,
        group: Group | None = None,
        **changes: Any,
    ) -> Answer:
        if "job_model" in changes:
            changes["model"] = changes.pop("job_model")
        asked = job_with(federation, **changes)
        signed = SignedJob.sign(federation.admission, asked)
        bundles = None
        if asked.run != federation.job.run and re.fullmatch(RUN, asked.run):
            bundles = [set_up(where, asked.run, federation.roster)]
        with pytest.MonkeyPatch.context() as patch:  # a coordinator that lies skips the check
            patch.setattr(round_terms, "check_class", lambda *_: None)
            terms = state(federation.terms(signed, attempt, model, bundles))
        group = group or ready_for(federation, terms, where)
        request = MaskRequest(
            signed.text, signed.signature, number, terms.encode(), group.encode_keys(), model
        )
        return Answer(send(where, MASK, request.encode()), group)

    return ask


def offer(federation: Federation, folder: Path, attempt: int = 1, **changes: Any) -> Message:
    """Ask the PC whether it takes part, as a coordinator does before it sends the model."""
    signed = SignedJob.sign(federation.admission, job_with(federation, **changes))
    frame = federation.terms(signed, attempt).encode()
    request = RoundRequest(signed.text, signed.signature, 1, frame)
    return send(folder, READY, request.encode())


def ready_for(federation: Federation, terms: Terms, folder: Path) -> Group:
    """Round keys of all participants; the PC in `folder` has the secrets of its own."""
    cards = []
    for identity in terms.participants if terms.sealed else ():
        exchange = ExchangeKey()
        card = RoundKey(identity, exchange.public, bytes(32))
        if identity in federation.folders:
            key = KeyStore(federation.folders[identity]).identity
            card = replace(card, signature=key.sign(card.signed_part(terms.context)))
        own = KeyStore(folder)
        if identity == own.identity.public:
            own.keep_secrets(RoundSecrets(terms.context, card, exchange, os.urandom(32)))
        cards.append(card)
    return Group(terms, tuple(cards))


def among(terms: Terms, bundles: Sequence[Bundle], **bounds: int) -> Terms:
    """The round with other participants and all that follows from their number."""
    found = replace(terms.thresholds, count=len(bundles), shares=(len(bundles) + 1) // 2 + 1)
    found = replace(found, **bounds)
    weights = capped([bundle.size_class for bundle in bundles], found)
    return replace(terms, bundles=tuple(bundles), weights=weights, thresholds=found)


def spy(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, steps: list[str]) -> None:
    """Let every call of `name` enter the name into `steps`."""
    real = getattr(where, name)

    def step(*args: Any, **named: Any) -> Any:
        steps.append(name)
        return real(*args, **named)

    monkeypatch.setattr(where, name, step)


def charges(folder: Path) -> int:
    return len(Ledger(folder / LEDGER_FILE).charges)


def owner(folder: Path, policy: Mapping[str, Any] | None = None, **changes: Any) -> None:
    """Change what the owner decided."""
    settings = Client(folder).owner.model_dump(mode="json", exclude_none=True)
    settings["policy"] |= policy or {}
    (folder / OWNER_FILE).write_text(tomli_w.dumps({**settings, **changes}))


def gave(answer: Answer) -> bool:
    """Whether the reply holds an update."""
    return answer.reply.has_content() and isinstance(answer.content, bytes)


def refused(answer: Answer) -> bool:
    return answer.reply.has_content() and answer.content in (REFUSED, UNABLE)


def failed(reply: Answer | Message) -> bool:
    """One fixed code without a word, and nothing besides."""
    message = reply.reply if isinstance(reply, Answer) else reply
    return message.has_error() and not message.has_content() and (
        message.error.code, message.error.reason
    ) == (PC_FAILED, "")  # fmt: skip


def deviation(job: Job, noise: float, rate: float) -> float:
    """Of one step's noise on an update of the PC with size class 64."""
    return noise * mechanism_of(job.schedule).clip_norm * job.training.learning_rate / (rate * 64)


def exotic(folder: Path, count: int) -> Path:
    """The PC with other texts, `count` of them, and the same size class."""
    texts = tuple(f"{number} other words" * (1 + number % 5) for number in range(count))
    labels = tuple("positive" for _ in range(count))
    Records(texts, labels).write_parquet(folder / "records.parquet")
    return folder


def without_values(reply: Message) -> bytes:
    """The reply as it travels, with zeros in place of the ring's words."""
    data = reply.content["update"]["frame"].data
    for key in ("_message_id", "_reply_to_message_id"):
        reply.metadata.__dict__[key] = "x"
    reply.metadata.created_at = 0.0
    reply.metadata.delivered_at = ""
    reply.metadata.ttl = 0.0  # what was left of the time to answer: set by Flower from the clock
    wire = on_the_wire(reply)
    assert wire.count(data) == 1
    return wire.replace(data, bytes(len(data)))
