"""A PC before a coordinator that lies: what it checks first, what it charges, what leaves it."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w
from filelock import FileLock
from flwr.app import ConfigRecord, Message, RecordDict

from fedaipc.client import client as client_module
from fedaipc.client import client_app
from fedaipc.client import key_store as key_store_module
from fedaipc.client import trainer as module
from fedaipc.client.client import LOG_FILE, OWNER_FILE, Client
from fedaipc.client.client_app import PC_FAILED, app, pc_folder
from fedaipc.client.disclosure_log import read as read_sent
from fedaipc.client.key_store import KeyStore
from fedaipc.config import RUN, NoPrivacy, PlainAggregation, Policy, TrainingMethod
from fedaipc.data.records import Records
from fedaipc.errors import (
    BudgetExhausted,
    DataError,
    EncodingError,
    LedgerError,
    ModelError,
    PrivacyError,
    RoundError,
    SecAggError,
)
from fedaipc.federation.key import Admission
from fedaipc.model.classifier import Classifier, read_vector
from fedaipc.privacy import training
from fedaipc.privacy.budget import charged_epsilon
from fedaipc.privacy.ledger import LEDGER_FILE, Charge, Ledger
from fedaipc.protocol import round_terms
from fedaipc.protocol.job import Job, SignedJob
from fedaipc.protocol.messages import (
    AGREE,
    EXHAUSTED,
    MASK,
    READY,
    REFUSALS,
    REFUSED,
    SETUP,
    UNABLE,
    UNMASK,
    Description,
    MaskRequest,
    MemberRequest,
    Readiness,
    RoundRequest,
    SetupRequest,
    decode_answer,
    decode_update,
)
from fedaipc.protocol.round_terms import hash_vector, make_terms
from fedaipc.secagg.committee import Agreement, Proposal, Release, Unmask, read_answer
from fedaipc.secagg.keys import SigningKey
from fedaipc.secagg.roster import ROSTER_FILE, Bundle, Roster, read_roster
from fedaipc.secagg.terms import PLAIN, Terms, capped
from fedaipc.secagg.uploads import Upload
from fedaipc.simulation.flower_adapter import InProcessGrid
from fedaipc.simulation.simulation import prepare
from tests.model.tiny import make_folder
from tests.model.tiny import settings as model_settings
from tests.protocol.parts import on_the_wire, tiny
from tests.secagg.parts import Sum
from tests.support.schedules import dp_sgd

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
    """A PC's reply to a mask request, and the terms that were stated to it."""

    reply: Message
    terms: Terms

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


def enrol(folder: Path, rows: int, *changes: str) -> Federation:
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


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Federation:
    """One PC with 40 records (size class 64), in a run whose updates travel open."""
    folder = tmp_path_factory.mktemp("enrolled")
    return enrol(folder, 52, "federation.clients=1", "aggregation.kind=plain")


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Federation:
    """PCs of several size classes, in a run whose updates are sealed."""
    folder = tmp_path_factory.mktemp("five")
    return enrol(folder, 260, "federation.clients=5", "data.partition.kind=skewed")


@pytest.fixture
def folder(enrolled: Federation, tmp_path: Path) -> Path:
    """The one PC, fresh."""
    (folder,) = enrolled.folders.values()
    return Path(shutil.copytree(folder, tmp_path / "pc"))


@pytest.fixture
def member(five: Federation, tmp_path: Path) -> Path:
    """The first of the five PCs, fresh."""
    return copies(five, tmp_path)[five.bundles[0].identity]


@pytest.fixture
def job(enrolled: Federation) -> Job:
    return enrolled.job


@pytest.fixture
def vector(enrolled: Federation) -> np.ndarray:
    return enrolled.vector


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

    `state` changes the terms, other names the job.
    """

    def ask(
        *,
        number: int = 1,
        attempt: int = 1,
        model: np.ndarray = federation.vector,
        where: Path = folder,
        state: Callable[[Terms], Terms] = lambda terms: terms,
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
        request = MaskRequest(signed.text, signed.signature, number, terms.encode(), model)
        return Answer(send(where, MASK, request.encode()), terms)

    return ask


@pytest.fixture
def ask(enrolled: Federation, folder: Path) -> Callable[..., Answer]:
    """Ask the one PC for an open update."""
    return asker(enrolled, folder)


@pytest.fixture
def ask_member(five: Federation, member: Path) -> Callable[..., Answer]:
    """Ask the first of the five PCs for a sealed update."""
    return asker(five, member)


@pytest.fixture
def touched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the steps that see the PC's data, as they are taken."""
    steps: list[str] = []
    for name in ("read_records", "make_inputs", "train_round", "mask_and_share"):
        spy(monkeypatch, module, name, steps)
    return steps


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


# Before anybody is charged


def offer(federation: Federation, folder: Path, attempt: int = 1, **changes: Any) -> Message:
    """Ask the PC whether it takes part, as a coordinator does before it sends the model."""
    signed = SignedJob.sign(federation.admission, job_with(federation, **changes))
    frame = federation.terms(signed, attempt).encode()
    request = RoundRequest(signed.text, signed.signature, 1, frame)
    return send(folder, READY, request.encode())


def test_a_pc_says_whether_it_takes_part_and_is_not_charged_for_it(
    five: Federation, member: Path, ask_member: Any, touched: list[str]
) -> None:
    before = (member / LEDGER_FILE).read_bytes()
    for charged in range(2):
        assert Readiness.decode(offer(five, member, charged + 1).content) == Readiness(
            None, charged
        )
        if not charged:
            assert touched == []
            assert (member / LEDGER_FILE).read_bytes() == before
            assert gave(ask_member())
    assert charges(member) == 1


@pytest.mark.parametrize(
    ("policy", "changes", "word"),
    [
        ({"max_epsilon": 0.01}, {}, REFUSED),
        ({}, {"layout_hash": "f" * 64}, REFUSED),
        ({}, {"delta": 1e-6}, REFUSED),
        ({}, {"noise_multiplier": 0.1, "max_attempts": 2}, EXHAUSTED),
    ],
    ids=["policy", "base", "delta", "budget"],
)
def test_a_pc_that_will_not_take_part_says_so_before_anybody_is_charged(
    five: Federation, member: Path, policy: Any, changes: Any, word: str
) -> None:
    path = member / LEDGER_FILE
    if word == EXHAUSTED:
        path.unlink()
        Ledger.create(
            path,
            KeyStore(member).identity,
            lifetime_epsilon=3.0,
            delta=five.job.privacy.delta,
            order=8.0,
        )
    before = path.read_bytes()
    owner(member, policy=policy)
    assert Readiness.decode(offer(five, member, **changes).content) == Readiness(word, 0)
    assert path.read_bytes() == before


