"""What a PC keeps for the sealing: through crashes, rivals and damage it never signs two sets."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier, Thread
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

from fedaipc.client import key_store as module
from fedaipc.client.key_store import KeyStore
from fedaipc.errors import RoundError, SecAggError
from fedaipc.protocol.round_terms import make_terms
from fedaipc.secagg.keys import ExchangeKey, SigningKey
from fedaipc.secagg.roster import Bundle, Roster
from tests.protocol.parts import ADMISSION, signed, tiny_job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fedaipc.secagg.terms import Terms

RUN = "0123456789abcdef"
OTHERS = [SigningKey(bytes([number]) * 32) for number in (1, 2)]
FIRST, SECOND = b"\1" * 32, b"\2" * 32  # hashes of two sets
DAY = 24 * 3600
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has neither such rights nor kill -9")


@pytest.fixture
def key_store(tmp_path: Path) -> KeyStore:
    return KeyStore.create(tmp_path)


@pytest.fixture
def ready(key_store: KeyStore) -> KeyStore:
    """With a list of members and keys of epoch 5."""
    key_store.pin(roster(key_store).encode(), ADMISSION.public)
    key_store.bundle(RUN, 5, 64)
    return key_store


def roster(key_store: KeyStore, key: SigningKey = ADMISSION, **changes: Any) -> Roster:
    """Version 3 of a federation of this PC and two others."""
    named = {"federation": "reviews", "version": 3, "beacon": bytes(32)}
    members = [key_store.identity.public, *(other.public for other in OTHERS)]
    return Roster.sign(key, **{**named, "members": members, **changes})


def others_bundles(run: str = RUN) -> list[Bundle]:
    return [
        Bundle(
            federation="reviews", run=run, epoch=5, not_after=int(time.time()) + DAY,
            identity=other.public, size_class=64,
            mask_key=ExchangeKey(bytes([10 + number]) * 32).public,
            share_key=ExchangeKey(bytes([20 + number]) * 32).public,
        ).signed_by(other)
        for number, other in enumerate(OTHERS)
    ]  # fmt: skip


def terms_of(key_store: KeyStore, number: int = 5, bundle: Bundle | None = None) -> Terms:
    """A round of this PC and the others, with the keys that it made."""
    own = bundle or key_store.bundle(RUN, 5, 64)
    bundles = sorted([own, *others_bundles()], key=lambda one: one.identity)
    group = key_store.roster(ADMISSION.public).groups(number, 3)[0]
    job = signed(tiny_job())
    return make_terms(
        job, key_store.roster(ADMISSION.public), number, group, bundles, bytes(32), 10
    )


def files(key_store: KeyStore) -> dict[str, bytes]:
    """All that lies in the folder, left-over files too."""
    return {
        path.name: path.read_bytes() for path in place_of(key_store).rglob("*") if path.is_file()
    }


def place_of(key_store: KeyStore) -> Path:
    return key_store._folder


def secrets_of(key_store: KeyStore) -> list[bytes]:
    """Secret keys of the present epoch, as they may stand in a file."""
    content = json.loads(files(key_store)["epoch.json"])
    raw = [bytes.fromhex(content[name]) for name in ("mask", "share")]
    return [*raw, *(key.hex().encode() for key in raw)]


def found(key_store: KeyStore, secrets: list[bytes]) -> int:
    """How many of the secrets are anywhere in the PC's folder."""
    content = b"\n".join(files(key_store).values())
    return sum(secret in content or secret.upper() in content for secret in secrets)


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    now = time.time() + seconds
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: now))


def restarted(key_store: KeyStore) -> KeyStore:
    """As a process that has read nothing yet."""
    module._cache.clear()
    return KeyStore(key_store._folder.parent)


# Identity and rights


def test_an_identity_is_made_once(tmp_path: Path) -> None:
    first = KeyStore.create(tmp_path)
    content = files(first)["identity.key"]
    for again in (KeyStore.create(tmp_path), restarted(first), KeyStore(tmp_path)):
        assert again.identity.public == first.identity.public
        assert again.identity.secret() == content
    assert KeyStore.create(tmp_path / "other").identity.public != first.identity.public


def test_a_pc_without_an_identity_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SecAggError, match=r"identity\.key: missing") as caught:
        KeyStore(tmp_path)
    assert "\n" not in str(caught.value)


