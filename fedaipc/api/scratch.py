"""A folder that lives as long as somebody has the object."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path


class Scratch:
    """`folder` is gone once the object is, or the program ends."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fedaipc-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
