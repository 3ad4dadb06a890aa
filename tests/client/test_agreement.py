"""Of a round a PC signs one set, never two: through crashes, rivals and full disks."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Barrier, Thread
from typing import Any

import pytest
from filelock import FileLock

from fedaipc.client import key_store as module
from fedaipc.client.key_store import KeyStore
from fedaipc.errors import RoundError, SecAggError
from fedaipc.secagg.round_keys import Group, share_secrets
from fedaipc.secagg.terms import Terms
from tests.support.key_stores import (
    FIRST,
    RUN,
    SECOND,
    bind,
    damage,
    files,
    found,
    group_of,
    place_of,
    posix,
    restarted,
    secrets_of,
    terms_of,
)

# The newest round


def test_the_newest_round_is_kept(ready: KeyStore) -> None:
    first, second = group_of(ready, 5), group_of(ready, 7)
    for group in (first, first, second):
        ready.keep(group)
        for opened in (ready, restarted(ready)):
            assert opened.group(RUN, group.terms.number) == group
    for run, number in ((RUN, 5), (RUN, 6), (RUN, 8), ("f" * 16, 7)):
        with pytest.raises(SecAggError, match="not asked for this round"):
            ready.group(run, number)


def test_a_pc_that_was_asked_for_no_round_is_told_in_one_line(ready: KeyStore) -> None:
    with pytest.raises(SecAggError, match="round: missing"):
        ready.group(RUN, 1)


def test_an_older_round_and_the_same_one_described_otherwise_are_refused(ready: KeyStore) -> None:
    """M14: what the ledger was charged for is the only round of its number."""
    kept = group_of(ready, 6)
    ready.keep(kept)
    terms = kept.terms
    for opened in (ready, restarted(ready)):
        for wrong, said in (
            (group_of(ready, 5), "older"),
            (with_terms(kept, vector_hash=b"\1" * 32), "differently"),
            (with_terms(kept, bound=terms.bound * 2), "differently"),
            (with_terms(kept, bundles=terms.bundles[::-1]), "differently"),
            (dataclasses.replace(kept, round_keys=kept.round_keys[1:]), "differently"),
            (
                dataclasses.replace(
                    kept,
                    round_keys=(
                        dataclasses.replace(kept.round_keys[0], public=bytes(32)),
                        *kept.round_keys[1:],
                    ),
                ),
                "differently",
            ),
        ):
            with pytest.raises(SecAggError, match=said):
                opened.keep(wrong)
        assert opened.group(RUN, 6) == kept


def with_terms(group: Group, **changes: Any) -> Group:
    return dataclasses.replace(group, terms=dataclasses.replace(group.terms, **changes))


def test_a_round_of_another_run_is_taken_whatever_its_number(ready: KeyStore) -> None:
    last = group_of(ready, 6)
    ready.keep(last)
    other = with_terms(last, run="f" * 16, number=1)
    ready.keep(other)
    assert restarted(ready).group("f" * 16, 1) == other


@pytest.mark.parametrize("kept", [0, 1, 200])
def test_a_round_whose_note_was_cut_off_blocks_only_itself(ready: KeyStore, kept: int) -> None:
    first, second = group_of(ready, 5), group_of(ready, 6)
    ready.keep(first)
    damage(ready, "round", first.encode()[:kept])
    opened = restarted(ready)
    with pytest.raises(SecAggError, match="round: cannot be read"):
        opened.group(RUN, 5)
    opened.keep(second)
    assert opened.group(RUN, 6) == second


# The secrets of a round


def test_secrets_are_there_until_they_are_used_once(ready: KeyStore) -> None:
    """M15: also for another process; a second answer replaces the first."""
    terms = terms_of(ready)
    for _ in range(2):
        own, _ = share_secrets(terms, ready.keys(terms))
        ready.keep_secrets(own)
        for opened in (ready, restarted(ready)):
            assert opened.secrets().encode() == own.encode()
    ready.forget_secrets()
    for opened in (ready, restarted(ready)):
        with pytest.raises(SecAggError, match="secrets: missing"):
            opened.secrets()
    assert found(ready, [own.own_mask, own.exchange.secret()]) == 0


@pytest.mark.parametrize("kept", [0, 100, 255])
def test_secrets_that_were_cut_off_are_none(ready: KeyStore, kept: int) -> None:
    terms = terms_of(ready)
    own, _ = share_secrets(terms, ready.keys(terms))
    ready.keep_secrets(own)
    damage(ready, "secrets", own.encode()[:kept])
    with pytest.raises(SecAggError, match="secrets: cannot be read"):
        restarted(ready).secrets()


# The one set of a round


def test_a_set_is_bound_for_good_and_another_one_never_is(ready: KeyStore) -> None:
    """M21, M23, M25."""
    terms = terms_of(ready)
    with ready.agreement(terms) as agreed:
        assert agreed.set_hash is None
        agreed.bind(FIRST)
        with pytest.raises(SecAggError, match="another set"):
            agreed.bind(SECOND)
    for opened in (ready, restarted(ready)):
        with opened.agreement(terms) as agreed:
            assert agreed.set_hash == FIRST
            agreed.bind(FIRST)
            with pytest.raises(SecAggError, match="another set"):
                agreed.bind(SECOND)
            assert agreed.set_hash == FIRST


def test_the_same_round_in_other_words_has_no_second_set(ready: KeyStore) -> None:
    """M21: a set for this run and round, whatever else the terms say."""
    terms = terms_of(ready)
    bind(ready, terms, FIRST)
    with pytest.raises(SecAggError, match="another set"):
        bind(ready, dataclasses.replace(terms, vector_hash=b"\1" * 32), SECOND)


def test_an_older_round_is_not_agreed_on_after_a_newer_one(ready: KeyStore) -> None:
    """M21, M25: the record of the older is gone, so nothing is signed for it."""
    bind(ready, terms_of(ready, 5), FIRST)
    bind(ready, terms_of(ready, 6), SECOND)
    for opened in (ready, restarted(ready)):
        for set_hash in (FIRST, SECOND):
            with pytest.raises(SecAggError, match="newer round"):
                bind(opened, terms_of(ready, 5), set_hash)
        with opened.agreement(terms_of(ready, 6)) as agreed:
            assert agreed.set_hash == SECOND


def test_a_round_of_another_run_has_a_set_of_its_own(ready: KeyStore) -> None:
    """M21."""
    bind(ready, terms_of(ready, 6), FIRST)
    other = dataclasses.replace(terms_of(ready), run="f" * 16, number=1)
    bind(ready, other, SECOND)
    with pytest.raises(SecAggError, match="another set"):
        bind(ready, other, FIRST)


def test_a_round_before_that_of_another_run_has_no_keys_left_to_sign_a_second_set_for(
    ready: KeyStore,
) -> None:
    """M10, M21: the record holds the newest round alone."""
    first, old = terms_of(ready), secrets_of(ready)
    bind(ready, first, FIRST)
    ready.bundle("f" * 16, 1, 64)
    bind(ready, dataclasses.replace(first, run="f" * 16, number=1), SECOND)
    for _ in range(2):
        with pytest.raises(SecAggError, match="not name the keys"):
            ready.keys(first)
        assert found(ready, old) == 0
        ready.bundle(RUN, 5, 64)  # those that are made now are others


def test_of_many_threads_that_bind_different_sets_one_wins(ready: KeyStore) -> None:
    """M21."""
    terms, start = terms_of(ready), Barrier(8)
    won: list[bytes] = []
    lost: list[bytes] = []

    def race(set_hash: bytes) -> None:
        start.wait()
        try:
            bind(ready, terms, set_hash)
        except SecAggError:
            lost.append(set_hash)
        else:
            won.append(set_hash)

    threads = [Thread(target=race, args=(bytes([n]) * 32,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    with restarted(ready).agreement(terms) as agreed:
        assert [agreed.set_hash] == won


def test_a_folder_that_somebody_else_holds_is_told_in_one_line(
    ready: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = terms_of(ready)
    monkeypatch.setattr(module, "_locks", {})
    monkeypatch.setattr(module, "_LOCK_SECONDS", 0.05)
    with FileLock(place_of(ready) / ".lock"):
        for call in (lambda: bind(ready, terms, FIRST), lambda: ready.bundle(RUN, 6, 64)):
            with pytest.raises(RoundError, match=r"another process holds this PC's keys$"):
                call()
    bind(ready, terms, FIRST)


# Crashes and full disks


@posix
def test_a_set_is_on_the_disk_before_it_is_bound(
    ready: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M21: first the record, then its name in the folder."""
    terms, real = terms_of(ready), os.fsync
    synced: list[tuple[bool, bool, bool]] = []

    def fsync(handle: int) -> None:
        whole = any(FIRST.hex().encode() in content for content in files(ready).values())
        folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        synced.append((folder, whole, "agreed.json" in files(ready)))
        real(handle)

    with ready.agreement(terms) as agreed:
        monkeypatch.setattr(os, "fsync", fsync)
        agreed.bind(FIRST)
        assert synced == [(False, True, False), (True, True, True)]