def test_of_two_that_make_an_identity_at_once_both_get_the_same(tmp_path: Path) -> None:
    publics, start = [], Barrier(4)

    def make() -> None:
        start.wait()
        publics.append(KeyStore.create(tmp_path).identity.public)

    threads = [Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(publics) == 4
    assert len(set(publics)) == 1


@posix
def test_only_the_owner_can_read_what_is_kept(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        key_store = KeyStore.create(tmp_path)
        key_store.pin(roster(key_store).encode(), ADMISSION.public)
        terms = terms_of(key_store)
        key_store.keep(terms, terms.encode())
        with key_store.agreement(terms) as agreed:
            agreed.bind(FIRST)
    finally:
        os.umask(old)
    rights = {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in place_of(key_store).iterdir()
    }
    del rights[".lock"]  # empty
    assert rights == dict.fromkeys(
        ("identity.key", "epoch.json", "roster", "terms", "agreed.json"), 0o600
    )
    assert files(key_store)[".lock"] == b""
    assert stat.S_IMODE(place_of(key_store).stat().st_mode) == 0o700


# The list of members


def test_a_list_of_members_is_kept_and_the_same_one_is_taken_again(key_store: KeyStore) -> None:
    """M5, M6."""
    content = roster(key_store).encode()
    for _ in range(2):
        assert key_store.pin(content, ADMISSION.public) == roster(key_store)
        assert (
            key_store.roster(ADMISSION.public)
            == restarted(key_store).roster(ADMISSION.public)
            == roster(key_store)
        )


def test_the_list_of_an_admission_key_that_the_owner_no_longer_trusts_is_not_used(
    ready: KeyStore,
) -> None:
    """M5: it stays on the disk when the owner turns to another key."""
    assert ready.roster(ADMISSION.public).members
    with pytest.raises(SecAggError, match="not of this PC's admission key"):
        ready.roster(SigningKey().public)


def test_a_newer_list_takes_the_place_of_the_older(key_store: KeyStore) -> None:
    """M6."""
    key_store.pin(roster(key_store).encode(), ADMISSION.public)
    newer = roster(key_store, version=9, members=[key_store.identity.public])
    assert key_store.pin(newer.encode(), ADMISSION.public) == newer
    assert restarted(key_store).roster(ADMISSION.public) == newer


def test_a_list_that_another_key_signed_is_refused(key_store: KeyStore) -> None:
    """M5."""
    with pytest.raises(SecAggError, match="signature is wrong"):
        key_store.pin(roster(key_store, SigningKey()).encode(), ADMISSION.public)
    assert "roster" not in files(key_store)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 2}, "older"),
        ({"version": 0}, "older"),
        ({"beacon": b"\1" * 32}, "older"),
        ({"federation": "another"}, "another federation"),
        ({"federation": "another", "version": 4}, "another federation"),
    ],
    ids=str,
)
def test_a_list_from_before_or_elsewhere_is_refused_and_the_last_one_stays(
    key_store: KeyStore, changes: dict[str, Any], said: str
) -> None:
    """M6: of its version there is one alone, so that nobody can choose between two draws."""
    key_store.pin(roster(key_store).encode(), ADMISSION.public)
    for opened in (key_store, restarted(key_store)):
        with pytest.raises(SecAggError, match=said):
            opened.pin(roster(key_store, **changes).encode(), ADMISSION.public)
        assert opened.roster(ADMISSION.public) == roster(key_store)


def test_other_members_in_the_same_version_are_refused(key_store: KeyStore) -> None:
    """M6."""
    key_store.pin(roster(key_store).encode(), ADMISSION.public)
    fewer = roster(key_store, members=[key_store.identity.public, OTHERS[0].public])
    with pytest.raises(SecAggError, match="older"):
        key_store.pin(fewer.encode(), ADMISSION.public)


def test_a_list_without_this_pc_is_refused(key_store: KeyStore) -> None:
    """M7."""
    without = roster(key_store, members=[other.public for other in OTHERS])
    with pytest.raises(SecAggError, match="not on the list"):
        key_store.pin(without.encode(), ADMISSION.public)
    assert "roster" not in files(key_store)


def test_a_list_in_which_this_pc_stands_twice_is_refused(key_store: KeyStore) -> None:
    """M7."""
    twice = roster(key_store, members=[key_store.identity.public] * 2)
    with pytest.raises(SecAggError, match="names a PC twice"):
        key_store.pin(twice.encode(), ADMISSION.public)


