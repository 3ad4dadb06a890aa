"""Texts of one PC as model inputs. What the frozen layers make of a text is computed once.

Frozen states are as private as the text they come from: the file lies in the PC's own folder, with
owner-only rights. Ragged arrays are kept flat: text i owns rows offsets[i] to offsets[i + 1].
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedaipc.files import write_atomic
from fedaipc.model.base import base_hash
from fedaipc.model.classifier import Batch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy.typing as npt

    from fedaipc.model.classifier import Classifier

FREEZE_BATCH = 32  # rows; more are faster for many texts, and take longer to check
FREEZE_WIDTHS, _TRAIN_WIDTHS = 8, 4  # fewer fill the batches of a step, more pad less
_TEXTS_TOGETHER, _ROWS_TOGETHER = 8_000, 32_000  # of several PCs, frozen at once
_READ_WHOLE = 1 << 20  # bytes
_MAX_CHARACTERS = 64  # of a text for each token that it may have: more hardly ever matter


@dataclass(frozen=True, slots=True, repr=False)
class Inputs:
    """`rows` is token ids (N,), states (N, H), or pooled states (texts, H) without `offsets`.

    `most` is the public number of tokens at which texts are cut.
    """

    rows: npt.NDArray[np.int32] | npt.NDArray[np.float32]
    offsets: npt.NDArray[np.int64] | None
    most: int = 64

    @classmethod
    def nothing(cls) -> Inputs:
        """The inputs of a PC without a usable text."""
        return cls(np.zeros(0, dtype=np.int32), np.zeros(1, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.rows) if self.offsets is None else len(self.offsets) - 1

    @property
    def is_tokens(self) -> bool:
        return self.rows.ndim == 1

    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each text, shape (texts,)."""
        if self.offsets is None:
            return np.ones(len(self.rows), dtype=np.int64)
        return np.diff(self.offsets)

    def widths(self, widths: int = _TRAIN_WIDTHS) -> npt.NDArray[np.int64]:
        """How many tokens each text is padded to: by its own length alone, one of `widths`."""
        step = max(4, -(-self.most // widths))
        return np.minimum(-(-self.lengths().clip(1) // step) * step, max(self.most, 1))

    def batch(
        self,
        indices: npt.NDArray[np.int64],
        rows: int,
        device: torch.device,
        width: int | None = None,
    ) -> Batch:
        """The texts at `indices` in the first of `rows` rows of `width` tokens.

        By default all are of one width. The rows behind them are padding that stands for no text.
        """
        if self.offsets is None:
            pooled = np.zeros((rows, self.rows.shape[1]), dtype=np.float32)
            pooled[: len(indices)] = self.rows[indices]
            return Batch(torch.from_numpy(pooled).to(device), None)
        width = int(self.widths()[indices[0]]) if width is None else width
        start, length = self.offsets[indices], self.lengths()[indices]
        column = np.arange(width)
        there = column < length[:, None]
        kind = np.int64 if self.is_tokens else np.float32
        values = np.zeros((rows, width, *self.rows.shape[1:]), dtype=kind)
        values[: len(indices)][there] = self.rows[(start[:, None] + column)[there]]
        mask = np.zeros((rows, width), dtype=np.int64)
        mask[: len(indices)] = there
        mask[~mask.any(1), 0] = 1  # attention to no token would be NaN
        return Batch(torch.from_numpy(values).to(device), torch.from_numpy(mask).to(device))

    def batches(
        self,
        size: int,
        device: torch.device,
        chosen: npt.NDArray[np.int64] | None = None,
        widths: int = _TRAIN_WIDTHS,
    ) -> Iterator[tuple[npt.NDArray[np.int64], Batch]]:
        """The `chosen` texts (by default all), each once: (indices, batch of `batch_rows` rows).

        What a model computes for one text must not depend on which others are there, not even in
        the last bits, which hostile weights can blow up. So the shape of a batch follows from the
        text's own length and from public numbers: so many rows however few are filled, and the
        width of the text itself. The last row is always padding, because transformers leaves the
        mask out where a batch has none.
        """
        if chosen is None:
            chosen = np.arange(len(self))
        padded = self.widths(widths)[chosen]
        for width in np.unique(padded):
            alike, rows = chosen[padded == width], batch_rows(size)
            for start in range(0, len(alike), rows - 1):
                indices = alike[start : start + rows - 1]
                yield indices, self.batch(indices, rows, device, int(width))


def batch_rows(size: int) -> int:
    """Rows of a batch for a requested size of `size`: the next power of two, 2 at least.

    Matrix products compute the rows behind the last multiple of some block by another kernel, with
    other last bits: on two threads of an x86 rows 8 and 9 of 10. With a power of two there are few
    such kernels left; `settle_rows` finds out on this machine.
    """
    return max(2, 1 << (size - 1).bit_length())


def make_inputs(classifier: Classifier, texts: Sequence[str], cache_folder: Path | None) -> Inputs:
    """Tokenise `texts` and, with a cache folder, run them through the frozen layers once.

    The result is in `cache_folder` afterwards and read from there the next time. Where that cannot
    be written, pooled states are kept in memory alone. Other inputs are then tokens, as without a
    folder, and the frozen layers run in every step.
    """
    if cache_folder is None or not classifier.has_frozen_part:
        return _tokenise(classifier, texts)
    states, offsets = _files(classifier, texts, cache_folder)
    cached = _cached(classifier, states, offsets)
    if cached is None:
        tokens = _tokenise(classifier, texts)
        try:
            cache_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _freeze(classifier, tokens, states, offsets)
        except OSError:  # a full disk costs speed, not the round
            return _unwritten(classifier, tokens)
        cached = _cached(classifier, states, offsets) or _unwritten(classifier, tokens)
    return cached


def _unwritten(classifier: Classifier, tokens: Inputs) -> Inputs:
    """Inputs that need no file, in batches of shapes that `check_rows` has tried."""
    if not classifier.pooled:
        return tokens
    rows = np.empty((len(tokens), classifier.hf.config.hidden_size), np.float32)
    _fill(classifier, tokens, rows)
    return Inputs(rows, None, tokens.most)


def freeze_together(classifier: Classifier, parts: Iterable[tuple[Sequence[str], Path]]) -> None:
    """Do for many PCs what `make_inputs` does for one: for each the texts, and its cache folder.

    One PC's few texts would fill a batch with padding. The states are the same to the last bit,
    because a text's own do not depend on which others are in its batch. For simulations: over real
    PCs nobody has the texts of two. Raises OSError.
    """
    waiting: list[tuple[Inputs, Path, Path]] = []
    count = rows = 0
    for texts, folder in parts if classifier.has_frozen_part else ():
        states, offsets = _files(classifier, texts, folder)
        if len(texts) and _cached(classifier, states, offsets) is None:
            tokens = _tokenise(classifier, texts)
            waiting.append((tokens, states, offsets))
            count += len(tokens)
            rows += len(tokens) if classifier.pooled else len(tokens.rows)
        if count >= _TEXTS_TOGETHER or rows >= _ROWS_TOGETHER:
            _freeze_parts(classifier, waiting)
            waiting, count, rows = [], 0, 0
    _freeze_parts(classifier, waiting)


def _freeze_parts(classifier: Classifier, parts: Sequence[tuple[Inputs, Path, Path]]) -> None:
    if not parts:
        return
    tokens = _joined([part for part, _, _ in parts])
    width = classifier.hf.config.hidden_size
    rows = np.empty((len(tokens) if classifier.pooled else len(tokens.rows), width), np.float32)
    _fill(classifier, tokens, rows)
    start = 0
    for part, states, offsets in parts:
        end = start + (len(part) if classifier.pooled else len(part.rows))
        states.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(offsets, _saved(part.offsets), private=True)
        write_atomic(states, _saved(rows[start:end]), private=True)
        start = end


def _saved(values: npt.NDArray[Any] | None) -> bytes:
    content = io.BytesIO()
    np.save(content, np.asarray(values))
    return content.getvalue()


def _joined(parts: Sequence[Inputs]) -> Inputs:
    """The tokens of all parts, one after the other."""
    lengths = np.concatenate([part.lengths() for part in parts])
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return Inputs(np.concatenate([part.rows for part in parts]), offsets, parts[0].most)


def _files(classifier: Classifier, texts: Sequence[str], folder: Path) -> tuple[Path, Path]:
    """Where the cache has the states of these texts, and which rows each text has."""
    key = _key(classifier, texts)
    return folder / f"{key}.states.npy", folder / f"{key}.offsets.npy"


def _cached(classifier: Classifier, states: Path, offsets: Path) -> Inputs | None:
    """What the cache holds; None where a file is missing, cut short or cannot be read."""
    try:
        # A small file is read: thousands of simulated PCs would have as many files open.
        small = states.stat().st_size <= _READ_WHOLE
        rows, starts = np.load(states, mmap_mode=None if small else "r"), np.load(offsets)
    except (OSError, ValueError, EOFError):
        return None
    if len(rows) != (len(starts) - 1 if classifier.pooled else starts[-1]):
        return None
    return Inputs(rows, None if classifier.pooled else starts, classifier.settings.max_length)


def longest_input(classifier: Classifier, *, cached: bool) -> Inputs:
    """One text of the greatest length, without meaning: any text needs at most what it needs."""
    most = classifier.settings.max_length
    offsets = np.array([0, most])
    tokens = Inputs(np.zeros(most, dtype=np.int32), offsets, most)
    if not (cached and classifier.has_frozen_part):
        return tokens
    batch = tokens.batch(np.zeros(1, dtype=np.int64), batch_rows(FREEZE_BATCH), classifier.device)
    states = classifier.freeze_through(batch).values.cpu().numpy()
    return Inputs(states[:1], None, most) if classifier.pooled else Inputs(states[0], offsets, most)


def cut_characters(texts: Sequence[str], max_length: int) -> list[str]:
    """The beginnings of `texts` that `max_length` tokens are taken from.

    Tokenizers read a text to its end: one of 20 MB takes gigabytes.
    """
    return [text[: _MAX_CHARACTERS * max_length] for text in texts]


def _tokenise(classifier: Classifier, texts: Sequence[str]) -> Inputs:
    encoded = classifier.tokenizer(
        cut_characters(texts, classifier.settings.max_length),
        truncation=True,
        max_length=classifier.settings.max_length,
        return_attention_mask=False,
        return_token_type_ids=False,
    )["input_ids"]
    offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
    np.cumsum([len(ids) for ids in encoded], out=offsets[1:])
    rows = np.fromiter((i for ids in encoded for i in ids), dtype=np.int32, count=offsets[-1])
    return Inputs(rows, offsets, classifier.settings.max_length)


def _freeze(classifier: Classifier, tokens: Inputs, states: Path, offsets: Path) -> None:
    """Write the frozen states of `tokens`; each file appears whole or not at all.

    Raises OSError where there is no room: all of it is claimed before the first row is written,
    because a mapped file on a full disk would end the process instead.
    """
    assert tokens.offsets is not None  # noqa: S101 - tokens are always ragged
    width = classifier.hf.config.hidden_size
    count = len(tokens) if classifier.pooled else len(tokens.rows)
    # mkstemp gives owner-only rights from the first byte on.
    handle, name = tempfile.mkstemp(dir=states.parent, prefix=".states.")
    os.close(handle)
    try:
        rows = np.lib.format.open_memmap(name, mode="w+", dtype=np.float32, shape=(count, width))
        if hasattr(os, "posix_fallocate"):
            with Path(name).open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, Path(name).stat().st_size)
        _fill(classifier, tokens, rows)
        rows.flush()
        del rows
        write_atomic(offsets, _saved(tokens.offsets), private=True)
        Path(name).replace(states)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _fill(classifier: Classifier, tokens: Inputs, rows: npt.NDArray[np.float32]) -> None:
    """Write the frozen states of `tokens` into `rows`: one for each text, or for each token."""
    assert tokens.offsets is not None  # noqa: S101 - tokens are always ragged
    lengths = tokens.lengths()
    batches = tokens.batches(FREEZE_BATCH, classifier.device, widths=FREEZE_WIDTHS)
    for indices, batch in batches:
        result = classifier.freeze_through(batch)
        values = result.values[: len(indices)].cpu().numpy()
        if result.mask is None:
            rows[indices] = values
        else:
            for index, value, length in zip(indices, values, lengths[indices], strict=True):
                start = tokens.offsets[index]
                rows[start : start + length] = value[:length]


def _key(classifier: Classifier, texts: Sequence[str]) -> str:
    settings = classifier.settings
    digest = hashlib.sha256(
        f"{base_hash(settings.base, settings.keep_layers)} {classifier.cut} "
        f"{classifier.pooled} {settings.max_length} {classifier.device.type} "
        f"{classifier.half_precision} {classifier.by_record} {torch.get_num_threads()} "
        f"{FREEZE_BATCH} {FREEZE_WIDTHS}".encode()
    )
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()[:32]
