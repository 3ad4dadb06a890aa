"""A coordinator that lies about a round: the PC computes the terms itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedaipc.client import key_store as key_store_module
from fedaipc.config import PlainAggregation
from fedaipc.privacy.ledger import LEDGER_FILE
from fedaipc.protocol.messages import AGREE, MemberRequest
from fedaipc.protocol.round_terms import hash_vector
from fedaipc.secagg.committee import Proposal
from fedaipc.secagg.keys import SigningKey
from fedaipc.secagg.terms import PLAIN, Terms
from tests.support.clients import (
    Federation,
    among,
    asker,
    charges,
    copies,
    failed,
    gave,
    owner,
    refused,
    send,
    set_up,
)

Lie = Callable[[Federation, Terms], Terms]
DIFFERS = "terms differ from its job's"


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
    "other model": ("a different global vector", lambda _, t: replace(t, vector_hash=bytes(32))),
    "other size": ("another base model", lambda _, t: replace(t, size=t.size + 1)),
    "other federation": (DIFFERS, lambda _, t: replace(t, federation="f")),
    "other members": (DIFFERS, lambda _, t: replace(t, roster_hash=bytes(32))),
    "attempt beyond the job": ("more rounds", lambda _, t: replace(t, number=6)),
    "M11: too few": ("cannot be reached", lambda _, t: among(t, t.bundles[:3])),
    "M11: too few, and said so": (
        "cannot be reached",
        lambda _, t: among(t, t.bundles[:3], least=3),
    ),
    "M11: nobody": ("cannot be reached", lambda _, t: among(t, ())),
    "M9: own keys missing": ("takes no part", lambda _, t: among(t, t.bundles[1:])),
    "M9: own keys changed": ("the signature is wrong", with_bundle(0, share_key=bytes(32))),
    "M8: other keys changed": ("the signature is wrong", with_bundle(1, share_key=bytes(32))),
    "M8: class changed": ("size class", with_bundle(1, size_class=1024)),
    "a weight beyond the job's": ("size class", with_signed_bundle(size_class=2**40)),
    "M8: keys of another run": ("another federation or run", with_signed_bundle(run="f" * 16)),
    "M8: keys of others": ("another federation or run", with_signed_bundle(federation="f")),
    "M8: old keys": ("have expired", with_signed_bundle(not_after=1_700_000_000)),
    "M8: a stranger": ("did not choose", with_a_stranger),
    "a share key that is none": (
        "no secret can be shared",
        with_signed_bundle(share_key=bytes(32)),
    ),
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
    assert not (member / "keys" / "round").exists()  # nor is it a member of such a round
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
    assert "a different global vector" in caplog.text
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
