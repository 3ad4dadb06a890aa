"""The front against strangers: raw sockets, as an attacker would use them, and a good client."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import h11
import pytest
from flwr.supernode import fleet_http_client

from fedaipc.federation.authority import issue_server, make_authority
from fedaipc.fleet import front as module
from fedaipc.fleet import node, sockets
from fedaipc.fleet.front import TARGETS
from fedaipc.fleet.limits import source
from tests.support.front import (
    HEADERS,
    KEEP,
    LIMITS,
    OK,
    PATH,
    Running,
    answer_of,
    everything,
    head,
    post,
    status,
)

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter
    from collections.abc import Iterator


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
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"\x00\xff garbage\r\n\r\n", 400),
        (post().replace(b"Host: localhost\r\n", b""), 400),
        (post(method=b"TRACE"), 405),
        (post(method=b"HEAD"), 405),
        (post(method=b"CONNECT"), 405),
        (b"CONNECT localhost:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (post().replace(b"Connection: close", b"Connection: upgrade"), 400),
        (post().replace(b"Connection: close", b"Connection: close, flwr-public-key"), 400),
        (post(extra=b"Connection: close\r\n"), 400),
        (post(extra=b"Trailer: flwr-signature\r\n"), 400),
        (post(extra=b"Transfer-Encoding: identity\r\n"), 501),
        (post(extra=b"Transfer-Encoding : chunked\r\n"), 400),
        (post(extra=b"Transfer-Encoding: \x0bchunked\r\n"), 400),
        (post(extra=b"a: b\r\n Transfer-Encoding: chunked\r\nflwr-x: \0\r\n"), 400),
        (post().replace(b"Content-Length", b" Content-Length"), 415),  # folded: of the type
        (post().replace(b"Content-Length: 0", b"Content-Length: +0"), 400),
        (post().replace(b"Content-Length: 0", b"Content-Length: -1"), 400),
        (post().replace(b"Content-Length: 0", b"Content-Length: 0x0"), 400),
        (post().replace(b"Content-Length: 0", b"Content-Length: 1_0"), 400),
        (post().replace(b"Content-Length: 0", b"Content-Length: 0, 5"), 400),
        (post().replace(b"Content-Length: 0", b"Content-Length: " + b"9" * 3000), 400),
        (post().replace(b"Content-Length: 0", b"Content-Length:"), 400),
        (post().replace(b" HTTP/1.1", b""), 400),
        (post().replace(b" HTTP/1.1", b"  HTTP/1.1"), 400),
        (post(extra=b"".join(b"a%d:\r\n" % n for n in range(2000))), 431),
    ],
    ids=str,
)
def test_what_no_pc_sends_is_refused(front: Running, request_: bytes, wanted: int) -> None:
    answer = front.ask(request_)
    assert status(answer) == wanted
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


def _drip(sock: socket.socket, content: bytes) -> None:
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
            sock.sendall(KEEP)
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
    with contextlib.suppress(OSError):  # turned away, and that cannot be logged
        socket.create_connection(("127.0.0.1", front.port), timeout=5).close()
    end = time.monotonic() + 5
    while not front.front.turned_away:
        assert time.monotonic() < end
        time.sleep(0.02)
    for one in held:
        one.close()
    front.wait_until_all_left()
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


def test_what_follows_a_request_in_one_packet_is_not_served(front: Running) -> None:
    with front.connect() as sock:
        sock.sendall(KEEP + KEEP)
        assert status(everything(sock)) == 200
        assert everything(sock) == b""
    assert len(front.seen) == 1


def test_a_request_within_a_body_stays_a_body(front: Running) -> None:
    assert status(front.ask(post(body=post(b"/v1/control/start-run")))) == 200
    assert [(target, size > 100) for target, _, size in front.seen] == [(PATH, True)]


def test_a_refused_request_ends_its_connection(front: Running) -> None:
    with front.connect() as sock:
        sock.sendall(KEEP.replace(PATH, b"/docs"))
        assert status(everything(sock)) == 404
        with contextlib.suppress(OSError):
            sock.sendall(KEEP)
        assert everything(sock) == b""
    assert front.seen == []


def test_an_error_of_the_superlink_passes_and_the_connection_serves_on(front: Running) -> None:
    with front.connect() as sock:
        for front.status in (500, 403, 200):
            sock.sendall(KEEP)
            assert status(everything(sock)) == front.status
    assert front.links == 1


@pytest.mark.parametrize(
    ("sent", "wanted"),
    [
        (b"", 502),
        (OK + b"content-le", 502),
        (b"\x00\xff garbage\r\n\r\n", 502),
        (OK + b"a: " + b"b" * 300_000 + b"\r\n\r\n", 502),
        (OK + b"content-length: 1\r\ncontent-length: 2\r\n\r\n12", 502),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: a\r\nConnection: upgrade\r\n\r\n", 502),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", 502),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + OK + b"content-length: 1\r\n\r\nz", 200),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_a_superlink_that_fails_makes_of_the_answer(
    front: Running, sent: bytes, wanted: int
) -> None:
    async def superlink(reader: StreamReader, writer: StreamWriter) -> None:
        await head(reader)
        writer.write(sent)

    front.superlink = superlink
    assert status(front.ask(post())) == wanted
    front.superlink = front._echo
    assert status(front.ask(post())) == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"content-length: 10\r\n\r\nabc",
        b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"content-length: 10\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ],
    ids=str,
)
def test_an_answer_that_breaks_off_never_looks_whole(front: Running, sent: bytes) -> None:
    async def superlink(reader: StreamReader, writer: StreamWriter) -> None:
        await head(reader)
        writer.write(OK + sent)

    front.superlink = superlink
    with front.connect() as sock:
        sock.sendall(KEEP)
        reading = h11.Connection(h11.CLIENT)
        reading.send(h11.Request(method="POST", target="/", headers=[("host", "x")]))
        reading.send(h11.EndOfMessage())
        reading.receive_data(everything(sock))
        reading.receive_data(b"")
        assert isinstance(reading.next_event(), h11.Response)
        assert isinstance(reading.next_event(), h11.Data)
        with pytest.raises(h11.RemoteProtocolError):
            reading.next_event()


@pytest.mark.parametrize("kind", ["says nothing", "reads nothing", "says 100 for ever"])
def test_a_superlink_that_hangs_is_given_up(front: Running, kind: str) -> None:
    async def superlink(reader: StreamReader, writer: StreamWriter) -> None:
        while kind != "reads nothing" and await reader.read(65536):
            while kind == "says 100 for ever":
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        await asyncio.sleep(60)

    front.superlink = superlink
    front.front.limits = replace(LIMITS, answer=0.4)
    assert status(front.ask(post(body=b"y" * 90_000))) == 504
    front.superlink = front._echo
    assert status(front.ask(post())) == 200


def test_where_the_superlink_hung_up_between_requests_a_new_connection_is_made(
    front: Running,
) -> None:
    async def superlink(reader: StreamReader, writer: StreamWriter) -> None:
        await head(reader)
        writer.write(OK + b"content-length: 0\r\n\r\n")

    front.superlink = superlink
    with front.connect() as sock:
        for _ in range(3):
            sock.sendall(KEEP)
            assert status(everything(sock)) == 200
            time.sleep(0.1)
    assert front.links == 3


@pytest.mark.parametrize("late", [False, True], ids=["in one packet", "later"])
def test_what_the_superlink_sends_unasked_answers_no_request(front: Running, late: bool) -> None:
    async def superlink(reader: StreamReader, writer: StreamWriter) -> None:
        while True:
            await head(reader)
            unasked = OK + b"content-length: 7\r\n\r\nunasked"
            writer.write(OK + b"content-length: 5\r\n\r\nasked" + (b"" if late else unasked))
            if late:
                await asyncio.sleep(0.1)
                writer.write(unasked)
            said.set()

    said = threading.Event()
    front.superlink = superlink
    with front.connect() as sock:
        for _ in range(3):
            sock.sendall(KEEP)
            assert everything(sock).endswith(b"\r\n\r\nasked")
            assert said.wait(5)
            said.clear()
            time.sleep(0.1)  # until the front has it


def test_who_never_reads_is_cut_off(front: Running) -> None:
    front.superlink = answer_of(20_000_000)
    with front.connect() as sock:
        sock.sendall(post())
        front.wait_until_all_left()
    assert any(entry.get("why") == "slow" for entry in front.log)


def test_who_reads_slowly_gets_the_end_of_an_answer_too(
    front: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of an answer waits in buffers when the front closes the connection."""
    for place in (module, sockets):
        monkeypatch.setattr(place, "LINGER", 0.1)
    monkeypatch.setattr(sockets.Peer, "linger", 0.1)
    front.front.limits = replace(LIMITS, grace=5.0)
    size = 1_000_000
    front.superlink = answer_of(size)
    front.listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    plain.settimeout(5)
    plain.connect(("127.0.0.1", front.port))
    with front.context().wrap_socket(plain, server_hostname="localhost") as sock:
        sock.sendall(post())
        read = 0
        while part := sock.recv(16_384):
            read += len(part)
            time.sleep(0.02)
    assert read > size


