"""The key by which Flower's transport knows a PC: ECDSA P-384, as Flower's documents want it."""

from __future__ import annotations

from typing import Annotated

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)
from pydantic import AfterValidator, Field


def parse(key: str) -> ec.EllipticCurvePublicKey:
    """An OpenSSH public key.

    Raises ValueError where it is not a key on P-384, or not in the one form that such a key has.
    """
    try:
        public = load_ssh_public_key(key.encode("ascii"))
    except Exception as error:  # noqa: BLE001 - the PC's bytes: the parser raises many kinds
        raise ValueError(f"not an OpenSSH key ({type(error).__name__})") from None
    if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name != "secp384r1":
        raise ValueError("no key on P-384")
    if public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() != key:
        raise ValueError("not in canonical form")
    return public


def pem(key: str) -> bytes:
    """An OpenSSH public key as Flower compares it, byte by byte. Raises ValueError as `parse`."""
    return parse(key).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _checked(key: str) -> str:
    parse(key)
    return key


NodeKey = Annotated[str, Field(max_length=500), AfterValidator(_checked)]
