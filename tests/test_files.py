"""Durable files: the new content or the old, never a piece; nothing left over."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedaipc.files import append_durable, sync_folder, write_atomic


def _fails(number: int) -> Any:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@given(st.binary(max_size=2000), st.binary(max_size=2000))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_there_and_replaces_what_was(
    tmp_path: Path, old: bytes, new: bytes
) -> None:
    path = tmp_path / "file"
    for content in (old, new):
        write_atomic(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("private", "rights"), [(True, 0o600), (False, 0o644)])
def test_a_private_file_is_for_its_owner_alone(tmp_path: Path, private: bool, rights: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o640)
    write_atomic(path, b"new", private=private)
    assert stat.S_IMODE(path.stat().st_mode) == rights


def test_a_private_file_is_never_readable_by_others_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    sync = os.fsync

    def watch(handle: int) -> None:
        seen.append(stat.S_IMODE(os.fstat(handle).st_mode))
        sync(handle)

    monkeypatch.setattr(os, "fsync", watch)
    write_atomic(tmp_path / "file", b"secret", private=True)
    assert seen[0] == 0o600


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file_and_leaves_nothing_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    monkeypatch.setattr(os if step == "fsync" else Path, step, _fails(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_nothing_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "file", b"new")
    assert list(tmp_path.iterdir()) == []


def test_content_is_on_the_disk_before_the_name_points_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    sync, replace = os.fsync, Path.replace

    def watched_sync(handle: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def watched_replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    write_atomic(tmp_path / "file", b"new")
    assert steps == ["file", "rename", "folder"]


def test_a_folder_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "nowhere" / "file", b"new")
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "nowhere")


def test_a_line_is_appended_and_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger"
    path.write_bytes(b"one\n")
    synced: list[Any] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    append_durable(path, b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"
    assert len(synced) == 1


def test_appending_never_makes_a_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        append_durable(tmp_path / "nowhere", b"line\n")
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_got_on_the_disk_in_part_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger"
    path.write_bytes(b"")
    monkeypatch.setattr(os, "write", lambda _handle, line: len(line) - 1)
    with pytest.raises(OSError, match="only 3 of 4 bytes"):
        append_durable(path, b"two\n")


def test_a_charge_that_could_not_be_synced_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger"
    path.write_bytes(b"")
    monkeypatch.setattr(os, "fsync", _fails(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        append_durable(path, b"two\n")
