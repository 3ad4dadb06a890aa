"""No file that a stranger hands in is read further than its kind can be long."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fedaipc import bounds

HUGE = 900_000_000
_CODE = (
    "import resource, sys\n"
    "resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)\n"
    "sys.argv = ['fedaipc', *sys.argv[2:]]\n"
    "from fedaipc.cli.main import run\n"
    "run()\n"
)


def sparse(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.truncate(path, HUGE)
    return path


def test_at_most_what_may_be_there_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a\r\nb\n")
    assert bounds.read_bytes(path, 5) == b"a\r\nb\n"
    assert bounds.read_text(path, 5) == "a\nb\n"
    with pytest.raises(bounds.TooLarge, match="too large: it may have at most 4 bytes") as caught:
        bounds.read_bytes(path, 4)
    assert caught.value.strerror == "too large: it may have at most 4 bytes"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a pipe that has a name")
def test_what_has_no_size_is_not_read_for_ever() -> None:
    with pytest.raises(bounds.TooLarge):
        bounds.read_bytes(Path("/dev/zero"), 1000)


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    from fedaipc.federation.federation import Federation

    Federation.create(tmp_path / "acme", "localhost:8443", ["localhost"])
    return tmp_path / "acme"


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory as Linux has them")
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("config", "check", "huge"), 2),
        (("privacy", "plan", "huge"), 2),
        (("privacy", "sweep", "huge"), 2),
        (("doctor", "--prices", "huge"), 2),
        (("client", "enroll", "huge", "--data", "texts.csv", "--name", "pc"), 14),
        (("federation", "admit", "acme", "huge"), 14),
        (("privacy", "ledger", "verify", "pc"), 8),
        (("privacy", "ledger", "show", "pc"), 8),
        (("privacy", "plan", "--ledger", "pc"), 8),
        (("privacy", "certificate", "verify", "huge"), 15),
        (("client", "move-in", "moved.pc", "--folder", "new"), 14),
        (("report", "run"), 12),
    ],
    ids=str,
)
def test_a_huge_file_is_one_line_and_no_memory(
    tmp_path: Path, federation: Path, words: tuple[str, ...], code: int
) -> None:
    sparse(tmp_path / "huge")
    sparse(tmp_path / "pc" / "ledger.jsonl")
    sparse(tmp_path / "run" / "results.json")
    if words[1] == "move-in":
        with zipfile.ZipFile(tmp_path / "moved.pc", "w") as archive:
            archive.writestr("owner.toml", "")
            archive.write(tmp_path / "huge", "ledger.jsonl", zipfile.ZIP_DEFLATED, 1)
    done = subprocess.run(
        [sys.executable, "-c", _CODE, str(2_300_000_000), *words],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    said = " ".join(done.stderr.split())
    assert done.returncode == code, said
    assert "Traceback" not in said
    assert "MemoryError" not in said
    assert "too large" in said or "larger than" in said or "no certificate" in said


def test_no_file_of_a_job_is_read_whole_before_its_bound(tmp_path: Path) -> None:
    from fedaipc.errors import OutputError
    from fedaipc.protocol.job_folder import JOB_FILE, read_job

    sparse(tmp_path / JOB_FILE)
    with pytest.raises(OutputError, match="too large: it may have at most 1,048,576 bytes"):
        read_job(tmp_path)


def test_toml_that_is_nested_without_end_is_not_valid(tmp_path: Path) -> None:
    from fedaipc.config import load_settings
    from fedaipc.doctor.forecast import read_prices
    from fedaipc.errors import ConfigError
    from fedaipc.lab.sweep.cells import read_sweep

    path = tmp_path / "deep.toml"
    path.write_text("a = " + "[" * 5000)
    for read in (load_settings, read_prices, read_sweep):
        with pytest.raises(ConfigError, match="nested too deep"):
            read(path)
