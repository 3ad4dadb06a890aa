"""What a stranger may make the front spend: connections, bytes, time."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Times in seconds, sizes in bytes."""

    body: int = 8 * 2**20  # Flower sends arrays in chunks of 5 MiB
    head: int = 16 * 2**10
    headers: int = 40
    connections: int = 512
    per_address: int = 64  # a PC needs one or two; an office may share one address
    handshake: float = 10
    head_time: float = 10
    idle: float = 30  # above the 5 s after which a PC's own client drops a connection
    grace: float = 20  # how long a body may stall,
    rate: int = 16 * 2**10  # and how many bytes earn another second
    answer: float = 60  # for the SuperLink
    stop: float = 20


class Refused(Exception):  # noqa: N818 - most are no errors of ours
    """A request ends here: the status is for the client, the reason for the log."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Pace:
    """How long a peer may still keep us waiting: the grace, refilled by the bytes that it moves.

    A limit on the whole time would cut honest slow lines; one on each read would let a byte every
    few seconds hold a connection for ever.
    """

    def __init__(self, limits: Limits) -> None:
        self.bytes = 0
        self._limits, self._left = limits, limits.grace

    @contextlib.asynccontextmanager
    async def wait(self) -> AsyncIterator[None]:
        """Around each wait for the peer. Raises Refused where it took too long in all."""
        start = time.monotonic()
        try:
            async with asyncio.timeout(self._left):
                yield
        except TimeoutError:  # by the standard a 408, after which Flower's clients would not retry
            raise Refused(503, "slow") from None
        self._left -= time.monotonic() - start

    def moved(self, count: int) -> None:
        """Note that so many bytes went through."""
        self.bytes += count
        self._left = min(self._limits.grace, self._left + count / self._limits.rate)


def source(peer: str) -> str:
    """What counts as one address: for IPv6 the /64, all of which one machine may use."""
    address = ipaddress.ip_address(peer.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((int(address), 64), strict=False))
    return str(address)


def allow_files(limits: Limits) -> None:
    """Raise the number of files this process may open: macOS starts with 256, Linux with 1024."""
    if sys.platform == "win32":
        return
    import resource

    want = 2 * limits.connections + 64
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < want:
        most = want if hard == resource.RLIM_INFINITY else min(want, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