def test_a_pc_whose_ledger_is_locked_is_able_again_later(
    five: Federation, member: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedaipc.privacy.ledger._LOCK_SECONDS", 0.0)
    with FileLock(f"{member / LEDGER_FILE}.lock"):
        assert Readiness.decode(offer(five, member).content) == Readiness(UNABLE, None)
    assert Readiness.decode(offer(five, member).content) == Readiness(None, 0)


@pytest.mark.parametrize("attempt", [1, 2])
def test_a_pc_does_not_say_yes_to_an_attempt_that_it_was_charged_for_or_a_newer_one(
    five: Federation, member: Path, ask_member: Any, attempt: int
) -> None:
    """A coordinator that was restored from a copy finds out before it charges the others."""
    assert gave(ask_member(attempt=2))
    assert Readiness.decode(offer(five, member, attempt).content) == Readiness(UNABLE, 1)


def test_a_pc_tells_a_stranger_nothing_of_its_ledger(five: Federation, member: Path) -> None:
    """How often a run charged it is for the run's own coordinator, whose job is signed."""
    signed = SignedJob.sign(SigningKey(), five.job)
    request = RoundRequest(signed.text, signed.signature, 1, five.terms(signed).encode())
    reply = send(member, READY, request.encode())
    assert Readiness.decode(reply.content) == Readiness(UNABLE, None)


# The order of events


def test_a_round_charges_first_and_then_reads_trains_and_replies(
    ask: Any, folder: Path, touched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Ledger.charge

    def charge(self: Ledger, charge: Any) -> None:
        touched.append("charge")
        real(self, charge)
        touched.append("charged")

    monkeypatch.setattr(Ledger, "charge", charge)
    assert gave(ask())
    assert touched == ["charge", "charged", "read_records", "make_inputs", "train_round"]


def test_the_charge_is_on_the_disk_when_the_first_text_is_read(
    ask: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real_sync, real_read = os.fsync, module.read_records
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(file), real_sync(file))[1])

    def read(*args: Any, **named: Any) -> Records:
        assert charges(folder) == 1
        assert len(synced) >= 1
        return real_read(*args, **named)

    monkeypatch.setattr(module, "read_records", read)
    assert gave(ask())


def test_a_sealed_round_is_kept_and_charged_before_it_is_trained_and_sealed(
    ask_member: Any, touched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """M14: durable before anything leaves."""
    spy(monkeypatch, KeyStore, "keep", touched)
    spy(monkeypatch, Ledger, "charge", touched)
    assert gave(ask_member())
    assert touched == [
        "keep",
        "charge",
        "read_records",
        "make_inputs",
        "train_round",
        "mask_and_share",
    ]


@pytest.mark.parametrize("error", [LedgerError, PrivacyError, BudgetExhausted, OSError, ValueError])
def test_without_a_charge_no_data_is_touched(
    ask: Any,
    folder: Path,
    touched: list[str],
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
) -> None:
    def charge(self: Ledger, charge: Any) -> None:
        raise error(CANARY)

    monkeypatch.setattr(Ledger, "charge", charge)
    answer = ask()
    assert touched == []
    assert CANARY.encode() not in on_the_wire(answer.reply)
    assert answer.reply.has_error() or answer.content in REFUSALS


@pytest.mark.parametrize("step", ["read_records", "make_inputs", "train_round"])
@pytest.mark.parametrize(
    "error",
    [
        DataError,
        ModelError,
        EncodingError,
        PrivacyError,
        BudgetExhausted,
        RoundError,
        SecAggError,
        OSError,
        MemoryError,
    ],
)
def test_a_charge_stands_whatever_fails_after_it(
    ask: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: type[Exception]
) -> None:
    def fail(*args: Any, **named: Any) -> None:
        raise error(CANARY)

    monkeypatch.setattr(module, step, fail)
    answer = ask()
    if step == "train_round":  # it cannot even make noise
        assert failed(answer)
    else:
        assert gave(answer)
    assert charges(folder) == 1
    assert refused(ask())  # the same attempt again
    assert charges(folder) == 1


def test_a_simulated_drop_out_is_charged_and_looks_like_any_failure(
    ask: Any, folder: Path, touched: list[str]
) -> None:
    owner(folder, dropout_rate=1.0)
    assert failed(ask())
    assert charges(folder) == 1
    assert touched == []


def test_a_simulated_drop_out_of_another_stage_leaves_the_training_alone(
    ask: Any, folder: Path, enrolled: Federation
) -> None:
    owner(folder, dropout_rate=1.0, dropout_stage="setup")
    request = SetupRequest(enrolled.job.run, 1, enrolled.roster.encode())
    assert failed(send(folder, SETUP, request.encode()))
    assert gave(ask())


# What is refused before anything is charged


@pytest.mark.parametrize(
    "changes",
    [
        {"privacy": NoPrivacy()},
        {"privacy": NoPrivacy(delta=1e-3)},
        {"layout_hash": "f" * 64},
        {"labels": ("positive", "negative")},
        {"labels": ("negative", "positive", "other")},
        {"delta": 2e-5},
        {"delta": 1e-6},
        {"number": 4},
        {"attempt": 6},
        {"number": 2**63 - 1, "attempt": 2**63 - 1},
        {"model": np.zeros(3, np.float32)},
        {"model": np.zeros(0, np.float32)},
        {"model": np.full(770, np.nan, np.float32)},
        {"model": np.full(770, np.inf, np.float32)},
    ],
    ids=lambda changes: " ".join(f"{k} {str(v)[:20]}" for k, v in changes.items()),
)
def test_a_job_against_the_rules_costs_nothing(
    ask: Any, folder: Path, touched: list[str], changes: dict[str, Any]
) -> None:
    before = (folder / LEDGER_FILE).read_bytes()
    assert refused(ask(**changes))
    assert (folder / LEDGER_FILE).read_bytes() == before
    assert touched == []


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_multiplier": 0.05},
        {"run": "../../etc"},
        {"rounds": 0},
        {"clip_norm": -1.0},
        {"clip_norm": 1e-12},
        {"noise_multiplier": 1e7},
        {"sampling_rate": 2.0},
        {"max_attempts": 0},
        {"weighting": "length"},
        {"attempt": 0},
        {"number": 0},
        {"number": -1},
    ],
    ids=str,
)
def test_what_is_no_job_costs_nothing(
    ask: Any, folder: Path, touched: list[str], changes: dict[str, Any]
) -> None:
    """Not even where the admission key signed it."""
    before = (folder / LEDGER_FILE).read_bytes()
    answer = ask(**changes)
    assert failed(answer) if "number" in changes else refused(answer)
    assert (folder / LEDGER_FILE).read_bytes() == before
    assert touched == []


def test_a_job_without_privacy_is_taken_only_where_the_owner_allows_it(
    ask: Any, folder: Path
) -> None:
    changes = {"privacy": NoPrivacy()}
    assert refused(ask(**changes))
    owner(folder, policy={"allow_not_private": True})
    assert gave(ask(**changes))
    assert Ledger(folder / LEDGER_FILE).unprotected


@pytest.mark.parametrize("attempt", [1, 2])
def test_an_attempt_is_never_answered_twice(ask: Any, folder: Path, attempt: int) -> None:
    assert gave(ask(attempt=2))
    before = (folder / LEDGER_FILE).read_bytes()
    assert refused(ask(attempt=attempt))
    assert (folder / LEDGER_FILE).read_bytes() == before
    assert gave(ask(attempt=3))


def test_another_run_is_charged_beside_the_first(ask: Any, folder: Path) -> None:
    ask(attempt=1)
    ask(attempt=1, run="f" * 16)
    assert charges(folder) == 2


def test_a_budget_ends_however_the_coordinator_names_its_runs(
    ask: Any, folder: Path, job: Job
) -> None:
    order = Ledger(folder / LEDGER_FILE).order
    (folder / LEDGER_FILE).unlink()
    allowed = (
        charged_epsilon(job.schedule, 2, order) + charged_epsilon(job.schedule, 3, order)
    ) / 2
    Ledger.create(
        folder / LEDGER_FILE,
        KeyStore(folder).identity,
        lifetime_epsilon=allowed,
        delta=job.privacy.delta,
        order=order,
    )
    answers = [ask(attempt=1, run=f"{number:016x}") for number in range(4)]
    assert [gave(answer) for answer in answers] == [True, True, False, False]
    assert [answer.content for answer in answers[2:]] == [EXHAUSTED, EXHAUSTED]
    owner(folder, policy={"max_epsilon": 1e9})
    weak = ask(attempt=1, run="e" * 16, noise_multiplier=0.1, sampling_rate=1.0)
    assert weak.content == EXHAUSTED
    assert charges(folder) == 2


