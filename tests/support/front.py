"""A front before a SuperLink of the test's making, and HTTP by hand to ask it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any

import h11

from fedaipc.federation.authority import issue_server, make_authority
from fedaipc.fleet.front import Front, Upstream
from fedaipc.fleet.limits import Limits
from fedaipc.fleet.sockets import Certificate, bind

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    Handler = Callable[[StreamReader, StreamWriter], Awaitable[None]]

LIMITS = Limits(
    body=100_000, head=4096, headers=20, connections=20, per_address=8, handshake=0.6,
    head_time=0.6, idle=1.0, grace=0.6, rate=10**6, answer=2.0, stop=1.0,
)  # fmt: skip
PATH = b"/v1/fleet/pull-messages"
HEADERS = b"Host: localhost\r\nContent-Type: application/protobuf\r\n"


class Running:
    """A front before a SuperLink that answers with what it saw, both in a thread."""

    def __init__(self, folder: Path) -> None:
        make_authority(folder, "test")
        issue_server(folder, folder, ["localhost", "127.0.0.1"])
        self.folder = folder
        self.log: list[Any] = []
        self.seen: list[tuple[bytes, dict[bytes, bytes], int]] = []
        self.status = 200
        self.superlink: Handler = self._echo
        self.links = 0  # connections that the front made to it
        self.is_member: Callable[[dict[bytes, bytes]], bool] = lambda _: True
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        upstream = await asyncio.start_server(self._upstream, "127.0.0.1", 0)
        inner = upstream.sockets[0].getsockname()[1]
        sock = self.listening = bind("127.0.0.1", 0)
        self.port = sock.getsockname()[1]
        certificate = Certificate(
            self.folder / "server.pem", self.folder / "server.key", self.log.append
        )
        upstream_of = Upstream("127.0.0.1", inner)
        self.front = Front(certificate, upstream_of, self.log.append, LIMITS, self.is_member)
        self._ready.set()
        await self.front.serve(sock)
        upstream.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0.01)  # for transports to close

    async def _upstream(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.links += 1
        try:
            await self.superlink(reader, writer)
            writer.close()
        except (OSError, h11.ProtocolError, EOFError, asyncio.CancelledError):
            writer.transport.abort()

    async def _echo(self, reader: StreamReader, writer: StreamWriter) -> None:
        http = h11.Connection(h11.SERVER)
        while True:
            request, size = None, 0
            while True:
                event = http.next_event()
                if event is h11.NEED_DATA:
                    http.receive_data(await reader.read(65536))
                    continue
                if isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.Data):
                    size += len(event.data)
                else:
                    break
            if request is None:
                break
            self.seen.append((bytes(request.target), dict(request.headers), size))
            body = b"x" * size
            headers = [("content-length", str(len(body))), ("date", "now")]
            writer.write(http.send(h11.Response(status_code=self.status, headers=headers)))
            writer.write(http.send(h11.Data(data=body)))
            writer.write(http.send(h11.EndOfMessage()))
            await writer.drain()
            http.start_next_cycle()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self.front.stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._loop.close()

    def context(self, **changes: Any) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.folder / "authority.pem")
        for name, value in changes.items():
            setattr(context, name, value)
        return context

    def connect(self, **changes: Any) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        try:
            return self.context(**changes).wrap_socket(plain, server_hostname="localhost")
        except OSError:
            plain.close()
            raise

    def wait_until_all_left(self, seconds: float = 5.0) -> None:
        end = time.monotonic() + seconds
        while self.front.open:
            assert time.monotonic() < end
            time.sleep(0.02)

    def ask(self, content: bytes) -> bytes:
        """What comes back for bytes as they are, until the front closes or falls silent."""
        with self.connect() as sock:
            sock.sendall(content)
            return everything(sock)


def everything(sock: socket.socket, seconds: float = 4.0) -> bytes:
    sock.settimeout(seconds)
    found = b""
    with contextlib.suppress(OSError):
        while part := sock.recv(65536):
            found += part
            head, end, body = found.partition(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head.lower())
            if end and length and len(body) >= int(length[1]):
                break
    return found


def post(
    path: bytes = PATH, body: bytes = b"", extra: bytes = b"", method: bytes = b"POST"
) -> bytes:
    size = str(len(body)).encode()
    return (
        method + b" " + path + b" HTTP/1.1\r\n" + HEADERS + b"Content-Length: " + size
        + b"\r\nConnection: close\r\n" + extra + b"\r\n" + body
    )  # fmt: skip


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


KEEP = post().replace(b"Connection: close\r\n", b"")
OK = b"HTTP/1.1 200 OK\r\n"


async def head(reader: StreamReader) -> None:
    await reader.readuntil(b"\r\n\r\n")


def answer_of(size: int) -> Handler:
    async def superlink(reader: StreamReader, writer: StreamWriter) -> None:
        await head(reader)
        writer.write(OK + b"content-length: %d\r\n\r\n" % size + b"x" * size)
        await writer.drain()
        await reader.read()

    return superlink
