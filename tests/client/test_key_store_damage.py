"""Damage to what a PC keeps is told with its path, and nothing is forgotten."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from fedaipc.client.key_store import KeyStore
from fedaipc.errors import SecAggError
from fedaipc.secagg.terms import Terms
from tests.support.jobs import ADMISSION
from tests.support.key_stores import FIRST, RUN, SECOND, bind, damage, files, place_of, roster


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
        "round": [lambda: key_store.group(RUN, terms.number)],
        "secrets": [key_store.secrets],
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


NAMES = ["identity.key", "roster", "epoch.json", "agreed.json", "round", "secrets"]


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
        b'{"bundle": "00", "share": "00"}',
        b'{"bundle": [], "share": null}',
        b'{"bundle": "no hex", "share": ""}',
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


def test_a_secret_key_that_is_not_the_bundles_is_told_with_its_path(
    full: tuple[KeyStore, Terms],
) -> None:
    """Else the PC's upload is thrown away, and the PC itself is blamed for it."""
    key_store, terms = full
    entry = json.loads(files(key_store)["epoch.json"])
    secret = entry["share"]
    entry["share"] = secret[:20] + f"{int(secret[20], 16) ^ 1:x}" + secret[21:]
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
