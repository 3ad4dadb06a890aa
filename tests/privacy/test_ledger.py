"""The ledger through crashes, edits and rivals: it never reports less than was granted."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from fedaipc.config import DPSGD, FilterKind, NoPrivacy, Schedule
from fedaipc.errors import BudgetExhausted, LedgerError
from fedaipc.files import write_atomic
from fedaipc.privacy.accountant import (
    best_order,
    epsilon_rdp,
    filter_budget,
    noise_for,
    rdp,
)
from fedaipc.privacy.chain import check_chain, key_line
from fedaipc.privacy.ledger import Charge, Ledger
from fedaipc.secagg.keys import SigningKey
from tests.support.schedules import dp_sgd, mechanism_of

DELTA = 1e-5
KEY = SigningKey(bytes(range(32)))
STEP = dp_sgd(noise_multiplier=2.0, sampling_rate=0.1, steps=1)
OTHER = dp_sgd(noise_multiplier=1.0, sampling_rate=0.05, steps=3)
THIRD = dp_sgd(noise_multiplier=5.0, sampling_rate=1.0, steps=2)


def new_ledger(folder: Path, *, epsilon: float = 8.0, filter_kind: FilterKind = 4.0) -> Ledger:
    return Ledger.create(
        folder / "ledger.jsonl", KEY, lifetime_epsilon=epsilon, delta=DELTA, filter_kind=filter_kind
    )


def one(attempt: int, schedule: Schedule = STEP, run: str = "run-1") -> Charge:
    return Charge(run=run, round=attempt, attempt=attempt, schedule=schedule)


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A ledger file with a header and three charges."""
    ledger = new_ledger(tmp_path)
    for attempt in (1, 2, 3):
        ledger.charge(one(attempt))
    return ledger.path


# What it holds


def test_a_reopened_ledger_holds_what_was_charged(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, epsilon=5.5, filter_kind=4.0)
    charges = (one(1), one(2, OTHER), one(1, THIRD, run="run-2"))
    for charge in charges:
        ledger.charge(charge)
    again = Ledger(ledger.path)
    assert again.charges == ledger.charges == charges
    assert (again.lifetime_epsilon, again.delta, again.filter_kind) == (5.5, DELTA, 4.0)
    assert again.last_attempt("run-1") == 2
    assert again.last_attempt("never") == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")
def test_only_the_owner_can_read_it(three: Path) -> None:
    assert three.stat().st_mode & 0o777 == 0o600


