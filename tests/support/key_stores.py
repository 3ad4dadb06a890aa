"""A PC's key store, what it is to keep, and what is in its files."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedaipc.client import key_store as module
from fedaipc.client.key_store import KeyStore
from fedaipc.protocol.round_terms import make_terms
from fedaipc.secagg.keys import ExchangeKey, SigningKey
from fedaipc.secagg.roster import Bundle, Roster
from fedaipc.secagg.round_keys import Group, RoundKey
from fedaipc.secagg.terms import Terms
from tests.support.jobs import ADMISSION, signed, tiny_job

RUN = "0123456789abcdef"
OTHERS = [SigningKey(bytes([number]) * 32) for number in (1, 2)]
FIRST, SECOND = b"\1" * 32, b"\2" * 32  # hashes of two sets
DAY = 24 * 3600
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has neither such rights nor kill -9")


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


def group_of(key_store: KeyStore, number: int = 5, bundle: Bundle | None = None) -> Group:
    """The same round, in which all have given their round keys."""
    terms = terms_of(key_store, number, bundle)
    return Group(terms, tuple(card_of(terms, who) for who in terms.participants))


def card_of(terms: Terms, who: bytes) -> RoundKey:
    """A round key that nobody signed."""
    exchange = ExchangeKey(hashlib.sha256(terms.context + who).digest())
    return RoundKey(who, exchange.public, bytes(32))


def files(key_store: KeyStore) -> dict[str, bytes]:
    """All that lies in the folder, left-over files too."""
    return {
        path.name: path.read_bytes() for path in place_of(key_store).rglob("*") if path.is_file()
    }


def place_of(key_store: KeyStore) -> Path:
    return key_store._folder


def secrets_of(key_store: KeyStore) -> list[bytes]:
    """The secret key of the present epoch, as it may stand in a file."""
    content = json.loads(files(key_store)["epoch.json"])
    raw = bytes.fromhex(content["share"])
    return [raw, raw.hex().encode()]


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


def bind(key_store: KeyStore, terms: Terms, set_hash: bytes) -> None:
    with key_store.agreement(terms) as agreed:
        agreed.bind(set_hash)


def damage(key_store: KeyStore, name: str, content: bytes) -> None:
    (place_of(key_store) / name).write_bytes(content)
    module._cache.clear()  # else two writes within one tick of the clock could look like one
