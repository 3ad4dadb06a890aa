"""The lines of a ledger: each carries the SHA-256 of the line before and a signature of its PC.

A line is one JSON object in canonical form (keys sorted, no spaces):

version    2
kind       ledger (the first line), charge, or key (from here on another key signs)
previous   the hash of the line before, "" in the first
endorsed   of a key line alone: the old key's Ed25519 signature over "fedaipc successor" and the
           line without endorsed, signature and hash
signature  Ed25519 over "fedaipc ledger" and the line without signature and hash
hash       SHA-256 of the line without hash

A valid signature on the last line therefore vouches for all lines before it, and only the holder
of the key can name its successor. The chain cannot say whose key it is: compare the fingerprint.
Nor can it show that lines at the end are missing. For that, each header that the PC signs for
its peers states the head: the number of lines, and the last one's hash (secagg/SPEC.md, M31).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedaipc import strict_json
from fedaipc.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Sequence

VERSION = 2
_LABEL, _SUCCESSOR, _KEY_BYTES = b"fedaipc ledger", b"fedaipc successor", 32
_LINE_BYTES = 4096
RESTORE = "put the newest copy back, if there is one; otherwise see docs/how-to/back-up.md"


class Signer(Protocol):
    """A PC's identity: an Ed25519 key pair."""

    public: bytes

    def sign(self, content: bytes) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Chain:
    """Lines that were checked. `keys` are all that ever signed them, hex, in order."""

    entries: tuple[dict[str, Any], ...]
    keys: tuple[str, ...]

    @property
    def key(self) -> str:
        """The key that signs from here on, hex."""
        return self.keys[-1]

    @property
    def hashes(self) -> tuple[bytes, ...]:
        """The hash of each line, from the first."""
        return tuple(bytes.fromhex(entry["hash"]) for entry in self.entries)

    def check_head(self, count: int, digest: bytes, where: object) -> None:
        """Raise LedgerError unless it still holds the head that somebody remembers."""
        hashes = self.hashes
        if not 1 <= count <= len(hashes):
            raise LedgerError(
                f"{where}: has {len(hashes)} lines, and had {count} when it was last seen: an "
                f"older copy, or lines were cut off; {RESTORE}"
            )
        if hashes[count - 1] != digest:
            raise LedgerError(
                f"{where}: line {count} differs from the one that was seen: an older copy was "
                f"used in between; {RESTORE}"
            )


def signed_line(body: dict[str, Any], previous: str, signer: Signer) -> bytes:
    """`body` as the line that follows the one whose hash is `previous`."""
    entry = _linked(body, previous)
    entry["signature"] = signer.sign(_LABEL + _canonical(entry)).hex()
    return _canonical({**entry, "hash": _hash(entry)}) + b"\n"


def key_line(previous: str, time: str, old: Signer, new: Signer) -> bytes:
    """The line by which `old` hands the ledger over to `new`."""
    body = {"kind": "key", "key": new.public.hex(), "time": time}
    endorsed = old.sign(_SUCCESSOR + _canonical(_linked(body, previous))).hex()
    return signed_line({**body, "endorsed": endorsed}, previous, new)


def _linked(body: dict[str, Any], previous: str) -> dict[str, Any]:
    return {**body, "version": VERSION, "previous": previous}


def check_chain(lines: Sequence[bytes], where: object, *, every: bool = False) -> Chain:
    """Read whole lines. Raises LedgerError, which begins with `where`, for what was changed.

    Signatures are checked for the last line alone, which vouches for the others, or for `every`
    one.
    """
    entries: list[dict[str, Any]] = []
    previous = ""
    keys: list[str] = []
    for number, raw in enumerate(lines, start=1):
        entry = parsed(raw)
        if entry is None or entry.get("previous") != previous or not _kind(entry, number):
            raise LedgerError(f"{where}: line {number} is damaged or was changed; {RESTORE}")
        if entry.get("version") != VERSION:
            raise LedgerError(f"{where}: written by another version of fedaipc; update this one")
        names_key = entry["kind"] != "charge"
        if entry["kind"] == "key" and not _is_signed(entry, keys[-1], "endorsed", _SUCCESSOR):
            raise LedgerError(
                f"{where}: line {number} names a key that the one before it did not sign; {RESTORE}"
            )
        if names_key:
            keys.append(str(entry.get("key")))
        checked = every or names_key or number == len(lines)
        if checked and not _is_signed(entry, keys[-1], "signature", _LABEL):
            raise LedgerError(
                f"{where}: line {number} is not signed by this ledger's PC; {RESTORE}"
            )
        entries.append(entry)
        previous = entry["hash"]
    if not entries:
        raise LedgerError(f"{where}: is empty or cut off; {RESTORE}")
    return Chain(tuple(entries), tuple(keys))


def parsed(raw: bytes) -> dict[str, Any] | None:
    """The entry of a line, or None where its hash is wrong."""
    try:
        entry = strict_json.parse(raw, max_bytes=_LINE_BYTES)
        if not isinstance(entry, dict):
            return None
        body = {name: value for name, value in entry.items() if name != "hash"}
        expected = _hash(body)
    except ValueError:
        return None
    # One line has one spelling: otherwise a byte could be changed without a trace.
    return entry if entry.get("hash") == expected and raw == _canonical(entry) else None


def is_whole(tail: bytes, where: object) -> bool:
    """Whether a last line that has no end is an entry all the same.

    An incomplete line was cut by a crash: `charge` never returned, so nothing was trained on it,
    and it does not count. A complete one may have lost its line end to a text editor: it counts.
    Raises LedgerError where more follows a complete one, which no crash writes.
    """
    if parsed(tail) is not None:
        return True
    try:
        entry, _ = json.JSONDecoder().raw_decode(tail.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return False
    if isinstance(entry, dict):
        raise LedgerError(f"{where}: the last line was changed; {RESTORE}")
    return False


def _kind(entry: dict[str, Any], number: int) -> bool:
    kind = entry.get("kind")
    return kind == "ledger" if number == 1 else kind in ("charge", "key")


def _is_signed(entry: dict[str, Any], key: str, field: str, label: bytes) -> bool:
    later = ("hash", "signature", field)
    body = {name: value for name, value in entry.items() if name not in later}
    try:
        if len(key) != 2 * _KEY_BYTES:
            return False
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
        public.verify(bytes.fromhex(str(entry.get(field))), label + _canonical(body))
    except (InvalidSignature, ValueError):
        return False
    return True


def _hash(entry: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(entry)).hexdigest()


def _canonical(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
