"""The federation's own TLS authority: PCs trust only it, and no authority of their operating
system.

ECDSA P-256. The authority's key stays with the admission key; it may sign the certificates of
servers and nothing else. Certificates follow RFC 5280.
"""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedaipc import bounds
from fedaipc.errors import AdmissionError
from fedaipc.files import write_atomic
from fedaipc.protocol.server_folder import AUTHORITY_FILE, SERVER_FILE, SERVER_KEY_FILE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

AUTHORITY_KEY_FILE = "authority.key"
_AUTHORITY_DAYS, _SERVER_DAYS = 3650, 398
_BEFORE = timedelta(hours=1)  # the clocks of PCs may be slow


def make_authority(folder: Path, federation: str) -> None:
    """A new authority in `folder`. Raises OSError."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fedaipc federation {federation}")])
    certificate = (
        _certificate(name, name, key.public_key(), _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_atomic(folder / AUTHORITY_KEY_FILE, _secret(key), private=True)
    write_atomic(folder / AUTHORITY_FILE, certificate.public_bytes(serialization.Encoding.PEM))


def issue_server(folder: Path, to: Path, names: Sequence[str]) -> None:
    """A new key and certificate for a server with these host names and addresses, in `to`.

    Raises AdmissionError where the authority in `folder` cannot be read, OSError.
    """
    try:
        issuer = x509.load_pem_x509_certificate(
            bounds.read_bytes(folder / AUTHORITY_FILE, bounds.MAX_KEY)
        )
        signer = serialization.load_pem_private_key(
            bounds.read_bytes(folder / AUTHORITY_KEY_FILE, bounds.MAX_KEY), password=None
        )
    except (OSError, ValueError, TypeError) as error:
        raise AdmissionError(
            f"{folder}: the TLS authority cannot be read ({error}); restore it from a copy"
        ) from None
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise AdmissionError(f"{folder / AUTHORITY_KEY_FILE}: not an ECDSA key")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    certificate = (
        _certificate(subject, issuer.subject, key.public_key(), _SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_name(n) for n in names]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .sign(signer, hashes.SHA256())
    )
    write_atomic(to / SERVER_KEY_FILE, _secret(key), private=True)
    write_atomic(to / SERVER_FILE, certificate.public_bytes(serialization.Encoding.PEM))


def _certificate(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _secret(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
