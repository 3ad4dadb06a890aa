"""Whether a ledger is complete: by its own chain and signatures, and by what peers remember.

The beginning of a ledger is a valid chain as well. That lines are missing at the end, or that an
older copy was put back, is known only to those who saw a later head. These are the PC itself, by
its own record of rounds, and its peers (secagg/SPEC.md, M31). So the promise rests on honest peers.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedaipc import bounds, strict_json
from fedaipc.client.client import OWNER_FILE
from fedaipc.client.key_store import KeyStore, has_keys, owner_of
from fedaipc.config import load_owner
from fedaipc.errors import ConfigError, FedaipcError, LedgerError, os_errors_as
from fedaipc.privacy.chain import check_chain, is_whole
from fedaipc.privacy.ledger import LEDGER_FILE
from fedaipc.secagg.keys import fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from fedaipc.secagg.uploads import LedgerHead

_FORMAT = "fedaipc ledgers"
_MAX_BYTES = 1 << 27  # of an export


@dataclass(frozen=True, slots=True)
class Copy:
    """The lines of a ledger, wherever they lie. `where` names them in what is said of them.

    `owner` is the public key of the PC in whose folder they lie, None where no folder says it;
    `torn` where half a line follows, which a crash has left and the PC will drop.
    """

    pc: str
    where: str
    lines: tuple[bytes, ...]
    torn: bool = False
    owner: bytes | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """`peers` remember the ledger's PC, `problem` is "" where nothing is wrong.

    `key` is the fingerprint of who signs it; `known` where that is who must: the PC in whose folder
    it lies, or whom the caller named. Otherwise a chain that anybody wrote is consistent as well.
    """

    pc: str
    lines: int
    charges: int
    key: str | None
    peers: int
    problem: str
    torn: bool
    known: bool

    @property
    def word(self) -> str:
        if self.problem:
            return "NOT GOOD"
        return "good" if self.known else "consistent"


def pc_name(folder: Path) -> str:
    """Its public name, as its owner.toml has it; the folder's where it has left."""
    with suppress(ConfigError):
        return load_owner(folder / OWNER_FILE).name
    return folder.resolve().name


def read_copy(path: Path) -> Copy:
    """The ledger at `path`, as it is; nothing is repaired. Raises LedgerError or SecAggError."""
    *lines, tail = _bytes(path).split(b"\n")
    torn = bool(tail)
    try:
        torn = torn and not is_whole(tail, path)
    except LedgerError:
        torn = False  # the line is complete, and `verify` says so
    if tail and not torn:
        lines.append(tail)
    key = owner_of(path.parent)
    owner = None if key is None else key.public
    return Copy(pc_name(path.parent), str(path), tuple(lines), torn, owner)


def write_export(copies: Sequence[Copy]) -> bytes:
    """One JSON file with the lines of all."""
    found = [{"pc": copy.pc, "lines": [line.decode() for line in copy.lines]} for copy in copies]
    return json.dumps({"format": _FORMAT, "version": 1, "ledgers": found}, indent=1).encode()


def read_export(path: Path) -> list[Copy]:
    """What `write_export` wrote. Raises LedgerError."""
    try:
        content: Any = strict_json.load(path, max_bytes=_MAX_BYTES)
        if (content["format"], content["version"]) != (_FORMAT, 1):
            raise ValueError  # noqa: TRY301 - all that is no export ends in one line
        if not content["ledgers"]:
            raise ValueError  # noqa: TRY301
        return [
            Copy(
                str(entry["pc"]),
                f"{path}, {entry['pc']}",
                tuple(line.encode() for line in entry["lines"]),
            )
            for entry in content["ledgers"]
        ]
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise LedgerError(f"{path}: is not what `fedaipc privacy ledger export` writes") from None


def memories(folders: Iterable[Path]) -> list[dict[bytes, LedgerHead]]:
    """What each PC's folder remembers of ledgers, its own among them. Raises SecAggError.

    A PC that has left its federation no longer remembers anything.
    """
    return [KeyStore(folder).heads() for folder in folders if has_keys(folder)]


def verify(
    copy: Copy, remembered: Sequence[Mapping[bytes, LedgerHead]], told: str | None = None
) -> Verdict:
    """Check every line of `copy`, who signs it, and every head of it that is `remembered`.

    `told` is the fingerprint that the caller expects.
    """
    lines, charges, key, peers, problem = len(copy.lines), 0, None, 0, ""
    try:
        chain = check_chain(copy.lines, copy.where, every=True)
        charges = sum(entry["kind"] == "charge" for entry in chain.entries)
        key = fingerprint(bytes.fromhex(chain.key))
        if copy.owner is not None and copy.owner.hex() != chain.key:
            raise LedgerError(
                f"{copy.where}: is signed by {key}, which is not this PC's key: the ledger of "
                "another PC, or one that was rewritten"
            )
        if told is not None and told != key:
            raise LedgerError(f"{copy.where}: was not signed by {told}")
        own = [bytes.fromhex(public) for public in chain.keys]
        seen = [heads[public] for heads in remembered for public in own if public in heads]
        peers = len(seen)
        for head in sorted(seen, key=lambda head: head.count, reverse=True):
            chain.check_head(head.count, head.digest, copy.where)
    except FedaipcError as error:
        problem = str(error)
    known = copy.owner is not None or told is not None
    return Verdict(copy.pc, lines, charges, key, peers, problem, copy.torn, known)


def peers_in(folder: Path) -> list[Path]:
    """The PCs' folders in `folder`, or itself."""
    if (folder / LEDGER_FILE).is_file():
        return [folder]
    return [path.parent for path in sorted(folder.glob(f"*/{LEDGER_FILE}"))]


def _bytes(path: Path) -> bytes:
    with os_errors_as(LedgerError, f"{path}: cannot be read"):
        return bounds.read_bytes(path, bounds.MAX_LEDGER)
