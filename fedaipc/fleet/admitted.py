"""Whom the server's list of members lets in, asked for each request.

Flower never forgets a key that it has shut out, so a key that left the list by mistake, or came
back after it had expired, could never be admitted again. So no key is shut out at Flower: the
front, before it reads a body, and the guard around the SuperLink look at the list as it is now.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from contextlib import suppress
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fedaipc.errors import AdmissionError
from fedaipc.files import stamp
from fedaipc.protocol.node_key import parse, pem
from fedaipc.protocol.server_folder import NODES_FILE, Nodes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fedaipc.files import Stamp

KEY_HEADER, STAMP_HEADER = b"flwr-public-key", b"flwr-timestamp"
SIGNATURE_HEADER = b"flwr-signature"


class Admitted:
    """The members whose transport keys are in the list in `folder`; read again where it changed.

    A list that cannot be read, or half of one while it is copied, changes nothing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stamp: Stamp | None = None
        self._keys: dict[bytes, ec.EllipticCurvePublicKey] = {}  # by the content of the header

    def knows(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a request names a member's key. Whether it has the key, `has_signed` tells."""
        self._look()
        return headers.get(KEY_HEADER, b"") in self._keys

    def has_signed(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a member signed the time stamp, as Flower has it: ECDSA with SHA-256.

        How old the stamp may be, the SuperLink knows.
        """
        if not self.knows(headers):
            return False
        try:
            signature = b64decode(headers[SIGNATURE_HEADER], validate=True)
            stamped = headers[STAMP_HEADER]
            self._keys[headers[KEY_HEADER]].verify(signature, stamped, ec.ECDSA(hashes.SHA256()))
        except (KeyError, ValueError, InvalidSignature):
            return False
        return True

    def _look(self) -> None:
        with suppress(OSError, AdmissionError):
            now = stamp(self._folder / NODES_FILE)
            if now != self._stamp:
                keys = {}
                for node in Nodes.load(self._folder).nodes:
                    with suppress(ValueError):
                        keys[b64encode(pem(node.node_key))] = parse(node.node_key)
                self._keys, self._stamp = keys, now
