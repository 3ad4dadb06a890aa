"""Signatures by the server's clock, as Flower's own check takes them."""

from __future__ import annotations

from base64 import b64decode
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature

from fedaipc.errors import AdmissionError
from fedaipc.fleet import node_auth
from fedaipc.fleet.node_auth import NodeAuth
from tests.support.node_keys import key_file


class Server:
    """Checks as Flower does, by a clock that is `ahead` of this machine's."""

    def __init__(self, ahead: float) -> None:
        self.ahead, self.asked = timedelta(seconds=ahead), 0

    def __call__(self, context: SimpleNamespace) -> SimpleNamespace:
        self.asked += 1
        headers, now = context.request.headers, datetime.now(UTC) + self.ahead
        stamp = headers["flwr-timestamp"]
        key = bytes_to_public_key(b64decode(headers["flwr-public-key"]))
        good = verify_signature(key, stamp.encode(), b64decode(headers["flwr-signature"]))
        age = (now - datetime.fromisoformat(stamp)).total_seconds()
        good = good and -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
        return SimpleNamespace(
            status_code=200 if good else 401, headers={"date": format_datetime(now, usegmt=True)}
        )


def ask(auth: NodeAuth, server: Server) -> int:
    context = SimpleNamespace(request=SimpleNamespace(headers={}))
    return int(auth.intercept(context, server).status_code)


@pytest.mark.parametrize("ahead", [0, 100, -100])
def test_clocks_that_are_a_little_off_need_no_second_try(tmp_path: Path, ahead: float) -> None:
    server = Server(ahead)
    assert ask(NodeAuth(key_file(tmp_path / "key")), server) == 200
    assert server.asked == 1


@pytest.mark.parametrize("ahead", [4000, -4000, 10**7, -300])
def test_a_clock_that_is_far_off_is_learnt_once(tmp_path: Path, ahead: float) -> None:
    server, auth = Server(ahead), NodeAuth(key_file(tmp_path / "key"))
    assert ask(auth, server) == 200
    before = server.asked
    assert ask(auth, server) == 200
    assert server.asked == before + 1


def test_a_refusal_for_another_reason_is_not_repeated(tmp_path: Path) -> None:
    auth, asked = NodeAuth(key_file(tmp_path / "key")), []

    def refuses(context: SimpleNamespace) -> SimpleNamespace:
        asked.append(context)
        date = format_datetime(datetime.now(UTC), usegmt=True)
        return SimpleNamespace(status_code=401, headers={"date": date})

    assert ask(auth, refuses) == 401  # type: ignore[arg-type]
    assert len(asked) == 1


@pytest.mark.parametrize("date", [None, "soon", ""])
def test_a_server_without_a_date_teaches_nothing(tmp_path: Path, date: str | None) -> None:
    headers = {} if date is None else {"date": date}
    answer = SimpleNamespace(status_code=401, headers=headers)
    assert ask(NodeAuth(key_file(tmp_path / "key")), lambda _: answer) == 401  # type: ignore[arg-type]


def test_a_key_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    for content in (b"", b"hello"):
        (tmp_path / "key").write_bytes(content)
        with pytest.raises(AdmissionError, match="enroll this PC again"):
            NodeAuth(tmp_path / "key")
    with pytest.raises(AdmissionError, match="not a key for"):
        NodeAuth(key_file(tmp_path / "key", ed25519.Ed25519PrivateKey.generate()))
    assert node_auth.__doc__
