"""Labelled texts, from a file or from memory, and which client holds which of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedaipc.api.scratch import Scratch
from fedaipc.config import ByColumn, DataSettings, Iid, Partition
from fedaipc.errors import ConfigError, DataError
from fedaipc.extras import need

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fedaipc.data.prepare import SimulatedData

_CLIENTS = 20
_SETTING = re.compile(r"--set data\.(\w+)=([\w-]+)")
_OWN = {"text_column": "text", "label_column": "label", "true": "True", "false": "False"}


class Data:
    """Labelled texts. `settings` are those of [data] in a config; `clients` is None before
    `partition` said how many there are. Nothing is read before it is needed.
    """

    def __init__(
        self, settings: DataSettings, clients: int | None = None, keep: object = None
    ) -> None:
        self.settings, self.clients = settings, clients
        self._keep = keep  # the folder of a table from memory, kept as long as this object
        self._prepared: SimulatedData | None = None

    def partition(
        self,
        kind: str | Partition | None = None,
        *,
        by: str | None = None,
        clients: int | None = None,
    ) -> Data:
        """Spread the records over clients: at random, by a column, or as `kind` says.

        `by` names the column whose values are the clients. With more values than `clients` some
        clients hold several of them; with fewer, values are spread over several clients, and
        `notes` says so. Without `clients` each value is one, up to 20. Raises ConfigError.
        """
        chosen = kind if kind is not None else Iid() if by is None else ByColumn()
        tree = self.settings.model_dump(exclude_none=True) | {"partition": chosen}
        if by is not None:
            tree["client_column"] = by
        settings = DataSettings(**tree)
        if by is not None and clients is None:
            from fedaipc.data.prepare import prepare_simulation

            with advice_in_python():
                groups = prepare_simulation(settings, 1).train.groups or ()
            clients = min(len(set(groups)), _CLIENTS)
        return Data(settings, clients or _CLIENTS, self._keep)

    @property
    def labels(self) -> tuple[str, ...]:
        """The public label list, in order. Reads the data; raises DataError."""
        return self._read().labels

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many records each client holds. Reads the data; raises DataError."""
        return tuple(len(part) for part in self._read().parts)

    @property
    def records(self) -> list[tuple[str, str]]:
        """Text and label of each record to train on. Reads the data; raises DataError."""
        train = self._read().train
        return list(zip(train.texts, train.labels, strict=True))

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out and why, and what looks odd, a line each.

        Holds labels and places, and no text. Reads the data; raises DataError.
        """
        return tuple(map(_as_python, self._read().notes))

    def rows(self) -> list[dict[str, Any]]:
        """The same records with the number of the client that holds each of them.

        Where a column says whose a record is, its value is there under the column's name.
        """
        data, column = self._read(), self.settings.client_column
        groups = data.train.groups if column is not None else None
        rows: list[dict[str, Any]] = []
        for client, part in enumerate(data.parts):
            for index in part:
                row = {"text": data.train.texts[index], "label": data.train.labels[index]}
                own = {} if column is None or groups is None else {column: groups[index]}
                rows.append({**row, **own, "client": client})
        return rows

    def to_pandas(self) -> Any:
        """`rows` as a data frame. Raises MissingExtra where pandas is not installed."""
        return as_frame(self.rows())

    def __len__(self) -> int:
        """How many records can be trained on: without those held back to validate and test."""
        return len(self._read().train)

    def __repr__(self) -> str:
        spread = "" if self.clients is None else f", {self.clients:,} clients"
        return f"Data({self.settings.source!r}{spread})"

    def _read(self) -> SimulatedData:
        from fedaipc.data.prepare import prepare_simulation

        if self._prepared is None:
            with advice_in_python():
                self._prepared = prepare_simulation(self.settings, self.clients or 1)
        return self._prepared


def load_data(source: Any, *, text: str = "text", label: str = "label", **settings: Any) -> Data:
    """Labelled texts: an asset, a file (.csv, .tsv, .jsonl, .parquet), a folder with a sub-folder
    of .txt files for each label, "hf:ID", a pandas or datasets table, or (text, label) pairs.

    `text` and `label` name columns; `settings` are further keys of [data], such as encoding,
    labels or test. Raises ConfigError or DataError.
    """
    keep = None
    if not isinstance(source, str | Path):
        keep = Scratch()
        source = _write(_columns(source, text, label), keep.folder / "in-memory.parquet")
    return Data(
        DataSettings(source=str(source), text_column=text, label_column=label, **settings),
        keep=keep,
    )


def fetch(asset: str) -> Path:
    """Where an asset lies on this machine, downloaded and checked if need be. Raises AssetError."""
    from fedaipc.data.assets import fetch_asset

    return fetch_asset(asset)


@contextmanager
def advice_in_python() -> Iterator[None]:
    """A DataError names what to give as `load_data` takes it, not as the command line does."""
    try:
        yield
    except DataError as error:
        raise DataError(_as_python(str(error))) from None


def _as_python(text: str) -> str:
    def own(found: re.Match[str]) -> str:
        key, value = found.groups()
        return f"{_OWN.get(key, key)}={_OWN.get(value, repr(value))}"

    return _SETTING.sub(own, text)


def as_frame(rows: list[dict[str, Any]]) -> Any:
    """A pandas data frame. Raises MissingExtra where pandas is not installed."""
    need("to_pandas (rows() has the same)", "pandas")
    import pandas as pd

    return pd.DataFrame(rows)


def _columns(table: Any, text: str, label: str) -> Mapping[str, Iterable[object]]:
    """Columns by name of a table in memory."""
    if hasattr(table, "to_dict") and hasattr(table, "columns"):  # pandas
        return dict(table.to_dict(orient="list"))
    if hasattr(table, "column_names"):  # datasets, pyarrow
        return {name: list(table[name]) for name in table.column_names}
    if isinstance(table, Mapping):
        return table
    try:
        texts, labels = zip(*table, strict=True)
    except (TypeError, ValueError):
        raise DataError(
            "give a path, a table with columns, or a list of (text, label) pairs"
        ) from None
    return {text: texts, label: labels}


def _write(columns: Mapping[str, Iterable[object]], path: Path) -> Path:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    from fedaipc.files import write_atomic

    try:
        table = pa.table({str(name): list(values) for name, values in columns.items()})
    except (pa.ArrowException, TypeError) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise ConfigError(f"the table cannot be read: {reason}") from None
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_atomic(path, buffer.getvalue(), private=True)
    return path
