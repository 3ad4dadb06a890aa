"""A PC's texts as a model reads them, kept in memory from round to round."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedaipc.data.reading import label_name
from fedaipc.data.sources import read_records
from fedaipc.files import expanded
from fedaipc.model.inputs import Inputs, make_inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from fedaipc.client.client import Client
    from fedaipc.data.reading import Reading
    from fedaipc.model.classifier import Classifier


def load(
    pc: Client,
    classifier: Classifier,
    labels: Sequence[str],
    on_reading: Callable[[Reading], None],
) -> tuple[Inputs, npt.NDArray[np.int64]]:
    """The PC's texts as model inputs and their class numbers, read once per process.

    `on_reading` hears what was read and what was left out. Raises DataError.
    """
    source = pc.source
    key = (str(pc.folder.resolve()), classifier.layout.hash, _stamp(source))
    if (found := kept.get(key)) is not None:
        return found
    # A record that cannot be read is left out, so that the others still count. So is one
    # whose label the job does not list. Failing instead would tell a coordinator that lies
    # about labels, without noise, whether the PC holds one.
    reading = read_records(source, pc.owner, labels=labels)
    on_reading(reading)
    records = reading.records
    number = {label_name(label): i for i, label in enumerate(labels)}
    targets = np.array([number[label] for label in records.labels], dtype=np.int64)
    if len(records):
        inputs = make_inputs(classifier, records.texts, cache_folder(pc))
    else:  # noise alone, as in any round whose sample is empty
        inputs = Inputs.nothing()
    kept.keep(key, (inputs, targets))
    return inputs, targets


def cache_folder(pc: Client) -> Path | None:
    """Where what the frozen layers make of its texts is kept; None where it is not."""
    speed = pc.owner.speed
    if not speed.cache_frozen:
        return None
    return pc.folder / "cache" if speed.cache_folder is None else Path(speed.cache_folder)


_Key = tuple[str, str, tuple[tuple[str, int, int], ...]]
_Examples = tuple[Inputs, "npt.NDArray[np.int64]"]


class Kept:
    """The newest PCs' examples; a simulation has one process for all. Files are mapped if large."""

    most_mapped, most_bytes = 256, 1 << 28

    def __init__(self) -> None:
        self._kept: OrderedDict[_Key, _Examples] = OrderedDict()
        self._mapped = self._bytes = 0

    def get(self, key: _Key) -> _Examples | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def keep(self, key: _Key, examples: _Examples) -> None:
        self._kept[key] = examples
        self._count(examples, 1)
        while self._mapped > self.most_mapped or self._bytes > self.most_bytes:
            self._count(self._kept.popitem(last=False)[1], -1)

    def _count(self, examples: _Examples, sign: int) -> None:
        rows = examples[0].rows
        if isinstance(rows, np.memmap):
            self._mapped += sign
        else:
            self._bytes += sign * (rows.nbytes + examples[1].nbytes)


kept = Kept()


def _stamp(source: str) -> tuple[tuple[str, int, int], ...]:
    """A mark that changes when a file, or one in a folder, is replaced."""
    path = expanded(source)
    found = []
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        with suppress(OSError):  # deleted, or a link to nowhere
            state = file.stat()
            found.append((str(file), state.st_mtime_ns, state.st_size))
    return tuple(found)
