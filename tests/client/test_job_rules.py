"""What a PC refuses before anything is charged, whoever signed it and whatever the owner allows."""

from __future__ import annotations

import re
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedaipc.client import client_app, examples
from fedaipc.client.disclosure_log import read as read_sent
from fedaipc.client.key_store import KeyStore
from fedaipc.config import NoPrivacy, PlainAggregation, Policy, Schedule
from fedaipc.errors import DataError
from fedaipc.privacy.budget import charged_epsilon, local_epsilon
from fedaipc.privacy.ledger import LEDGER_FILE, Charge, Ledger
from fedaipc.protocol.job import Job, SignedJob
from fedaipc.protocol.messages import EXHAUSTED, MASK, SETUP, MaskRequest, SetupRequest
from fedaipc.secagg.keys import SigningKey
from fedaipc.secagg.round_keys import Group
from tests.support.clients import (
    CANARY,
    Answer,
    Federation,
    charges,
    failed,
    gave,
    owner,
    refused,
    send,
)

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
    order = Ledger(folder / LEDGER_FILE).filter_kind
    (folder / LEDGER_FILE).unlink()
    allowed = (
        charged_epsilon(job.schedule, 2, order) + charged_epsilon(job.schedule, 3, order)
    ) / 2
    Ledger.create(
        folder / LEDGER_FILE,
        KeyStore(folder).identity,
        lifetime_epsilon=allowed,
        delta=job.privacy.delta,
        filter_kind=order,
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
    group = Group(enrolled.terms(SignedJob(Job.parse(text), text, signature)), ())
    frames = group.terms.encode(), group.encode_keys()
    request = MaskRequest(text, signature, 1, *frames, enrolled.vector)
    before = (folder / LEDGER_FILE).read_bytes()
    answer = Answer(send(folder, MASK, request.encode()), group)
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
    monkeypatch.setattr("fedaipc.client.client_app.time.monotonic", lambda: now[0])
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

    monkeypatch.setattr(examples, "read_records", fail)
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
    allowed = charged_epsilon(five.job.schedule, five.job.rounds, ledger.filter_kind) * 1.01
    owner(member, policy={"max_epsilon": allowed})
    assert refused(ask_member(max_attempts=40))
    assert charges(member) == 0
    owner(
        member,
        policy={"max_epsilon": charged_epsilon(five.job.schedule, 40, ledger.filter_kind) * 1.01},
    )
    assert gave(ask_member(max_attempts=40))


def test_what_a_pcs_own_updates_tell_is_limited_over_its_life(
    ask_member: Any, member: Path, five: Federation
) -> None:
    """The ledger's budget counts sums alone."""
    shares = five.job.privacy.model_copy(update=DISTRIBUTED["privacy"])
    ledger = Ledger(member / LEDGER_FILE, KeyStore(member).identity)
    wanted = Schedule(mechanism=shares, steps=five.job.max_attempts)
    allowed = local_epsilon([wanted], shares.delta) * 1.01
    owner(member, policy={"allow_distributed_noise": True, "max_local_epsilon": allowed})
    ledger.charge(
        Charge(run="e" * 16, round=1, attempt=1, schedule=Schedule(mechanism=shares, steps=1))
    )
    assert refused(ask_member(privacy=shares))
    owner(member, policy={"allow_distributed_noise": True, "max_local_epsilon": 2 * allowed})
    assert gave(ask_member(privacy=shares))


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
DISTRIBUTED = {"privacy": {"noise": "distributed", "honest": 3}}
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
    ("allow_distributed_noise", False, True, DISTRIBUTED),
    ("max_local_epsilon", 0.01, 1000.0, DISTRIBUTED),
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
    # Who sets a limit to what shares tell has allowed them.
    others = {"allow_distributed_noise": True} if key == "max_local_epsilon" else {}
    owner(member, policy={**others, key: forbids})
    assert refused(ask_member(**changes))
    assert re.findall(r"policy\.(\w+)", caplog.text) == [key]
    if isinstance(forbids, float):
        assert re.search(rf"\(the job: [\d.e+]+, the policy: {forbids:.6g}\)", caplog.text)
    assert (member / LEDGER_FILE).read_bytes() == before
    assert touched == []
    owner(member, policy={**others, key: allows})
    assert gave(ask_member(**changes))


def test_no_rule_of_the_owner_goes_untested() -> None:
    assert {rule[0] for rule in RULES} == set(Policy.model_fields)
