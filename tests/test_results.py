"""results.json: what is written reads back equal; what cannot be read is refused in one line."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from subprocess import PIPE
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from pydantic import ValidationError

import fedaipc.results as module
from fedaipc.errors import OutputError
from fedaipc.results import LOCK_FILE, RESULTS_FILE, Results
from tests.support.results import begun_results, make_results

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("private", [True, False])
def test_written_results_read_back_equal(tmp_path: Path, private: bool) -> None:
    results = make_results(private=private)
    path = results.write(tmp_path / "new" / "run")
    assert path.name == RESULTS_FILE
    assert Results.load(tmp_path / "new" / "run") == results
    assert json.loads(path.read_text())["schema_version"] == 1
    assert [file.name for file in path.parent.iterdir()] == [RESULTS_FILE]


def test_a_run_that_has_just_begun_can_be_written(tmp_path: Path) -> None:
    results = begun_results()
    results.write(tmp_path)
    with FileLock(tmp_path / LOCK_FILE):
        assert Results.load(tmp_path) == results
    assert Results.load(tmp_path) == results.model_copy(update={"status": "interrupted"})


def test_a_run_is_interrupted_where_no_process_works_on_it(tmp_path: Path) -> None:
    """Whatever its file says; and to look neither makes a lock nor keeps one."""
    begun_results().write(tmp_path)
    assert Results.load(tmp_path).status == "interrupted"
    assert [file.name for file in tmp_path.iterdir()] == [RESULTS_FILE]
    holder = (
        "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire(); "
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holder, str(tmp_path / LOCK_FILE)]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert Results.load(tmp_path).status == "running"
        process.kill()
    assert Results.load(tmp_path).status == "interrupted"
    with FileLock(tmp_path / LOCK_FILE, timeout=0):
        pass


def _load_changed(folder: Path, **changes: Any) -> Results:
    tree = make_results(rounds=2, pcs=2).model_dump(mode="json") | changes
    (folder / RESULTS_FILE).write_text(json.dumps(tree))
    return Results.load(folder)


def test_missing_results_name_the_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"nowhere: no results\.json here; give the folder"):
        Results.load(tmp_path / "nowhere")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OutputError, match=r"no results\.json here"):
        Results.load(file)


@pytest.mark.parametrize("text", ['{"schema_version": 1', "", "\x00", "[" * 200_000])
def test_broken_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / RESULTS_FILE).write_text(text)
    with pytest.raises(OutputError, match=r"results\.json: cannot be used: (not|nested)"):
        Results.load(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / RESULTS_FILE).write_bytes(b"\xff\xfe{}")
    with pytest.raises(OutputError, match=r"results\.json: cannot be used: (not|nested)"):
        Results.load(tmp_path)


def test_newer_schema_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"schema 2, this one reads 1\); upgrade fedaipc"):
        _load_changed(tmp_path, schema_version=2, something_new=1)


@pytest.mark.parametrize("version", [None, "1", True, 0])
def test_a_file_that_is_no_results_file_is_refused(tmp_path: Path, version: object) -> None:
    with pytest.raises(OutputError, match="not a results file"):
        _load_changed(tmp_path, schema_version=version)
    (tmp_path / RESULTS_FILE).write_text("[1]")
    with pytest.raises(OutputError, match="not a results file"):
        Results.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"seconds": -1}, "seconds"),
        ({"engine": "other"}, "engine"),
        ({"stray": 1}, "stray"),
        ({"started": "2025-01-31T12:00:00+02:00"}, "started"),
        ({"started": "yesterday"}, "started"),
        ({"test": {"accuracy": 1.5, "macro_f1": 1, "loss": None, "examples": 1}}, "test.accuracy"),
        ({"not_private": None}, "not_private"),
    ],
)
def test_an_impossible_field_is_named_in_one_line(
    tmp_path: Path, changes: dict[str, Any], place: str
) -> None:
    with pytest.raises(OutputError, match=rf"{RESULTS_FILE}: {place}: ") as caught:
        _load_changed(tmp_path, **changes)
    assert "\n" not in str(caught.value)


def test_a_run_without_noise_cannot_pass_for_private() -> None:
    with pytest.raises(ValidationError, match="needs a reason in not_private"):
        make_results(private=False, not_private=())


def test_nan_never_gets_into_results() -> None:
    with pytest.raises(ValidationError):
        make_results(seconds=float("nan"))


def test_a_full_disk_is_one_line_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_results().write(tmp_path)

    def full(*_args: Any, **_kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_atomic", full)
    with pytest.raises(OutputError, match=r"cannot write results\.json \(No space left") as caught:
        make_results(name="second").write(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert Results.load(tmp_path).name == "demo"


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputError, match=r"taken: cannot write results\.json"):
        make_results().write(tmp_path / "taken")
