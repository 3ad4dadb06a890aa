"""Answers that others published: what the primitives here compute is what the standards say.

`tests/vectors/published.json` names the source of each. More of them stand in test_keys.py,
test_masks.py and test_tree.py.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.bindings._rust import openssl
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedaipc.errors import SecAggError
from fedaipc.secagg import keys, tree
from fedaipc.secagg.keys import ExchangeKey, SigningKey, derive, seal, verify
from fedaipc.secagg.masks import add_masks
from fedaipc.secagg.uploads import mask_and_share, open_shares
from tests.support.secagg import HEAD, blob_of, federation

PUBLISHED: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "published.json").read_text()
)
HPKE = PUBLISHED["hpke"]


def published(name: str) -> bytes:
    return bytes.fromhex(HPKE[name])


def cases(name: str) -> list[dict[str, bytes]]:
    return [
        {key: bytes.fromhex(value) for key, value in case.items()}
        for case in PUBLISHED[name]["cases"]
    ]


# HPKE of RFC 9180, base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM: spelt out from
# HMAC, X25519 and AES-GCM

KEM_SUITE = b"KEM" + (0x0020).to_bytes(2, "big")
SUITE = b"HPKE" + b"".join(number.to_bytes(2, "big") for number in (0x0020, 0x0001, 0x0002))


def extract(salt: bytes, label: bytes, secret: bytes, suite: bytes) -> bytes:
    """LabeledExtract, section 4; HKDF-Extract is one HMAC."""
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + secret, "sha256")


def expand(key: bytes, label: bytes, info: bytes, length: int, suite: bytes) -> bytes:
    """LabeledExpand, section 4; of up to 32 bytes, so that HKDF-Expand is one HMAC."""
    labelled = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    return hmac.digest(key, labelled + b"\x01", "sha256")[:length]


def decapsulated(secret: bytes, enc: bytes) -> bytes:
    """Decap, section 4.1: the shared secret."""
    own = X25519PrivateKey.from_private_bytes(secret)
    shared = own.exchange(X25519PublicKey.from_public_bytes(enc))
    prk = extract(b"", b"eae_prk", shared, KEM_SUITE)
    context = enc + own.public_key().public_bytes_raw()
    return expand(prk, b"shared_secret", context, 32, KEM_SUITE)


def key_schedule(shared_secret: bytes, info: bytes) -> dict[str, bytes]:
    """KeySchedule, section 5.1, in base mode: no key is shared beforehand."""
    context = (
        b"\x00" + extract(b"", b"psk_id_hash", b"", SUITE) + extract(b"", b"info_hash", info, SUITE)
    )
    secret = extract(shared_secret, b"secret", b"", SUITE)
    return {
        "key_schedule_context": context,
        "secret": secret,
        "key": expand(secret, b"key", context, 32, SUITE),
        "base_nonce": expand(secret, b"base_nonce", context, 12, SUITE),
    }


def opened(secret: bytes, enc: bytes, ciphertext: bytes, info: bytes, aad: bytes = b"") -> bytes:
    """The first message of a context; its nonce is the base nonce."""
    found = key_schedule(decapsulated(secret, enc), info)
    return AESGCM(found["key"]).decrypt(found["base_nonce"], ciphertext, aad)


def test_the_published_suite_is_the_one_that_is_used() -> None:
    assert (HPKE["mode"], HPKE["kem_id"], HPKE["kdf_id"], HPKE["aead_id"]) == (0, 0x20, 1, 2)
    assert ExchangeKey(published("skRm")).public == published("pkRm")
    assert ExchangeKey(published("skEm")).public == published("enc")


def test_hpke_spelt_out_has_every_published_value() -> None:
    assert decapsulated(published("skRm"), published("enc")) == published("shared_secret")
    found = key_schedule(published("shared_secret"), published("info"))
    assert found == {name: published(name) for name in found}
    plain = opened(*map(published, ("skRm", "enc", "ct", "info", "aad")))
    assert plain == published("pt")
    assert plain.decode() == "Beauty is truth, truth beauty"


def test_the_library_opens_the_published_ciphertext() -> None:
    """With the suite of keys.py. Its public call knows no additional data, as no message here has
    any; the published one has some.
    """
    private = X25519PrivateKey.from_private_bytes(published("skRm"))
    sealed = published("enc") + published("ct")
    plain = openssl.hpke._decrypt_with_aad(
        keys._HPKE, sealed, private, published("info"), published("aad")
    )
    assert plain == published("pt")
    with pytest.raises(InvalidTag):
        keys._HPKE.decrypt(sealed, private, info=published("info"))


def test_what_the_published_key_and_nonce_encipher_is_opened() -> None:
    """By the calls that the sealing itself makes; without additional data."""
    owner = ExchangeKey(published("skRm"))
    ciphertext = AESGCM(published("key")).encrypt(published("base_nonce"), published("pt"), None)
    assert owner.open(published("enc") + ciphertext, published("info")) == published("pt")
    with pytest.raises(SecAggError, match="cannot be decrypted"):
        owner.open(published("enc") + published("ct"), published("info"))


@pytest.mark.parametrize("content", [b"", b"share", bytes(3301)], ids=len)
def test_what_is_sealed_here_opens_by_hpke_spelt_out(content: bytes) -> None:
    owner = ExchangeKey()
    sealed = seal(content, owner.public, b"purpose")
    assert opened(owner.secret(), sealed[:32], sealed[32:], b"purpose") == content
    with pytest.raises(InvalidTag):
        opened(owner.secret(), sealed[:32], sealed[32:], b"another purpose")


def test_a_dealers_blob_opens_by_hpke_spelt_out() -> None:
    """M13, M16: for round, uploader and member by name."""
    terms, own = federation(4)
    uploader, member = terms.participants[:2]
    upload = mask_and_share(terms, own[uploader], np.zeros(terms.size, "<u4"), HEAD)
    blob, leaf = blob_of(upload, 1), upload.leaves[1]
    info = b"fedaipc shares" + terms.context + uploader + member
    content = opened(own[member].share.secret(), blob[:32], blob[32:], info)
    assert content == b"".join(open_shares(terms, own[member], upload.header, leaf, blob))


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


def test_roots_are_those_of_the_reference_implementation_of_rfc_6962() -> None:
    entries = [bytes.fromhex(entry) for entry in PUBLISHED["tree"]["entries"]]
    roots = [tree.root(entries[:count]).hex() for count in range(len(entries) + 1)]
    assert roots == PUBLISHED["tree"]["roots"]
    assert roots[0] == hashlib.sha256().hexdigest()
