"""Server and commands run as different users: real users where the tests run as root.

The server's part runs with the effective user `nobody`, so the kernel decides what it may do.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

from fedaipc.errors import AdmissionError, OutputError
from fedaipc.federation.federation import Federation
from fedaipc.fleet import ownership, runs
from fedaipc.fleet import server as module
from fedaipc.fleet.runs import run_folder, running, submit, tell_why, unwant, waits_for, want, why
from fedaipc.fleet.server import Server
from fedaipc.protocol.job_folder import FILES
from fedaipc.results import LOCK_FILE
from tests.support.results import make_results
from tests.support.supervisor import FakeChild

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.commands import Ran

if sys.platform == "win32":
    pytest.skip("rights are inherited from the folder there", allow_module_level=True)

IS_ROOT = os.geteuid() == 0
NOBODY = 65534
as_root = pytest.mark.skipif(
    not IS_ROOT, reason="only root can be two users; the refusals below run as any user"
)


@contextmanager
def nobody() -> Iterator[None]:
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def give(folder: Path, user: int) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, user)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that every user can reach, unlike pytest's."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    before = os.umask(0o077)
    yield folder
    os.umask(before)
    shutil.rmtree(folder)


@pytest.fixture
def folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server's; the job's signature is not what is tested here."""
    monkeypatch.setattr(module, "Child", FakeChild)
    monkeypatch.setattr(runs, "_check", lambda _: None)
    Federation.create(place / "acme", "localhost:1", ["localhost"])
    shutil.copytree(place / "acme" / "server", place / "S")
    return place / "S"


@pytest.fixture
def job(place: Path) -> Path:
    made = place / "job"
    made.mkdir()
    for name in FILES:
        (made / name).write_bytes(b"x")
    return made


@as_root
def test_what_root_submits_the_servers_user_can_run(folder: Path, job: Path) -> None:
    give(folder, NOBODY)
    said: list[str] = []
    with nobody():
        server = Server(folder, "127.0.0.1", 0, 64, said.append)
    run = submit(folder, job, "first")  # by root, with umask 077, from a folder of its own
    assert {path.stat().st_uid for path in (run, *run.iterdir())} == {NOBODY}
    with nobody():
        server._keep_runs()
        assert list(server._runs) == ["first"]
    unwant(run)
    tell_why(run, "stopped")
    want(run)
    with nobody():
        tell_why(run, "too few PCs")
        assert why(run) == "too few PCs"
        unwant(run)
    assert os.geteuid() == 0
    assert os.getegid() == 0


@as_root
def test_a_run_of_another_user_is_named_once_and_holds_up_no_other(folder: Path, job: Path) -> None:
    """As an older fedaipc left it, or a copy by root."""
    said: list[str] = []
    give(folder, NOBODY)
    with nobody():
        server = Server(folder, "127.0.0.1", 0, 64, said.append)
    bad = submit(folder, job, "bad")
    give(bad, 0)
    submit(folder, job, "good")
    with nobody():
        for _ in range(5):
            server._keep_runs()
        assert list(server._runs) == ["good"]
    complaints = [line for line in said if "bad" in line]
    remedy = f"chown -R nobody {bad}"
    assert len(complaints) == 1
    assert remedy in complaints[0]
    line = waits_for(bad, folder, {"port": 1})
    assert line is not None
    assert remedy in line
    with pytest.raises(OutputError, match="chown -R nobody"):
        want(bad)
    give(bad, NOBODY)  # the remedy
    assert waits_for(bad, folder, {"port": 1}) is None
    want(bad)


@as_root
def test_files_of_another_user_within_a_run_are_named_too(folder: Path, job: Path) -> None:
    said: list[str] = []
    give(folder, NOBODY)
    with nobody():
        server = Server(folder, "127.0.0.1", 0, 64, said.append)
    run = submit(folder, job, "first")
    report = run / "report.html"
    report.write_text("")
    report.chmod(0o644)  # as `fedaipc report` leaves one: the server does not mind
    assert waits_for(run, folder, {"port": 1}) is None
    (run / "results.json").write_text("{}")  # by root, 0600
    with nobody():
        for _ in range(3):
            server._keep_runs()
    assert len(said) == 1
    assert f"chown -R nobody {run}" in said[0]
    assert f"chown -R nobody {run}" in (waits_for(run, folder, {"port": 1}) or "")


