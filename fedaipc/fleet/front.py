"""The front: a small TLS reverse proxy that shows the network only the fleet calls of a SuperLink.

A SuperLink serves its fleet, control and runtime calls on one port, by a server without a time
limit for slow senders. So the SuperLink stays on loopback and this process faces the network:
TLS 1.3 only, eight exact paths, members only, and a limit on everything that a stranger can make
grow (connections, headers, bodies, time). The body of a request that no member's key made is not
read. h11 reads and writes HTTP, Python does TLS.

ASGI servers were tried in its place with tests/fleet/test_front.py, and failed. None counts
connections by address. uvicorn 0.49 has no deadline for a TLS handshake, a silent client or the
head of a request; granian 2.8 has none for a handshake. hypercorn 0.18 speaks HTTP/2 where only
http/1.1 is offered, and says 100 Continue before the app can refuse a body.

Started by `python -m fedaipc.fleet.front`, which the server's supervisor does. Some statuses are
chosen for what a PC does with them: it tries again after 502, 503, 504 and broken connections.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import ssl
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import h11

from fedaipc import parent_watch
from fedaipc.fleet.admitted import Admitted
from fedaipc.fleet.limits import Limits, Pace, Refused, allow_files, source
from fedaipc.fleet.sockets import CHUNK, LINGER, Certificate, Peer, bind, reset_on_close
from fedaipc.protocol.server_folder import SERVER_FILE, SERVER_KEY_FILE
from fedaipc.stopping import signals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from fedaipc.fleet.sockets import Log

    IsMember = Callable[[dict[bytes, bytes]], bool]

# Compared byte by byte with what was sent: no decoding, no normalising, no query. That alone ends
# %2e, //, ;x and absolute-form tricks, whatever the SuperLink would make of them.
TARGETS = frozenset(
    b"/v1/fleet/" + call
    for call in (
        b"activate-node",
        b"deactivate-node",
        b"send-node-heartbeat",
        b"pull-messages",
        b"push-messages",
        b"push-object",
        b"pull-object",
        b"confirm-message-received",
    )
)
# Only these headers travel on, either way; and flwr-*. uvicorn would trust an X-Forwarded-For.
PASS = frozenset({b"content-type", b"content-length", b"accept", b"date"})
# PCs send none of these, and each is a way to make two parsers disagree.
NEVER = frozenset(
    {b"transfer-encoding", b"upgrade", b"expect", b"te", b"trailer", b"http2-settings"}
)


@dataclass(frozen=True)
class Upstream:
    """Where the SuperLink listens."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None


@contextlib.asynccontextmanager
async def superlink(seconds: float) -> AsyncIterator[None]:
    """Encloses all that waits for the SuperLink: a failure there is not the client's fault."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise Refused(504, "superlink-slow") from None
    except (OSError, h11.ProtocolError) as error:
        raise Refused(502, f"superlink-{type(error).__name__}") from None


def check(request: h11.Request, limits: Limits, is_member: IsMember) -> None:
    """Raise Refused unless this is exactly what a member's PC sends."""
    if (request.method, request.target) == (b"GET", b"/health"):
        raise Refused(200, "health")  # says only that the front runs
    headers = dict(request.headers)
    connection = headers.get(b"connection", b"close").lower()
    if len(request.headers) > limits.headers:
        raise Refused(431, "headers")
    if len(headers) != len(request.headers):
        raise Refused(400, "repeated-header")
    if request.http_version != b"1.1":
        raise Refused(505, "version")
    if headers.keys() & NEVER or connection not in {b"close", b"keep-alive"}:
        raise Refused(400, "forbidden-header")
    if request.target not in TARGETS:
        raise Refused(404, "path")
    if request.method != b"POST":
        raise Refused(405, "method")
    if headers.get(b"content-type") != b"application/protobuf":
        raise Refused(415, "type")
    if b"content-length" not in headers:
        raise Refused(411, "length")
    if int(headers[b"content-length"]) > limits.body:
        raise Refused(413, "length")
    if not is_member(headers):
        raise Refused(401, "no-member")


def passed(message: h11.Request | h11.Response) -> list[tuple[bytes, bytes]]:
    return [(n, v) for n, v in message.headers if n in PASS or n.startswith(b"flwr-")]


