"""Answers that others published: what the primitives here compute is what the standards say.

`tests/vectors/published.json` names the source of each. More of them stand in test_keys.py,
test_masks.py.
"""

from __future__ import annotations

import hmac
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedaipc.secagg.keys import ExchangeKey, SigningKey, derive, verify
from fedaipc.secagg.masks import add_masks
from fedaipc.secagg.round_keys import open_shares, pair_key
from tests.support.secagg import federation, shared_out

PUBLISHED: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "published.json").read_text()
)


def cases(name: str) -> list[dict[str, bytes]]:
    return [
        {key: bytes.fromhex(value) for key, value in case.items()}
        for case in PUBLISHED[name]["cases"]
    ]


def spelt_out(secret: bytes, other: bytes, salt: bytes, info: bytes) -> bytes:
    """HKDF-SHA256 of an X25519 secret, 32 bytes: one HMAC to extract and one to expand."""
    own = X25519PrivateKey.from_private_bytes(secret)
    shared = own.exchange(X25519PublicKey.from_public_bytes(other))
    prk = hmac.digest(salt, shared, "sha256")
    return hmac.digest(prk, info + b"\x01", "sha256")


def test_a_sharers_blob_opens_by_its_parts_spelt_out() -> None:
    """M13, M16: for round, sharer, holder and round key by name; from either end."""
    found = shared_out(*federation(4))
    terms, (sharer, holder) = found.group.terms, found.group.members[:2]
    card, blob = found.group.card(sharer), found.key_shares[sharer].blobs[1]
    info = b"fedaipc shares" + sharer + holder + card.public
    for one, other in ((sharer, holder), (holder, sharer)):
        secret, public = found.keys[one].share.secret(), terms.bundle(other).share_key
        key = spelt_out(secret, public, terms.context, info)
        content = AESGCM(key).decrypt(bytes(12), blob, None)
        assert content == b"".join(open_shares(found.group, found.keys[holder], sharer, blob))


def test_a_pair_key_is_its_parts_spelt_out() -> None:
    """M13."""
    found = shared_out(*federation(4))
    low, high = found.group.members[1:3]
    exchange, other = found.secrets[low].exchange, found.group.card(high).public
    key = spelt_out(exchange.secret(), other, found.group.context, b"fedaipc pair" + low + high)
    assert pair_key(found.group, exchange, low, high) == key
    assert pair_key(found.group, found.secrets[high].exchange, high, low) == key


# The primitives below


@pytest.mark.parametrize("case", cases("ed25519"))
def test_signatures_are_those_of_rfc_8032(case: dict[str, bytes]) -> None:
    key = SigningKey(case["secret"])
    assert key.public == case["public"]
    assert key.sign(case["message"]) == case["signature"]
    verify(case["public"], case["signature"], case["message"], "test")


@pytest.mark.parametrize("case", cases("x25519"))
def test_agreement_is_that_of_rfc_7748(case: dict[str, bytes]) -> None:
    """The highest bit of a public key is no part of it, and a secret one is clamped."""
    assert ExchangeKey(case["secret"]).agree(case["public"]) == case["shared"]


@pytest.mark.parametrize("case", cases("hkdf"))
def test_derivation_is_that_of_rfc_5869(case: dict[str, bytes]) -> None:
    assert derive(case["secret"], case["salt"], case["info"]) == case["key"]


def test_aes_and_its_counter_are_those_of_sp_800_38a() -> None:
    """Four blocks: the counter's last byte runs over into the one before it."""
    given = {k: bytes.fromhex(v) for k, v in PUBLISHED["aes_256"].items() if k != "source"}
    aes = algorithms.AES256(given["key"])
    assert Cipher(aes, modes.ECB()).encryptor().update(given["plain"]) == given["ecb"]
    counter = modes.CTR(given["counter"])
    assert Cipher(aes, counter).encryptor().update(given["plain"]) == given["ctr"]


@pytest.mark.parametrize("dtype", ["<u4", "<u2"])
def test_a_mask_is_the_published_stream_from_counter_0(dtype: str) -> None:
    """Read as little-endian words; added, and subtracted."""
    key, stream = (bytes.fromhex(PUBLISHED["stream"][name]) for name in ("key", "words"))
    vector = np.zeros(len(stream) // np.dtype(dtype).itemsize, dtype)
    add_masks(vector, [key])
    assert vector.tobytes() == stream
    assert int(vector[0]) == int.from_bytes(stream[: vector.itemsize], "little")
    add_masks(vector, [], [key])
    assert not vector.any()


def test_the_cipher_of_the_blobs_is_the_published_one() -> None:
    given = {k: bytes.fromhex(v) for k, v in PUBLISHED["aes_gcm"].items() if k != "source"}
    cipher = AESGCM(given["key"])
    assert cipher.encrypt(given["nonce"], given["plain"], given["aad"]) == given["sealed"]
    assert given["plain"].decode() == "Beauty is truth, truth beauty"
