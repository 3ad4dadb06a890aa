"""What a command meets around it: no account, no home, names that are not UTF-8."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from fedaipc.cli import main
from fedaipc.client.examples import _stamp
from fedaipc.config import Settings
from fedaipc.data.assets import cache_folder
from fedaipc.doctor.saved import with_saved
from fedaipc.errors import AssetError, DataError
from fedaipc.files import expanded
from fedaipc.model.base import is_local

pwd = pytest.importorskip("pwd")  # Windows has no such thing


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user id without an account finds, without HOME, as in a container."""

    def unknown(*_: Any) -> None:
        raise KeyError("getpwuid(): uid not found: 12345")

    for name in ("HOME", "XDG_CACHE_HOME", "FEDAIPC_CACHE", "HF_HOME", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.usefixtures("homeless")
def test_who_has_no_home_is_told_what_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(AssetError, match="set FEDAIPC_CACHE to a folder"):
        cache_folder()
    assert with_saved(Settings(), "a processor") == Settings()  # which needs no cache
    monkeypatch.setenv("FEDAIPC_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    with monkeypatch.context() as patch:  # so that what is set is unset again
        patch.setenv("HF_HOME", "x")
        patch.setenv("MPLCONFIGDIR", "x")
        del os.environ["HF_HOME"], os.environ["MPLCONFIGDIR"]
        main._prepare()
        assert os.environ["HF_HOME"] == str(tmp_path / "huggingface")  # else a folder named "~"
        assert os.environ["MPLCONFIGDIR"] == str(tmp_path / "matplotlib")


@pytest.mark.usefixtures("homeless")
def test_a_path_below_a_home_that_is_not_known_is_one_that_is_not_there() -> None:
    for path in ("~/base", "~no-such-user-here/base"):
        assert expanded(path) == Path(path)
        assert not is_local(path)
        assert _stamp(path) == ()


def test_a_name_that_is_not_utf8_can_be_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As most systems set it, stdout refuses such names."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    monkeypatch.setattr(sys, "stdout", out)
    main._prepare()
    print(os.fsdecode(b"caf\xe9"), file=out, flush=True)
    assert out.buffer.getvalue().strip() == b"caf\\udce9"


def test_a_working_directory_that_is_gone_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(SystemExit):
        main._prepare()
    assert "working directory was deleted" in capsys.readouterr().err


def test_options_for_a_file_reach_the_reader(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Latin-1, no header, rows that cannot be used: nothing, named, then left out."""
    rows = ["0,cafe"] + [f"{n % 2},caf\u00e9 {n}" for n in range(29)] + ["0,"]
    path = tmp_path / "a.csv"
    path.write_bytes("\n".join(rows).encode("latin-1"))
    given = ["data", "describe", str(path), "--clients", "2"]
    columns = ["--no-header", "--text", "2", "--label", "1"]

    def ran(*more: str) -> str:
        with pytest.raises(DataError) as caught:
            main.app([*given, *more], standalone_mode=False)
        return str(caught.value)

    assert "--no-header" in ran()
    assert "30 of 31 records" in ran(*columns)
    assert "1 of 31 records" in (said := ran(*columns, "--encoding", "cp1252"))
    assert "(line 31)" in said
    main.app([*given, *columns, "--encoding", "cp1252", "--skip-unusable"], standalone_mode=False)
    said = capsys.readouterr().out.replace("\n", " ")
    assert "1 of 31 records cannot be used" in said


def test_an_owner_reads_what_was_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text("text,label\n" + "x,yes\ny,no\n" * 20 + '"z,no\n')
    main.app(["federation", "init", "acme", "--address", "localhost:1"], standalone_mode=False)
    main.app(["federation", "invite", "acme", "--out", "invite"], standalone_mode=False)
    enroll = ["client", "enroll", "invite", "--data", "a.csv", "--name", "pc", "--out", "request"]
    main.app(enroll, standalone_mode=False)
    said = capsys.readouterr().out
    assert "40 records can be used" in said
    assert "left out: 1 of 41 records cannot be used: an unclosed quotation mark" in said
    assert "(line 42)" in said