class Front:
    """Serves connections until `stop` is set; `is_member` judges a request by its headers."""

    def __init__(
        self,
        certificate: Certificate,
        upstream: Upstream,
        log: Log,
        limits: Limits,
        is_member: IsMember,
    ) -> None:
        self.certificate, self.upstream, self.log = certificate, upstream, log
        self.limits, self._is_member = limits, is_member
        self.open: Counter[str] = Counter()  # connections by source
        self.turned_away = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.busy: set[asyncio.Task[None] | None] = set()  # those with a request under way
        self.stop = asyncio.Event()

    async def serve(self, sock: socket.socket) -> None:
        accepting = asyncio.create_task(self._accept(sock))
        stopping = asyncio.create_task(self.stop.wait())
        await asyncio.wait([accepting, stopping], return_when=asyncio.FIRST_COMPLETED)
        if accepting.done():  # never by itself: end, and let the supervisor start another
            accepting.result()
        accepting.cancel()
        await asyncio.wait([accepting])
        sock.close()
        self.log({"event": "stopping", "busy": len(self.busy)})
        for task in self.tasks - self.busy:
            task.cancel()
        if self.tasks:
            _, late = await asyncio.wait(self.tasks, timeout=self.limits.stop)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _accept(self, sock: socket.socket) -> None:
        # A loop of its own, since asyncio's servers show a connection only after its TLS
        # handshake: connections that never begin one would not be counted.
        while True:
            try:
                client, (peer, *_) = await asyncio.get_running_loop().sock_accept(sock)
            except OSError as error:  # out of file descriptors, or gone before it was accepted
                self.log({"event": "accept", "why": error.errno})
                await asyncio.sleep(0.05)
                continue
            key, limits = source(peer), self.limits
            if self.open.total() < limits.connections and self.open[key] < limits.per_address:
                self.open[key] += 1
                task = asyncio.create_task(self._connection(client, peer, key))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
                continue
            reset_on_close(client)
            client.close()
            if self.turned_away % 100 == 0:  # a flood must not fill the disk through the log
                self.log({"event": "full", "peer": peer, "before": self.turned_away})
            self.turned_away += 1

    async def _connection(self, sock: socket.socket, peer: str, key: str) -> None:
        try:
            client = await self._handshake(sock)
            try:
                while not self.stop.is_set() and await self._request(client, peer):
                    pass
            finally:
                await client.close()
        except (OSError, h11.ProtocolError) as error:  # TimeoutError and SSLError are OSErrors
            why = getattr(error, "reason", None) or type(error).__name__
            self.log({"event": "dropped", "peer": peer, "why": why})
        finally:
            sock.close()
            self.open[key] -= 1
            if not self.open[key]:
                del self.open[key]

    async def _handshake(self, sock: socket.socket) -> Peer:
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        # asyncio does this only for sockets made with the protocol number; without it, 40 ms a call
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = asyncio.StreamReader(CHUNK)
        protocol = asyncio.StreamReaderProtocol(reader)
        reset_on_close(sock)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol,
            sock,
            ssl=self.certificate.current(),
            ssl_handshake_timeout=self.limits.handshake,
            ssl_shutdown_timeout=max(LINGER, self.limits.grace),  # Peer.close() waits for less
        )
        reset_on_close(sock, on=False)
        transport.set_write_buffer_limits(4 * CHUNK)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        return Peer(reader, writer, sock, h11.Connection(h11.SERVER, self.limits.head))

    async def _request(self, client: Peer, peer: str) -> bool:
        """Serve one request; tell whether the connection may serve another."""
        entry: dict[str, object] = {}
        start, task = time.monotonic(), asyncio.current_task()
        try:
            request = await self._head(client)
            if request is None:
                return False
            self.busy.add(task)
            start = time.monotonic()
            # The path without its query, which could hold anything; and never a header.
            path = request.target.partition(b"?")[0].decode()
            entry |= {"method": request.method.decode()[:16], "path": path[:64]}
            check(request, self.limits, self._is_member)
            await self._forward(client, request, entry)
        except Refused as error:
            entry = {"status": error.status} | entry | {"why": error.reason}
            await self._refuse(client, error.status)
            return False
        finally:
            self.busy.discard(task)
            if entry:
                took = round((time.monotonic() - start) * 1000, 1)
                self.log({"event": "request", "peer": peer} | entry | {"ms": took})
        if client.http.our_state is not h11.DONE or client.http.trailing_data[0]:
            # Asked to close, or sent ahead of the answer, as no PC does. The end of the answer may
            # wait in buffers still: a slow line may take as long for it as for the rest.
            client.linger = max(LINGER, self.limits.grace)
            return False
        client.http.start_next_cycle()
        return True

    async def _head(self, client: Peer) -> h11.Request | None:
        """The head of the next request; None if the client left or stayed silent."""
        begun, limits, loop = False, self.limits, asyncio.get_running_loop()
        try:
            # A new client has no reason to wait; one that was served may have nothing to say yet.
            async with asyncio.timeout(limits.idle if client.link else limits.head_time) as clock:
                while (event := client.http.next_event()) is h11.NEED_DATA:
                    client.http.receive_data(await client.reader.read(4096))
                    if not begun:  # from its first byte on, the whole head has this time
                        clock.reschedule(loop.time() + limits.head_time)
                        begun = True
        except TimeoutError:
            if begun:
                raise Refused(503, "slow-head") from None
            return None
        except h11.RemoteProtocolError as error:
            raise Refused(error.error_status_hint, "protocol") from None
        return event if isinstance(event, h11.Request) else None

    async def _refuse(self, client: Peer, status: int) -> None:
        if client.http.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            client.abort()  # within an answer, a broken connection is the only honest end
            return
        headers = [(b"content-length", b"0"), (b"connection", b"close")]
        client.write(h11.Response(status_code=status, headers=headers))
        client.write(h11.EndOfMessage())
        # Swallow for a moment what is still under way: closing upon unread bytes sends a reset,
        # which can overtake the answer.
        left = 2 * self.limits.body
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while left > 0 and (data := await client.reader.read(CHUNK)):
                    left -= len(data)

    async def _link(self, client: Peer) -> Peer:
        """The connection to the SuperLink: kept for this client, never shared with another."""
        if link := client.link:
            # uvicorn drops an idle connection after 5 s; well before that it can be trusted.
            # What it sent without a request must not be taken for the answer to the next one.
            if time.monotonic() - link.used < 3 and await link.is_quiet():
                return link
            link.abort()
        up = self.upstream
        reader, writer = await asyncio.open_connection(up.host, up.port, ssl=up.tls, limit=CHUNK)
        sock = writer.get_extra_info("socket")
        client.link = Peer(reader, writer, sock, h11.Connection(h11.CLIENT, self.limits.head))
        return client.link

    async def _forward(self, client: Peer, request: h11.Request, entry: dict[str, object]) -> None:
        limits, pace = self.limits, Pace(self.limits)
        async with superlink(limits.answer):
            link = await self._link(client)
        host = f"{self.upstream.host}:{self.upstream.port}".encode()
        headers = [(b"host", host), *passed(request)]
        link.write(h11.Request(method=b"POST", target=request.target, headers=headers))
        while True:
            try:
                async with pace.wait():
                    event = await client.event()
            except h11.RemoteProtocolError as error:  # such as the client leaving
                raise Refused(error.error_status_hint, "protocol") from None
            if not isinstance(event, h11.Data):
                break
            pace.moved(len(event.data))
            entry["in"] = pace.bytes
            if pace.bytes > limits.body:  # cannot happen: check() saw the length, h11 enforces it
                raise Refused(413, "body")
            async with superlink(limits.answer):
                await link.send(event)
        async with superlink(limits.answer):
            await link.send(h11.EndOfMessage())
            while isinstance(answer := await link.event(), h11.InformationalResponse):
                pass
        # PCs follow redirects, so none may pass.
        if not isinstance(answer, h11.Response) or 300 <= answer.status_code < 400:
            raise Refused(502, "superlink-answer")
        entry["status"], headers, pace = answer.status_code, passed(answer), Pace(limits)
        if self.stop.is_set():
            headers.append((b"connection", b"close"))
        client.write(h11.Response(status_code=answer.status_code, headers=headers))
        while True:
            async with superlink(limits.answer):
                event = await link.event()
            if not isinstance(event, h11.Data):
                break
            async with pace.wait():
                await client.send(event)
            pace.moved(len(event.data))
            entry["out"] = pace.bytes
        async with pace.wait():
            await client.send(h11.EndOfMessage())
        http = link.http
        if http.our_state is http.their_state is h11.DONE and not http.trailing_data[0]:
            http.start_next_cycle()
            link.used = time.monotonic()
        else:
            link.abort()
            client.link = None


