"""The members of a federation, as the holder of the admission key keeps them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pydantic import Field

from fedaipc.config import NAME, Frozen
from fedaipc.errors import AdmissionError
from fedaipc.files import write_atomic
from fedaipc.secagg.keys import fingerprint

if TYPE_CHECKING:
    from pathlib import Path

FILE = "members.json"
MEMBER_DAYS = 365
_MAX_BYTES = 1 << 26


class Member(Frozen):
    """One PC. `identity` and `node_key` are public keys; times are in seconds since 1970."""

    name: str = Field(max_length=80, pattern=NAME)
    identity: str = Field(pattern=r"^[0-9a-f]{64}$")
    node_key: str
    size_class: int = Field(ge=1)
    admitted: int
    not_after: int
    revoked: bool = False

    @property
    def state(self) -> str:
        """One word for people."""
        if self.revoked:
            return "revoked"
        return "expired" if self.not_after < time.time() else "member"

    @property
    def fingerprint(self) -> str:
        """What the owner of the PC sees there, too."""
        return fingerprint(bytes.fromhex(self.identity))


class Members(Frozen):
    """All that were ever admitted, in the order of admission."""

    members: tuple[Member, ...] = ()

    @classmethod
    def load(cls, folder: Path) -> Members:
        """Raises AdmissionError where the file is damaged; a missing file is an empty list."""
        path = folder / FILE
        try:
            return cls.from_file(path, max_bytes=_MAX_BYTES) if path.is_file() else cls()
        except (OSError, ValueError) as error:
            kind = type(error).__name__
            raise AdmissionError(f"{path}: damaged ({kind}); restore it from a copy") from None

    def save(self, folder: Path) -> None:
        """Raises OSError."""
        write_atomic(folder / FILE, self.model_dump_json(indent=1).encode(), private=True)

    @property
    def active(self) -> tuple[Member, ...]:
        return tuple(member for member in self.members if member.state == "member")

    def named(self, name: str) -> Member:
        """The member with this name or fingerprint; of several with one name, the current one.

        Raises AdmissionError where there is none, or it is not clear who is meant.
        """
        found = [m for m in self.members if not m.revoked and name in (m.name, m.fingerprint)]
        found = [m for m in found if m.state == "member"] or found
        if not found and any(name in (m.name, m.fingerprint) for m in self.members):
            raise AdmissionError(
                f"{name} was revoked already; to come back, its owner runs `fedaipc client leave` "
                "and enrolls again in the same folder"
            )
        if not found:
            raise AdmissionError(f"no member is called {name}: `fedaipc federation list` shows all")
        if len(found) > 1:
            raise AdmissionError(
                f"{len(found)} PCs were called {name}, and none of them belongs now: give the "
                "fingerprint that `fedaipc federation list` shows, in quotes"
            )
        return found[0]

    def with_changed(self, old: Member, **changes: object) -> Members:
        new = old.model_copy(update=changes)
        return Members(members=tuple(new if m == old else m for m in self.members))

    def with_renewed(self, old: Member, not_after: int) -> Members:
        """Raises AdmissionError where its name or key went to another member meanwhile."""
        new = old.model_copy(update={"not_after": not_after})
        self.with_new(new)
        return self.with_changed(old, not_after=not_after)

    def with_new(self, member: Member) -> Members:
        """Raises AdmissionError where name or key are taken, or the key was revoked."""
        for other in self.members:
            if member.identity == other.identity and other.revoked:
                raise AdmissionError(
                    f"{member.name}: this PC was revoked; its owner runs `fedaipc client leave` "
                    "and enrolls again in the same folder"
                )
            if other.state != "member":
                continue
            if member.name == other.name and member.identity != other.identity:
                raise AdmissionError(
                    f"another member is called {member.name}: revoke it first, or have the PC "
                    "enroll under another name"
                )
            if member.node_key == other.node_key and member.identity != other.identity:
                raise AdmissionError(f"{member.name} has the transport key of {other.name}")
        kept = tuple(m for m in self.members if m.identity != member.identity)
        return Members(members=(*kept, member))
