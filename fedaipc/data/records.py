"""Texts with their labels. Their content never shows in a repr or an error."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from fedaipc.errors import DataError
from fedaipc.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


@dataclass(frozen=True, slots=True, repr=False)
class Records:
    """Columns of equal length. `groups` is what a partition by column looks at."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        return "Records()"

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Iterable[int]) -> Records:
        """The records at `indices`, in that order."""
        chosen = [int(i) for i in indices]
        return Records(
            tuple(self.texts[i] for i in chosen),
            tuple(self.labels[i] for i in chosen),
            None if self.groups is None else tuple(self.groups[i] for i in chosen),
        )

    def write_parquet(self, path: Path) -> None:
        """Write columns text, label and (where there are groups) group; owner-only. OSError."""
        columns = {"text": list(self.texts), "label": list(self.labels)}
        if self.groups is not None:
            columns["group"] = list(self.groups)
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer)
        write_atomic(path, buffer.getvalue(), private=True)

    @classmethod
    def read_parquet(cls, path: Path) -> Records:
        """Read what `write_parquet` wrote. Raises DataError."""
        try:
            table = pq.read_table(path)
            columns = {name: table[name].to_pylist() for name in table.column_names}
            groups = tuple(columns["group"]) if "group" in columns else None
            return cls(tuple(columns["text"]), tuple(columns["label"]), groups)
        except (OSError, KeyError, ValueError, pa.ArrowException):  # also broken UTF-8
            raise DataError(f"{path}: missing or damaged; prepare the run again") from None
