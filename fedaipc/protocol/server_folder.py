"""What the holder of the admission key gives the server. Its only secret is the server's TLS key.

federation.json             public facts
authority.pem               the federation's TLS authority, which PCs trust alone
server.pem, server.key      the server's certificate and key
roster.bin                  the signed list of members
nodes.json                  transport keys of the members
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from cryptography import x509
from pydantic import Field

from fedaipc import bounds
from fedaipc.config import Frozen
from fedaipc.errors import AdmissionError
from fedaipc.secagg.roster import ROSTER_FILE

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

FACTS_FILE, NODES_FILE = "federation.json", "nodes.json"
AUTHORITY_FILE, SERVER_FILE, SERVER_KEY_FILE = "authority.pem", "server.pem", "server.key"
STATE_FOLDER = "state"  # what the running server keeps there
SERVER_FILES = (FACTS_FILE, AUTHORITY_FILE, SERVER_FILE, SERVER_KEY_FILE, ROSTER_FILE, NODES_FILE)


ADDRESS = r"^[A-Za-z0-9.:\[\]-]+:[0-9]{1,5}$"  # host:port
_MAX_BYTES = 1 << 26  # of all members
_HOST = r"^[A-Za-z0-9.:-]+$"


class Facts(Frozen):
    """Public. `address` is host:port as PCs reach it; `admission` the public key in hex."""

    version: Literal[1] = 1
    federation: str = Field(pattern=r"^[0-9a-f]{16}$")
    admission: str = Field(pattern=r"^[0-9a-f]{64}$")
    address: str = Field(pattern=ADDRESS, max_length=300)
    names: tuple[Annotated[str, Field(pattern=_HOST, max_length=253)], ...] = Field(min_length=1)

    @classmethod
    def load(cls, folder: Path) -> Facts:
        """Raises AdmissionError where the folder is not one of a federation or its server."""
        path = folder / FACTS_FILE
        try:
            return cls.from_file(path)
        except FileNotFoundError:
            raise AdmissionError(
                f"{folder}: no federation is here; give the folder that `fedaipc federation init` "
                "made, or on the server the copy of its server folder"
            ) from None
        except PermissionError:
            raise AdmissionError(
                f"{path}: this user may not read it; run this as its owner"
            ) from None
        except (OSError, ValueError) as error:
            raise AdmissionError(
                f"{path}: cannot be read ({type(error).__name__}); restore it from a copy"
            ) from None


class Node(Frozen):
    """What the server knows of a member: which transport key it lets in."""

    name: str
    node_key: str


class Nodes(Frozen):
    """All that the server lets in."""

    nodes: tuple[Node, ...] = ()

    @classmethod
    def load(cls, folder: Path) -> Nodes:
        """Raises AdmissionError."""
        try:
            return cls.from_file(folder / NODES_FILE, max_bytes=_MAX_BYTES)
        except (OSError, ValueError) as error:
            raise AdmissionError(
                f"{folder / NODES_FILE}: cannot be read ({type(error).__name__}); copy the "
                "federation's server folder again"
            ) from None


def server_period(path: Path) -> tuple[datetime, datetime]:
    """From when until when the certificate is valid. Raises AdmissionError where it cannot be
    read.
    """
    try:
        certificate = x509.load_pem_x509_certificate(bounds.read_bytes(path, bounds.MAX_KEY))
    except (OSError, ValueError) as error:
        raise AdmissionError(f"{path}: the certificate cannot be read ({error})") from None
    return certificate.not_valid_before_utc, certificate.not_valid_after_utc
