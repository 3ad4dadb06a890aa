"""The commands of a federation refuse bad input with one line, an exit code, and nothing lost."""

from __future__ import annotations

import io
import socket
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fedaipc.client.client import serving
from fedaipc.client.disclosure_log import note
from fedaipc.federation import authority
from fedaipc.federation.authority import issue_server
from fedaipc.protocol.enrollment import Invite
from fedaipc.protocol.server_folder import Nodes, server_period
from tests.support.batch_invariance import Kernels
from tests.support.commands import refused
from tests.support.tiny_models import make_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.commands import Ran


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


def test_a_machine_that_cannot_train_privately_is_not_enrolled(
    fedaipc: Callable[..., Ran], invite: str, texts: str, tmp_path: Path
) -> None:
    """Found out here, and not in a round for which all others have paid."""
    from fedaipc.doctor.rehearsal import rehearse_base

    base = str(make_folder(tmp_path / "base", "bert"))
    enroll = (
        "client",
        "enroll",
        invite,
        "--data",
        texts,
        "--name",
        "pc",
        "--base",
        base,
        "--out",
        "r",
    )
    rehearse_base.cache_clear()
    with Kernels(lambda _name, columns: columns < 16):
        ran = fedaipc(*enroll)
    assert ran.code == 5
    assert ran.err.endswith("so this machine cannot train privately\n")
    assert len(ran.err.splitlines()) == 1
    assert not Path("fedaipc-pc").exists()
    ran = fedaipc(*enroll)
    assert (ran.code, "not on this PC yet" in ran.out) == (0, False)


def test_where_the_base_is_missing_enrolment_says_how_to_find_out(
    fedaipc: Callable[..., Ran], invite: str, texts: str
) -> None:
    ran = fedaipc("client", "enroll", invite, "--data", texts, "--name", "pc", "--base", "later")
    assert ran.code == 0
    assert "`fedaipc doctor --folder fedaipc-pc` says whether this PC can train" in ran.out


def test_from_a_federation_to_a_member(
    fedaipc: Callable[..., Ran], acme: Path, invite: str, texts: str
) -> None:
    ran = fedaipc("client", "enroll", invite, "--data", texts, "--name", "pc", "--folder", "pc",
                  "--out", "pc.request")  # fmt: skip
    assert ran.code == 0
    assert Invite.read(invite).fingerprint in ran.out
    admit = ("federation", "admit", str(acme), "pc.request")
    ran = fedaipc(*admit, "pc.request", "--yes")
    assert ran.code == 0
    assert ran.out.count("pc, up to") == 1
    assert "already" not in ran.out
    assert "(a member already; this renews it)" in fedaipc(*admit, "--yes").out
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
        ran = fedaipc("client", "enroll", letter, "--data", texts, "--name", "pc", "--folder", "pc")
        refused(ran, 14)
    assert not Path("pc").exists()
    Path("bad.request").write_text(invite)
    line = refused(fedaipc("federation", "admit", str(acme), "bad.request", "--yes"), 14)
    assert "bad.request: this is not a complete request" in line


def test_who_is_not_enrolled_is_told_so(fedaipc: Callable[..., Ran]) -> None:
    Path("empty").mkdir()
    for command in (
        ("client", "start", "--folder", "empty"),
        ("client", "leave", "--folder", "empty"),
    ):
        assert "no PC is enrolled here" in refused(fedaipc(*command), 14)
    assert "no PC is enrolled here" in refused(
        fedaipc("client", "move-out", "x.pc", "--folder", "empty"), 14
    )
    assert not Path("x.pc").exists()


def test_a_server_folder_that_is_none_is_told_so(fedaipc: Callable[..., Ran], acme: Path) -> None:
    Path("empty").mkdir()
    assert "federation.json is missing" in refused(fedaipc("server", "start", "empty"), 14)
    (acme / "server" / "server.key").unlink()
    assert "server.key is missing" in refused(fedaipc("server", "start", str(acme / "server")), 14)
    for command in (("server", "status"), ("server", "train", "job")):
        assert "no federation is here" in refused(fedaipc(*command, "--server", "empty"), 14)


