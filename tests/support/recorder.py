"""What passes between PCs and their server, read in the middle: every byte, by request."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import h11

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(slots=True)
class Call:
    """A request and its answer, as they were sent."""

    target: str
    headers: list[tuple[str, str]]
    body: bytes
    answer: bytes = b""


@dataclass(slots=True)
class Talk:
    """One connection: what came from the PC, and what from the server."""

    asked: bytearray = field(default_factory=bytearray)
    answered: bytearray = field(default_factory=bytearray)

    def calls(self) -> list[Call]:
        """Raises h11.ProtocolError where the bytes are no HTTP."""
        return [
            Call(
                head.target.decode(),
                [(n.decode(), v.decode()) for n, v in head.headers.raw_items()],
                body, answer,
            )
            for (head, body), (_, answer) in zip(
                _messages(h11.SERVER, bytes(self.asked)),
                _messages(h11.CLIENT, bytes(self.answered)),
                strict=False,  # the last answer may be missing
            )
        ]  # fmt: skip


def _messages(role: type[h11.SERVER | h11.CLIENT], content: bytes) -> list[tuple]:
    """Heads and bodies of the requests (for a server) or responses (for a client)."""
    found, rest = [], content
    while rest:
        parser = h11.Connection(role)
        if role is h11.CLIENT:
            parser.send(h11.Request(method="POST", target="/", headers=[("host", "x")]))
            parser.send(h11.EndOfMessage())
        parser.receive_data(rest)
        head, body = parser.next_event(), bytearray()
        while isinstance(event := parser.next_event(), h11.Data):
            body += event.data
        if not isinstance(event, h11.EndOfMessage):
            break
        found.append((head, bytes(body)))
        rest = parser.trailing_data[0]
    return found


class Recorder:
    """In the place of the server in `folder`, whose certificate it shows; passes on to `port`."""

    def __init__(self, folder: Path, own: int, port: int) -> None:
        self.talks: list[Talk] = []
        self._own, self._port = own, port
        self._near = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._near.load_cert_chain(folder / "server.pem", folder / "server.key")
        self._far = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._far.load_verify_locations(folder / "authority.pem")

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = Talk()
        self.talks.append(talk)
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(
                "localhost", self._port, ssl=self._far
            )
            await asyncio.gather(
                _pass_on(reader, far_writer, talk.asked),
                _pass_on(far_reader, writer, talk.answered),
            )
        writer.close()

    async def _serve(self, started: threading.Event) -> None:
        server = await asyncio.start_server(
            self._talk, "127.0.0.1", self._own, ssl=self._near, limit=2**20
        )
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        started.set()
        async with server:
            await self._over.wait()

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        started = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)))
        thread.start()
        assert started.wait(10)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._over.set)
            thread.join(10)


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, copy: bytearray
) -> None:
    with contextlib.suppress(OSError):
        while part := await reader.read(2**18):
            copy += part
            writer.write(part)
            await writer.drain()
    writer.close()