def test_another_admission_key_of_the_owners_choice_begins_anew(key_store: KeyStore) -> None:
    other = SigningKey(b"\x09" * 32)
    key_store.pin(roster(key_store).encode(), ADMISSION.public)
    new = roster(key_store, other, federation="another", version=1)
    assert key_store.pin(new.encode(), other.public) == new
    with pytest.raises(SecAggError, match="signature is wrong"):
        key_store.pin(new.encode(), ADMISSION.public)


# Keys of an epoch


def test_keys_of_an_epoch_are_made_once_and_signed(ready: KeyStore) -> None:
    """M8, M9: at most 24 hours by the PC's own clock."""
    bundle, content = ready.bundle(RUN, 5, 64), files(ready)["epoch.json"]
    assert (bundle.run, bundle.epoch, bundle.size_class) == (RUN, 5, 64)
    assert bundle.mask_key != bundle.share_key
    assert time.time() < bundle.not_after <= time.time() + DAY
    bundle.check(ready.roster(ADMISSION.public), RUN, time.time())
    for opened in (ready, restarted(ready)):
        assert opened.bundle(RUN, 5, 64) == bundle
    assert files(ready)["epoch.json"] == content


@pytest.mark.parametrize(
    ("run", "epoch"), [(RUN, 6), (RUN, 500), ("f" * 16, 5), ("f" * 16, 1)], ids=str
)
def test_a_new_epoch_leaves_no_trace_of_the_old_secret_keys(
    ready: KeyStore, run: str, epoch: int
) -> None:
    """M10."""
    old, before = secrets_of(ready), ready.bundle(RUN, 5, 64)
    assert found(ready, old) == 2
    after = ready.bundle(run, epoch, 64)
    assert not {before.mask_key, before.share_key} & {after.mask_key, after.share_key}
    assert found(ready, old) == 0
    assert found(ready, secrets_of(ready)) == 2


def test_an_older_epoch_of_a_run_is_refused(ready: KeyStore) -> None:
    content = files(ready)["epoch.json"]
    for opened in (ready, restarted(ready)):
        with pytest.raises(SecAggError, match="older than the last"):
            opened.bundle(RUN, 4, 64)
    assert files(ready)["epoch.json"] == content


def test_keys_of_an_epoch_have_one_size_class(ready: KeyStore) -> None:
    with pytest.raises(SecAggError):
        ready.bundle(RUN, 5, 128)
    assert ready.bundle(RUN, 6, 128).size_class == 128


def test_without_a_list_of_members_no_keys_are_made(key_store: KeyStore) -> None:
    with pytest.raises(SecAggError, match="roster: missing"):
        key_store.bundle(RUN, 1, 64)
    assert "epoch.json" not in files(key_store)


def test_keys_for_another_federation_are_not_given_again(ready: KeyStore) -> None:
    other = SigningKey(b"\x09" * 32)
    before = ready.bundle(RUN, 5, 64)
    ready.pin(roster(ready, other, federation="another").encode(), other.public)
    with pytest.raises(SecAggError):
        ready.bundle(RUN, 5, 64)
    after = ready.bundle(RUN, 6, 64)
    assert after.federation == "another"
    assert after.mask_key != before.mask_key


def test_the_secret_keys_are_those_of_the_bundle(ready: KeyStore) -> None:
    """M9."""
    for opened in (ready, restarted(ready)):
        bundle, keys = opened.bundle(RUN, 5, 64), opened.keys(terms_of(ready))
        assert keys.identity.public == bundle.identity == ready.identity.public
        assert (keys.mask.public, keys.share.public) == (bundle.mask_key, bundle.share_key)


@pytest.mark.parametrize(
    "changes",
    [
        {"mask_key": b"\x09" * 32},
        {"share_key": b"\x09" * 32},
        {"size_class": 32},
        {"epoch": 6},
        {"not_after": 2**40},
        {"federation": "another"},
        {"run": "f" * 16},
    ],
    ids=str,
)
def test_a_round_with_other_keys_in_this_pcs_name_is_refused(
    ready: KeyStore, changes: dict[str, Any]
) -> None:
    """M9: even where this PC's own signature is on them."""
    own = ready.bundle(RUN, 5, 64)
    other = dataclasses.replace(own, **changes).signed_by(ready.identity)
    with pytest.raises(SecAggError, match="not name the keys"):
        ready.keys(terms_of(ready, bundle=other))
    unsigned = dataclasses.replace(own, signature=bytes(64))
    with pytest.raises(SecAggError, match="not name the keys"):
        ready.keys(terms_of(ready, bundle=unsigned))


