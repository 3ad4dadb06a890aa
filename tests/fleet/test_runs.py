"""What commands, supervisor and coordinator tell each other by files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock

from fedaipc.errors import OutputError
from fedaipc.federation.federation import Federation
from fedaipc.fleet import runs
from fedaipc.fleet.runs import (
    RUNNING_FILE,
    WANTED_FILE,
    run_folder,
    run_status,
    running,
    submit,
    tell_why,
    unwant,
    want,
    why,
)
from fedaipc.protocol.job import make_job
from fedaipc.protocol.job_folder import FILES, JOB_FILE
from tests.support.jobs import LABELS, tiny


def test_a_run_is_wanted_until_it_is_not(tmp_path: Path) -> None:
    run = run_folder(tmp_path, "first")
    with pytest.raises(OutputError, match="no such run"):
        want(run)
    run.mkdir(parents=True)
    assert run_status(run) == "halted"
    want(run)
    assert run_status(run) == "waiting"
    tell_why(run, "too few PCs are there")
    assert why(run) == "too few PCs are there"
    unwant(run)
    assert not (run / WANTED_FILE).exists()
    assert run_status(run) == "halted"
    assert why(run) == "too few PCs are there"
    with pytest.raises(OutputError, match="is not running"):
        unwant(run)
    want(run)
    assert why(run) is None  # of another attempt


def test_a_run_that_is_wanted_again_keeps_its_place(tmp_path: Path) -> None:
    run = run_folder(tmp_path, "first")
    run.mkdir(parents=True)
    want(run)
    os.utime(run / WANTED_FILE, (1000, 1000))
    tell_why(run, "too few PCs")
    want(run)
    assert (run / WANTED_FILE).stat().st_mtime == 1000
    assert why(run) == "too few PCs"


def test_a_job_has_one_run_under_whatever_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PCs answer each attempt of a run once: a second folder of it would wait for ever."""
    monkeypatch.setattr(runs, "_check", lambda _: None)
    Federation.create(tmp_path / "acme", "localhost:1", ["localhost"])
    server = tmp_path / "acme" / "server"
    job, anew = (_job(tmp_path / name, run) for name, run in (("job", "0"), ("anew", "1")))
    submit(server, job, "first")
    for name in ("first", "second"):
        with pytest.raises(OutputError, match=r"to go on, --resume first; .* signed again"):
            submit(server, job, name)
    with pytest.raises(OutputError, match="is another job's; give another --name"):
        submit(server, anew, "first")
    submit(server, anew, "second")


def _job(folder: Path, digit: str) -> Path:
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes(b"x")
    job = make_job(tiny("federation.clients=3"), LABELS, "0" * 64, digit * 16, (32,), 1)
    (folder / JOB_FILE).write_text(job.model_dump_json())
    return folder


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "a b", "\x1b[2J", ".hidden"])
def test_a_runs_name_leaves_no_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="a run's name"):
        run_folder(tmp_path, name)


def test_a_server_runs_where_one_holds_the_lock(tmp_path: Path) -> None:
    assert running(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    state = tmp_path / "state"
    state.mkdir()
    (state / RUNNING_FILE).write_text('{"port": 7}')  # left by one that was killed
    assert running(tmp_path) is None
    with FileLock(state / ".lock"):
        assert running(tmp_path) == {"port": 7}
        (state / RUNNING_FILE).write_text("{")
        assert running(tmp_path) is None
