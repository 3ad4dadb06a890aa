"""A PC's side of a round, except for the training: its keys, and what it signs as a member of its
group.

A `Client` is a folder that belongs to the owner: `owner.toml`, `ledger.jsonl`, `keys/`,
`pc.log`, a cache. Nothing here loads torch, so that a PC that only has to sign something answers
immediately.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from fedaipc.client.key_store import KeyStore
from fedaipc.config import load_owner
from fedaipc.errors import AdmissionError
from fedaipc.files import stamp
from fedaipc.protocol.messages import Description
from fedaipc.secagg.committee import Agreement, Proposal, Unmask, agree, release

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fedaipc.config import OwnerSettings, Stage
    from fedaipc.files import Stamp
    from fedaipc.protocol.messages import MemberRequest, SetupRequest

OWNER_FILE = "owner.toml"
LOG_FILE = "pc.log"


class SimulatedDropOut(Exception):  # noqa: N818 - an event that a test asked for, not a fault
    """The PC drops out here: the simulation must not let a reply leave."""


class Client:
    """One PC, opened from its folder. Raises ConfigError or SecAggError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / OWNER_FILE
        self.owner = _owner(path, stamp(path) if path.is_file() else None)
        self.key_store = KeyStore(folder)

    @property
    def source(self) -> str:
        """Where its texts are; "./" means in its own folder."""
        source = self.owner.source
        return str(self.folder / source) if source.startswith("./") else source

    def setup(self, request: SetupRequest) -> Description:
        """Public name and keys for an epoch. Raises SecAggError."""
        self.vanish("setup", request.epoch)
        self.key_store.pin(request.roster, bytes.fromhex(self.owner.admission))
        bundle = self.key_store.bundle(request.run, request.epoch, self.owner.size_class)
        return Description(self.owner.name, bundle.encode())

    def agree(self, request: MemberRequest) -> bytes:
        """An agreement or a complaint, as a frame; the set is on the disk before it leaves (M21).

        Raises SecAggError or EncodingError where the proposal breaks the round's rules.
        """
        self.vanish("agree", request.attempt)
        group = self.key_store.group(request.run, request.attempt)
        with self.key_store.agreement(group.terms) as agreed:
            proposal = Proposal.decode(request.frame)
            keys = self.key_store.keys(group.terms)
            answer = agree(group, keys, proposal, agreed.set_hash, agreed.heads)
            if isinstance(answer, Agreement):
                heads = {header.uploader: header.head for header, _ in proposal.uploads}
                agreed.bind(answer.set_hash, heads)
        return answer.encode()

    def unmask(self, request: MemberRequest) -> bytes:
        """Shares for the agreed set, as a frame; the set is on the disk before they leave (M23).

        Raises SecAggError or EncodingError.
        """
        self.vanish("unmask", request.attempt)
        group = self.key_store.group(request.run, request.attempt)
        with self.key_store.agreement(group.terms) as agreed:
            unmask, keys = Unmask.decode(request.frame), self.key_store.keys(group.terms)
            set_hash, released = release(group, keys, unmask, agreed.set_hash)
            agreed.bind(set_hash)
        return released.encode()

    def vanish(self, stage: Stage, number: int) -> None:
        """Raise SimulatedDropOut where the owner's settings ask for it, by a draw for each
        `number`.
        """
        owner = self.owner
        if stage != owner.dropout_stage:
            return
        text = f"{owner.dropout_seed} {owner.name} {number}"
        draw = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
        if draw < owner.dropout_rate:
            raise SimulatedDropOut

    def note(self, line: str) -> None:
        """A line that only the owner may read: it may tell of data, and stays in the folder."""
        path = self.folder / LOG_FILE
        with suppress(OSError):
            path.touch(mode=0o600)
            with path.open("a", encoding="utf-8", errors="replace") as file:
                file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {line}\n")


@contextmanager
def serving(folder: Path) -> Iterator[None]:
    """Hold a PC's folder as a client does while it serves.

    Raises AdmissionError where another process holds it.
    """
    try:
        lock = FileLock(folder / ".serving", timeout=0).acquire()
    except Timeout:
        raise AdmissionError(
            f"{folder}: another process serves this PC; stop its `fedaipc client start` first"
        ) from None
    with lock:
        yield


@lru_cache(maxsize=1 << 14)
def _owner(path: Path, _: Stamp | None) -> OwnerSettings:
    """Read again where the file was replaced."""
    return load_owner(path)
