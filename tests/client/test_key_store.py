"""What a PC keeps: its identity, the list of members, and the keys of an epoch."""

from __future__ import annotations

import dataclasses
import os
import stat
import time
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest

from fedaipc.client.key_store import KeyStore
from fedaipc.errors import SecAggError
from fedaipc.secagg.keys import SigningKey
from fedaipc.secagg.round_keys import share_secrets
from tests.support.jobs import ADMISSION
from tests.support.key_stores import (
    DAY,
    FIRST,
    OTHERS,
    RUN,
    files,
    found,
    group_of,
    later,
    place_of,
    posix,
    restarted,
    roster,
    secrets_of,
    terms_of,
)

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
        group = group_of(key_store)
        own, _ = share_secrets(group.terms, key_store.keys(group.terms))
        key_store.keep_secrets(own)
        key_store.keep(group)
        with key_store.agreement(group.terms) as agreed:
            agreed.bind(FIRST)
    finally:
        os.umask(old)
    rights = {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in place_of(key_store).iterdir()
    }
    del rights[".lock"]  # empty
    assert rights == dict.fromkeys(
        ("identity.key", "epoch.json", "roster", "round", "agreed.json", "secrets"), 0o600
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
    with pytest.raises(SecAggError, match="not signed by this PC's admission key"):
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
    terms, before = terms_of(ready), ready.bundle(RUN, 5, 64)
    own, _ = share_secrets(terms, ready.keys(terms))
    ready.keep_secrets(own)
    old = [*secrets_of(ready), own.own_mask, own.exchange.secret()]
    assert found(ready, old) == 3
    after = ready.bundle(run, epoch, 64)
    assert before.share_key != after.share_key
    assert found(ready, old) == 0
    assert found(ready, secrets_of(ready)) == 1


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
    assert after.share_key != before.share_key


def test_the_secret_keys_are_those_of_the_bundle(ready: KeyStore) -> None:
    """M9."""
    for opened in (ready, restarted(ready)):
        bundle, keys = opened.bundle(RUN, 5, 64), opened.keys(terms_of(ready))
        assert keys.identity.public == bundle.identity == ready.identity.public
        assert keys.share.public == bundle.share_key


@pytest.mark.parametrize(
    "changes",
    [
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
    terms = terms_of(ready)
    own, _ = share_secrets(terms, ready.keys(terms))
    ready.keep_secrets(own)
    old = [*secrets_of(ready), own.own_mask]
    assert found(ready, old) == 2
    for _ in range(2):
        ready.forget_keys()
        assert found(ready, old) == 0
    with pytest.raises(SecAggError, match=r"epoch\.json: missing"):
        ready.keys(terms)
