"""Whoever says who belongs to a federation and which jobs it runs.

admission.key  Ed25519 secret of the admission key
roster.bin     the public key, then the newest signed list of members; given to the coordinator

The coordinator never holds the secret. In a simulation both lie beside the PCs, which the
simulator plays as well.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from fedaipc import bounds
from fedaipc.errors import SecAggError
from fedaipc.files import write_atomic
from fedaipc.secagg.keys import KEY_BYTES, SigningKey
from fedaipc.secagg.roster import ROSTER_FILE, Roster, read_roster

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

KEY_FILE = "admission.key"


class Admission:
    """The admission key in `folder`, made on first use.

    Raises OSError, or SecAggError where the file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        path = folder / KEY_FILE
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomic(path, SigningKey().secret(), private=True)
        try:
            self.key = SigningKey(bounds.read_bytes(path, bounds.MAX_KEY))
        except ValueError:
            raise SecAggError(f"{path}: damaged; restore it from a copy") from None

    def roster(self, members: Collection[bytes], federation: str | None = None) -> bytes:
        """What the coordinator gets: the last list if it has these members, otherwise the next one.

        A new list has a new beacon, drawn here, after its members are final. `federation` names
        the first list's, otherwise it gets a random name. Raises SecAggError where the last list is
        damaged or not by this key.
        """
        path = self._folder / ROSTER_FILE
        federation, version = federation or secrets.token_hex(8), 0
        if path.is_file():
            content = bounds.read_bytes(path, bounds.MAX_ROSTER)
            signer, last = read_roster(content)
            if signer != self.key.public:
                raise SecAggError(f"{path}: is by another admission key")
            if set(last.members) == set(members):
                return content
            federation, version = last.federation, last.version
        roster = Roster.sign(
            self.key,
            federation=federation,
            version=version + 1,
            beacon=secrets.token_bytes(KEY_BYTES),
            members=tuple(members),
        )
        content = self.key.public + roster.encode()
        write_atomic(path, content)
        return content
