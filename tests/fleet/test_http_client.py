"""A PC's HTTP against a server that lies: real sockets, real TLS."""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from fedaipc.errors import AdmissionError
from fedaipc.federation.authority import make_authority
from fedaipc.fleet import http_client
from fedaipc.fleet.http_client import bounded_client
from tests.support.declared import HELLO
from tests.support.lying_server import Liar

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def liar(tmp_path: Path) -> Iterator[Liar]:
    made = Liar(tmp_path)
    yield made
    made.close()


def test_an_honest_answer_is_read(liar: Liar) -> None:
    liar.parts = [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"]
    assert liar.answer() == b"hello"
    assert b"accept-encoding: identity" in liar.asked[0].lower()


def hello(sock: socket.socket) -> dict[int, bytes]:
    """The extensions of the client hello that comes next; -1 is what stands before them."""
    content = sock.recv(65_536)
    while len(content) < 5 or len(content) < 5 + int.from_bytes(content[3:5]):
        content += sock.recv(65_536)
    at = 5 + 4 + 2 + 32  # after record, message, version and random
    at += 1 + content[at]  # the session's identifier, random in TLS 1.3
    start = at
    at += 2 + int.from_bytes(content[at : at + 2])
    at += 1 + content[at]
    found, at = {-1: content[start:at]}, at + 2
    while at < len(content):
        number, size = (
            int.from_bytes(content[at : at + 2]),
            int.from_bytes(content[at + 2 : at + 4]),
        )
        found[number] = content[at + 4 : at + 4 + size]
        at += 4 + size
    return found


def test_a_handshake_tells_nothing_and_goes_on_with_no_session(liar: Liar) -> None:
    """Each is as the first, but for its random values, though the server hands out tickets."""
    liar.parts = [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"]
    with (
        socket.create_server(("127.0.0.1", 0)) as tap,
        bounded_client(liar.authority) as client,
    ):

        def tapped() -> dict[int, bytes]:
            heard = []

            def listen() -> None:
                with tap.accept()[0] as sock:
                    heard.append(hello(sock))

            thread = threading.Thread(target=listen)
            thread.start()
            with pytest.raises(httpx.TransportError):
                client.post(f"https://localhost:{tap.getsockname()[1]}/x")
            thread.join()
            return heard[0]

        first = tapped()
        for _ in range(2):
            client.post(f"https://{liar.address}/v1/fleet/x", content=b"q")
        second = tapped()
    assert liar.resumed == [False, False]
    assert set(first) - {-1} <= set(HELLO)
    assert first[0].endswith(b"localhost")
    assert first[16] == b"\0\x09\x08http/1.1"
    assert first[43] == b"\x02\x03\x04"
    assert {**first, 51: b""} == {**second, 51: b""}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_it_asks_no_other_machine(liar: Liar, status: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as router:
        there = f"http://127.0.0.1:{router.getsockname()[1]}/reboot".encode()
        head = f"HTTP/1.1 {status} Go\r\nContent-Length: 0\r\nLocation: ".encode()
        liar.parts = [head + there + b"\r\n\r\n"]
        with pytest.raises(httpx.RemoteProtocolError):
            liar.answer()
        router.settimeout(0.2)
        with pytest.raises(TimeoutError):
            router.accept()
    assert len(liar.asked) == 1


def test_it_unpacks_nothing(liar: Liar) -> None:
    packed = gzip.compress(b"0" * 10_000)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n"
    liar.parts = [head.encode() + packed]
    with pytest.raises(httpx.RemoteProtocolError, match="packed"):
        liar.answer()


def test_an_answer_without_end_is_given_up(liar: Liar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "_LARGEST", 100_000)
    liar.parts = [b"HTTP/1.1 200 OK\r\n\r\n"] + [b"x" * 10_000] * 1000
    with pytest.raises(httpx.RemoteProtocolError, match="without end"):
        liar.answer()


def test_an_answer_that_drips_is_given_up(liar: Liar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "_GRACE", 0.3)
    liar.parts = [b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"] + [b"x"] * 100
    liar.pause = 0.05
    with pytest.raises(httpx.ReadTimeout, match="drips"):
        liar.answer()


def test_another_authority_and_tls_1_2_are_refused(liar: Liar, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    make_authority(other, "test")
    liar.parts = [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]
    real, liar.authority = liar.authority, (other / "authority.pem").read_bytes()
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        liar.answer()
    liar.authority = real
    liar._context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(httpx.ConnectError):
        liar.answer()
    assert liar.asked == []


def test_what_is_no_certificate_is_said(tmp_path: Path) -> None:
    for content in (b"-----BEGIN CERTIFICATE-----\nno\n", b"", b"\xff"):
        with pytest.raises(AdmissionError, match="enroll again in the same folder"):
            bounded_client(content)


def test_a_slow_upload_does_not_count_as_a_slow_answer(
    liar: Liar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "_GRACE", 0.5)
    liar.parts = [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"]
    liar.pause = 1.0  # before its head comes
    assert liar.answer() == b"hello"
