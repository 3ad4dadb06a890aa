"""A PC says whether it takes part before anybody is charged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
from filelock import FileLock

from fedaipc.client.key_store import KeyStore
from fedaipc.privacy.ledger import LEDGER_FILE, Ledger
from fedaipc.protocol.job import SignedJob
from fedaipc.protocol.messages import EXHAUSTED, READY, REFUSED, UNABLE, Readiness, RoundRequest
from fedaipc.secagg.keys import SigningKey
from fedaipc.secagg.round_keys import Group, KeyShares
from tests.support.clients import (
    Federation,
    charges,
    gave,
    offer,
    owner,
    ready_for,
    refused,
    send,
)


def test_a_pc_says_whether_it_takes_part_and_is_not_charged_for_it(
    five: Federation, member: Path, ask_member: Any, touched: list[str]
) -> None:
    before = (member / LEDGER_FILE).read_bytes()
    for charged in range(2):
        said = Readiness.decode(offer(five, member, charged + 1).content)
        assert (said.refusal, said.charged) == (None, charged)
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
            filter_kind=8.0,
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
    said = Readiness.decode(offer(five, member).content)
    assert (said.refusal, said.charged) == (None, 0)


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


def test_a_pc_that_takes_part_gives_out_shares_for_these_terms(
    five: Federation, member: Path
) -> None:
    """M15, M16, M17: each time of new secrets, of which it keeps the last."""
    terms = five.terms(SignedJob.sign(five.admission, five.job))
    key_shares = [
        KeyShares.decode(Readiness.decode(offer(five, member).content).shares) for _ in range(2)
    ]
    for made in key_shares:
        made.verify(terms)
    assert key_shares[0].card.public != key_shares[1].card.public
    assert len({len(made.encode()) for made in key_shares}) == 1
    assert KeyStore(member).secrets().card == key_shares[1].card


def test_a_pc_that_gave_no_shares_uploads_nothing(
    five: Federation, member: Path, ask_member: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """M35: nor does one whose round key was changed, or whose answer was replaced by a later."""
    terms = five.terms(SignedJob.sign(five.admission, five.job))
    group = ready_for(five, terms, member)
    KeyStore(member).forget_secrets()
    assert refused(ask_member(group=group))
    assert "secrets: missing" in caplog.text
    assert Readiness.decode(offer(five, member).content).shares
    assert refused(ask_member(group=group))
    assert "the round key that this PC made" in caplog.text
    assert charges(member) == 0
    assert gave(ask_member())


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (lambda cards: cards[:3], "cannot be unmasked"),
        (lambda cards: cards[1:], "takes no part"),
        (lambda cards: cards[::-1], "out of order"),
        (lambda cards: (*cards[:4], replace(cards[4], public=cards[1].public)), "signature"),
        (lambda cards: (*cards[:4], replace(cards[4], identity=b"\xff" * 32)), "takes no part"),
    ],
    ids=["too few", "own missing", "out of order", "another's key", "a stranger"],
)
def test_a_lie_about_round_keys_costs_nothing(
    five: Federation,
    member: Path,
    ask_member: Any,
    touched: list[str],
    caplog: pytest.LogCaptureFixture,
    lie: Any,
    said: str,
) -> None:
    """M11, M35."""
    terms = five.terms(SignedJob.sign(five.admission, five.job))
    group = ready_for(five, terms, member)
    before = (member / LEDGER_FILE).read_bytes()
    assert refused(ask_member(group=replace(group, round_keys=lie(group.round_keys))))
    assert said in caplog.text
    assert (member / LEDGER_FILE).read_bytes() == before
    assert not (member / "keys" / "round").exists()
    assert touched == []
    assert gave(ask_member())


def test_in_one_attempt_a_pc_takes_one_list_of_round_keys(
    five: Federation, member: Path, ask_member: Any
) -> None:
    """M21, M35: two requests at once, each with a list that is good."""
    terms = five.terms(SignedJob.sign(five.admission, five.job))
    whole = ready_for(five, terms, member)
    less = replace(whole, round_keys=whole.round_keys[:4])
    start, answers = Barrier(2), []

    def ask(group: Group) -> None:
        start.wait()
        answers.append((group, gave(ask_member(group=group))))

    threads = [Thread(target=ask, args=(group,)) for group in (whole, less)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(given for _, given in answers) == [False, True]
    (taken,) = [group for group, given in answers if given]
    assert KeyStore(member).group(five.job.run, 1) == taken
    assert charges(member) == 1