def write_log(entry: dict[str, object]) -> None:
    """One line of JSON on the standard output; a full disk loses only the line."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with contextlib.suppress(OSError):
        sys.stdout.write(json.dumps({"time": stamp} | entry) + "\n")
        sys.stdout.flush()


async def run(front: Front, sock: socket.socket) -> None:
    """Serve until the process is told to stop."""
    loop = asyncio.get_running_loop()

    host, port, *_ = sock.getsockname()
    allow_files(front.limits)
    with signals(lambda: loop.call_soon_threadsafe(front.stop.set)):
        front.log({"event": "listening", "host": host, "port": port})
        await front.serve(sock)


def main() -> None:
    """Serve the server's folder on HOST and PORT."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("superlink", type=int, help="port of it on loopback")
    parser.add_argument("--per-address", type=int, default=Limits().per_address)
    chosen = parser.parse_args()
    parent_watch.hold()
    folder, most = chosen.folder, chosen.per_address
    limits = Limits(per_address=most, connections=max(Limits().connections, 2 * most))
    certificate = Certificate(folder / SERVER_FILE, folder / SERVER_KEY_FILE, write_log)
    upstream = Upstream("127.0.0.1", chosen.superlink)
    front = Front(certificate, upstream, write_log, limits, Admitted(folder).has_signed)
    asyncio.run(run(front, bind(chosen.host, chosen.port)))


if __name__ == "__main__":
    main()
