"""A round's uploads on the coordinator's disk: its memory does not grow with their number."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, BinaryIO

from fedaipc.errors import EncodingError, OutputError, SecAggError, os_errors_as
from fedaipc.secagg.uploads import Upload, blob_bytes

if TYPE_CHECKING:
    from pathlib import Path


class UploadStore:
    """One file for each PC in `folder`, which is made empty. Every method raises OutputError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[bytes, BinaryIO] = {}  # of the group that is being unmasked
        shutil.rmtree(folder, ignore_errors=True)
        with os_errors_as(OutputError, f"{folder}: cannot be made"):
            folder.mkdir(parents=True)

    def keep(self, uploader: bytes, frame: bytes) -> None:
        path = self._folder / uploader.hex()
        with os_errors_as(
            OutputError,
            f"{path}: the upload cannot be kept",
            "; free some space and continue with --resume",
        ):
            path.write_bytes(frame)

    def upload(self, uploader: bytes) -> Upload:
        """All of it."""
        return _decoded(self._read(uploader, 0, -1))

    def lists(self, uploader: bytes, count: int) -> Upload:
        """Everything except the vector, which is empty; `count` PCs are in the group."""
        front = self._read(uploader, 0, Upload.blobs_start(count) + count * blob_bytes(count))
        return _decoded(front + bytes(4))  # a vector of length 0

    def blob(self, uploader: bytes, place: int, count: int) -> bytes:
        """What is sealed for the member at `place` of `count`."""
        size = blob_bytes(count)
        return self._read(uploader, Upload.blobs_start(count) + place * size, size)

    def close(self) -> None:
        """Close all files that were read; any can be read again."""
        for file in self._open.values():
            file.close()
        self._open.clear()

    def remove(self) -> None:
        """All of it."""
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, uploader: bytes, start: int, size: int) -> bytes:
        path = self._folder / uploader.hex()
        with os_errors_as(OutputError, f"{path}: an upload is missing"):
            if uploader not in self._open:
                self._open[uploader] = path.open("rb", buffering=0)
            self._open[uploader].seek(start)
            return self._open[uploader].read(size)


def _decoded(content: bytes) -> Upload:
    try:
        return Upload.decode(content)
    except (EncodingError, SecAggError):
        raise OutputError("an upload on the disk is damaged; continue with --resume") from None
