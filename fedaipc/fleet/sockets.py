"""Sockets and certificates of the front."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import h11

if TYPE_CHECKING:
    from asyncio.trsock import TransportSocket
    from collections.abc import Callable
    from pathlib import Path

    Log = Callable[[dict[str, object]], None]

CHUNK = 64 * 1024
LINGER = 2.0  # seconds that a closing connection may take


class Certificate:
    """The TLS context of a certificate and key file, made again when either file changes."""

    def __init__(self, cert: Path, key: Path, log: Log) -> None:
        self.files, self.log = (cert, key), log
        self.stamp = self._stamp()
        self.context = self._load()

    def _stamp(self) -> list[int]:
        with contextlib.suppress(OSError):
            return [path.stat().st_mtime_ns for path in self.files]
        return []

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols(["http/1.1"])
        context.num_tickets = 0  # Python's clients do not resume sessions
        # The empty password keeps OpenSSL from asking the terminal for one.
        context.load_cert_chain(*self.files, password="")
        return context

    def current(self) -> ssl.SSLContext:
        if (stamp := self._stamp()) != self.stamp:
            self.stamp = stamp  # even if loading fails: each state of the files is tried once
            try:
                self.context = self._load()
                self.log({"event": "certificate", "state": "renewed"})
            except OSError as error:  # SSLError is one; the other file may be about to follow
                self.log({"event": "certificate", "state": "kept", "why": type(error).__name__})
        return self.context


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Bound first, its port is known early."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if sys.platform == "win32":  # there SO_REUSEADDR would let another process take the port over
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    else:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    sock.listen(128)
    sock.setblocking(False)
    return sock


def reset_on_close(sock: socket.socket | TransportSocket, *, on: bool = True) -> None:
    """Let the next close of this socket be a reset, or an orderly one again.

    The kernel then keeps nothing for a peer that does not read, and a SuperNode tries again; after
    an orderly close within a handshake its error would say "SSL", and it would give up.
    """
    linger = struct.pack("hh" if sys.platform == "win32" else "ii", int(on), 0)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


@dataclass
class Peer:
    """A connection with its h11 state: a client's, or the one to the SuperLink made for it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    sock: socket.socket | TransportSocket  # kept, since a closed transport no longer tells it
    http: h11.Connection
    link: Peer | None = None
    used: float = 0
    linger: float = LINGER  # seconds that closing may take

    async def is_quiet(self) -> bool:
        """Whether the peer neither left nor sent anything that was not read."""
        try:
            async with asyncio.timeout(0):
                await self.reader.read(1)
        except TimeoutError:
            return True
        except OSError:
            pass
        return False

    async def event(self) -> object:
        while (event := self.http.next_event()) is h11.NEED_DATA:
            self.http.receive_data(await self.reader.read(4 * CHUNK))
        return event

    def write(self, event: h11.Event) -> None:
        self.writer.write(self.http.send(event) or b"")

    async def send(self, event: h11.Event) -> None:
        self.write(event)
        await self.writer.drain()

    async def close(self) -> None:
        """Close in order if that goes quickly, otherwise at once; the socket is gone afterwards."""
        if self.link:
            self.link.abort()
        self.writer.close()
        try:
            async with asyncio.timeout(self.linger):
                await self.writer.wait_closed()
        except OSError:  # TimeoutError is one
            pass
        finally:  # also where it is cancelled
            self.abort()

    def abort(self) -> None:
        reset_on_close(self.sock)
        self.writer.transport.abort()
