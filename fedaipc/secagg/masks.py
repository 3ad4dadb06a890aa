"""Masks: AES-256-CTR key streams that are added to a vector of ring elements.

A key is used for one stream in one round and never again, so the counter starts at 0 (NIST SP
800-38A). Words are little-endian on every machine.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    Words = npt.NDArray[Any]

KEY_BYTES = 32
_BLOCK = 16
_CHUNK = 1 << 19  # bytes: stream and vector stay in the second-level cache


def add_masks(
    vector: Words, plus: Sequence[bytes], minus: Sequence[bytes] = (), *, threads: int = 0
) -> None:
    """Add the key streams of `plus` and subtract those of `minus`, in place and modulo the ring.

    `vector` has shape (size,), little-endian words of 2 or 4 bytes; a key has 32 bytes. `threads`
    0 means one for each CPU that this process may use. Each chunk gets all its streams while it is
    in the cache: the vector is read and written once.
    """
    if not vector.flags.c_contiguous or vector.dtype not in (np.dtype("<u4"), np.dtype("<u2")):
        raise ValueError("vector must be contiguous, of little-endian 2- or 4-byte words")
    in_parts(
        vector.nbytes, _CHUNK, lambda start, end: _add(vector, plus, minus, start, end), threads
    )


def in_parts(size: int, chunk: int, work: Callable[[int, int], None], threads: int = 0) -> None:
    """Call `work(start, end)` so that it covers 0 to `size`, in several threads where it pays.

    Starts are multiples of `chunk`. AES and numpy's loops let other threads run.
    """
    workers = threads or _cpus()
    if workers == 1 or size <= 4 * chunk:
        work(0, size)
        return
    share = -(-size // workers // chunk) * chunk
    ends = [(start, min(start + share, size)) for start in range(0, size, share)]
    with ThreadPoolExecutor(len(ends)) as pool:
        for done in [pool.submit(work, *end) for end in ends]:
            done.result()


def _add(
    vector: Words, plus: Sequence[bytes], minus: Sequence[bytes], start: int, end: int
) -> None:
    """Bytes [start, end) of the vector; `start` is a multiple of the chunk."""
    counter = (start // _BLOCK).to_bytes(_BLOCK, "big")
    streams = [
        (sign, Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor())
        for sign, keys in ((np.add, plus), (np.subtract, minus))
        for key in keys
    ]
    longest = min(_CHUNK, end - start)
    zeros, stream = bytes(longest), bytearray(longest + _BLOCK)
    words = np.frombuffer(stream, vector.dtype)
    width = vector.itemsize
    for place in range(start, end, _CHUNK):
        size = min(_CHUNK, end - place)
        part = vector[place // width : (place + size) // width]
        for sign, encryptor in streams:
            encryptor.update_into(zeros[:size] if size < longest else zeros, stream)
            sign(part, words[: len(part)], out=part)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
