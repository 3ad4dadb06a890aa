"""A round's uploads on the coordinator's disk: its memory does not grow with their number."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from fedaipc.errors import EncodingError, OutputError, SecAggError, os_errors_as
from fedaipc.secagg.round_keys import KeyShares
from fedaipc.secagg.uploads import Upload

if TYPE_CHECKING:
    from pathlib import Path


class UploadStore:
    """Two files for each PC in `folder`, which is made empty. Every method raises OutputError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        with os_errors_as(OutputError, f"{folder}: cannot be made"):
            folder.mkdir(parents=True)

    def keep(self, uploader: bytes, frame: bytes) -> None:
        """An upload."""
        self._write(f"{uploader.hex()}.upload", frame)

    def keep_shares(self, sharer: bytes, frame: bytes) -> None:
        """What a PC shared out; a later one by the same PC replaces it."""
        self._write(f"{sharer.hex()}.shares", frame)

    def upload(self, uploader: bytes) -> Upload:
        content = self._read(f"{uploader.hex()}.upload")
        try:
            return Upload.decode(content)
        except (EncodingError, SecAggError):
            raise _damaged() from None

    def shares(self, sharer: bytes) -> KeyShares:
        content = self._read(f"{sharer.hex()}.shares")
        try:
            key_shares = KeyShares.decode(content)
            key_shares.check_hash()  # else its sharer would be blamed for a bad disk
        except (EncodingError, SecAggError):
            raise _damaged() from None
        return key_shares

    def remove(self) -> None:
        """All of it."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, name: str, frame: bytes) -> None:
        path = self._folder / name
        with os_errors_as(
            OutputError,
            f"{path}: the upload cannot be kept",
            "; free some space and continue with --resume",
        ):
            path.write_bytes(frame)

    def _read(self, name: str) -> bytes:
        path = self._folder / name
        with os_errors_as(OutputError, f"{path}: an upload is missing"):
            return path.read_bytes()


def _damaged() -> OutputError:
    return OutputError("an upload on the disk is damaged; continue with --resume")
