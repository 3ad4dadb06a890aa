"""Tokens: short signed texts that people hand to each other, by mail or on a stick.

An invite goes from the holder of the admission key to the owner of a PC; a request goes back. A
token is `fedaipc-KIND-1.PAYLOAD.SIGNATURE`, both parts base64url without padding; white space does
not count, since mail breaks lines. The signature is Ed25519 over the label `fedaipc KIND` and the
payload's JSON. Only comparing fingerprints through another channel shows whom a token comes
from; the signature shows that nothing was changed or cut off.
"""

from __future__ import annotations

import base64
import re
import time
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator

from fedaipc.config import NAME, FilterKind, Frozen
from fedaipc.errors import AdmissionError, SecAggError, check_clock
from fedaipc.protocol.node_key import NodeKey
from fedaipc.protocol.server_folder import ADDRESS
from fedaipc.secagg.keys import SigningKey, fingerprint, verify

_KEY = r"^[0-9a-f]{64}$"
_MAX_CHARACTERS = 20_000
_LINE = 76


class EnrollmentToken(Frozen):
    """`issuer` is the public key, in hex, of whoever signed; `not_after` in seconds since 1970."""

    kind: ClassVar[str]
    issuer_name: ClassVar[str]

    version: Literal[1] = 1
    federation: str = Field(pattern=r"^[0-9a-f]{16}$")
    issuer: str = Field(pattern=_KEY)
    not_after: int = Field(ge=0)

    def write(self, key: SigningKey) -> str:
        """The token as text, in lines that mail programs do not break. `key` is the issuer's."""
        payload = self.model_dump_json().encode()
        parts = (self._head(), _encoded(payload), _encoded(key.sign(self._signed(payload))))
        text = ".".join(parts)
        return "\n".join(text[i : i + _LINE] for i in range(0, len(text), _LINE)) + "\n"

    @classmethod
    def read(cls, text: str) -> Self:
        """Raises AdmissionError: not such a token, changed on its way, or out of date."""
        what = f"the {cls.kind}"
        if len(text) > _MAX_CHARACTERS:
            raise AdmissionError(f"{what} is too long to be one")
        parts = re.sub(r"\s+", "", text).split(".")
        if parts[0] != cls._head() or len(parts) != 3:
            raise AdmissionError(
                f"this is not a complete {cls.kind}, which begins with {cls._head()}: copy all of "
                "it"
            )
        try:
            payload, signature = _decoded(parts[1]), _decoded(parts[2])
            token = cls.from_json(payload)
            verify(bytes.fromhex(token.issuer), signature, cls._signed(payload), what)
        except (ValueError, SecAggError):
            raise AdmissionError(
                f"{what} was changed or cut off on its way, or was made by another version of "
                "fedaipc: ask for it again"
            ) from None
        if token.not_after < time.time():
            raise AdmissionError(
                f"{what} has expired: ask {cls.issuer_name} for a new one, or {check_clock()}"
            )
        return token

    @property
    def fingerprint(self) -> str:
        """What sender and receiver compare through another channel, such as the telephone."""
        return fingerprint(bytes.fromhex(self.issuer))

    @classmethod
    def _head(cls) -> str:
        return f"fedaipc-{cls.kind}-1"

    @classmethod
    def _signed(cls, payload: bytes) -> bytes:
        return f"fedaipc {cls.kind}".encode() + payload


class Invite(EnrollmentToken):
    """Where the server is, which TLS authority it has, and what the owner is advised to allow.

    The issuer is the admission key. `authority` is a certificate in PEM; `unit` what a new ledger
    protects, and `filter` the kind of its privacy filter, chosen for the jobs that are planned.
    """

    kind = "invite"
    issuer_name = "the federation"

    address: str = Field(pattern=ADDRESS, max_length=300)
    authority: str = Field(max_length=4000)
    base: str = Field(min_length=1, max_length=300)
    labels: tuple[str, ...] = ()
    lifetime_epsilon: float = Field(gt=0, le=1e6, allow_inf_nan=False)
    unit: Literal["record", "client"] = "record"
    delta: float = Field(gt=0, lt=0.01)
    filter: FilterKind


class Request(EnrollmentToken):
    """A PC that wants to belong to the federation. The issuer is its own identity.

    `node_key` is the public key, OpenSSH ECDSA P-384, by which Flower's transport knows the PC.
    """

    kind = "request"
    issuer_name = "the PC's owner"

    name: str = Field(max_length=80, pattern=NAME)
    node_key: NodeKey
    size_class: int = Field(ge=1, le=2**40)

    @field_validator("size_class")
    @classmethod
    def _power_of_two(cls, size: int) -> int:
        if size & (size - 1):
            raise ValueError("a size class is a power of two")
        return size


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
