"""What stands in the working directory and the environment runs nothing and breaks nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedaipc.data import assets
from fedaipc.errors import AssetError
from fedaipc.federation.federation import Federation
from fedaipc.fleet.subprocesses import Child
from fedaipc.fleet.superlink import environment
from fedaipc.surroundings import inherited, settle

PLANTED = (
    "pip",
    "multiprocessing",
    "flwr",
    "torch",
    "logging",
    "sqlite3",
    "fedaipc",
    "sitecustomize",
)


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with modules in it that say when they are run; the file they say it
    in.
    """
    folder, said = tmp_path / "downloads", tmp_path / "said"
    folder.mkdir()
    for name in PLANTED:
        (folder / f"{name}.py").write_text(f"open({str(said)!r}, 'a').write({name!r} + chr(10))\n")
    monkeypatch.chdir(folder)
    # A process whose coverage is measured imports much before anything of ours.
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
    return said


def test_the_planted_modules_would_run_else(planted: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    subprocess.run([sys.executable, "-c", "import sqlite3"], env=env, check=True)
    assert planted.read_text() == "sqlite3\n"


@pytest.mark.slow
def test_no_child_imports_from_the_working_directory(
    planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}/opt/none")
    child = Child(
        [sys.executable, "-m", "fedaipc.fleet.front", "--help"], planted.parent / "front.log"
    )
    child.keep(environment(planted.parent), print)
    assert child.process is not None
    child.process.wait(60)
    child.stop()
    assert child.process.returncode == 0, child.log.read_text()
    assert not planted.exists()


@pytest.mark.parametrize("path", [None, "", f"{os.pathsep}/opt/none"])
def test_nor_does_what_a_child_starts(
    planted: Path, monkeypatch: pytest.MonkeyPatch, path: str | None
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if path is not None:
        monkeypatch.setenv("PYTHONPATH", path)
    code = "import multiprocessing, logging, sqlite3"
    subprocess.run([sys.executable, "-c", code], env=inherited(), check=True)
    assert not planted.exists()


def test_nor_does_the_download_of_an_asset(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "find_spec", lambda _: True)  # that pip, where there is another
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    asset = next(iter(assets.list_assets()))
    with pytest.raises(AssetError):
        assets._download(asset, tmp_path)
    assert not planted.exists()


def test_a_program_does_not_import_from_here_because_a_path_begins_empty(
    planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = str(Path.cwd())
    monkeypatch.setattr(sys, "path", ["", here, *sys.path])
    for name, value in dict(os.environ).items():  # so that all is put back
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}/opt/none")
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.setenv("FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", "7")
    settle()
    assert "" not in sys.path
    assert here not in sys.path
    assert os.environ["PYTHONPATH"] == "/opt/none"
    assert os.environ["PYTHONSAFEPATH"] == "1"
    assert "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE" not in os.environ


def test_what_was_meant_for_other_programs_is_not_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTPS_PROXY", "ALL_PROXY", "FLWR_DATABASE", "FLWR_ENABLE_EVENT_LOG",
                 "PYTHONINSPECT", "PYTHONSTARTUP"):  # fmt: skip
        monkeypatch.setenv(name, "1")
    env = environment(tmp_path)
    assert not {n for n in env if n.lower().endswith("_proxy")}
    assert {n for n in env if n.startswith("FLWR_")} == {
        "FLWR_HOME", "FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION",
    }  # fmt: skip
    assert not {"PYTHONINSPECT", "PYTHONSTARTUP"} & env.keys()
    assert environment(tmp_path, proxies=True)["http_proxy"] == "1"
    assert env["PATH"] == os.environ["PATH"]


@pytest.mark.slow
def test_a_server_lets_members_in_whatever_stands_around_it(planted: Path, tmp_path: Path) -> None:
    """Its proxy leads nowhere, its working directory is hostile."""
    Federation.create(tmp_path / "acme", "localhost:1", ["localhost"])
    env = {
        **os.environ, "http_proxy": "http://127.0.0.1:9", "ALL_PROXY": "socks://127.0.0.1:9",
        "SSL_CERT_FILE": "/none", "PYTHONPATH": f"{os.pathsep}/none", "PYTHONUNBUFFERED": "1",
        "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": "7",
    }  # fmt: skip
    env.pop("PYTHONSAFEPATH", None)
    (Path.cwd() / "sitecustomize.py").unlink()  # an empty entry of PYTHONPATH is Python's to obey
    for name in ("multiprocessing", "logging", "fedaipc"):  # and these are imported before us
        (Path.cwd() / f"{name}.py").unlink()
    command = str(Path(sys.executable).parent / "fedaipc")
    place = str(tmp_path / "acme" / "server")
    lines: list[str] = []
    with subprocess.Popen(
        [command, "server", "start", place, "--bind", "127.0.0.1", "--port", "0"],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as server:  # fmt: skip
        assert server.stdout is not None
        for line in server.stdout:
            lines.append(line)
            if "runs in" in line:
                server.terminate()
        assert server.wait(60) == 0, lines
    assert any("0 members are let in" in line for line in lines), lines
    assert not planted.exists()
