"""A folder that exists as long as an object does."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path


class Scratch:
    """`folder` is deleted once the object is, or when the program ends."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fedaipc-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