def test_a_round_without_this_pcs_keys_is_refused(ready: KeyStore) -> None:
    """M9."""
    terms = terms_of(ready)
    bundles = tuple(b for b in terms.bundles if b.identity != ready.identity.public)
    with pytest.raises(SecAggError, match="takes no part"):
        ready.keys(dataclasses.replace(terms, bundles=bundles))


def test_keys_of_the_epoch_before_open_no_round_of_this_one(ready: KeyStore) -> None:
    """M9, M10."""
    terms = terms_of(ready)
    ready.bundle(RUN, 6, 64)
    with pytest.raises(SecAggError, match="not name the keys"):
        ready.keys(terms)


def test_expired_keys_are_deleted_and_refused(
    ready: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M10."""
    old, terms = secrets_of(ready), terms_of(ready)
    later(monkeypatch, DAY - 60)
    ready.keys(terms)
    later(monkeypatch, DAY + 60)
    with pytest.raises(SecAggError, match="expired"):
        ready.keys(terms)
    assert found(ready, old) == 0
    with pytest.raises(SecAggError, match=r"epoch\.json: missing"):
        ready.keys(terms)


@pytest.mark.parametrize("epoch", [5, 6])
def test_expired_keys_are_never_given_again(
    ready: KeyStore, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    """M8, M10."""
    before = ready.bundle(RUN, 5, 64)
    later(monkeypatch, DAY + 60)
    after = ready.bundle(RUN, epoch, 64)
    assert after.not_after > before.not_after
    assert after.mask_key != before.mask_key
    assert after.share_key != before.share_key


def test_asking_for_expired_keys_deletes_them(
    ready: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M10."""
    old = secrets_of(ready)
    later(monkeypatch, DAY + 60)
    ready.bundle(RUN, 5, 64)
    assert found(ready, old) == 0


def test_keys_can_be_forgotten_before_their_end(ready: KeyStore) -> None:
    """M10."""
    old, terms = secrets_of(ready), terms_of(ready)
    ready.keys(terms)
    for _ in range(2):
        ready.forget_keys()
        assert found(ready, old) == 0
    with pytest.raises(SecAggError, match=r"epoch\.json: missing"):
        ready.keys(terms)


# The newest round


def test_the_newest_round_is_kept(ready: KeyStore) -> None:
    first, second = terms_of(ready, 5), terms_of(ready, 7)
    for terms in (first, first, second):
        ready.keep(terms, terms.encode())
        for opened in (ready, restarted(ready)):
            assert opened.terms(RUN, terms.number) == terms
    for run, number in ((RUN, 5), (RUN, 6), (RUN, 8), ("f" * 16, 7)):
        with pytest.raises(SecAggError, match="not asked for this round"):
            ready.terms(run, number)


def test_a_pc_that_was_asked_for_no_round_is_told_in_one_line(ready: KeyStore) -> None:
    with pytest.raises(SecAggError, match="terms: missing"):
        ready.terms(RUN, 1)


def test_an_older_round_and_the_same_one_described_otherwise_are_refused(ready: KeyStore) -> None:
    """M14: what the ledger was charged for is the only round of its number."""
    kept = terms_of(ready, 6)
    ready.keep(kept, kept.encode())
    for opened in (ready, restarted(ready)):
        for wrong, said in (
            (terms_of(ready, 5), "older"),
            (dataclasses.replace(kept, vector_hash=b"\1" * 32), "in another way"),
            (dataclasses.replace(kept, bound=kept.bound * 2), "in another way"),
            (dataclasses.replace(kept, bundles=kept.bundles[::-1]), "in another way"),
        ):
            with pytest.raises(SecAggError, match=said):
                opened.keep(wrong, wrong.encode())
        assert opened.terms(RUN, 6) == kept


def test_a_round_of_another_run_is_taken_whatever_its_number(ready: KeyStore) -> None:
    last = terms_of(ready, 6)
    ready.keep(last, last.encode())
    other = dataclasses.replace(last, run="f" * 16, number=1)
    ready.keep(other, other.encode())
    assert restarted(ready).terms("f" * 16, 1) == other


@pytest.mark.parametrize("kept", [0, 1, 200])
def test_a_round_whose_note_was_cut_off_blocks_only_itself(ready: KeyStore, kept: int) -> None:
    first, second = terms_of(ready, 5), terms_of(ready, 6)
    ready.keep(first, first.encode())
    damage(ready, "terms", first.encode()[:kept])
    opened = restarted(ready)
    with pytest.raises(SecAggError, match="terms: cannot be read"):
        opened.terms(RUN, 5)
    opened.keep(second, second.encode())
    assert opened.terms(RUN, 6) == second


# The one set of a round


def bind(key_store: KeyStore, terms: Terms, set_hash: bytes) -> None:
    with key_store.agreement(terms) as agreed:
        agreed.bind(set_hash)


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
terms = key_store.terms(run, int(number))

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
    terms = terms_of(ready)
    ready.keep(terms, terms.encode())
    bind(ready, terms, FIRST)
    code, answer = said(ready, terms, SECOND)
    assert code == 0
    assert answer.startswith("refused: another set was agreed on")
    assert said(ready, terms, FIRST) == (0, "signed")


@posix
def test_kill_9_between_record_and_signature_leaves_the_pc_bound(ready: KeyStore) -> None:
    """M21: nobody saw the signature, yet no other set is signed."""
    terms = terms_of(ready)
    ready.keep(terms, terms.encode())
    assert said(ready, terms, FIRST, "after") == (-signal.SIGKILL, "")
    with pytest.raises(SecAggError, match="another set"):
        bind(ready, terms, SECOND)
    assert said(ready, terms, SECOND)[1].startswith("refused: another set")
    bind(ready, terms, FIRST)
    assert said(ready, terms, FIRST) == (0, "signed")


@posix
def test_kill_9_before_the_record_leaves_the_pc_free(ready: KeyStore) -> None:
    """M21: and the lock of the dead holds nobody up."""
    terms = terms_of(ready)
    ready.keep(terms, terms.encode())
    assert said(ready, terms, FIRST, "before") == (-signal.SIGKILL, "")
    with ready.agreement(terms) as agreed:
        assert agreed.set_hash is None
    assert said(ready, terms, SECOND) == (0, "signed")
    with pytest.raises(SecAggError, match="another set"):
        bind(ready, terms, FIRST)


@posix
def test_of_two_processes_that_bind_different_sets_at_once_one_wins(ready: KeyStore) -> None:
    """M21."""
    terms = terms_of(ready)
    ready.keep(terms, terms.encode())
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


# Damage


def damage(key_store: KeyStore, name: str, content: bytes) -> None:
    (place_of(key_store) / name).write_bytes(content)
    module._cache.clear()  # else two writes within one tick of the clock could look like one


def use(key_store: KeyStore, terms: Terms, name: str) -> list[Callable[[], object]]:
    """All that reads the file."""
    newer = roster(key_store, version=9).encode()
    users: dict[str, list[Callable[[], object]]] = {
        "identity.key": [
            lambda: KeyStore(place_of(key_store).parent),
            lambda: KeyStore.create(place_of(key_store).parent),
        ],
        "roster": [
            lambda: key_store.roster(ADMISSION.public),
            lambda: key_store.pin(newer, ADMISSION.public),
            lambda: key_store.bundle(RUN, 6, 64),
        ],
        "epoch.json": [lambda: key_store.keys(terms), lambda: key_store.bundle(RUN, 6, 64)],
        "agreed.json": [
            lambda: bind(key_store, terms, FIRST),
            lambda: bind(key_store, terms, SECOND),
        ],
        "terms": [lambda: key_store.terms(RUN, terms.number)],
    }
    return users[name]


def refused_with_its_path(key_store: KeyStore, terms: Terms, name: str) -> None:
    before = files(key_store)
    for call in use(key_store, terms, name):
        with pytest.raises(SecAggError) as caught:
            call()
        assert str(caught.value).startswith(f"{place_of(key_store) / name}: ")
        assert "\n" not in str(caught.value)
    assert files(key_store) == before  # nothing is replaced that an owner may still mend


NAMES = ["identity.key", "roster", "epoch.json", "agreed.json", "terms"]


@pytest.fixture
def full(ready: KeyStore) -> tuple[KeyStore, Terms]:
    """With every file, and a round."""
    terms = terms_of(ready)
    ready.keep(terms, terms.encode())
    bind(ready, terms, FIRST)
    return ready, terms


def test_nothing_is_refused_before_the_damage(full: tuple[KeyStore, Terms]) -> None:
    key_store, terms = full
    for name in NAMES:
        damage(key_store, name, files(key_store)[name])
        use(key_store, terms, name)[0]()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", [0.3, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_told_with_its_path(
    full: tuple[KeyStore, Terms], name: str, part: float
) -> None:
    key_store, terms = full
    content = files(key_store)[name]
    damage(key_store, name, content[: int(part * len(content))])
    refused_with_its_path(key_store, terms, name)


