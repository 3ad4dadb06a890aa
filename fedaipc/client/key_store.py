"""What a PC keeps for secure aggregation, in a folder of its own that only its owner can read.

identity.key  Ed25519 secret, for life
epoch.json    secret key of one run's key epoch, with the bundle of its public half
secrets       those of the round that this PC was last asked about; deleted before its update leaves
roster        the newest list of members that was shown to this PC
round         the newest round that it was asked to train in, with all round keys
agreed.json   the one set of that round for which it signed, or released shares; and the last head
              of each PC's ledger that it saw (M31)
head          of its own ledger after its last charge

The ledger, which may be shown to others, holds none of it. What a rule of secagg/SPEC.md wants
to be durable is on the disk when the method that says so returns.
"""

from __future__ import annotations

import json
import os
import time
from collections import OrderedDict
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from filelock import FileLock, Timeout

from fedaipc import strict_json
from fedaipc.errors import FedaipcError, RoundError, SecAggError
from fedaipc.files import Stamp, stamp, sync_folder, write_atomic, write_private
from fedaipc.secagg.keys import KEY_BYTES, ExchangeKey, SigningKey
from fedaipc.secagg.roster import KEY_SECONDS, Bundle, Roster, read_roster
from fedaipc.secagg.round_keys import Group, Keys, RoundSecrets
from fedaipc.secagg.uploads import LedgerHead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from fedaipc.secagg.terms import Terms

FOLDER, HEAD_FILE, SECRETS_FILE = "keys", "head", "secrets"
SUCCESSOR_FILE = "successor.key"  # of a PC that has left: the secret key of its next enrollment
_MAX_BYTES = 1 << 26  # of one file
_LOCK_SECONDS = 30.0
_T = TypeVar("_T")


