"""A federation's folder: made once, kept by whoever holds the admission key, off the server.

federation.json  its public facts: name, address, host names
admission.key    Ed25519 secret: who belongs, which jobs run
authority.key    secret of the TLS authority, authority.pem its certificate
members.json     all PCs that were ever admitted
roster.bin       the newest signed list of members
server/          what the server needs, to be copied to it after every change
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

from fedaipc import bounds
from fedaipc.errors import AdmissionError, FedaipcError, os_errors_as
from fedaipc.federation.authority import issue_server, make_authority
from fedaipc.federation.key import KEY_FILE, Admission
from fedaipc.federation.members import MEMBER_DAYS, Member, Members
from fedaipc.files import keep_out_of_git, write_atomic
from fedaipc.protocol.enrollment import Invite, Request
from fedaipc.protocol.server_folder import (
    AUTHORITY_FILE,
    FACTS_FILE,
    NODES_FILE,
    SERVER_FILE,
    Facts,
    Node,
    Nodes,
    server_period,
)
from fedaipc.secagg.keys import fingerprint
from fedaipc.secagg.roster import ROSTER_FILE, read_roster

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from fedaipc.config import FilterKind

SERVER_FOLDER = "server"
_DAY = 24 * 3600


class Federation:
    """Opened by the holder of the admission key. Raises AdmissionError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts = Facts.load(folder)
        if not (folder / KEY_FILE).is_file():
            raise AdmissionError(
                f"{folder / KEY_FILE}: missing; run this where the admission key is, never on the "
                "server"
            )
        try:
            self.admission = Admission(folder)
        except (OSError, FedaipcError) as error:
            raise AdmissionError(str(error)) from None
        if self.admission.key.public.hex() != self.facts.admission:
            raise AdmissionError(f"{folder / KEY_FILE}: is the key of another federation")
        self.members = Members.load(folder)
        # Members may have expired since, or a crash may have come between two files.
        self._publish()

    @classmethod
    def create(cls, folder: Path, address: str, names: Sequence[str]) -> Federation:
        """Make keys, authority and an empty list of members. Raises AdmissionError where the folder
        is taken.
        """
        if folder.exists() and any(folder.iterdir()):
            raise AdmissionError(f"{folder}: not empty; give a new folder")
        try:
            Facts(federation="0" * 16, admission="0" * 64, address=address, names=tuple(names))
        except ValidationError:
            raise AdmissionError(
                f"{', '.join([address, *names])}: give host names or addresses in letters, digits, "
                "dots and dashes, and host:port as the address; a name with other letters in its "
                "xn-- form"
            ) from None
        with os_errors_as(AdmissionError, f"{folder}: cannot be written"):
            (folder / SERVER_FOLDER).mkdir(parents=True, mode=0o700)
            folder.chmod(0o700)
            for secret in (folder, folder / SERVER_FOLDER):  # it is copied without the other
                keep_out_of_git(secret)
            federation = secrets.token_hex(8)
            make_authority(folder, federation)
            facts = Facts(
                federation=federation,
                admission=Admission(folder).key.public.hex(),
                address=address,
                names=tuple(names),
            )
            write_atomic(folder / FACTS_FILE, facts.model_dump_json(indent=1).encode())
            made = cls(folder)
            made.renew_server()
        return made

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the admission key, which PC owners compare."""
        return fingerprint(self.admission.key.public)

    def invite(
        self,
        *,
        days: int,
        base: str,
        labels: tuple[str, ...],
        lifetime_epsilon: float,
        unit: Literal["record", "client"],
        delta: float,
        filter_kind: FilterKind,
    ) -> str:
        """An invite for any number of owners, valid for `days`."""
        return Invite(
            federation=self.facts.federation,
            issuer=self.facts.admission,
            not_after=int(time.time()) + days * _DAY,
            address=self.facts.address,
            authority=bounds.read_text(
                self.folder / AUTHORITY_FILE, bounds.MAX_KEY, encoding="ascii"
            ),
            base=base,
            labels=labels,
            lifetime_epsilon=lifetime_epsilon,
            unit=unit,
            delta=delta,
            filter=filter_kind,
        ).write(self.admission.key)

    def admit(self, requests: Sequence[Request], days: int = MEMBER_DAYS) -> None:
        """Add PCs to the signed list of members: all of them, or none. Raises AdmissionError."""
        members = self.members
        for request in requests:
            members = members.with_new(self._member(request, members, days))
        self._change(members)

    def _member(self, request: Request, members: Members, days: int) -> Member:
        if request.federation != self.facts.federation:
            raise AdmissionError(f"{request.name}: this request is for another federation")
        now = int(time.time())
        member = Member(
            name=request.name,
            identity=request.issuer,
            node_key=request.node_key,
            size_class=request.size_class,
            admitted=now,
            not_after=now + days * _DAY,
        )
        before = next((m for m in members.members if m.identity == member.identity), None)
        if before is not None and before.size_class != member.size_class:
            raise AdmissionError(f"{request.name}: a member's size class is fixed for life")
        return member

    def revoke(self, name: str) -> Member:
        """Leave a PC out of all rounds to come. Raises AdmissionError."""
        member = self.members.named(name)
        self._change(self.members.with_changed(member, revoked=True))
        return member

    def renew(self, names: Sequence[str], days: int = MEMBER_DAYS) -> None:
        """Let members stay `days` from now; those not named that have expired leave the list."""
        members = self.members
        until = int(time.time()) + days * _DAY
        for name in names:
            members = members.with_renewed(members.named(name), until)
        self._change(members)

    def renew_server(self) -> datetime:
        """A new key and certificate for the server; when it ends."""
        issue_server(self.folder, self.folder / SERVER_FOLDER, self.facts.names)
        return self.server_until()

    def server_until(self) -> datetime:
        """When the server's certificate ends. Raises AdmissionError."""
        return server_period(self.folder / SERVER_FOLDER / SERVER_FILE)[1]

    def _change(self, members: Members) -> None:
        with os_errors_as(AdmissionError, f"{self.folder}: cannot be written"):
            members.save(self.folder)
        self.members = members
        self._publish()

    def _publish(self) -> None:
        """Sign the list of members, and write what the server gets. Raises AdmissionError."""
        active, server = self.members.active, self.folder / SERVER_FOLDER
        identities = [bytes.fromhex(member.identity) for member in active]
        nodes = Nodes(nodes=tuple(Node(name=m.name, node_key=m.node_key) for m in active))
        try:
            roster = self.admission.roster(identities, self.facts.federation)
            self.roster_version = read_roster(roster)[1].version
            server.mkdir(exist_ok=True, mode=0o700)
            write_atomic(server / ROSTER_FILE, roster)
            write_atomic(server / NODES_FILE, nodes.model_dump_json(indent=1).encode())
            for name in (FACTS_FILE, AUTHORITY_FILE):
                write_atomic(server / name, (self.folder / name).read_bytes())
        except OSError as error:
            raise AdmissionError(f"{self.folder}: cannot be written ({error.strerror})") from None
        except FedaipcError as error:
            raise AdmissionError(str(error)) from None
