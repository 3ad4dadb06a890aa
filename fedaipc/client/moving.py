"""Moving a PC to another machine: one file holds all of it, and only one copy of a PC may exist."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fedaipc import bounds
from fedaipc.client.client import OWNER_FILE, serving
from fedaipc.client.key_store import FOLDER as KEYS_FOLDER
from fedaipc.client.key_store import HEAD_FILE, SECRETS_FILE, KeyStore
from fedaipc.config import load_owner
from fedaipc.errors import AdmissionError, os_errors_as
from fedaipc.files import keep_out_of_git, write_atomic, write_private
from fedaipc.privacy.ledger import LEDGER_FILE, Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator

MOVED_LEDGER = f"{LEDGER_FILE}.moved"  # stays where a PC was moved out
NODE_KEY_FILE, AUTHORITY_FILE, FEDERATION_FILE = "node.key", "authority.pem", "federation"
_MOVED = (
    OWNER_FILE, LEDGER_FILE, NODE_KEY_FILE, AUTHORITY_FILE, FEDERATION_FILE,
    f"{KEYS_FOLDER}/identity.key", f"{KEYS_FOLDER}/roster", f"{KEYS_FOLDER}/agreed.json",
    f"{KEYS_FOLDER}/{HEAD_FILE}",
)  # fmt: skip
_MAX_BYTES = 1 << 26  # of one file that a PC is moved in with, its ledger aside


def check_not_moved(folder: Path) -> None:
    """Raise AdmissionError where the PC in `folder` was moved out."""
    if (folder / MOVED_LEDGER).is_file():
        raise AdmissionError(f"{folder}: this PC was moved to another machine; use it there")


def move_out(folder: Path, file: Path) -> None:
    """Put identity, ledger and settings into one secret file; this folder is then no longer a PC.

    Two copies of a PC would each spend the whole budget. Raises AdmissionError.
    """
    if not (folder / OWNER_FILE).is_file():
        raise AdmissionError(f"{folder}: no PC is enrolled here")
    if file.exists():
        raise AdmissionError(f"{file}: is there already; give another name")
    with serving(folder):
        _move_out(folder, file)


def _move_out(folder: Path, file: Path) -> None:
    with os_errors_as(AdmissionError, f"{file}: cannot be written"):
        write_private(file, b"")  # owner-only rights before the first secret is in it
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in _MOVED:
                if (folder / name).is_file():
                    archive.write(folder / name, name)
        write_atomic(file, file.read_bytes(), private=True)
        # First: a folder with a ledger and no owner's file is one that may be enrolled again.
        (folder / LEDGER_FILE).replace(folder / MOVED_LEDGER)
        secret = (f"{KEYS_FOLDER}/epoch.json", f"{KEYS_FOLDER}/{SECRETS_FILE}")
        for name in (*_MOVED, *secret):
            if name != LEDGER_FILE:
                (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "cache", ignore_errors=True)


def move_in(file: Path, folder: Path) -> None:
    """Make a PC of what `move_out` wrote, and delete that file: only one copy of a PC may exist.

    The file is renamed before the folder appears, which shows that it can be deleted, and back
    where the folder does not appear: one of the two always exists. Raises AdmissionError; then no
    folder is left behind, and the file is.
    """
    if folder.exists() and any(folder.iterdir()):
        raise AdmissionError(f"{folder}: not empty; give a new folder")
    with os_errors_as(AdmissionError, f"{folder}: cannot be written"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            made = Path(temporary) / "pc"
            (made / KEYS_FOLDER).mkdir(parents=True, mode=0o700)
            keep_out_of_git(made)
            for name, content in _contents(file):
                write_atomic(made / name, content, private=True)
            Ledger(made / LEDGER_FILE, KeyStore(made).identity), load_owner(made / OWNER_FILE)
            with suppress(OSError):
                folder.rmdir()
            made.chmod(0o700)
            used = file.with_name(f"{file.name}.used")
            with os_errors_as(
                AdmissionError,
                f"{file}: cannot be deleted",
                ", and must not stay: copy it to this machine's disk, delete it there, and give "
                "the copy",
            ):
                file.rename(used)
            try:
                made.replace(folder)
            except OSError:
                used.rename(file)
                raise
            used.unlink()


def _contents(file: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(file) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            if not {OWNER_FILE, LEDGER_FILE} <= sizes.keys() <= set(_MOVED):
                raise AdmissionError(f"{file}: is not what `fedaipc client move-out` writes")
            for name, size in sizes.items():
                most = bounds.MAX_LEDGER if name == LEDGER_FILE else _MAX_BYTES
                if size > most:
                    raise AdmissionError(
                        f"{file}: {name} is too large: it may have at most {most:,} bytes"
                    )
            for name in sizes:
                yield name, archive.read(name)
    except FileNotFoundError:
        raise AdmissionError(f"{file}: no such file; give the one that move-out wrote") from None
    except OSError as error:
        raise AdmissionError(f"{file}: cannot be read ({error.strerror or 'damaged'})") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError):  # also of other methods
        raise AdmissionError(
            f"{file}: is damaged, or not what `fedaipc client move-out` writes; copy it again"
        ) from None