class KeyStore:
    """The keys and promises of the PC whose files lie in `folder`. Raises SecAggError where they
    are missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self.identity = _kept(self._folder / "identity.key", _identity)

    @classmethod
    def create(cls, folder: Path, identity: SigningKey | None = None) -> KeyStore:
        """A key store with `identity`, or with a new one if the PC has none yet. Raises OSError."""
        path = folder / FOLDER / "identity.key"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(path.parent):
            if not path.is_file():
                write_atomic(path, (identity or SigningKey()).secret(), private=True)
        return cls(folder)

    def roster(self, admission: bytes) -> Roster:
        """The one that `pin` took last. Raises SecAggError where none of `admission` is there."""
        signer, roster = _kept(self._folder / "roster", read_roster)
        if signer != admission:
            raise SecAggError("the list of members is not signed by this PC's admission key")
        return roster

    def pin(self, content: bytes, admission: bytes) -> Roster:
        """Take a list of members as the newest one; durable.

        Raises SecAggError: not signed by `admission` (M5), older than the last one, another one
        of its version, of another federation by the same key (M6), this PC is not in it (M7).
        """
        path = self._folder / "roster"
        with _locked(self._folder):
            signer, last = _kept(path, read_roster) if path.is_file() else (b"", None)
            roster = Roster.decode(content, admission)
            if self.identity.public not in roster:
                raise SecAggError("this PC is not on the list of members")
            if last is not None and signer == admission:
                if roster == last:
                    return roster
                if roster.federation != last.federation:
                    raise SecAggError("the list of members belongs to another federation")
                if roster.version <= last.version:
                    raise SecAggError("the list of members is older than one that this PC has seen")
            write_atomic(path, admission + content, private=True)
        return roster

    def bundle(self, run: str, epoch: int, size_class: int) -> Bundle:
        """The public key for an epoch: a new one, or that which was made for it before.

        A new one replaces the old (M10). Raises SecAggError where the epoch is not newer than the
        last one of this run, and its keys were made for something else.
        """
        path, now = self._folder / "epoch.json", time.time()
        with _locked(self._folder):
            federation = _kept(self._folder / "roster", read_roster)[1].federation
            self.expire()
            if path.is_file():
                last = _kept(path, _epoch).bundle
                if last.run == run and last.epoch > epoch:
                    raise SecAggError("the key epoch is older than the last one of this run")
                if (last.run, last.epoch) == (run, epoch):
                    if (last.federation, last.size_class) == (federation, size_class):
                        return last
                    raise SecAggError("the keys of this epoch were made for something else")
            self.forget_secrets()  # of rounds of the epoch before
            share = ExchangeKey()
            bundle = Bundle(
                federation=federation,
                run=run,
                epoch=epoch,
                not_after=int(now) + KEY_SECONDS,
                identity=self.identity.public,
                size_class=size_class,
                share_key=share.public,
            ).signed_by(self.identity)
            content = {"bundle": bundle.encode().hex(), "share": share.secret().hex()}
            write_atomic(path, json.dumps(content).encode(), private=True)
        return bundle

    def keys(self, terms: Terms) -> Keys:
        """The secret keys for a round in which this PC takes part with the bundle that it made.

        Raises SecAggError: its bundle is missing or changed (M9), or the epoch is over, and then
        the keys are deleted (M10).
        """
        self.expire()
        epoch = _kept(self._folder / "epoch.json", _epoch)
        if terms.bundle(self.identity.public) != epoch.bundle:
            raise SecAggError("the round does not name the keys that this PC made for it")
        return Keys(self.identity, epoch.share)

    def expire(self) -> None:
        """Delete the secret keys where their epoch is over by this PC's clock (M10)."""
        path = self._folder / "epoch.json"
        if path.is_file() and _kept(path, _epoch).bundle.not_after < time.time():
            self.forget_keys()

    def forget_keys(self) -> None:
        """Delete the secret keys of the epoch; no sum that used them can be unmasked here."""
        path = self._folder / "epoch.json"
        path.unlink(missing_ok=True)
        _cache.pop(path, None)
        self.forget_secrets()

    def keep_secrets(self, own: RoundSecrets) -> None:
        """Keep what this PC shared out until its update is asked for; replaces what was kept."""
        write_private(self._folder / SECRETS_FILE, own.encode())

    def secrets(self) -> RoundSecrets:
        """What `keep_secrets` kept last. Raises SecAggError where nothing is there any more."""
        return _read(self._folder / SECRETS_FILE, RoundSecrets.decode)

    def forget_secrets(self) -> None:
        """Delete them: each is used in one upload (M15). Raises OSError."""
        (self._folder / SECRETS_FILE).unlink(missing_ok=True)
        sync_folder(self._folder)  # a power cut must not bring them back

    def keep(self, group: Group) -> None:
        """Note a round as the newest.

        Raises SecAggError where it is older than the newest, or was another.
        """
        self.check_new(group.terms)
        last = self._last()
        if last is not None and last.terms == group.terms and last != group:
            raise SecAggError("the round was described differently before")
        path = self._folder / "round"
        write_private(path, group.encode())
        _cache[path] = stamp(path), group

    def check_new(self, terms: Terms) -> None:
        """Raise SecAggError where a newer round of the run was kept, or this one otherwise."""
        last = self._last()
        if last is not None and last.terms.run == terms.run:
            if last.terms.number > terms.number:
                raise SecAggError("the round is older than the last one of this run")
            if last.terms.number == terms.number and last.terms != terms:
                raise SecAggError("the round was described differently before")

    def group(self, run: str, number: int) -> Group:
        """The newest round. Raises SecAggError where that is another one."""
        group = _kept(self._folder / "round", Group.decode)
        if (group.terms.run, group.terms.number) != (run, number):
            raise SecAggError("this PC was not asked for this round, or a newer one has begun")
        return group

    def _last(self) -> Group | None:
        with suppress(SecAggError):  # no file yet, or cut off: then it agrees on no round of it
            return _kept(self._folder / "round", Group.decode)
        return None

    @contextmanager
    def agreement(self, terms: Terms) -> Iterator[Agreed]:
        """The set that this PC is bound to in a round; locked, so that two calls cannot differ."""
        with _locked(self._folder):
            yield Agreed(self._folder / "agreed.json", terms)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold this PC's keys, so that in one attempt it takes one list of round keys."""
        with _locked(self._folder):
            yield

    def heads(self) -> dict[bytes, LedgerHead]:
        """The last head of each PC's ledger that this one saw, its own among them."""
        path, own = self._folder / "agreed.json", self._folder / HEAD_FILE
        heads = _read(path, _promise).heads if path.is_file() else {}
        if (head := read_head(own)) is not None:
            heads[self.identity.public] = head
        return heads

    def note_head(self, head: LedgerHead) -> None:
        """Remember the PC's own ledger, outside of it."""
        write_atomic(self._folder / HEAD_FILE, head.encode(), private=True)