def test_runs_that_are_none_are_told_so(fedaipc: Callable[..., Ran], acme: Path) -> None:
    server = ("--server", str(acme / "server"))
    Path("job").mkdir()
    assert "config.toml is missing" in refused(fedaipc("server", "train", "job", *server), 12)
    assert "no such run" in refused(fedaipc("server", "train", "--resume", "first", *server), 12)
    assert "is not running" in refused(fedaipc("server", "stop", "first", *server), 12)
    assert "a run's name" in refused(fedaipc("server", "stop", "../first", *server), 12)
    assert "not running, 0 members" in fedaipc("server", "status", *server).out


DAY = 24 * 3600


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets how many days have passed."""
    real = time.time

    def after(days: float) -> None:
        monkeypatch.setattr(time, "time", lambda: real() + days * DAY)

    return after


def test_letters_that_are_out_of_date_are_refused_on_both_sides(
    fedaipc: Callable[..., Ran], acme: Path, invite: str, texts: str,
    clock: Callable[[float], None],
) -> None:  # fmt: skip
    enroll = ("client", "enroll", invite, "--data", texts, "--name", "pc", "--out", "pc.request")
    clock(15)
    assert "the invite has expired: ask the federation" in refused(fedaipc(*enroll), 14)
    assert not Path("fedaipc-pc").exists()
    clock(13)
    assert fedaipc(*enroll).code == 0
    clock(13 + 31)
    admit = ("federation", "admit", str(acme), "pc.request", "--yes")
    line = refused(fedaipc(*admit), 14)
    assert "pc.request: the request has expired: ask the PC's owner for a new one" in line
    assert fedaipc("client", "enroll", "--again", "--out", "new.request").code == 0
    assert fedaipc("federation", "admit", str(acme), "new.request", "--yes").code == 0


def test_a_member_whose_time_is_over_is_shown_and_renewed(
    fedaipc: Callable[..., Ran], acme: Path, invite: str, texts: str,
    clock: Callable[[float], None],
) -> None:  # fmt: skip
    enroll = ("client", "enroll", invite, "--data", texts, "--name", "pc", "--out", "pc.request")
    assert fedaipc(*enroll).code == 0
    admit = ("federation", "admit", str(acme), "pc.request", "--yes", "--days", "10")
    assert fedaipc(*admit).code == 0
    clock(11)
    assert "expired" in fedaipc("federation", "list", str(acme)).out
    assert Nodes.load(acme / "server").nodes == ()
    assert fedaipc("federation", "renew", str(acme), "pc").code == 0
    assert [node.name for node in Nodes.load(acme / "server").nodes] == ["pc"]


def test_a_servers_certificate_that_is_over_is_refused_and_renewed(
    fedaipc: Callable[..., Ran], acme: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authority, "_SERVER_DAYS", -1)
    monkeypatch.setattr(authority, "_BEFORE", timedelta(days=3))
    issue_server(acme, acme / "server", ["localhost"])
    line = refused(fedaipc("server", "start", str(acme / "server"), "--port", "0"), 14)
    assert "out of date" in line
    assert "federation renew FEDERATION --server" in line
    monkeypatch.setattr(authority, "_SERVER_DAYS", 100)
    assert fedaipc("federation", "renew", str(acme), "--server").code == 0
    assert server_period(acme / "server" / "server.pem")[1] > datetime.now(UTC)


def test_a_port_that_is_taken_is_one_line(fedaipc: Callable[..., Ran], acme: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ran = fedaipc(
            "server", "start", str(acme / "server"), "--bind", "127.0.0.1", "--port", port
        )
    assert f"cannot listen on 127.0.0.1:{port}" in refused(ran, 11)


def test_texts_with_other_labels_than_the_federations_are_no_texts_for_it(
    fedaipc: Callable[..., Ran], acme: Path, texts: str
) -> None:
    Path("job.toml").write_text('[data]\nlabels = ["good", "bad"]\n')
    letter = fedaipc("federation", "invite", str(acme), "--config", "job.toml").out
    ran = fedaipc("client", "enroll", letter, "--data", texts, "--name", "pc")
    assert (ran.code, ran.err.count("\n")) == (3, 1)
    assert "no record has a label that the federation trains: 'good', 'bad'" in ran.err
    swapped = ("--data", texts, "--name", "pc", "--text", "label", "--label", "text")
    ran = fedaipc("client", "enroll", letter, *swapped)
    assert "is the label column right?" in ran.err
    assert "text 1" not in ran.err  # owners send such lines to others
    assert not Path("fedaipc-pc").exists()


def test_a_request_is_printed_again_without_what_would_be_ignored(
    fedaipc: Callable[..., Ran], invite: str, texts: str
) -> None:
    enroll = ("client", "enroll", invite, "--data", texts, "--name", "pc", "--out", "pc.request")
    assert fedaipc(*enroll).code == 0
    again = ("client", "enroll", "--again", "--out", "new.request")
    line = refused(fedaipc(*again, "--encoding", "cp1252", "--text", "text"), 14)
    assert "leave out --text, --encoding, and change owner.toml" in line
    assert "leave out the invite, --data" in refused(fedaipc(*enroll[:5], "--again"), 14)
    assert not Path("new.request").exists()


def test_a_request_does_not_replace_another(
    fedaipc: Callable[..., Ran], invite: str, texts: str
) -> None:
    Path("pc.request").write_text("of another PC")
    enroll = ("client", "enroll", invite, "--data", texts, "--name", "pc", "--out", "pc.request")
    assert "pc.request: is there already" in refused(fedaipc(*enroll), 14)
    assert Path("pc.request").read_text() == "of another PC"
    assert not Path("fedaipc-pc").exists()


def test_a_budget_above_the_advice_is_remarked_on(
    fedaipc: Callable[..., Ran], invite: str, texts: str
) -> None:
    enroll = ("client", "enroll", invite, "--data", texts, "--name", "pc", "--folder")
    assert "fixed for life" not in fedaipc(*enroll, "one").out
    said = fedaipc(*enroll, "two", "--epsilon", "100").out
    assert "the invite advises epsilon 8; yours is fixed for life" in said


def test_a_pc_that_was_moved_out_says_so_where_it_was(
    fedaipc: Callable[..., Ran], invite: str, texts: str
) -> None:
    assert fedaipc("client", "enroll", invite, "--data", texts, "--name", "pc").code == 0
    assert fedaipc("client", "move-out", "file.pc").code == 0
    assert "was moved to another machine" in refused(fedaipc("client", "start"), 14)
    assert "was moved to another machine" in refused(fedaipc("client", "enroll", "--again"), 14)


def test_leaving_asks_first(
    fedaipc: Callable[..., Ran], invite: str, texts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fedaipc("client", "enroll", invite, "--data", texts, "--name", "pc").code == 0
    for answer in ("", "n\n"):
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        assert fedaipc("client", "leave").code != 0
        assert Path("fedaipc-pc/owner.toml").is_file()
    assert fedaipc("client", "leave", "--yes").code == 0
    assert not Path("fedaipc-pc/owner.toml").exists()
    assert Path("fedaipc-pc/ledger.jsonl").is_file()


def test_a_pc_at_work_is_neither_moved_nor_left(
    fedaipc: Callable[..., Ran], invite: str, texts: str
) -> None:
    assert fedaipc("client", "enroll", invite, "--data", texts, "--name", "pc").code == 0
    with serving(Path("fedaipc-pc")):
        for command in (("client", "move-out", "x.pc"), ("client", "leave", "--yes")):
            assert "stop its `fedaipc client start` first" in refused(fedaipc(*command), 14)
    assert Path("fedaipc-pc/owner.toml").is_file()
    assert fedaipc("client", "move-out", "x.pc").code == 0
    assert fedaipc("client", "move-in", "x.pc", "--folder", "there").code == 0
    assert not Path("x.pc").exists()  # a second PC of it would spend the budget twice
    assert "x.pc" in refused(fedaipc("client", "move-in", "x.pc", "--folder", "again"), 14)


def test_the_log_is_of_the_folder_wherever_that_is_named(
    fedaipc: Callable[..., Ran], invite: str, texts: str
) -> None:
    assert "no PC is enrolled here" in refused(fedaipc("client", "log"), 14)
    assert (
        fedaipc("client", "enroll", invite, "--data", texts, "--name", "pc", "--folder", "x").code
        == 0
    )
    note(Path("x"), "mask", "0123456789abcdef", 1, [b"1234"], 0.5)
    assert "4 bytes in 1 answers" in fedaipc("client", "log", "--folder", "x").out
    assert "no PC is enrolled here" in refused(fedaipc("client", "log"), 14)
