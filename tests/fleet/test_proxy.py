"""Proxies: a PC goes through its owner's to its server, and nothing else ever goes through one."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from flwr.clientapp import ClientApp
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.fleet_http_client import FleetHttpClient

from fedaipc.errors import AdmissionError
from fedaipc.federation.authority import issue_server, make_authority
from fedaipc.fleet.clients import flower_client, loopback
from fedaipc.fleet.http_client import bounded_client
from fedaipc.fleet.node import FleetNode
from fedaipc.fleet.proxy import proxy_for
from fedaipc.fleet.registry import Registry
from fedaipc.fleet.trouble import why
from tests.support.lying_server import Liar
from tests.support.node_keys import key_file

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class Proxy:
    """Takes CONNECT for any name, which only it can resolve, and joins it to `port`."""

    def __init__(self, port: int) -> None:
        self.port, self.refusal = port, b""
        self.asked: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._socket.accept()
            except OSError:
                return
            head = b""
            while not head.endswith(b"\r\n\r\n") and (part := near.recv(65536)):
                head += part
            self.asked.append(head)
            if self.refusal:
                near.sendall(self.refusal)
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self.port))
            near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            threading.Thread(target=_join, args=(near, far), daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes who waits in `accept`
        self._socket.close()


def _join(near: socket.socket, far: socket.socket) -> None:
    with near, far:
        back = threading.Thread(target=_pass_on, args=(far, near), daemon=True)
        back.start()
        _pass_on(near, far)
        back.join()


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while part := one.recv(65536):
            other.sendall(part)
        other.shutdown(socket.SHUT_WR)


@pytest.fixture
def liar(tmp_path: Path) -> Iterator[Liar]:
    """A server whose certificate is for a name that no resolver knows."""
    made = Liar(tmp_path)
    issue_server(tmp_path, tmp_path, ["fleet.test"])
    made._context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    made.parts = [OK]
    yield made
    made.close()


@pytest.fixture
def proxy(liar: Liar) -> Iterator[Proxy]:
    made = Proxy(int(liar.address.rpartition(":")[2]))
    yield made
    made.close()


def call(liar: Liar, address: str) -> bytes:
    with bounded_client(liar.authority, proxy_for(address)) as client:
        return client.post(f"https://{address}/x", content=b"q").content


@pytest.mark.parametrize("name", ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])
def test_a_pc_reaches_its_server_through_the_owners_proxy(
    liar: Liar, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, proxy.url.replace("://", "://user:secret@"))
    # TLS is with the server: no authority but the federation's counts, and none is needed.
    monkeypatch.setenv("SSL_CERT_FILE", "/none")
    monkeypatch.setenv("SSL_CERT_DIR", "/none")
    assert call(liar, "fleet.test:8443") == b"hello"
    (head,) = proxy.asked
    assert head.startswith(b"CONNECT fleet.test:8443 ")
    assert b"Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=" in head
    assert b"hello" not in head


@pytest.mark.parametrize(
    "direct",
    ["fleet.test", "other.test, .test", "*", "fleet.test:8443", "*.test", "fe80::/10, 10.1.2.0/24"],
)
def test_what_no_proxy_names_is_reached_without_one(
    monkeypatch: pytest.MonkeyPatch, direct: str
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", direct)
    assert proxy_for("10.1.2.3:8443" if "/" in direct else "fleet.test:8443") is None
    if direct != "*":
        assert proxy_for("fleet.example:8443") is not None


@pytest.mark.parametrize("address", ["localhost:1", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1"])
def test_this_machine_is_never_behind_a_proxy(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert proxy_for(address) is None
    assert proxy_for("fleet.test:1") is not None


def test_what_is_not_for_https_is_no_proxy_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert proxy_for("fleet.test:1") is None
    monkeypatch.setenv("https_proxy", "proxy:3128")
    found = proxy_for("fleet.test:1")
    assert found is not None
    assert str(found.url) == "http://proxy:3128"


@pytest.mark.parametrize(
    "text",
    ["socks://x:1", "socks5h://x:1", "http://", "http://[::1", "http://x:port", "http://x:99999",
     "http://user:secret@", "http://user:secret@x:port", "ftp://x", "http://\x1b[2J"],
)  # fmt: skip
def test_a_proxy_that_cannot_be_used_is_one_line_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    make_authority(tmp_path, "test")
    monkeypatch.setenv("ALL_PROXY", text)
    with pytest.raises(AdmissionError, match="cannot be used: set https_proxy to") as caught:
        FleetNode(
            "fleet.test:1", (tmp_path / "authority.pem").read_bytes(), key_file(tmp_path / "key"),
            tmp_path, ClientApp(), largest=1,
        )  # fmt: skip
    assert str(caught.value).isprintable()
    assert "secret" not in str(caught.value)


def test_a_proxy_that_refuses_is_named_without_its_password(
    liar: Liar, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    monkeypatch.setenv("https_proxy", proxy.url.replace("://", "://user:secret@"))
    used = proxy_for("fleet.test:8443")
    with pytest.raises(httpx.ProxyError) as caught:
        call(liar, "fleet.test:8443")
    assert why(caught.value, used) == (
        f"the proxy {proxy.url} refuses: 407 Proxy Authentication Required"
    )
    proxy.close()
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(httpx.ConnectError) as refused:
        call(liar, "fleet.test:8443")
    assert why(refused.value, proxy_for("fleet.test:8443")).endswith(
        "(through the proxy http://127.0.0.1:9)"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("http_proxy", "http://127.0.0.1:9"), ("ALL_PROXY", "socks://127.0.0.1:9"),
     ("ALL_PROXY", "http://[::1"), ("SSL_CERT_FILE", "/none"), ("SSL_CERT_DIR", "/none")],
)  # fmt: skip
def test_loopback_is_reached_whatever_the_environment_holds(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with socket.create_server(("127.0.0.1", 0)) as superlink:
        superlink.settimeout(10)
        registry = Registry(f"127.0.0.1:{superlink.getsockname()[1]}", b"secret")
        thread = threading.Thread(target=_ask, args=(registry,), daemon=True)
        thread.start()
        connection, _ = superlink.accept()
        assert connection.recv(100).startswith(b"POST /v1/control/")
        connection.close()
        thread.join(10)
        registry.close()


def _ask(registry: Registry) -> None:
    with suppress(httpx.HTTPError):
        registry.stop_unfinished()


def test_flowers_own_constructor_sets_nothing_that_ours_does_not() -> None:
    for kind in (ControlHttpClient, RuntimeHttpClient, FleetHttpClient):
        theirs = kind.from_server_address("127.0.0.1:1", True, None, interceptors=[])
        ours = loopback(kind, "127.0.0.1:1", [])
        assert vars(ours).keys() == vars(theirs).keys()
        assert {**vars(ours), "_client": 0} == {**vars(theirs), "_client": 0}
        theirs.close()
        ours.close()
    with httpx.Client() as client:
        assert flower_client(FleetHttpClient, "https://x", client, [])._client is client