# What only the admission key can ask


@pytest.mark.parametrize(
    "change",
    ["none", "other job", "a space", "no signature", "cut signature", "other key", "other purpose"],
)
def test_a_job_that_the_admission_key_did_not_sign_costs_nothing(
    enrolled: Federation,
    folder: Path,
    touched: list[str],
    caplog: pytest.LogCaptureFixture,
    change: str,
) -> None:
    """M4: a PC computes everything from the signed job, word for word."""
    signed = SignedJob.sign(enrolled.admission, enrolled.job)
    text, signature = signed.text, signed.signature
    match change:
        case "other job":
            text = enrolled.job.model_copy(update={"rounds": 2}).model_dump_json()
        case "a space":
            text += " "
        case "no signature":
            signature = b""
        case "cut signature":
            signature = signature[:-1]
        case "other key":
            signature = SignedJob.sign(SigningKey(), enrolled.job).signature
        case "other purpose":
            signature = enrolled.admission.sign(text.encode())
    terms = enrolled.terms(SignedJob(Job.parse(text), text, signature))
    request = MaskRequest(text, signature, 1, terms.encode(), enrolled.vector)
    before = (folder / LEDGER_FILE).read_bytes()
    answer = Answer(send(folder, MASK, request.encode()), terms)
    if change == "none":
        assert gave(answer)
        return
    assert refused(answer)
    assert "the job: the signature is wrong" in caplog.text
    assert (folder / LEDGER_FILE).read_bytes() == before
    assert touched == []


@pytest.mark.parametrize("age", [-60, 1, 10**9])
def test_a_job_that_is_out_of_date_costs_nothing(
    ask: Any, folder: Path, touched: list[str], caplog: pytest.LogCaptureFixture, age: int
) -> None:
    answer = ask(not_after=int(time.time()) - age)
    if age < 0:
        assert gave(answer)
        return
    assert refused(answer)
    assert "out of date" in caplog.text
    assert charges(folder) == 0
    assert touched == []