@as_root
def test_another_user_is_told_whose_it_is(
    folder: Path, job: Path, fedaipc: Callable[..., Ran]
) -> None:
    Server(folder, "127.0.0.1", 0, 64, print)
    job.chmod(0o755)
    for path in job.iterdir():
        path.chmod(0o644)
    with nobody(), pytest.raises(AdmissionError, match="run this as its owner"):
        submit(folder, job, "first")
    folder.chmod(0o755)
    with nobody():
        with pytest.raises(OutputError, match=r"belongs to user root: run this as that user"):
            submit(folder, job, "first")
        with pytest.raises(OutputError, match=r"is for user root to read"):
            running(folder)
        for command in (("server", "status", "--server", folder), ("server", "start", folder)):
            ran = fedaipc(*command)
            assert (ran.code, ran.err.count("\n")) == (12, 1), ran.err
            assert "user root" in ran.err
    assert not run_folder(folder, "first").exists()


@as_root
def test_a_server_of_root_does_not_take_over_what_another_user_ran(folder: Path) -> None:
    give(folder, NOBODY)
    with nobody():
        Server(folder, "127.0.0.1", 0, 64, print)
    with pytest.raises(OutputError, match="belongs to user nobody, who ran the server before"):
        Server(folder, "127.0.0.1", 0, 64, print)


@as_root
def test_a_folder_that_root_copied_is_named_before_anything_starts(folder: Path) -> None:
    folder.chmod(0o755)
    os.chown(folder, NOBODY, NOBODY)
    with nobody(), pytest.raises(OutputError, match="cannot be read by user nobody: chown -R"):
        Server(folder, "127.0.0.1", 0, 64, print)


def test_whoever_is_not_root_is_refused(
    folder: Path, job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same refusal without a second user: this process is told that it is another's."""
    (folder / "state").mkdir()
    if IS_ROOT:
        give(folder, NOBODY)
        monkeypatch.setattr("fedaipc.fleet.ownership.os.setgroups", _may_not)
    else:
        monkeypatch.setattr(ownership, "server_user", lambda _: 0)
    with pytest.raises(OutputError, match="run this as that user, as in `sudo -u "):
        submit(folder, job, "first")
    assert not run_folder(folder, "first").exists()


def _may_not(*_: Any) -> None:
    raise PermissionError


def test_each_waiting_run_has_a_reason(
    folder: Path, job: Path, fedaipc: Callable[..., Ran]
) -> None:
    first, second = submit(folder, job, "first"), submit(folder, job, "second")
    os.utime(first / "wanted", (1000, 1000))
    assert waits_for(first, folder, None) == f"no server runs: fedaipc server start {folder}"
    there = {"port": 1}
    assert waits_for(first, folder, there) is None
    assert waits_for(second, folder, there) == "first goes first"
    tell_why(second, "too few PCs are there")
    assert waits_for(second, folder, there) == "too few PCs are there"
    shown = fedaipc("server", "status", "--server", folder).out
    assert shown.count("no server runs") == 2


def test_status_says_of_which_texts_the_accuracy_is(
    folder: Path, fedaipc: Callable[..., Ran]
) -> None:
    run, results = run_folder(folder, "first"), make_results()
    run.mkdir(parents=True)
    results.model_copy(update={"status": "running", "test": None}).write(run)
    last = results.rounds[-1].validation
    assert last is not None
    status = ("server", "status", "--server", folder)
    assert f"{last.accuracy:.3f} (validation)" in fedaipc(*status).out
    results.write(run)
    assert results.test is not None
    assert f"{results.test.accuracy:.3f} (test)" in fedaipc(*status).out


def test_status_says_why_no_round_comes(
    folder: Path, job: Path, fedaipc: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submit(folder, job, "first")
    results = make_results().model_copy(update={"rounds": (), "test": None})
    monkeypatch.setattr("fedaipc.fleet.runs.running", lambda _: {"port": 1})
    for status, said in (("running", "tries out its machine"), ("stopped", "budgets for life")):
        results.model_copy(update={"status": status}).write(run)
        with FileLock(run / LOCK_FILE):  # its coordinator is there
            shown = " ".join(fedaipc("server", "status", "--server", folder).out.split())
        assert said in shown