def failing_sync(of_folder: bool) -> Callable[[int], None]:
    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) == of_folder:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    return fsync


@posix
def test_a_set_that_could_not_be_written_is_not_bound(
    ready: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M21."""
    terms = terms_of(ready)
    with monkeypatch.context() as patch, ready.agreement(terms) as agreed:
        patch.setattr(os, "fsync", failing_sync(of_folder=False))
        with pytest.raises(OSError, match="Input/output"):
            agreed.bind(FIRST)
        assert agreed.set_hash is None
    assert found(ready, [FIRST.hex().encode()]) == 0
    bind(ready, terms, SECOND)


@posix
def test_a_set_that_may_or_may_not_be_on_the_disk_excludes_every_other(
    ready: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M21."""
    terms = terms_of(ready)
    with monkeypatch.context() as patch, ready.agreement(terms) as agreed:
        patch.setattr(os, "fsync", failing_sync(of_folder=True))
        with pytest.raises(OSError, match="Input/output"):
            agreed.bind(FIRST)
    with pytest.raises(SecAggError, match="another set"):
        bind(ready, terms, SECOND)
    bind(ready, terms, FIRST)


_MEMBER = """
import dataclasses, os, signal, sys
from pathlib import Path
from fedaipc.errors import SecAggError
from fedaipc.client.key_store import KeyStore

folder, run, number, set_hash, when = sys.argv[1:]
key_store = KeyStore(Path(folder))
terms = key_store.group(run, int(number)).terms

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def bind(terms):
    try:
        with key_store.agreement(terms) as agreed:
            if when == "before":
                os.fsync = die
            agreed.bind(bytes.fromhex(set_hash))
            if when == "after":
                die()
    except SecAggError as error:
        return f"refused: {error}"
    return "signed"

if when == "race":
    for line in sys.stdin:
        print(bind(dataclasses.replace(terms, number=int(line))), flush=True)
else:
    print(bind(terms), flush=True)
"""


@contextmanager
def member(
    key_store: KeyStore, terms: Terms, set_hash: bytes, when: str = "never"
) -> Iterator[subprocess.Popen[str]]:
    """A process that binds a set and is killed before or after it, or binds one for each line."""
    command = [sys.executable, "-c", _MEMBER, str(place_of(key_store).parent), terms.run,
               str(terms.number), set_hash.hex(), when]  # fmt: skip
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        yield process


def said(
    key_store: KeyStore, terms: Terms, set_hash: bytes, when: str = "never"
) -> tuple[int, str]:
    """How such a process ended, and what it said."""
    with member(key_store, terms, set_hash, when) as process:
        out, _ = process.communicate()
    return process.returncode, out.strip()


@posix
def test_another_process_is_bound_by_the_same_set(ready: KeyStore) -> None:
    """M21, M25."""
    group = group_of(ready)
    terms = group.terms
    ready.keep(group)
    bind(ready, terms, FIRST)
    code, answer = said(ready, terms, SECOND)
    assert code == 0
    assert answer.startswith("refused: another set was agreed on")
    assert said(ready, terms, FIRST) == (0, "signed")


@posix
def test_kill_9_between_record_and_signature_leaves_the_pc_bound(ready: KeyStore) -> None:
    """M21: nobody saw the signature, yet no other set is signed."""
    group = group_of(ready)
    terms = group.terms
    ready.keep(group)
    assert said(ready, terms, FIRST, "after") == (-signal.SIGKILL, "")
    with pytest.raises(SecAggError, match="another set"):
        bind(ready, terms, SECOND)
    assert said(ready, terms, SECOND)[1].startswith("refused: another set")
    bind(ready, terms, FIRST)
    assert said(ready, terms, FIRST) == (0, "signed")


@posix
def test_kill_9_before_the_record_leaves_the_pc_free(ready: KeyStore) -> None:
    """M21: and the lock of the dead holds nobody up."""
    group = group_of(ready)
    terms = group.terms
    ready.keep(group)
    assert said(ready, terms, FIRST, "before") == (-signal.SIGKILL, "")
    with ready.agreement(terms) as agreed:
        assert agreed.set_hash is None
    assert said(ready, terms, SECOND) == (0, "signed")
    with pytest.raises(SecAggError, match="another set"):
        bind(ready, terms, FIRST)


@posix
def test_of_two_processes_that_bind_different_sets_at_once_one_wins(ready: KeyStore) -> None:
    """M21."""
    group = group_of(ready)
    terms = group.terms
    ready.keep(group)
    with (
        member(ready, terms, FIRST, "race") as one,
        member(ready, terms, SECOND, "race") as two,
    ):
        for number in range(100, 130):
            for process in (one, two):
                print(number, file=process.stdin, flush=True)
            words = [heard(process) for process in (one, two)]
            assert sorted(words) == ["refused", "signed"]
            winner = (FIRST, SECOND)[words.index("signed")]
            with ready.agreement(dataclasses.replace(terms, number=number)) as agreed:
                assert agreed.set_hash == winner


def heard(process: subprocess.Popen[str]) -> str:
    """The next line's first word."""
    assert process.stdout is not None
    return process.stdout.readline().strip().partition(":")[0]


def test_what_another_process_has_bound_counts_though_the_file_looks_the_same(
    ready: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M21: a clock of coarse ticks and an inode that is used again show no difference."""
    first, second = terms_of(ready, 5), terms_of(ready, 6)
    bind(ready, first, FIRST)
    monkeypatch.setattr(module, "stamp", lambda path: (0, path.stat().st_size, 0))
    bind(ready, first, FIRST)  # has read the record
    content = files(ready)["agreed.json"]
    replaced = content.replace(b'"round": 5', b'"round": 6')
    assert replaced != content
    (place_of(ready) / "agreed.json").write_bytes(replaced)
    with pytest.raises(SecAggError, match="another set"):
        bind(ready, second, SECOND)
