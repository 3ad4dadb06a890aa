"""Which PCs are there, and with which keys of the current epoch."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedaipc.errors import EncodingError, SecAggError
from fedaipc.protocol.messages import SETUP, Description, SetupRequest
from fedaipc.protocol.round_terms import check_class
from fedaipc.secagg.keys import canonical
from fedaipc.secagg.roster import KEY_SECONDS, Bundle

if TYPE_CHECKING:
    from flwr.serverapp import Grid

    from fedaipc.config import FederationSettings
    from fedaipc.coordinator.checkpoint import Counters
    from fedaipc.coordinator.exchange import Exchange
    from fedaipc.protocol.job import Job
    from fedaipc.secagg.roster import Roster

_START_SECONDS = 60.0  # for PCs to connect before the first round
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Member:
    """A PC that can take part: where it is, its public name, and its keys of this epoch."""

    node: int
    name: str
    bundle: Bundle


class Membership:
    """As the coordinator knows it; `members` are by identity."""

    def __init__(self, federation: FederationSettings, job: Job, roster: Roster) -> None:
        self.members: dict[bytes, Member] = {}
        self._owners: dict[str | bytes, bytes] = {}  # of names and share keys, in this epoch
        self._federation = federation
        self._job = job
        self._roster = roster
        self._asked: set[int] = set()  # nodes that have answered in this epoch
        self._epoch = self._first_attempt = 0
        self._began = 0.0  # when the epoch did, in seconds since 1970

    def refresh(self, exchange: Exchange, attempt: int, counters: Counters) -> None:
        """Ask for keys: all PCs where an epoch begins, otherwise those that come late or again."""
        nodes = list(exchange.grid.get_node_ids())
        if not self._epoch:
            nodes = self._connected(exchange.grid)
        old = attempt >= self._first_attempt + self._job.aggregation.key_rounds
        if not self._epoch or old or self.late():
            counters.advance(epoch=counters.epoch + 1)
            self._epoch, self._first_attempt = counters.epoch, attempt
            self._began = time.time()
            self.members.clear()
            self._owners.clear()
            self._asked.clear()
        request = SetupRequest(self._job.run, self._epoch, self._roster.encode()).encode()
        unknown = [(node, request) for node in nodes if node not in self._asked]
        connected = set(nodes)
        for node, reply in exchange.ask(SETUP, unknown, self._federation.stage_timeout):
            self._asked.add(node)
            try:
                self._admit(node, Description.decode(reply), connected)
            except (EncodingError, SecAggError) as error:
                _log.warning("a PC is left out: %s", error)

    def present(self) -> set[bytes]:
        """Whom a round that begins now may ask, if the draw chooses them."""
        if self._federation.only is None:
            return self.members.keys() - self.late()
        names = sorted((member.name, pc) for pc, member in self.members.items())
        only = {names[place][1] for place in self._federation.only if place < len(names)}
        return only - self.late()

    def _admit(self, node: int, described: Description, connected: set[int]) -> None:
        """Raises SecAggError where other PCs would refuse a round with it, or it plays another.

        A PC may come back under another node once its old one is gone.
        """
        bundle = Bundle.decode(described.bundle)
        bundle.check(self._roster, self._job.run, self._soon())
        bundle.check_keys()
        check_class(self._job, bundle)
        if bundle.not_after < self._began + KEY_SECONDS / 2:
            # Keys that end within a round would make it void for all.
            raise SecAggError(f"{described.name}: its keys end too soon; look at its clock")
        if bundle.epoch != self._epoch:
            raise SecAggError("a PC answers with keys of another epoch")
        before = self.members.get(bundle.identity)
        if before is not None and before.node != node and before.node in connected:
            raise SecAggError("a PC answers with the keys of another PC")
        own = (described.name, canonical(bundle.share_key))
        if any(self._owners.get(mark, bundle.identity) != bundle.identity for mark in own):
            raise SecAggError(f"two PCs have the name {described.name}, or one key")
        self._owners |= dict.fromkeys(own, bundle.identity)
        self.members[bundle.identity] = Member(node, described.name, bundle)

    def _soon(self) -> float:
        """When a round that begins now may still run."""
        return time.time() + self._federation.round_timeout

    def late(self) -> set[bytes]:
        """Those whose keys end so soon that a round might outlive them."""
        soon = self._soon()
        return {pc for pc, member in self.members.items() if member.bundle.not_after < soon}

    def _connected(self, grid: Grid) -> list[int]:
        """Wait a while for PCs that have not connected yet."""
        deadline = time.monotonic() + _START_SECONDS
        nodes = list(grid.get_node_ids())
        while len(nodes) < self._federation.clients and time.monotonic() < deadline:
            time.sleep(0.2)
            nodes = list(grid.get_node_ids())
        return nodes