class Agreed:
    """The record of M21, M23 and M31.

    Raises SecAggError where the round is older than the record.
    """

    def __init__(self, path: Path, terms: Terms) -> None:
        self._path = path
        self._round = {"run": terms.run, "round": terms.number}
        self.set_hash: bytes | None = None
        self.heads: dict[bytes, LedgerHead] = {}
        if path.is_file():
            # Never from memory: a promise counts as it stands on the disk.
            last = _read(path, _promise)
            if last.run == terms.run and last.number > terms.number:
                raise SecAggError("a newer round of this run was agreed on")
            if (last.run, last.number) == (terms.run, terms.number):
                self.set_hash = last.set_hash
            self.heads = last.heads

    def bind(self, set_hash: bytes, heads: Mapping[bytes, LedgerHead] | None = None) -> None:
        """Durable when this returns; never another set for this round.

        `heads` are those of the set, where its member has compared them.
        """
        if self.set_hash not in (None, set_hash):
            raise SecAggError("another set was agreed on in this round")
        news = {pc: head for pc, head in (heads or {}).items() if self.heads.get(pc) != head}
        if self.set_hash == set_hash and not news:
            return
        self.heads.update(news)
        kept = {
            uploader.hex(): [head.count, head.digest.hex()] for uploader, head in self.heads.items()
        }
        record = {**self._round, "set": set_hash.hex(), "heads": kept}
        write_atomic(self._path, json.dumps(record).encode(), private=True)
        self.set_hash = set_hash


def has_keys(folder: Path) -> bool:
    """Whether a PC in `folder` can take part."""
    return (folder / FOLDER / "identity.key").is_file()


def owner_of(folder: Path) -> SigningKey | None:
    """The key that signs the ledger in `folder`: the PC's, or its successor's where it has left.

    None where no such key is there. Raises SecAggError where it cannot be read.
    """
    if has_keys(folder):
        return KeyStore(folder).identity
    path = folder / SUCCESSOR_FILE
    return _read(path, _identity) if path.is_file() else None


def read_head(path: Path) -> LedgerHead | None:
    """What `note_head` wrote; None where there is no file."""
    with suppress(OSError, SecAggError):
        head = LedgerHead.decode(path.read_bytes())
        return head if head.count else None  # zeros are what a power cut leaves of a file
    return None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    if folder not in _locks:
        _locks[folder] = FileLock(folder / ".lock", timeout=_LOCK_SECONDS)
    try:
        with _locks[folder]:
            yield
    except Timeout:
        raise RoundError(f"{folder}: another process holds this PC's keys") from None


class _Epoch(NamedTuple):
    bundle: Bundle
    share: ExchangeKey


# What a process has read of files that have not changed since.
_MAX_KEPT = 1 << 16  # four files of each PC that a simulation has
_locks: dict[Path, FileLock] = {}
_cache: OrderedDict[Path, tuple[Stamp, Any]] = OrderedDict()
if hasattr(os, "register_at_fork"):  # a forked process needs locks of its own
    os.register_at_fork(after_in_child=_locks.clear)


def _kept(path: Path, parse: Callable[[bytes], _T]) -> _T:
    """What `parse` makes of the file. Raises SecAggError where it is missing or damaged."""
    kept = _cache.get(path)
    found = stamp(path) if path.is_file() else None
    if kept is not None and kept[0] == found:
        _cache.move_to_end(path)
        return kept[1]  # type: ignore[no-any-return]
    value = _read(path, parse)
    if found is not None:
        _cache[path] = found, value
    if len(_cache) > _MAX_KEPT:
        _cache.popitem(last=False)
    return value


def _read(path: Path, parse: Callable[[bytes], _T]) -> _T:
    try:
        return parse(path.read_bytes())
    except FileNotFoundError:
        raise SecAggError(f"{path}: missing; this PC cannot take part in the round") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, FedaipcError) as error:
        raise SecAggError(f"{path}: cannot be read ({type(error).__name__})") from None


def _identity(content: bytes) -> SigningKey:
    return SigningKey(content)


class _Promise(NamedTuple):
    run: str
    number: int
    set_hash: bytes
    heads: dict[bytes, LedgerHead]


def _promise(content: bytes) -> _Promise:
    record = strict_json.parse(content, max_bytes=_MAX_BYTES)
    run, number, set_hash = record["run"], record["round"], bytes.fromhex(record["set"])
    heads = {
        bytes.fromhex(uploader): LedgerHead(count, bytes.fromhex(digest))
        for uploader, (count, digest) in record.get("heads", {}).items()
    }
    if (
        not isinstance(run, str)
        or {type(n) for n in (number, *(head.count for head in heads.values()))} != {int}
        or {len(h) for h in (set_hash, *heads, *(h.digest for h in heads.values()))} != {KEY_BYTES}
    ):
        raise ValueError("not a record of a set")
    return _Promise(run, number, set_hash, heads)


def _epoch(content: bytes) -> _Epoch:
    entry = strict_json.parse(content, max_bytes=_MAX_BYTES)
    bundle = Bundle.decode(bytes.fromhex(entry["bundle"]))
    share = ExchangeKey(bytes.fromhex(entry["share"]))
    if share.public != bundle.share_key:
        raise ValueError("the secret key is not that of the bundle")
    return _Epoch(bundle, share)
