"""The front against strangers: raw sockets, as an attacker would use them, and a good client."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h11
import pytest
from flwr.supernode import fleet_http_client

from fedaipc.federation.authority import issue_server, make_authority
from fedaipc.fleet import front as module
from fedaipc.fleet import node
from fedaipc.fleet.front import TARGETS, Front, Upstream
from fedaipc.fleet.limits import Limits, source
from fedaipc.fleet.sockets import Certificate, bind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
        upstream = await asyncio.start_server(self._superlink, "127.0.0.1", 0)
        inner = upstream.sockets[0].getsockname()[1]
        sock = bind("127.0.0.1", 0)
        self.port = sock.getsockname()[1]
        certificate = Certificate(
            self.folder / "server.pem", self.folder / "server.key", self.log.append
        )
        upstream_of = Upstream("127.0.0.1", inner)
        self.front = Front(certificate, upstream_of, self.log.append, LIMITS, self.is_member)
        self._ready.set()
        await self.front.serve(sock)
        upstream.close()

    async def _superlink(self, reader: Any, writer: Any) -> None:
        http = h11.Connection(h11.SERVER)
        with contextlib.suppress(Exception):
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
        writer.close()

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


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path)
    yield running
    running.stop()


def test_a_good_request_passes_with_the_headers_that_flower_needs(front: Running) -> None:
    extra = b"flwr-public-key: abc\r\nX-Forwarded-For: 1.2.3.4\r\nCookie: a=b\r\n"
    answer = front.ask(post(body=b"y" * 5000, extra=extra))
    assert status(answer) == 200
    assert answer.endswith(b"x" * 5000)
    target, headers, size = front.seen[0]
    assert (target, size, headers[b"flwr-public-key"]) == (PATH, 5000, b"abc")
    assert not {b"x-forwarded-for", b"cookie"} & headers.keys()


def test_the_answers_date_reaches_the_pc(front: Running) -> None:
    """By which a PC with a wrong clock learns the right time."""
    assert b"date: now" in front.ask(post()).lower()


def test_the_paths_are_those_that_flowers_client_calls() -> None:
    text = Path(fleet_http_client.__file__).read_text(encoding="utf-8")
    calls = {target.rpartition(b"/")[2].decode() for target in TARGETS}
    names = {"".join(word.title() for word in call.split("-")) for call in calls}
    assert all(f"def {name}(" in text for name in names)
    ours = Path(node.__file__).read_text(encoding="utf-8")
    assert names == set(re.findall(r"_fleet\.([A-Z]\w+)", ours))


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/control/start-run", b"/v1/runtime/acquire-task", b"/", b"/v1/fleet/", b"/docs",
        b"/v1/fleet/../control/start-run", b"/v1/fleet/%2e%2e/control/start-run",
        b"//v1/fleet/pull-messages", b"/v1//fleet/pull-messages", b"/v1/fleet/pull-messages/",
        b"/v1/fleet/pull-messages?x=1", b"/v1/fleet/pull-messages#x", b"/V1/fleet/pull-messages",
        b"/v1/fleet/pull%2dmessages", b"/v1/fleet/pull-messages;x", b"/v1\\fleet\\pull-messages",
        b"http://localhost/v1/fleet/pull-messages", b"*", b"localhost:443",
        b"/v1/fleet/pull-messages/../../control/start-run",
    ],
)  # fmt: skip
def test_no_other_path_reaches_the_superlink(front: Running, path: bytes) -> None:
    assert status(front.ask(post(path))) in {400, 404}
    assert front.seen == []


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        (post(method=b"GET"), 405),
        (post(method=b"OPTIONS"), 405),
        (post(extra=b"Transfer-Encoding: chunked\r\n"), 400),
        (post(extra=b"Upgrade: websocket\r\n"), 400),
        (post(extra=b"Expect: 100-continue\r\n"), 400),
        (post(extra=b"Host: other\r\n"), 400),
        (post(extra=b"flwr-signature: a\r\nflwr-signature: b\r\n"), 400),
        (post(extra=b"Content-Length: 5\r\n"), 400),
        (post().replace(b"application/protobuf", b"text/plain"), 415),
        (post().replace(b"HTTP/1.1", b"HTTP/1.0"), 505),
        (b"POST " + PATH + b" HTTP/1.1\r\n" + HEADERS + b"\r\n", 411),
        (post(extra=b"".join(b"a%d: b\r\n" % n for n in range(30))), 431),
        (post(extra=b"a: " + b"b" * 10_000 + b"\r\n"), 431),
        (post().replace(b"Content-Length: 0", b"Content-Length: 100001"), 413),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\x00\xff garbage\r\n\r\n", 400),
        (post().replace(b"Host: localhost\r\n", b""), 400),
    ],
    ids=str,
)
def test_what_no_pc_sends_is_refused(front: Running, request_: bytes, wanted: int) -> None:
    answer = front.ask(request_)
    assert status(answer) in {wanted, 400, 505}
    assert front.seen == []


def test_a_health_question_is_answered_and_tells_nothing(front: Running) -> None:
    answer = front.ask(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert status(answer) == 200
    assert answer.endswith(b"\r\n\r\n")


def test_tls_1_2_is_refused(front: Running) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        front.connect(maximum_version=ssl.TLSVersion.TLSv1_2)
    with front.connect() as sock:
        assert sock.version() == "TLSv1.3"


def test_plain_http_and_garbage_get_nothing(front: Running) -> None:
    for content in (post(), b"\x00" * 300, b"GET / HTTP/1.1\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", front.port), timeout=5) as sock:
            sock.sendall(content)
            assert b"HTTP/" not in everything(sock)
    assert status(front.ask(post())) == 200


def test_another_authority_is_refused_by_the_client(front: Running, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    make_authority(other, "other")
    context = ssl.create_default_context(cafile=other / "authority.pem")
    with (
        socket.create_connection(("127.0.0.1", front.port), timeout=5) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        context.wrap_socket(plain, server_hostname="localhost")
    assert status(front.ask(post())) == 200


@pytest.mark.parametrize("kind", ["no handshake", "silent", "slow head", "slow body"])
def test_who_is_slow_is_cut_off(front: Running, kind: str) -> None:
    began = time.monotonic()
    if kind == "no handshake":
        with socket.create_connection(("127.0.0.1", front.port), timeout=5) as sock:
            everything(sock)
    else:
        with front.connect() as sock:
            if kind == "slow head":
                _drip(sock, post())
            if kind == "slow body":
                sock.sendall(post(body=b"y" * 50).removesuffix(b"y" * 50))
                _drip(sock, b"y" * 50)
            everything(sock)
    assert time.monotonic() - began < 4
    assert status(front.ask(post())) == 200


def _drip(sock: ssl.SSLSocket, content: bytes) -> None:
    with contextlib.suppress(OSError):
        for sign in content[:30]:
            sock.sendall(bytes([sign]))
            time.sleep(0.1)


def test_a_head_without_end_is_cut_off(front: Running) -> None:
    with front.connect() as sock, contextlib.suppress(OSError):
        sock.sendall(b"POST " + PATH + b" HTTP/1.1\r\n")
        for _ in range(1000):
            sock.sendall(b"a: " + b"b" * 100 + b"\r\n")
    assert status(front.ask(post())) == 200


def test_idle_connections_of_one_address_do_not_add_up(front: Running) -> None:
    held = []
    for _ in range(30):
        with contextlib.suppress(OSError):
            held.append(socket.create_connection(("127.0.0.1", front.port), timeout=5))
    time.sleep(0.2)
    assert front.front.open.total() <= LIMITS.per_address
    time.sleep(1.0)  # none began a handshake
    assert status(front.ask(post())) == 200
    for sock in held:
        sock.close()


def test_many_requests_share_a_connection(front: Running) -> None:
    with front.connect() as sock:
        for _ in range(20):
            sock.sendall(post().replace(b"Connection: close\r\n", b""))
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += sock.recv(65536)
            assert status(answer) == 200
    assert len(front.seen) == 20


def test_a_redirect_does_not_pass(front: Running) -> None:
    front.status = 307
    assert status(front.ask(post())) == 502


def test_a_renewed_certificate_is_taken_and_a_broken_one_is_not(front: Running) -> None:
    def serial() -> str:
        with front.connect() as sock:
            return str(sock.getpeercert()["serialNumber"])

    first = serial()
    (front.folder / "server.pem").write_bytes(b"broken")
    assert serial() == first
    issue_server(front.folder, front.folder, ["localhost"])
    assert serial() != first


def test_of_a_stranger_no_body_is_read(front: Running) -> None:
    front.front._is_member = lambda headers: headers.get(b"flwr-public-key") == b"known"
    assert status(front.ask(post(body=b"y", extra=b"flwr-public-key: known\r\n"))) == 200
    for extra in (b"", b"flwr-public-key: other\r\n"):
        head = post(extra=extra).replace(b"Content-Length: 0", b"Content-Length: 90000")
        assert status(front.ask(head)) == 401  # though not a byte of the body was sent
    assert len(front.seen) == 1


def test_a_full_disk_does_not_end_it(front: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

        def flush(self) -> None: ...

    monkeypatch.setattr(front.front, "log", module.write_log)
    monkeypatch.setattr("sys.stdout", Full())
    held = [front.connect() for _ in range(LIMITS.per_address)]
    with contextlib.suppress(OSError):
        front.connect()  # turned away, and that cannot be logged
    for one in held:
        one.close()
    end = time.monotonic() + 5
    while front.front.open:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert status(front.ask(post())) == 200


def test_when_it_can_accept_no_more_the_process_ends(
    front: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the supervisor starts another; a front that only waits would serve nobody."""

    async def broken(_: object) -> None:
        raise RuntimeError("accept")

    monkeypatch.setattr(front.front, "_accept", broken)
    with pytest.raises(RuntimeError, match="accept"), socket.socket() as sock:
        asyncio.run(asyncio.wait_for(front.front.serve(sock), 5))


def test_the_log_holds_no_header_and_no_query(front: Running) -> None:
    front.ask(post(b"/v1/fleet/pull-messages?zq7", extra=b"flwr-signature: zq8\r\n"))
    assert "zq" not in str(front.log)


@pytest.mark.parametrize(
    ("peer", "counted"),
    [
        ("1.2.3.4", "1.2.3.4"), ("::ffff:1.2.3.4", "1.2.3.4"),
        ("2001:db8::1", "2001:db8::/64"), ("fe80::1%eth0", "fe80::/64"),
    ],
)  # fmt: skip
def test_what_counts_as_one_address(peer: str, counted: str) -> None:
    assert source(peer) == counted
