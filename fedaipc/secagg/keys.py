"""Keys of a PC: a lasting identity, one for every key epoch, and one for every round.

Ed25519 (RFC 8032) signs, X25519 (RFC 7748) agrees on pairwise secrets, and HKDF-SHA256 (RFC 5869)
makes keys of them.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedaipc.errors import SecAggError

KEY_BYTES = 32
SIGNATURE_BYTES = 64
_SHOWN_BYTES = 16  # of a fingerprint that people compare
_AGREED_KEPT = 256  # PCs of two groups of 100, and some
_RAW = serialization.Encoding.Raw, serialization.PublicFormat.Raw


class SigningKey:
    """An Ed25519 key pair; its repr shows nothing."""

    def __init__(self, secret: bytes | None = None) -> None:
        self._key = (
            Ed25519PrivateKey.generate()
            if secret is None
            else Ed25519PrivateKey.from_private_bytes(secret)
        )
        self.public = self._key.public_key().public_bytes(*_RAW)

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public.hex()[:8]})"

    def secret(self) -> bytes:
        """32 bytes for the key file, which only its owner may read."""
        return self._key.private_bytes_raw()

    def sign(self, content: bytes) -> bytes:
        """64 bytes. `content` begins with a label, so that no signature serves two purposes."""
        return self._key.sign(content)


def verify(public: bytes, signature: bytes, content: bytes, what: str) -> None:
    """Raise SecAggError, naming `what` was signed, unless the signature is good."""
    try:
        _verify(public, signature, content)
    except (InvalidSignature, ValueError):
        raise SecAggError(f"{what}: the signature is wrong") from None


@lru_cache(maxsize=4096)  # a call that raises is not kept
def _verify(public: bytes, signature: bytes, content: bytes) -> None:
    """One signature is shown again and again: of a bundle in each round, of a header to each PC."""
    Ed25519PublicKey.from_public_bytes(public).verify(signature, content)


class ExchangeKey:
    """An X25519 key pair; its repr shows nothing."""

    def __init__(self, secret: bytes | None = None) -> None:
        self._key = (
            X25519PrivateKey.generate()
            if secret is None
            else X25519PrivateKey.from_private_bytes(secret)
        )
        self.public = self._key.public_key().public_bytes(*_RAW)
        self._agreed: dict[bytes, bytes] = {}  # asked for several times in a round

    def __repr__(self) -> str:
        return f"ExchangeKey(public={self.public.hex()[:8]})"

    def secret(self) -> bytes:
        """32 bytes for the key file, which only its owner may read."""
        return self._key.private_bytes_raw()

    def agree(self, other: bytes) -> bytes:
        """32 shared bytes, never used as they are. Raises SecAggError for a low-order point."""
        if other not in self._agreed:
            if len(self._agreed) >= _AGREED_KEPT:
                self._agreed.clear()
            try:
                shared = self._key.exchange(X25519PublicKey.from_public_bytes(other))
            except ValueError:
                raise SecAggError(
                    "a public key is not valid: no secret can be shared with its owner"
                ) from None
            self._agreed[other] = shared
        return self._agreed[other]


def canonical(public: bytes) -> bytes:
    """An X25519 key without its top bit, which the function ignores (RFC 7748, section 5)."""
    return public[:-1] + bytes([public[-1] & 0x7F])


def derive(secret: bytes, context: bytes, label: bytes) -> bytes:
    """32 bytes by HKDF-SHA256 (RFC 5869), salt `context`, info `label`."""
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=context, info=label).derive(secret)


def fingerprint(public: bytes) -> str:
    """What two people compare: the hash of an identity's public key in groups of four."""
    return _spelt(hashlib.sha256(b"fedaipc identity" + public).digest()[:_SHOWN_BYTES])


def read_fingerprint(text: str) -> str:
    """A fingerprint, or a whole public key in hex, as `fingerprint` spells it. Raises SecAggError.

    Spaces, colons and capitals do not matter.
    """
    try:
        content = bytes.fromhex("".join(text.replace(":", "").split()))
    except ValueError:
        content = b""
    if len(content) == KEY_BYTES:
        return fingerprint(content)
    if len(content) != _SHOWN_BYTES:
        raise SecAggError(
            f"{text!r} is not a fingerprint: give all {2 * _SHOWN_BYTES} hexadecimal digits"
        )
    return _spelt(content)


def _spelt(content: bytes) -> str:
    digits = content.hex()
    return " ".join(digits[i : i + 4] for i in range(0, len(digits), 4))
