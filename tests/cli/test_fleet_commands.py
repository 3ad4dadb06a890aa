"""The commands of a federation refuse bad input with one line, an exit code, and nothing lost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fedaipc.federation.letters import Invite
from tests.cli.test_commands import refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Ran


@pytest.fixture
def acme(fedaipc: Callable[..., Ran]) -> Path:
    assert fedaipc("federation", "init", "acme", "--address", "localhost:8443").code == 0
    return Path("acme")


@pytest.fixture
def invite(fedaipc: Callable[..., Ran], acme: Path) -> str:
    ran = fedaipc("federation", "invite", str(acme))
    assert ran.code == 0
    return ran.out


@pytest.fixture
def texts() -> str:
    rows = [f"text {n},{('no', 'yes')[n % 2]}" for n in range(40)]
    Path("mine.csv").write_text("text,label\n" + "\n".join(rows))
    return "mine.csv"


def test_from_a_federation_to_a_member(
    fedaipc: Callable[..., Ran], acme: Path, invite: str, texts: str
) -> None:
    ran = fedaipc("enroll", invite, "--data", texts, "--name", "pc", "--folder", "pc",
                  "--out", "pc.request")  # fmt: skip
    assert ran.code == 0
    assert Invite.read(invite).fingerprint in ran.out
    assert fedaipc("federation", "admit", str(acme), "pc.request", "--yes").code == 0
    listed = fedaipc("federation", "list", str(acme))
    assert "pc" in listed.out
    assert "member" in listed.out
    assert fedaipc("federation", "revoke", str(acme), "pc").code == 0
    assert "revoked" in fedaipc("federation", "list", str(acme)).out
    again = fedaipc("federation", "admit", str(acme), "pc.request", "--yes")
    assert (again.code, again.err.count("\n")) == (14, 1)
    assert "revoked" in again.err


@pytest.mark.parametrize("address", ["localhost", "localhost:", ":1", "localhost:0", "a:99999"])
def test_an_address_without_a_port_is_refused(fedaipc: Callable[..., Ran], address: str) -> None:
    assert "give host:port" in refused(
        fedaipc("federation", "init", "acme", "--address", address), 14
    )
    assert not Path("acme").exists()


def test_a_letter_that_is_none_is_refused(
    fedaipc: Callable[..., Ran], acme: Path, invite: str, texts: str
) -> None:
    for letter in ("hello", invite[:-5], "nowhere.txt"):
        ran = fedaipc("enroll", letter, "--data", texts, "--name", "pc", "--folder", "pc")
        refused(ran, 14)
    assert not Path("pc").exists()
    Path("bad.request").write_text(invite)
    line = refused(fedaipc("federation", "admit", str(acme), "bad.request", "--yes"), 14)
    assert "bad.request: this is no request" in line


def test_who_is_not_enrolled_is_told_so(fedaipc: Callable[..., Ran]) -> None:
    Path("empty").mkdir()
    for command in (("client", "--folder", "empty"), ("leave", "--folder", "empty")):
        assert "no PC is enrolled here" in refused(fedaipc(*command), 14)
    assert "no PC is enrolled here" in refused(fedaipc("move-out", "x.pc", "--folder", "empty"), 14)
    assert not Path("x.pc").exists()


def test_a_server_folder_that_is_none_is_told_so(fedaipc: Callable[..., Ran], acme: Path) -> None:
    Path("empty").mkdir()
    assert "federation.json is missing" in refused(fedaipc("server", "empty"), 14)
    (acme / "server" / "server.key").unlink()
    assert "server.key is missing" in refused(fedaipc("server", str(acme / "server")), 14)
    for command in (("status",), ("train", "job")):
        assert "no federation is here" in refused(fedaipc(*command, "--server", "empty"), 14)


def test_runs_that_are_none_are_told_so(fedaipc: Callable[..., Ran], acme: Path) -> None:
    server = ("--server", str(acme / "server"))
    Path("job").mkdir()
    assert "config.toml is missing" in refused(fedaipc("train", "job", *server), 12)
    assert "no such run" in refused(fedaipc("train", "--resume", "first", *server), 12)
    assert "is not running" in refused(fedaipc("stop", "first", *server), 12)
    assert "a run's name" in refused(fedaipc("stop", "../first", *server), 12)
    assert "not running, 0 members" in fedaipc("status", *server).out