@pytest.mark.parametrize("kind", ["close_notify", "FIN", "gone", "gone in its body"])
def test_who_leaves_frees_its_place(front: Running, kind: str) -> None:
    sock = front.connect()
    sock.sendall(post(body=b"y" * 90_000)[: -40_000 if kind == "gone in its body" else None])
    if kind == "close_notify":
        with contextlib.suppress(OSError):
            sock.unwrap()
    if kind == "FIN":
        socket.socket.shutdown(sock, socket.SHUT_WR)
    if "gone" in kind:
        sock.close()
    front.wait_until_all_left()
    sock.close()
    assert status(front.ask(post())) == 200


@pytest.mark.parametrize("sent", [b"a", b"\r\n"], ids=["letters", "empty lines"])
def test_a_later_request_has_no_more_time_for_its_head(front: Running, sent: bytes) -> None:
    with front.connect() as sock:
        sock.sendall(KEEP)
        assert status(everything(sock)) == 200
        began = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - began < 10:
                sock.sendall(sent)
                time.sleep(0.05)
        assert time.monotonic() - began < 8


def test_a_handshake_that_drips_is_cut_off(front: Running) -> None:
    hello = ssl.MemoryBIO()
    talk = front.context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        talk.do_handshake()
    with socket.create_connection(("127.0.0.1", front.port), timeout=5) as sock:
        _drip(sock, hello.read())
        with contextlib.suppress(ConnectionError):
            assert sock.recv(1) == b""


