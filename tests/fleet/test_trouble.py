"""A PC that does not reach its server says why: real TLS, real certificates."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from fedaipc.errors import AdmissionError
from fedaipc.federation import authority
from fedaipc.federation.authority import issue_server, make_authority
from fedaipc.federation.federation import Federation
from fedaipc.fleet.http_client import bounded_client
from fedaipc.fleet.server import Server
from fedaipc.fleet.trouble import why
from tests.support.lying_server import Liar


class Clock(datetime):
    """One that is `off`."""

    off = timedelta(0)

    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        return datetime.now(UTC) + cls.off


def issue(folder: Path, monkeypatch: pytest.MonkeyPatch, off: timedelta, name: str) -> None:
    """A server certificate made on another machine, whose clock differs from this one's."""
    monkeypatch.setattr(Clock, "off", off)
    monkeypatch.setattr(authority, "datetime", Clock)
    issue_server(folder, folder, [name])


@pytest.mark.parametrize(
    ("off", "name", "line"),
    [
        (timedelta(hours=5), "localhost", "not yet valid: check this machine's clock, which says"),
        (timedelta(days=-800), "localhost", "has expired: check this machine's clock, which says"),
        (timedelta(0), "fleet.test", "is for another name than this PC calls it by"),
    ],
    ids=("early", "late", "other name"),
)
def test_what_is_wrong_with_a_certificate_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: timedelta, name: str, line: str
) -> None:
    liar = Liar(tmp_path)
    issue(tmp_path, monkeypatch, off, name)
    liar._context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    with pytest.raises(httpx.ConnectError) as caught:
        liar.answer()
    liar.close()
    assert line in why(caught.value)


def test_another_authority_is_said(tmp_path: Path) -> None:
    liar, other = Liar(tmp_path), tmp_path / "other"
    other.mkdir()
    make_authority(other, "test")
    with (
        bounded_client((other / "authority.pem").read_bytes()) as client,
        pytest.raises(httpx.ConnectError) as caught,
    ):
        client.get(f"https://{liar.address}/")
    liar.close()
    assert "not signed by this federation's authority" in why(caught.value)


def test_a_server_whose_clock_is_late_says_so_and_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Federation.create(tmp_path / "acme", "localhost:1", ["localhost"])
    folder = tmp_path / "acme"
    issue(folder, monkeypatch, timedelta(hours=5), "localhost")
    for name in ("server.pem", "server.key"):
        (folder / name).replace(folder / "server" / name)
    with pytest.raises(AdmissionError, match=r"not valid before .* check this machine's clock"):
        Server(folder / "server", "127.0.0.1", 0, 64, print)