JUNK = [b"", b"x", bytes(range(100, 256)), bytes(200), b"\xff" * 200, b"null", b"[[1, 2]"]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "roster"])
@pytest.mark.parametrize("content", JUNK, ids=lambda content: repr(content[:10]))
def test_a_file_of_something_else_is_told_with_its_path(
    full: tuple[KeyStore, Terms], name: str, content: bytes
) -> None:
    key_store, terms = full
    damage(key_store, name, content)
    refused_with_its_path(key_store, terms, name)


@pytest.mark.parametrize("content", JUNK, ids=lambda content: repr(content[:10]))
def test_a_list_of_members_that_is_none_is_told_with_its_path(
    full: tuple[KeyStore, Terms], content: bytes
) -> None:
    key_store, _ = full
    damage(key_store, "roster", content)
    for call in (lambda: key_store.roster(ADMISSION.public), lambda: key_store.bundle(RUN, 6, 64)):
        with pytest.raises(SecAggError, match=r"roster: cannot be read \(\w+\)$"):
            call()


@pytest.mark.parametrize("content", JUNK, ids=lambda content: repr(content[:10]))
def test_damage_does_not_make_a_pc_forget_which_list_was_the_newest(
    full: tuple[KeyStore, Terms], content: bytes
) -> None:
    """M6."""
    key_store, _ = full
    damage(key_store, "roster", content)
    with pytest.raises(SecAggError, match="roster: cannot be read"):
        key_store.pin(roster(key_store, version=1).encode(), ADMISSION.public)