def test_who_was_served_and_falls_silent_is_let_go(front: Running) -> None:
    held = [front.connect() for _ in range(LIMITS.per_address)]
    for sock in held:
        sock.sendall(KEEP)
        assert status(everything(sock)) == 200
    for sock in held:
        assert sock.recv(1) == b""
        sock.close()
    front.wait_until_all_left()


def test_an_answer_under_way_passes_when_the_front_is_told_to_stop(front: Running) -> None:
    asked = threading.Event()

    async def superlink(reader: StreamReader, writer: StreamWriter) -> None:
        await head(reader)
        asked.set()
        await front.front.stop.wait()
        writer.write(OK + b"content-length: 2\r\n\r\nok")
        await writer.drain()

    front.superlink = superlink
    with front.connect() as sock, front.connect():  # the other says nothing, and is not waited for
        sock.sendall(KEEP)
        assert asked.wait(5)
        front._loop.call_soon_threadsafe(front.front.stop.set)
        answer = everything(sock)
    assert b"connection: close" in answer.lower()
    assert answer.endswith(b"ok")


@pytest.mark.parametrize(
    ("peer", "counted"),
    [
        ("1.2.3.4", "1.2.3.4"), ("::ffff:1.2.3.4", "1.2.3.4"),
        ("2001:db8::1", "2001:db8::/64"), ("fe80::1%eth0", "fe80::/64"),
    ],
)  # fmt: skip
def test_what_counts_as_one_address(peer: str, counted: str) -> None:
    assert source(peer) == counted