def test_epsilon_equals_opacus_and_pld_composed_over_all_rounds(three: Path) -> None:
    from opacus.accountants import RDPAccountant

    theirs = RDPAccountant()
    for _ in range(3):
        theirs.step(noise_multiplier=2.0, sample_rate=0.1)
    ledger = Ledger(three, KEY)
    assert ledger.best_epsilon() == pytest.approx(theirs.get_epsilon(DELTA), rel=0.01)
    assert ledger.best_epsilon() == epsilon_rdp([STEP] * 3, DELTA)
    assert ledger.spent_epsilon() >= ledger.best_epsilon()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b"]), st.sampled_from([STEP, OTHER, THIRD])), max_size=8
    )
)
def test_spent_is_the_independent_composition_of_any_sequence(
    entries: list[tuple[str, Schedule]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ledger = new_ledger(Path(folder), epsilon=500.0, filter_kind=6.0)
        accountant = RdpAccountant(orders=[6.0])
        for attempt, (run, schedule) in enumerate(entries, start=1):
            ledger.charge(one(attempt, schedule, run))
            gaussian = dp_event.GaussianDpEvent(mechanism_of(schedule).multiplier)
            event = dp_event.PoissonSampledDpEvent(schedule.mechanism.sampling_rate, gaussian)
            accountant.compose(event, schedule.steps)
        expected = accountant.get_epsilon(DELTA) if entries else 0.0
        for opened in (ledger, Ledger(ledger.path)):
            assert opened.spent_epsilon() == pytest.approx(expected, rel=1e-9)


def test_after_a_round_without_privacy_no_epsilon_is_claimed(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path)
    ledger.charge(one(1))
    assert not ledger.unprotected
    ledger.charge(one(2, Schedule(mechanism=NoPrivacy(), steps=1)))
    ledger.charge(one(3))
    for opened in (ledger, Ledger(ledger.path)):
        assert opened.unprotected
        assert opened.spent_epsilon() == opened.best_epsilon() == math.inf


def test_after_a_round_with_a_test_seed_no_epsilon_is_claimed(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path)
    ledger.charge(one(1))
    ledger.charge(dataclasses.replace(one(2), seeded=True))
    for opened in (ledger, Ledger(ledger.path)):
        assert [charge.seeded for charge in opened.charges] == [False, True]
        assert opened.unprotected
        assert opened.spent_epsilon() == math.inf
        assert len(opened.schedules) == 1  # its cost is charged all the same


# The budget


@pytest.mark.parametrize("order", [2.5, 4.0, 12.0])
def test_the_filter_refuses_exactly_the_charge_that_would_exceed(
    tmp_path: Path, order: float
) -> None:
    ledger = new_ledger(tmp_path, epsilon=10.0, filter_kind=order)
    room, cost = filter_budget(order, 10.0, DELTA), rdp([OTHER], order)
    fitting = math.floor(room / cost)
    for attempt in range(1, fitting + 1):
        ledger.charge(one(attempt, OTHER, run=f"run-{attempt % 3}"))
    before = ledger.path.read_bytes()
    with pytest.raises(BudgetExhausted, match="nothing was trained"):
        ledger.charge(one(fitting + 1, OTHER))
    assert ledger.path.read_bytes() == before
    assert ledger.spent_epsilon() <= 10.0
    small = dp_sgd(noise_multiplier=100.0, sampling_rate=0.1, steps=1)
    if rdp([OTHER] * fitting + [small], order) <= room:
        ledger.charge(one(fitting + 1, small))  # another mechanism still fits
        assert ledger.spent_epsilon() <= 10.0


def test_a_fresh_ledger_covers_the_planned_rounds_and_not_one_more(tmp_path: Path) -> None:
    noise = noise_for(DPSGD(delta=DELTA, sampling_rate=0.1), 3.0, 12)
    step = dp_sgd(noise_multiplier=noise, sampling_rate=0.1, steps=2)
    order = best_order([step] * 6, DELTA)[0]
    ledger = new_ledger(tmp_path, epsilon=3.0, filter_kind=order)
    for attempt in range(1, 7):
        assert ledger.covers(step)
        assert abs(ledger.rounds_left(step) - (7 - attempt)) <= 1
        ledger.charge(one(attempt, step))
    assert not ledger.covers(step)
    assert ledger.rounds_left(step) == 0
    with pytest.raises(BudgetExhausted):
        ledger.charge(one(7, step))


def test_a_second_run_continues_from_the_first_ones_spending(tmp_path: Path) -> None:
    first = new_ledger(tmp_path)
    first.charge(one(1, OTHER, run="first"))
    second = Ledger(first.path, KEY)
    second.charge(one(1, OTHER, run="second"))
    assert second.spent_epsilon() > first.spent_epsilon()
    assert second.schedules == (dp_sgd(noise_multiplier=1.0, sampling_rate=0.05, steps=6),)


def test_a_cost_that_is_no_number_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = new_ledger(tmp_path)
    monkeypatch.setattr("fedaipc.privacy.filters.rdp", lambda *_: math.nan)
    with pytest.raises(BudgetExhausted):
        ledger.charge(one(1))


@pytest.mark.parametrize("order", [4.05, 1.1, 1.0])
def test_an_order_that_certifies_nothing_is_refused(tmp_path: Path, order: float) -> None:
    with pytest.raises(LedgerError, match="filter"):
        new_ledger(tmp_path, epsilon=1.0, filter_kind=order)


@pytest.mark.parametrize("attempt", [3, 2, 0])
def test_an_attempt_is_charged_once_and_in_order(three: Path, attempt: int) -> None:
    before = three.read_bytes()
    with pytest.raises(LedgerError, match="not newer"):
        Ledger(three, KEY).charge(one(attempt))
    assert three.read_bytes() == before
    Ledger(three, KEY).charge(one(1, run="another run"))


# Damage


def spelt(entry: dict) -> bytes:
    return json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()


def rehash(entry: dict) -> bytes:
    """A line as the ledger writes it, spelt out a second time."""
    body = {key: value for key, value in entry.items() if key != "hash"}
    return spelt({**body, "hash": hashlib.sha256(spelt(body)).hexdigest()})


def signed(entry: dict, key: SigningKey = KEY) -> bytes:
    """As the PC with `key` writes it, spelt out a second time."""
    body = {name: value for name, value in entry.items() if name not in ("hash", "signature")}
    return rehash({**body, "signature": key.sign(b"fedaipc ledger" + spelt(body)).hex()})


@pytest.mark.parametrize(
    "damage",
    {
        "a number changed": lambda lines: [*lines[:2], lines[2].replace(b"2.0", b"9.0"), lines[3]],
        "a changed line hashed anew": lambda lines: [
            *lines[:2], rehash({**json.loads(lines[2]), "steps": 9}), lines[3],
        ],
        "two lines swapped": lambda lines: [lines[0], lines[2], lines[1], lines[3]],
        "one line taken from the middle": lambda lines: [lines[0], lines[1], lines[3]],
        "first charge gone": lambda lines: [lines[0], *lines[2:]],
        "a line twice": lambda lines: [*lines[:3], lines[2], lines[3]],
        "header gone": lambda lines: lines[1:],
        "budget raised": lambda lines: [lines[0].replace(b"8.0", b"9.0"), *lines[1:]],
        "an empty line": lambda lines: [*lines[:2], b"", *lines[2:]],
        "not JSON": lambda lines: [*lines[:2], b"\xff\x00{", lines[3]],
        "not a number in it": lambda lines: [*lines[:3], lines[3].replace(b"2.0", b"NaN")],
        "deeply nested": lambda lines: [*lines[:3], b"[" * 100_000],
        "not an object": lambda lines: [*lines[:3], b"[]"],
        "two headers": lambda lines: [lines[0], lines[0], *lines[1:]],
    }.items(),
    ids=lambda item: item[0],
)  # fmt: skip
def test_an_edited_file_is_refused_and_left_alone(three: Path, damage: tuple) -> None:
    lines = three.read_bytes().splitlines()
    changed = b"".join(line + b"\n" for line in damage[1](lines))
    three.write_bytes(changed)
    with pytest.raises(LedgerError, match="damaged or was changed"):
        Ledger(three)
    assert three.read_bytes() == changed


@pytest.mark.parametrize("content", [b"", b"\n", b"garbage", b"{}\n"])
def test_a_file_that_is_no_ledger_is_refused(three: Path, content: bytes) -> None:
    three.write_bytes(content)
    with pytest.raises(LedgerError):
        Ledger(three)
    assert three.read_bytes() == content


def test_a_damaged_file_is_left_as_it_is_though_its_last_line_is_torn(three: Path) -> None:
    """What is left of it may be all there is to mend it by."""
    whole = three.read_bytes()
    header = whole.index(b"\n")
    for damaged in (
        whole[: header // 2],
        whole.decode().encode("utf-16"),
        whole.replace(b"2.0", b"9.0", 1)[:-20],
    ):
        three.write_bytes(damaged)
        with pytest.raises(LedgerError):
            Ledger(three)
        assert three.read_bytes() == damaged


@pytest.mark.parametrize(
    "change",
    [{"version": 3}, {"filter": 4.05}, {"filter": "f-DP"}, {"filter": []}, {"filter": True}],
)
def test_a_ledger_of_a_newer_version_is_refused(tmp_path: Path, change: dict) -> None:
    path = new_ledger(tmp_path).path
    path.write_bytes(signed({**json.loads(path.read_bytes()), **change}) + b"\n")
    with pytest.raises(LedgerError, match="update this one"):
        Ledger(path)


# Signatures


def test_any_changed_byte_is_found(three: Path) -> None:
    content = three.read_bytes()
    for place in range(len(content)):
        for bit in (1, 32):
            changed = bytearray(content)
            changed[place] ^= bit
            three.write_bytes(changed)
            with pytest.raises(LedgerError):
                Ledger(three)


def test_a_byte_that_json_does_not_mind_is_found(three: Path) -> None:
    content = three.read_bytes()
    for changed in (content.replace(b",", b", ", 1), content.replace(b"2.0", b"2.00", 1)):
        three.write_bytes(changed)
        with pytest.raises(LedgerError, match=r"line [12] is damaged or was changed"):
            Ledger(three)


def relinked(lines: list[dict], make: Any) -> bytes:
    previous, out = "", b""
    for entry in lines:
        line = make({**entry, "previous": previous})
        previous = json.loads(line)["hash"]
        out += line + b"\n"
    return out


@pytest.mark.parametrize("forger", ["without a key", "with another key", "whole, with another"])
def test_a_whole_chain_written_anew_is_found(three: Path, forger: str) -> None:
    """Who can edit the file, and has not the PC's key, cannot lower a charge."""
    other = SigningKey(bytes(32))
    lines = [json.loads(line) for line in three.read_bytes().splitlines()]
    lines[2]["steps"] = 9
    if forger == "without a key":
        three.write_bytes(relinked(lines, rehash))
    elif forger == "with another key":
        three.write_bytes(relinked(lines, lambda entry: signed(entry, other)))
    else:
        lines[0]["key"] = other.public.hex()
        three.write_bytes(relinked(lines, lambda entry: signed(entry, other)))
        assert len(Ledger(three).charges) == 3  # sound in itself, and not this PC's
        with pytest.raises(LedgerError, match="another key than this PC's"):
            Ledger(three, KEY)
        return
    with pytest.raises(LedgerError, match="not signed by this ledger's PC"):
        Ledger(three)


@pytest.mark.parametrize("key", ["", "00", "zz" * 32, None, 7])
def test_a_key_that_is_none_switches_no_check_off(three: Path, key: object) -> None:
    lines = [json.loads(line) for line in three.read_bytes().splitlines()]
    lines[0]["key"] = key
    three.write_bytes(relinked(lines, rehash))
    with pytest.raises(LedgerError, match="not signed"):
        Ledger(three)


@pytest.mark.parametrize("what", ["delta", "filter", "lifetime_epsilon"])
def test_a_signed_line_that_lacks_something_is_one_line(three: Path, what: str) -> None:
    lines = [json.loads(line) for line in three.read_bytes().splitlines()]
    del lines[0][what]
    three.write_bytes(relinked(lines, signed))
    with pytest.raises(LedgerError, match="lacks what it must hold"):
        Ledger(three)


@pytest.mark.parametrize(
    "change",
    [
        {"mechanism": None}, {"mechanism": 7}, {"mechanism": []}, {"mechanism": "dp-sgd"},
        {"mechanism": {"kind": "dp-sgd", "epsilon": 8.0}}, {"mechanism": {"kind": 7}},
        {"mechanism": {"kind": "dp-sgd", "noise_multiplier": 0.01}}, {"steps": -1}, {"steps": 0},
        {"steps": True}, {"steps": None}, {"mechanism": {"kind": "of another package"}},
    ],
    ids=str,
)  # fmt: skip
def test_a_signed_charge_that_is_none_is_one_line(three: Path, change: dict[str, Any]) -> None:
    """Not even the PC's own key makes one that would give budget back."""
    lines = [json.loads(line) for line in three.read_bytes().splitlines()]
    lines[2] |= change
    three.write_bytes(relinked(lines, signed))
    with pytest.raises(LedgerError) as caught:
        Ledger(three)
    assert "\n" not in str(caught.value)


def test_each_signature_can_be_checked_alone(three: Path) -> None:
    """The last one vouches for all; an auditor may ask for every one."""
    lines = [json.loads(line) for line in three.read_bytes().splitlines()]
    lines[1]["steps"] = 9
    three.write_bytes(relinked(lines, lambda e: rehash(e) if e.get("steps") == 9 else signed(e)))
    raw = three.read_bytes().splitlines()
    assert len(check_chain(raw, three).entries) == 4
    with pytest.raises(LedgerError, match="line 2 is not signed"):
        check_chain(raw, three, every=True)


def test_a_pc_with_new_keys_goes_on_with_its_ledger(three: Path) -> None:
    new = SigningKey(bytes(32))
    with pytest.raises(LedgerError, match="another key"):
        Ledger(three, new)
    Ledger.hand_over(three, KEY, new).charge(one(4))
    assert Ledger.hand_over(three, KEY, new).head == Ledger(three, new).head  # once
    assert [charge.attempt for charge in Ledger(three).charges] == [1, 2, 3, 4]
    with pytest.raises(LedgerError, match="another key"):
        Ledger(three, KEY)


@pytest.mark.parametrize("how", ["unsigned", "by the new key", "by a stranger", "of another place"])
def test_only_the_old_key_names_its_successor(three: Path, how: str) -> None:
    """Else whoever can edit the file makes it his own, and it is sound in itself."""
    new, lines = SigningKey(bytes(32)), three.read_bytes().splitlines()
    previous = json.loads(lines[-1])["hash"]
    signer = {"by a stranger": SigningKey(b"s" * 32), "by the new key": new}.get(how, KEY)
    before = json.loads(lines[-2])["hash"] if how == "of another place" else previous
    line = json.loads(key_line(before, "2026-01-01T00:00:00+00:00", signer, new))
    if how == "unsigned":
        del line["endorsed"]
    three.write_bytes(three.read_bytes() + signed({**line, "previous": previous}, new) + b"\n")
    with pytest.raises(LedgerError, match="line 5 names a key that the one before it did not sign"):
        Ledger(three)


def test_a_ledger_that_was_opened_to_be_read_cannot_be_charged(three: Path) -> None:
    with pytest.raises(LedgerError, match="read-only"):
        Ledger(three).charge(one(4))


# What others remember of it


def test_a_head_that_was_seen_is_there_for_good(three: Path) -> None:
    ledger = Ledger(three, KEY)
    seen = ledger.head
    assert seen[0] == len(three.read_bytes().splitlines())
    assert seen[1].hex() == json.loads(three.read_bytes().splitlines()[-1])["hash"]
    ledger.charge(one(4))
    assert ledger.head == Ledger(three).head
    Ledger(three).check_head(*seen)
    Ledger(three).check_head(*ledger.head)


def test_an_older_copy_is_found_also_after_it_has_grown(three: Path) -> None:
    older = three.read_bytes()
    ledger = Ledger(three, KEY)
    ledger.charge(one(4))
    ledger.charge(one(5))
    seen = ledger.head
    three.write_bytes(older)
    with pytest.raises(LedgerError, match=r"has 4 lines, and had 6 when it was last seen"):
        Ledger(three).check_head(*seen)
    for attempt in (5, 6, 7):
        Ledger(three, KEY).charge(one(attempt))
    with pytest.raises(LedgerError, match="line 6 differs from the one that was seen"):
        Ledger(three).check_head(*seen)


def test_the_head_tells_nothing_that_can_be_guessed(tmp_path: Path) -> None:
    """Two PCs with one life have different heads: a hash covers a signature."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = (
        Ledger.create(
            tmp_path / name / "ledger.jsonl",
            key,
            lifetime_epsilon=8.0,
            delta=DELTA,
            filter_kind=4.0,
        )
        for name, key in (("a", KEY), ("b", SigningKey(bytes(32))))
    )
    assert first.head[1] != second.head[1]
    entry = json.loads(first.path.read_bytes())
    assert len(entry["signature"]) == 128
    assert (
        first.head[1]
        == hashlib.sha256(
            spelt({name: value for name, value in entry.items() if name != "hash"})
        ).digest()
    )


def test_a_torn_last_line_is_dropped_wherever_it_is_cut(three: Path) -> None:
    content = three.read_bytes()
    start = content[:-1].rfind(b"\n") + 1
    for cut in (*range(start + 1, len(content) - 1, 29), len(content) - 2):
        three.write_bytes(content[:cut])
        assert len(Ledger(three, KEY).charges) == 2
        assert three.read_bytes() == content[:start]
    Ledger(three, KEY).charge(one(4))
    assert [charge.attempt for charge in Ledger(three, KEY).charges] == [1, 2, 4]


@pytest.mark.parametrize("junk", [b"x", b"{", b'{"kind": "charge"}'])
def test_a_whole_last_line_with_more_behind_it_is_no_torn_one(three: Path, junk: bytes) -> None:
    """No crash writes it: to drop it would give a spent charge back."""
    changed = three.read_bytes()[:-1] + junk
    three.write_bytes(changed)
    with pytest.raises(LedgerError, match="the last line was changed"):
        Ledger(three)
    assert three.read_bytes() == changed


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_pc_with_new_keys_does_not_write_behind_a_torn_line(three: Path, cut: int) -> None:
    three.write_bytes(three.read_bytes()[:-cut])
    new = SigningKey(bytes(32))
    Ledger.hand_over(three, KEY, new).charge(one(4))
    left = [1, 2, 3] if cut == 1 else [1, 2]
    assert [charge.attempt for charge in Ledger(three, new).charges] == [*left, 4]


def test_a_last_charge_whose_line_end_alone_is_lost_still_counts(three: Path) -> None:
    """What a text editor may do to a file must not give budget back."""
    content = three.read_bytes()
    three.write_bytes(content[:-1])
    assert len(Ledger(three, KEY).charges) == 3
    assert three.read_bytes() == content
    Ledger(three, KEY).charge(one(4))
    assert len(Ledger(three, KEY).charges) == 4


def test_a_missing_ledger_or_folder_is_told_in_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "ledger.jsonl", tmp_path / "none" / "ledger.jsonl"):
        with pytest.raises(LedgerError, match=r"enroll this PC first$"):
            Ledger(path)


def test_an_existing_ledger_is_never_replaced(three: Path) -> None:
    before = three.read_bytes()
    with pytest.raises(LedgerError, match="never replaced"):
        new_ledger(three.parent)
    assert three.read_bytes() == before


def test_of_two_enrolments_at_once_the_second_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slow first one is between its look and its write when the second comes."""
    from fedaipc.privacy import ledger as module

    results: list[Ledger | LedgerError] = []

    def slow(path: Path, content: bytes, *, private: bool) -> None:
        time.sleep(0.2)
        write_atomic(path, content, private=private)

    def enroll() -> None:
        try:
            results.append(new_ledger(tmp_path))
        except LedgerError as error:
            results.append(error)

    monkeypatch.setattr(module, "write_atomic", slow)
    threads = [Thread(target=enroll) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(type(result).__name__ for result in results) == ["Ledger", "LedgerError"]


# Crashes and full disks


def test_a_charge_is_on_the_disk_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = new_ledger(tmp_path)
    synced: list[int] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        synced.append(ledger.path.read_bytes().count(b"\n"))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    ledger.charge(one(1))
    assert synced == [2]  # header and charge were written when the disk was asked to keep them


def test_a_failing_fsync_grants_nothing_and_gives_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = new_ledger(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _raising(errno.EIO))
        with pytest.raises(LedgerError, match="nothing was trained"):
            ledger.charge(one(1))
    assert len(Ledger(ledger.path, KEY).charges) == 1  # it may be on the disk: it stays charged
    with pytest.raises(LedgerError, match="not newer"):
        Ledger(ledger.path, KEY).charge(one(1))


@pytest.mark.parametrize("kept", [0, 1, 100])
def test_a_full_disk_grants_nothing_and_leaves_a_usable_ledger(
    three: Path, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real = three.read_bytes(), os.write
    ledger = Ledger(three, KEY)

    def write(handle: int, data: bytes) -> int:
        if kept == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, data[:kept])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        with pytest.raises(LedgerError, match=r"cannot be written .*; nothing was trained$"):
            ledger.charge(one(4))
    assert len(Ledger(three, KEY).charges) == 3
    assert three.read_bytes() == before
    Ledger(three, KEY).charge(one(4))
    assert Ledger(three).last_attempt("run-1") == 4


def _raising(number: int) -> Any:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


_CHARGE_FOREVER = """
import sys
from pathlib import Path
from fedaipc.config import NoPrivacy, Schedule
from fedaipc.privacy.ledger import Charge, Ledger
from fedaipc.secagg.keys import SigningKey
key = SigningKey(bytes(range(32)))
plain = Schedule(mechanism=NoPrivacy(), steps=1)
ledger, run, most = Ledger(Path(sys.argv[1]), key), sys.argv[2], int(sys.argv[3])
for attempt in range(ledger.last_attempt(run) + 1, most + 1):
    ledger.charge(Charge(run=run, round=1, attempt=attempt, schedule=plain))
    print(attempt, flush=True)
"""


def _charging(path: Path, run: str, most: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _CHARGE_FOREVER, str(path), run, str(most)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_kill_9_at_any_point_never_loses_a_granted_charge(tmp_path: Path, kills: int) -> None:
    ledger = new_ledger(tmp_path)
    chance = random.Random(1)
    for _ in range(kills):
        with _charging(ledger.path, "run-1", 10**9) as process:
            granted = int(process.stdout.readline())
            time.sleep(chance.uniform(0, 0.15))
            process.kill()
            granted = max([granted, *map(int, process.stdout.read().split())])
        # At most one charge was durable without having been reported.
        assert granted <= Ledger(ledger.path).last_attempt("run-1") <= granted + 1
    attempts = [charge.attempt for charge in Ledger(ledger.path, KEY).charges]
    assert attempts == list(range(1, len(attempts) + 1))


def test_two_processes_that_charge_at_once_lose_nothing(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path)
    with _charging(ledger.path, "a", 20) as first, _charging(ledger.path, "b", 20) as second:
        for process in (first, second):
            assert process.stdout.read().split()[-1] == "20"
    charges = Ledger(ledger.path, KEY).charges
    for run in "ab":
        assert [c.attempt for c in charges if c.run == run] == list(range(1, 21))


def test_a_second_handle_sees_the_first_ones_charges(three: Path) -> None:
    one_handle, other_handle = Ledger(three, KEY), Ledger(three, KEY)
    one_handle.charge(one(4))
    with pytest.raises(LedgerError, match="not newer"):
        other_handle.charge(one(4))
    other_handle.charge(one(5))
    assert Ledger(three).last_attempt("run-1") == 5