def test_a_job_wants_a_list_of_members_as_new_as_itself(
    ask: Any, folder: Path, touched: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A server that kept an old list would let PCs take part that were revoked since."""
    assert refused(ask(min_roster=2))
    assert "the list of members is older than the job" in caplog.text
    assert charges(folder) == 0
    assert touched == []
    assert gave(ask(min_roster=1))


def test_a_server_cannot_fill_the_log_of_what_left(
    enrolled: Federation, ask: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what costs no budget only so many answers leave in an hour."""
    now = [1000.0]
    monkeypatch.setattr(client_app, "_free_answers", deque(maxlen=3))
    monkeypatch.setattr(client_app.time, "monotonic", lambda: now[0])
    owner(folder, server="localhost:1")
    request = SetupRequest(enrolled.job.run, 1, enrolled.roster.encode()).encode()
    assert not send(folder, SETUP, request).has_error()
    assert refused(ask(not_after=1))
    assert not send(folder, SETUP, request).has_error()
    assert send(folder, SETUP, request).has_error()
    assert failed(ask(not_after=1))
    assert [entry.kind for entry in read_sent(folder)] == ["setup", "mask, refused", "setup"]
    assert gave(ask(attempt=2))  # what is paid for is not held up
    now[0] += 3601
    assert not send(folder, SETUP, request).has_error()


def test_an_owner_reads_on_the_terminal_that_texts_could_not_be_used(
    ask: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise DataError(CANARY)

    monkeypatch.setattr(module, "read_records", fail)
    assert gave(ask())
    assert "trained on nothing" not in caplog.text  # a simulation's log is the coordinator's
    owner(folder, server="localhost:1")
    assert gave(ask(attempt=2))
    assert "trained on nothing" in caplog.text
    assert CANARY not in caplog.text


@pytest.mark.parametrize(("smallest", "largest"), [(32, 32), (128, 256)])
def test_a_job_for_other_size_classes_costs_nothing(
    ask: Any, folder: Path, caplog: pytest.LogCaptureFixture, smallest: int, largest: int
) -> None:
    """Its bound would not fit this PC's weight: values would be cut off."""
    assert refused(ask(smallest_class=smallest, largest_class=largest))
    assert "size class" in caplog.text
    assert charges(folder) == 0


def test_the_owners_epsilon_holds_for_all_attempts_and_not_for_the_rounds_that_a_job_names(
    ask_member: Any, member: Path, five: Federation
) -> None:
    """M4: a coordinator could open one round again and again under new attempt numbers."""
    ledger = Ledger(member / LEDGER_FILE)
    allowed = charged_epsilon(five.job.schedule, five.job.rounds, ledger.order) * 1.01
    owner(member, policy={"max_epsilon": allowed})
    assert refused(ask_member(max_attempts=40))
    assert charges(member) == 0
    owner(
        member, policy={"max_epsilon": charged_epsilon(five.job.schedule, 40, ledger.order) * 1.01}
    )
    assert gave(ask_member(max_attempts=40))


def test_a_delta_too_large_for_the_pcs_size_class_costs_nothing(
    ask: Any, folder: Path, touched: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    owner(folder, size_class=2**14)
    assert refused(ask(largest_class=2**14))
    assert "too large for size class" in caplog.text
    assert charges(folder) == 0
    assert touched == []


# What the owner's policy forbids


TWO_STEPS = {"local_steps": 2}
NOT_PRIVATE = {"privacy": NoPrivacy()}
# A key of the policy, the first value that forbids the job and one that still allows it; what the
# job has changed.
RULES: list[tuple[str, Any, Any, dict[str, Any]]] = [
    ("allow_not_private", False, True, NOT_PRIVATE),
    ("allow_plain_updates", False, True, {"aggregation": PlainAggregation()}),
    ("min_sum", 5, 4, {}),
    ("min_colluding", 2, 1, {}),
    ("min_threshold", 0.81, 0.8, {}),
    # At least 4 of 5 are in a sum and one colludes: two others hide it for sure.
    ("max_share", 0.33, 0.34, {"weighting": "equal"}),
    ("bits", [24, 16], [32], {}),
    ("max_clip_norm", 0.99, 1.0, {}),
    ("min_noise", 1.01, 1.0, {}),
    ("max_epsilon", 0.01, 1000.0, {}),
    ("max_rounds", 39, 40, {"max_attempts": 40}),  # each attempt is charged
    ("max_local_steps", 1, 2, {"training": TWO_STEPS}),
    ("max_length", 15, 16, {}),
]


@pytest.mark.parametrize(
    ("key", "forbids", "allows", "changes"), RULES, ids=[rule[0] for rule in RULES]
)
def test_each_rule_of_the_owner_refuses_alone_and_is_named(
    ask_member: Any,
    five: Federation,
    member: Path,
    touched: list[str],
    caplog: pytest.LogCaptureFixture,
    key: str,
    forbids: object,
    allows: object,
    changes: dict[str, Any],
) -> None:
    """M4: before anything is charged or computed."""
    changes = {
        name: getattr(five.job, name).model_copy(update=value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    before = (member / LEDGER_FILE).read_bytes()
    owner(member, policy={key: forbids})
    assert refused(ask_member(**changes))
    assert re.findall(r"policy\.(\w+)", caplog.text) == [key]
    assert (member / LEDGER_FILE).read_bytes() == before
    assert touched == []
    owner(member, policy={key: allows})
    assert gave(ask_member(**changes))


def test_no_rule_of_the_owner_goes_untested() -> None:
    assert {rule[0] for rule in RULES} == set(Policy.model_fields)


# What the coordinator states of a round


Lie = Callable[[Federation, Terms], Terms]
DIFFERS = "other terms than its job has"


def among(terms: Terms, bundles: Sequence[Bundle], **bounds: int) -> Terms:
    """The round with other participants and all that follows from their number."""
    found = replace(terms.thresholds, count=len(bundles), shares=(len(bundles) + 1) // 2 + 1)
    found = replace(found, **bounds)
    weights = capped([bundle.size_class for bundle in bundles], found)
    return replace(terms, bundles=tuple(bundles), weights=weights, thresholds=found)


def with_bounds(**changes: int) -> Lie:
    return lambda _, terms: replace(terms, thresholds=replace(terms.thresholds, **changes))


def with_bundle(place: int, **changes: Any) -> Lie:
    """The bundle at `place` changed on its way."""

    def lie(_: Federation, terms: Terms) -> Terms:
        bundles = list(terms.bundles)
        bundles[place] = replace(bundles[place], **changes)
        return among(terms, bundles)

    return lie


def with_signed_bundle(**changes: Any) -> Lie:
    """The last bundle changed by its PC, which works for the coordinator."""

    def lie(five: Federation, terms: Terms) -> Terms:
        last = five.signed_by_its_pc(replace(terms.bundles[-1], **changes))
        return among(terms, (*terms.bundles[:-1], last))

    return lie


def with_key_of_another(kind: str) -> Lie:
    """The last PC signs another's key as its own."""

    def lie(five: Federation, terms: Terms) -> Terms:
        return with_signed_bundle(**{kind: getattr(terms.bundles[1], kind)})(five, terms)

    return lie


def with_a_stranger(_: Federation, terms: Terms) -> Terms:
    """A PC that the coordinator made up takes the place of the last one."""
    key = SigningKey()
    made_up = replace(terms.bundles[-1], identity=key.public).signed_by(key)
    bundles = sorted((*terms.bundles[:-1], made_up), key=lambda bundle: bundle.identity)
    return among(terms, bundles)


LIES: dict[str, tuple[str, Lie]] = {
    "16 bits": (DIFFERS, lambda _, t: replace(t, bits=16)),
    "24 bits": (DIFFERS, lambda _, t: replace(t, bits=24)),
    "larger bound": (DIFFERS, lambda _, t: replace(t, bound=2 * t.bound)),
    "smaller bound": (DIFFERS, lambda _, t: replace(t, bound=t.bound / 2)),
    "no bound": (DIFFERS, lambda _, t: replace(t, bound=float("nan"))),
    "larger cohort": (DIFFERS, lambda _, t: replace(t, cohort=6)),
    "smaller cohort": (DIFFERS, lambda _, t: replace(t, cohort=4)),
    "M1: fewer shares": (DIFFERS, with_bounds(shares=3)),
    "M1: more shares": (DIFFERS, with_bounds(shares=5)),
    "M2: smaller sum": (DIFFERS, with_bounds(least=3)),
    "M2: larger sum": (DIFFERS, with_bounds(least=5)),
    "nobody colludes": (DIFFERS, with_bounds(colluding=0)),
    "more collude": (DIFFERS, with_bounds(colluding=2)),
    "fewer than there are": (DIFFERS, with_bounds(count=4)),
    "unsealed": (DIFFERS, lambda _, t: replace(t, thresholds=PLAIN)),
    "M32: a weight above all others": (
        DIFFERS,
        lambda _, t: replace(t, weights=(*t.weights[:-1], 4096)),
    ),
    "equal weights": (DIFFERS, lambda _, t: replace(t, weights=(1,) * 5)),
    "a weight too few": (DIFFERS, lambda _, t: replace(t, weights=t.weights[:-1])),
    "other job": (DIFFERS, lambda _, t: replace(t, job_hash=bytes(32))),
    "other run": (DIFFERS, lambda _, t: replace(t, run="f" * 16)),
    "other model": ("another global vector", lambda _, t: replace(t, vector_hash=bytes(32))),
    "other size": ("another base model", lambda _, t: replace(t, size=t.size + 1)),
    "other federation": (DIFFERS, lambda _, t: replace(t, federation="f")),
    "other members": (DIFFERS, lambda _, t: replace(t, roster_hash=bytes(32))),
    "attempt beyond the job": ("more rounds", lambda _, t: replace(t, number=6)),
    "M11: too few": ("cannot be had", lambda _, t: among(t, t.bundles[:3])),
    "M11: too few, and said so": ("cannot be had", lambda _, t: among(t, t.bundles[:3], least=3)),
    "M11: nobody": ("cannot be had", lambda _, t: among(t, ())),
    "M9: own keys missing": ("takes no part", lambda _, t: among(t, t.bundles[1:])),
    "M9: own keys changed": ("the signature is wrong", with_bundle(0, mask_key=bytes(32))),
    "M8: other keys changed": ("the signature is wrong", with_bundle(1, mask_key=bytes(32))),
    "M8: class changed": ("size class", with_bundle(1, size_class=1024)),
    "a weight beyond the job's": ("size class", with_signed_bundle(size_class=2**40)),
    "M8: keys of another run": ("another federation or run", with_signed_bundle(run="f" * 16)),
    "M8: keys of others": ("another federation or run", with_signed_bundle(federation="f")),
    "M8: old keys": ("have expired", with_signed_bundle(not_after=1_700_000_000)),
    "M8: a stranger": ("did not choose", with_a_stranger),
    "a mask key that is none": ("no secret can be shared", with_signed_bundle(mask_key=bytes(32))),
    "a share key that is none": (
        "no secret can be shared",
        with_signed_bundle(share_key=bytes(32)),
    ),
    "M9: one mask key": ("have one mask key", with_key_of_another("mask_key")),
    "M9: one share key": ("have one share key", with_key_of_another("share_key")),
    "M9: one PC twice": ("have one identity", lambda _, t: among(t, (*t.bundles, t.bundles[-1]))),
    "M30: out of order": ("out of order", lambda _, t: among(t, t.bundles[::-1])),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_about_a_round_costs_nothing(
    ask_member: Any,
    member: Path,
    five: Federation,
    touched: list[str],
    caplog: pytest.LogCaptureFixture,
    lie: str,
) -> None:
    """M4 and M12: a PC computes the terms itself; other rules stand before the lie's name."""
    reason, state = LIES[lie]
    before = (member / LEDGER_FILE).read_bytes()
    assert refused(ask_member(state=lambda terms: state(five, terms)))
    assert reason in caplog.text
    assert (member / LEDGER_FILE).read_bytes() == before
    assert not (member / "keys" / "terms").exists()  # nor is it a member of such a round
    assert touched == []
    assert gave(ask_member())


def test_a_pc_that_takes_no_part_in_an_open_round_is_not_charged_for_it(
    ask_member: Any, member: Path, five: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    """M9: nothing else looks for its keys there."""
    owner(member, policy={"allow_plain_updates": True})
    plain = PlainAggregation(bound=five.job.aggregation.bound)

    def state(terms: Terms) -> Terms:
        return replace(terms, bundles=terms.bundles[1:], weights=terms.weights[1:])

    assert refused(ask_member(aggregation=plain, state=state))
    assert "takes no part" in caplog.text
    assert charges(member) == 0
    assert gave(ask_member(aggregation=plain))


def test_a_model_that_is_not_the_one_of_the_terms_is_refused(
    ask_member: Any, member: Path, five: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    """M13: the round is bound to the vector, so that all PCs train the same one."""
    stated = hash_vector(five.vector)
    other = five.vector + np.float32(0.001)
    assert refused(ask_member(model=other, state=lambda t: replace(t, vector_hash=stated)))
    assert "another global vector" in caplog.text
    assert charges(member) == 0


@pytest.mark.parametrize("place", ["inside", "outside", "all"])
def test_a_round_holds_nobody_whom_the_public_draw_did_not_choose(
    five: Federation, tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    """M11: neither a PC that was not chosen trains, nor does one train with such a PC."""
    (group,) = five.roster.groups(1, 4)
    (outside,) = set(five.roster.members) - set(group)
    own = outside if place == "outside" else group[0]
    folder = copies(five, tmp_path)[own]
    (left,) = [bundle for bundle in five.bundles if bundle.identity == group[1]]

    def state(terms: Terms) -> Terms:
        assert terms.participants == group
        if place == "all":
            return among(terms, five.bundles)
        return among(terms, [bundle for bundle in five.bundles if bundle != left])

    assert refused(asker(five, folder)(cohort=4, state=state))
    assert "did not choose" in caplog.text
    assert charges(folder) == 0
    if place != "outside":
        assert gave(asker(five, folder)(cohort=4))


def test_keys_that_the_pc_made_for_an_older_epoch_are_refused(
    ask_member: Any, member: Path, five: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    """M9 and M10: its own signature on them is good, and the secret keys are gone."""
    newer = set_up(member, five.job.run, five.roster, epoch=2)
    assert refused(ask_member())
    assert "the keys that this PC made" in caplog.text
    assert charges(member) == 0
    assert gave(ask_member(state=lambda terms: among(terms, (newer, *terms.bundles[1:]))))


def test_keys_that_have_expired_are_of_no_more_use_and_deleted(
    ask_member: Any, member: Path, five: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M10: by the PC's own clock."""
    assert gave(ask_member())
    late = five.bundles[0].not_after + 1
    request = MemberRequest(five.job.run, 1, Proposal(()).encode())
    with monkeypatch.context() as patch:
        patch.setattr(key_store_module, "time", SimpleNamespace(time=lambda: late))
        assert failed(send(member, AGREE, request.encode()))
    assert not (member / "keys" / "epoch.json").exists()
    assert refused(ask_member(attempt=2))
    assert charges(member) == 1


# What a lying coordinator could learn


def test_a_label_list_without_one_of_the_pcs_labels_tells_nothing_about_it(
    ask: Any, folder: Path, job: Job
) -> None:
    """To answer with an error there would say, without any noise, which labels the PC holds."""
    labels = ("canary", "negative")
    layout = Classifier(job.model, labels).layout.hash
    assert gave(ask(labels=labels, layout_hash=layout))
    neither = ("left", "right")
    layout = Classifier(job.model, neither).layout.hash
    other = ask(labels=neither, layout_hash=layout, attempt=2)
    assert np.std(other.update) > 0  # noise alone
    assert charges(folder) == 2


@pytest.mark.parametrize("damage", ["no data", "other data", "a row", "tokenizer", "out of memory"])
def test_whether_a_pc_can_use_its_data_shows_in_nothing_but_noise(
    ask: Any,
    enrolled: Federation,
    folder: Path,
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    """To fail would be an answer about the data without any noise; the owner's own log has it."""

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    records = folder / "records.parquet"
    match damage:
        case "no data":
            records.unlink()
        case "other data":
            records.write_bytes(b"PAR1 and no more")
        case "a row":
            pq.write_table(pa.table({"text": ["good", None], "label": ["positive"] * 2}), records)
        case "tokenizer":
            monkeypatch.setattr(module, "make_inputs", fail)
        case _:
            ask(attempt=1)  # so that the rehearsal is behind it
            shutil.rmtree(folder)
            (fresh,) = enrolled.folders.values()
            shutil.copytree(fresh, folder)
            monkeypatch.setattr(training, "cross_entropy", fail)
    # The rate is so low that what remains is a step on nothing whatever the data is.
    rate = 1.0 if damage == "out of memory" else 1e-9
    owner(folder, insecure_test_seed=3)
    answer = ask(sampling_rate=rate, noise_multiplier=1e4)
    assert np.std(answer.update) == pytest.approx(deviation(job, 1e4, rate), rel=0.13)
    log = folder / LOG_FILE
    on_nothing = "round 1: trained on nothing" in log.read_text()
    assert on_nothing == (damage != "a row")  # one bad record costs no other
    assert log.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_becomes_noise_alone(
    ask: Any, folder: Path, job: Job, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """It could not be encoded, and to fail would tell that some record does this."""
    real = module.train_round

    def train(classifier: Any, inputs: Any, *args: Any, **named: Any) -> np.ndarray:
        update = real(classifier, inputs, *args, **named)
        if len(inputs):
            update[5] = value
        return update

    monkeypatch.setattr(module, "train_round", train)
    answer = ask(sampling_rate=1e-9, noise_multiplier=1e4)
    assert np.isfinite(answer.update).all()
    assert np.std(answer.update) == pytest.approx(deviation(job, 1e4, 1e-9), rel=0.13)
    assert "not finite" in (folder / LOG_FILE).read_text()
    assert charges(folder) == 1


@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
def test_a_pc_without_the_memory_for_a_batch_says_so_before_it_looks_at_its_data(
    ask: Any,
    folder: Path,
    touched: list[str],
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
) -> None:
    """Later, memory that runs out on one long record would silence all the others."""

    def fail(*_: Any, **__: Any) -> None:
        raise error("not enough memory")

    monkeypatch.setattr(module, "_rehearsed", {})
    with monkeypatch.context() as patch:
        patch.setattr(training, "cross_entropy", fail)
        assert refused(ask())
    assert (touched, charges(folder)) == ([], 0)
    assert "not enough memory" in (folder / LOG_FILE).read_text()
    assert gave(ask())


def test_without_privacy_a_pc_that_cannot_use_its_data_fails(ask: Any, folder: Path) -> None:
    owner(folder, policy={"allow_not_private": True})
    (folder / "records.parquet").unlink()
    assert failed(ask(privacy=NoPrivacy()))


def test_a_job_cannot_choose_the_base_and_with_it_the_tokenizer(
    ask: Any, folder: Path, job: Job, tmp_path: Path
) -> None:
    """A tokenizer that maps one word beyond the embedding would tell who holds the word."""
    evil = make_folder(tmp_path / "evil", "bert")
    words = json.loads((evil / "tokenizer.json").read_text())
    words["model"]["vocab"]["secret"] = 60
    (evil / "tokenizer.json").write_text(json.dumps(words))
    model = model_settings(evil, method="head")
    before = (folder / LEDGER_FILE).read_bytes()
    for base in (str(evil), str(folder), str(tmp_path / "not there")):
        named = model.model_copy(update={"base": base})
        assert refused(ask(model=np.zeros(51, np.float32), job_model=named))
    assert (folder / LEDGER_FILE).read_bytes() == before
    with pytest.raises(ModelError, match="tokenizer"):
        Classifier(model, job.labels)


def deviation(job: Job, noise: float, rate: float) -> float:
    """Of one step's noise on an update of the PC with size class 64."""
    return noise * job.privacy.clip_norm * job.training.learning_rate / (rate * 64)


def exotic(folder: Path, count: int) -> Path:
    """The PC with other texts, `count` of them, and the same size class."""
    texts = tuple(f"{number} other words" * (1 + number % 5) for number in range(count))
    labels = tuple("positive" for _ in range(count))
    Records(texts, labels).write_parquet(folder / "records.parquet")
    return folder


@pytest.mark.parametrize("method", ["head", "bitfit", "lora"])
def test_two_true_counts_of_one_class_send_the_same_but_for_the_values(
    ask: Any, folder: Path, job: Job, tmp_path: Path, method: str
) -> None:
    model = job.model.model_copy(update={"train": TrainingMethod.kinds[method]()})
    classifier = Classifier(model, job.labels)
    changes = {"job_model": model, "layout_hash": classifier.layout.hash}
    wires = []
    for count in (40, 33, 64, 1):
        where = exotic(Path(shutil.copytree(folder, tmp_path / str(count))), count)
        answer = ask(model=read_vector(classifier), where=where, **changes)
        update = answer.update
        assert update.shape == (classifier.layout.size,)
        assert np.isfinite(update).all()
        # Noise on every coordinate; one in a billion is rounded to 0.
        assert np.count_nonzero(update == 0) <= 1
        wires.append(without_values(answer.reply))
    assert len(set(wires)) == 1


@pytest.mark.parametrize("count", [40, 33, 64, 1])
def test_what_a_step_on_nothing_sends_does_not_depend_on_the_true_count(
    ask: Any, folder: Path, job: Job, count: int
) -> None:
    exotic(folder, count)
    owner(folder, insecure_test_seed=5)
    rate = 1e-12
    answer = ask(sampling_rate=rate, noise_multiplier=2.0)
    assert np.std(answer.update) == pytest.approx(deviation(job, 2.0, rate), rel=0.13)


def test_every_local_step_is_charged(ask: Any, folder: Path, job: Job) -> None:
    three_steps = job.training.model_copy(update={"local_steps": 3})
    ask(training=three_steps, sampling_rate=0.25, noise_multiplier=1.5, clip_norm=0.125)
    (charge,) = Ledger(folder / LEDGER_FILE).charges
    assert charge.schedule == dp_sgd(1.5, 0.25, 3, clip_norm=0.125)
    assert not charge.seeded


def test_a_charge_says_that_the_noise_came_from_a_test_seed(ask: Any, folder: Path) -> None:
    owner(folder, insecure_test_seed=3)
    ask()
    assert Ledger(folder / LEDGER_FILE).unprotected


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


def test_a_reply_holds_the_update_and_nothing_else(ask: Any) -> None:
    content = ask().reply.content
    assert list(content) == ["update"]
    assert list(content["update"]) == ["frame"]
    array = content["update"]["frame"]
    assert (array.dtype, array.shape, array.stype) == ("uint8", (4 * 770,), "bytes")
    assert len(array.data) == 4 * 770


def test_a_description_holds_a_name_and_public_keys_and_nothing_else(
    folder: Path, enrolled: Federation
) -> None:
    request = SetupRequest(enrolled.job.run, 1, enrolled.roster.encode())
    reply = send(folder, SETUP, request.encode())
    (bundle,) = enrolled.bundles  # the ones that it made for this epoch before
    assert {k: dict(v) for k, v in reply.content.items()} == {
        "pc": {"name": "pc-0000", "bundle": bundle.encode()}
    }
    bundle.check(enrolled.roster, enrolled.job.run, time.time())
    assert bundle.size_class == 64


def test_the_noise_is_another_one_each_time(ask: Any, folder: Path, tmp_path: Path) -> None:
    again = shutil.copytree(folder, tmp_path / "again")
    nothing = {"sampling_rate": 1e-12}  # so that noise is all there is
    updates = [
        ask(**nothing).update,
        ask(attempt=2, **nothing).update,
        ask(attempt=3, number=2, **nothing).update,
        ask(where=again, **nothing).update,
    ]
    for first, second in combinations(updates, 2):
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.2  # 770 values: 5.5 standard errors


# What a sealed round sends


def test_a_sealed_reply_is_a_whole_upload_and_the_same_for_any_data(
    five: Federation, tmp_path: Path
) -> None:
    """M16 and M17: no size depends on a PC's data or its class."""
    folders = list(copies(five, tmp_path).values())
    again = [Path(shutil.copytree(folders[0], tmp_path / str(count))) for count in (1, 40)]
    for count, folder in zip((1, 40), again, strict=True):
        exotic(folder, count)
    wires = []
    for folder in folders + again:
        answer = asker(five, folder)()
        upload = Upload.decode(answer.frame)
        upload.check(answer.terms)
        assert upload.header.uploader == KeyStore(folder).identity.public
        wires.append(without_values(answer.reply))
    assert len(set(wires)) == 1
    assert list(answer.reply.content) == ["update"]
    assert list(answer.reply.content["update"]) == ["frame"]


def test_a_pc_without_its_data_seals_noise(ask_member: Any, member: Path) -> None:
    (member / "records.parquet").unlink()
    answer = ask_member()
    Upload.decode(answer.frame).check(answer.terms)
    assert "trained on nothing" in (member / LOG_FILE).read_text()


@pytest.mark.parametrize("attempt", [1, 2])
def test_a_sealed_attempt_leaves_once(ask_member: Any, member: Path, attempt: int) -> None:
    """M14: a second upload would have another own key, and two would show their difference."""
    assert gave(ask_member(attempt=2))
    before = (member / LEDGER_FILE).read_bytes()
    for number in (1, 2):
        assert refused(ask_member(attempt=attempt, number=number))
    key_store_module._cache.clear()  # as in another process
    assert refused(ask_member(attempt=attempt))
    assert (member / LEDGER_FILE).read_bytes() == before
    assert gave(ask_member(attempt=3))


def test_every_upload_has_an_own_key_of_its_own(five: Federation, tmp_path: Path) -> None:
    """M15: also of a PC that was restored from a copy and has a test seed."""
    own = five.bundles[0].identity
    checks = []
    for name in ("now", "restored"):
        folder = copies(five, tmp_path / name)[own]
        owner(folder, insecure_test_seed=3)
        checks.append(Upload.decode(asker(five, folder)().frame).checks)
    assert checks[0][0] != checks[1][0]
    assert checks[0][1:] == checks[1][1:]  # those of pairs follow from the keys and the round


def test_a_pc_that_cannot_pay_is_a_member_all_the_same(
    ask_member: Any, member: Path, five: Federation
) -> None:
    """Else each spent budget would cost the others a word that they need."""
    plan, order = five.job.schedule, Ledger(member / LEDGER_FILE).order
    (member / LEDGER_FILE).unlink()
    allowed = (charged_epsilon(plan, 1, order) + charged_epsilon(plan, 2, order)) / 2
    Ledger.create(
        member / LEDGER_FILE,
        KeyStore(member).identity,
        lifetime_epsilon=allowed,
        delta=plan.mechanism.delta,
        order=order,
    ).charge(Charge(run="f" * 16, round=1, attempt=1, schedule=plan))
    answer = ask_member()
    assert answer.content == EXHAUSTED
    assert KeyStore(member).terms(five.job.run, 1) == answer.terms
    other = ask_member(state=lambda terms: among(terms, terms.bundles[:-1]))
    assert refused(other)  # a round is described once
    assert KeyStore(member).terms(five.job.run, 1) == answer.terms


# A PC's word as a member of its group


@dataclass(frozen=True)
class Round:
    """A round in which all five PCs were asked; their folders, and what a coordinator has of it."""

    folders: dict[bytes, Path]
    sum: Sum

    @property
    def terms(self) -> Terms:
        return self.sum.terms

    def request(self, frame: bytes) -> RecordDict:
        return MemberRequest(self.terms.run, self.terms.number, frame).encode()

    def agree(self, member: bytes) -> Message:
        frame = self.sum.proposal(member).encode()
        return send(self.folders[member], AGREE, self.request(frame))

    def agreed(self, *members: bytes) -> tuple[Agreement, ...]:
        """Their agreements; fails where one does not agree."""
        found = [read_answer(decode_answer(self.agree(member).content)) for member in members]
        assert all(isinstance(one, Agreement) for one in found)
        return tuple(one for one in found if isinstance(one, Agreement))

    def unmask(self, member: bytes, agreements: tuple[Agreement, ...]) -> Message:
        frame = Unmask(self.sum.proposal(member), agreements).encode()
        return send(self.folders[member], UNMASK, self.request(frame))

    def released(self, member: bytes, agreements: tuple[Agreement, ...]) -> Release:
        return Release.decode(decode_answer(self.unmask(member, agreements).content))


def asked_five(five: Federation, folder: Path, missing: int = 0, **job: Any) -> Round:
    """The last `missing` of the PCs' uploads do not arrive."""
    folders = copies(five, folder)
    for own in folders.values():
        owner(own, insecure_test_seed=3)
    answers = {pc: asker(five, own)(**job) for pc, own in folders.items()}
    (terms, *_) = [answer.terms for answer in answers.values()]
    uploads = {pc: Upload.decode(answer.frame) for pc, answer in answers.items()}
    return Round(folders, Sum(terms, uploads, list(folders)[: len(folders) - missing]))


@pytest.mark.parametrize("missing", [0, 1])
def test_what_is_opened_is_the_sum_of_what_would_have_travelled_openly(
    five: Federation, tmp_path: Path, missing: int
) -> None:
    # Equal weights: those of sealed updates are limited.
    sealed = asked_five(five, tmp_path / "sealed", missing, weighting="equal")
    pcs = sealed.terms.participants
    agreements = sealed.agreed(*pcs[:4])
    opened = sealed.sum.open([sealed.released(pc, agreements) for pc in pcs[:4]])

    total = np.zeros(sealed.terms.size, sealed.terms.encoding.dtype)
    folders = copies(five, tmp_path / "open")
    for pc in pcs[: 5 - missing]:
        owner(folders[pc], policy={"allow_plain_updates": True}, insecure_test_seed=3)
        plain = PlainAggregation(bound=five.job.aggregation.bound)
        answer = asker(five, folders[pc])(aggregation=plain, weighting="equal")
        assert answer.frame != sealed.sum.uploads[pc].vector
        total += answer.terms.encoding.unpack(answer.frame, answer.terms.size)
    np.testing.assert_array_equal(opened, sealed.terms.encoding.decode(total))


def test_a_pc_agrees_to_one_set_of_a_round(five: Federation, tmp_path: Path) -> None:
    """M21 and M25: the same one again, another never, also after a restart."""
    asked = asked_five(five, tmp_path)
    first, *_, last = asked.terms.participants
    (agreement,) = asked.agreed(first)
    assert asked.agreed(first) == (agreement,)
    asked.sum.leave_out(last)
    assert failed(asked.agree(first))
    key_store_module._cache.clear()  # as in another process
    assert failed(asked.agree(first))
    assert not failed(asked.agree(last))  # which has agreed to none yet


@pytest.mark.parametrize("stage", [AGREE, UNMASK])
def test_without_a_record_of_the_set_no_word_leaves(
    five: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """M21 and M23: the set is durable first, and binds whatever was asked."""
    asked = asked_five(five, tmp_path)
    first, *others = asked.terms.participants
    agreements = asked.agreed(*others)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError

    def word() -> Message:
        return asked.agree(first) if stage == AGREE else asked.unmask(first, agreements)

    with monkeypatch.context() as patch:
        patch.setattr(key_store_module, "write_atomic", fail)
        assert failed(word())
    assert not failed(word())
    asked.sum.leave_out(others[-1])
    assert failed(asked.agree(first))


def test_a_pc_releases_shares_for_the_set_that_it_agreed_to_only(
    five: Federation, tmp_path: Path
) -> None:
    """M22 and M23: whatever four others agreed to, and for those who agreed, not for fewer."""
    asked = asked_five(five, tmp_path)
    first, *others = asked.terms.participants
    whole = asked.agreed(first)
    asked.sum.leave_out(others[0])
    agreements = asked.agreed(*others)
    assert failed(asked.unmask(first, agreements))
    assert failed(asked.unmask(others[0], whole + agreements[1:]))
    assert failed(asked.unmask(others[0], agreements[:1] * 4))
    assert failed(asked.unmask(others[0], agreements[:3]))
    assert asked.released(others[0], agreements).member == others[0]


def test_a_set_of_a_round_that_was_asked_before_a_newer_one_is_refused(
    five: Federation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = asked_five(five, tmp_path)
    first, *_ = asked.terms.participants
    assert gave(asker(five, asked.folders[first])(attempt=2))
    assert failed(asked.agree(first))
    assert "a newer one has begun" in caplog.text


ONLY_A_WORD = """
import json, sys
from flwr.app import Message
from fedaipc.client.client_app import app
from fedaipc.simulation.flower_adapter import InProcessGrid
from fedaipc.protocol.messages import AGREE, SETUP, UNMASK, MemberRequest, SetupRequest

told = json.load(sys.stdin)
roster, proposal, unmask = (bytes.fromhex(told[k]) for k in ("roster", "proposal", "unmask"))
grid = InProcessGrid(app, [{"pc-folder": told["folder"]}], {})
(node,) = grid.get_node_ids()
replies = grid.send_and_receive([
    Message(SetupRequest(told["run"], 1, roster).encode(), node, SETUP),
    Message(MemberRequest(told["run"], 1, proposal).encode(), node, AGREE),
    Message(MemberRequest(told["run"], 1, unmask).encode(), node, UNMASK),
])
loaded = sorted({"torch", "opacus", "transformers"} & set(sys.modules))
print(json.dumps({"answered": [reply.has_content() for reply in replies], "loaded": loaded}))
"""


def test_a_pc_that_only_gives_its_word_loads_no_model_library(
    five: Federation, tmp_path: Path
) -> None:
    """Within a stage's minute a slow PC must have answered."""
    asked = asked_five(five, tmp_path)
    first, *others = asked.terms.participants
    proposal = asked.sum.proposal(first)
    told = {
        "folder": str(asked.folders[first]),
        "run": five.job.run,
        "roster": five.roster.encode().hex(),
        "proposal": proposal.encode().hex(),
        "unmask": Unmask(proposal, asked.agreed(*others)).encode().hex(),
    }
    ran = subprocess.run(
        [sys.executable, "-c", ONLY_A_WORD],
        input=json.dumps(told),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(ran.stdout) == {"answered": [True, True, True], "loaded": []}


# What must not get out


class OddError(Exception):
    """An exception that fails even when it is printed."""

    def __str__(self) -> str:
        raise RuntimeError(CANARY)


@pytest.mark.parametrize(
    "error",
    [
        ValueError(CANARY),
        DataError(f"{CANARY} is not a label"),
        KeyError(CANARY),
        UnicodeDecodeError("utf-8", CANARY.encode(), 0, 1, CANARY),
        RecursionError(CANARY),
        SystemExit(CANARY),
        StopIteration(CANARY),
        OddError(CANARY),
        ExceptionGroup(CANARY, [ValueError(CANARY)]),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("where", ["load_owner", "_classifier", "read_records", "train_round"])
@pytest.mark.parametrize("privacy", ["dp-sgd", "none"])
def test_no_word_of_an_exception_leaves_the_pc(
    ask: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    folder: Path,
    where: str,
    privacy: str,
    error: BaseException,
) -> None:
    def fail(*args: Any, **named: Any) -> None:
        raise error

    changes = {}
    if privacy == "none":
        owner(folder, policy={"allow_not_private": True})
        changes = {"privacy": NoPrivacy()}
    monkeypatch.setattr(client_module if where == "load_owner" else module, where, fail)
    (folder / OWNER_FILE).touch()  # so that it is read again
    caplog.set_level(logging.DEBUG)
    reply = ask(**changes).reply
    # What cannot read its data sends noise, where noise is what it has promised.
    silent = privacy != "none" and where == "read_records" and isinstance(error, Exception)
    assert failed(reply) != silent
    assert b"canary" not in on_the_wire(reply)
    assert type(error).__name__.encode() not in on_the_wire(reply)
    assert "canary" not in caplog.text
    said = capfd.readouterr()
    assert "canary" not in said.out + said.err


@pytest.mark.parametrize(
    "damage",
    [
        "no owner file",
        "broken owner file",
        "no ledger",
        "damaged ledger",
        "no identity",
        "damaged identity",
        "no members",
        "damaged members",
        "no data",
        "other data",
    ],
)
def test_a_damaged_pc_says_nothing_of_what_is_wrong(
    ask: Any, folder: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    caplog.set_level(logging.DEBUG)
    match damage:
        case "no owner file":
            (folder / OWNER_FILE).unlink()
        case "broken owner file":
            (folder / OWNER_FILE).write_text(f'name = "{CANARY} and more"')
        case "no ledger":
            (folder / LEDGER_FILE).unlink()
        case "damaged ledger":
            (folder / LEDGER_FILE).write_text(CANARY)
        case "no identity":
            (folder / "keys" / "identity.key").unlink()
        case "damaged identity":
            (folder / "keys" / "identity.key").write_text(CANARY)
        case "no members":
            (folder / "keys" / "roster").unlink()
        case "damaged members":
            (folder / "keys" / "roster").write_text(CANARY)
        case "no data":
            (folder / "records.parquet").unlink()
        case _:
            (folder / "records.parquet").write_text(CANARY)
    answer = ask()
    if damage in ("no data", "other data"):
        assert (answer.update != 0).all()  # noise alone
        assert charges(folder) == 1
    else:
        assert failed(answer) or refused(answer)
    assert CANARY.encode() not in on_the_wire(answer.reply)
    assert CANARY not in caplog.text


@pytest.mark.parametrize("stage", [SETUP, MASK, AGREE, UNMASK])
def test_a_request_full_of_rubbish_gets_the_fixed_code(folder: Path, stage: str) -> None:
    rubbish = ConfigRecord({"job": CANARY, "run": CANARY, "attempt": 1, "epoch": 1})
    rubbish["roster"] = rubbish["frame"] = rubbish["terms"] = CANARY.encode()
    for content in (RecordDict(), RecordDict({"ask": rubbish})):
        reply = send(folder, stage, content)
        assert failed(reply)
        assert CANARY.encode() not in on_the_wire(reply)
    assert charges(folder) == 0


@pytest.mark.parametrize("part", ["job", "terms"])
def test_a_job_or_terms_that_cannot_be_read_are_refused(
    folder: Path, enrolled: Federation, part: str
) -> None:
    signed = SignedJob.sign(enrolled.admission, enrolled.job)
    terms = enrolled.terms(signed)
    text = CANARY if part == "job" else signed.text
    signature = enrolled.admission.sign(b"fedaipc job" + text.encode())
    frame = CANARY.encode() if part == "terms" else terms.encode()
    request = MaskRequest(text, signature, 1, frame, enrolled.vector)
    answer = Answer(send(folder, MASK, request.encode()), terms)
    assert refused(answer)
    assert CANARY.encode() not in on_the_wire(answer.reply)
    assert charges(folder) == 0


# What changes under it


def test_a_data_file_that_was_replaced_is_read_again(
    ask: Any, folder: Path, touched: list[str]
) -> None:
    ask(attempt=1)
    ask(attempt=2)
    assert touched.count("read_records") == 1
    exotic(folder, 50)
    ask(attempt=3)
    assert touched.count("read_records") == 2


def test_more_records_than_the_size_class_give_no_larger_update(
    ask: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The divisor is the declared class, whatever the PC holds by now."""
    divisors = []
    real = module.train_round

    def train(*args: Any, **named: Any) -> Any:
        divisors.append(named["size_class"])
        return real(*args, **named)

    monkeypatch.setattr(module, "train_round", train)
    exotic(folder, 90)
    assert gave(ask())
    assert divisors == [64]


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (90, "more records than its size class"),
        (12, "most of the records that this PC enrolled with are gone"),
        (0, "trained on nothing"),
        (40, ""),
    ],
)
def test_an_owner_is_told_where_the_size_class_does_not_fit_any_more(
    ask: Any, folder: Path, caplog: pytest.LogCaptureFixture, count: int, said: str
) -> None:
    """With numbers in the PC's own log alone, once for a file, and nothing in the answer."""
    exotic(folder, count)
    answers = [ask(attempt=1)]
    assert "size class" not in caplog.text  # a simulation's log is the coordinator's
    owner(folder, server="localhost:1")
    module._examples.clear()
    answers += [ask(attempt=2), ask(attempt=3)]
    assert all(map(gave, answers))
    assert len({len(answer.content) for answer in answers}) == 1
    log = (folder / "pc.log").read_text() if (folder / "pc.log").is_file() else ""
    if not said:
        assert log == caplog.text == ""
        return
    assert caplog.text.count(said) == 1
    assert "fedaipc client enroll" in caplog.text or count == 0
    assert str(count) not in caplog.text.replace(str(folder), "") or count == 0
    assert f"{count} records, size class 64: " in log


def test_an_owner_finds_in_the_log_what_was_left_out_and_why(ask: Any, folder: Path) -> None:
    texts = folder / "texts.csv"
    rows = [f"{CANARY} {n},positive" for n in range(40)]
    rows[3:5] = [f'"{CANARY},positive', f"{CANARY},unheard-of"]
    texts.write_text("text,label\n" + "\n".join(rows))
    owner(folder, source="./texts.csv", quoting="line")
    answer = ask()
    assert gave(answer)
    log = (folder / "pc.log").read_text()
    assert "2 of 40 records cannot be used" in log
    assert "(line 5)" in log
    assert "(line 6: 'unheard-of')" in log
    assert CANARY not in log
    assert CANARY.encode() not in on_the_wire(answer.reply)


def test_a_test_seed_repeats_a_round_in_any_attempt(ask: Any, folder: Path, tmp_path: Path) -> None:
    owner(folder, insecure_test_seed=9)
    again = shutil.copytree(folder, tmp_path / "again")
    first = ask(attempt=1).update
    assert np.array_equal(first, ask(attempt=4, where=again).update)
    assert not np.array_equal(first, ask(number=2, attempt=5).update)


def test_a_request_is_not_changed_by_training(ask: Any, vector: np.ndarray) -> None:
    before = vector.copy()
    ask()
    np.testing.assert_array_equal(vector, before)
