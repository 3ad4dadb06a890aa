"""Keys of made-up PCs."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


def node_key(number: int) -> str:
    """Transport key of the PC `number`, the same each time."""
    public = ec.derive_private_key(number, ec.SECP384R1()).public_key()
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