def test_every_bit_of_the_kept_list_is_signed(full: tuple[KeyStore, Terms]) -> None:
    """M5."""
    key_store, _ = full
    content = files(key_store)["roster"]
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        damage(key_store, "roster", bytes(changed))
        with pytest.raises(SecAggError, match="roster: cannot be read"):
            _ = key_store.roster(ADMISSION.public)


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b"[]",
        b'{"bundle": "00", "mask": "00", "share": "00"}',
        b'{"bundle": [], "mask": 1, "share": null}',
        b'{"bundle": "no hex", "mask": "", "share": ""}',
        b"[" * 100_000,
    ],
    ids=lambda content: repr(content[:50]),
)
def test_keys_of_another_shape_are_told_with_their_path(
    full: tuple[KeyStore, Terms], content: bytes
) -> None:
    key_store, terms = full
    damage(key_store, "epoch.json", content)
    refused_with_its_path(key_store, terms, "epoch.json")


@pytest.mark.parametrize("name", ["mask", "share"])
def test_a_secret_key_that_is_not_the_bundles_is_told_with_its_path(
    full: tuple[KeyStore, Terms], name: str
) -> None:
    """Else the PC's upload is thrown away, and the PC itself is blamed for it."""
    key_store, terms = full
    entry = json.loads(files(key_store)["epoch.json"])
    entry[name] = entry[name][:20] + f"{int(entry[name][20], 16) ^ 1:x}" + entry[name][21:]
    damage(key_store, "epoch.json", json.dumps(entry).encode())
    refused_with_its_path(key_store, terms, "epoch.json")


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b"[]",
        b'{"run": "0123456789abcdef"}',
        b'{"run": "0123456789abcdef", "round": "5", "set": ""}',
        b'{"run": "0123456789abcdef", "round": null, "set": ""}',
        b'{"run": "0123456789abcdef", "round": 5}',
        b'{"run": "0123456789abcdef", "round": 5, "set": 1}',
        b'{"run": "0123456789abcdef", "round": 5, "set": "no hex"}',
        b"[" * 100_000,
    ],
    ids=lambda content: repr(content[:60]),
)
def test_an_agreement_of_another_shape_is_told_with_its_path(
    full: tuple[KeyStore, Terms], content: bytes
) -> None:
    key_store, terms = full
    damage(key_store, "agreed.json", content)
    refused_with_its_path(key_store, terms, "agreed.json")
