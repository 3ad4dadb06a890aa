"""Randomness that nobody but this PC can predict.

Noise and sampling must come from a cryptographic generator: torch's CPU generator keeps 32 bits of
its seed, so that noise drawn from it could be enumerated and subtracted. Here AES-256 in counter
mode (NIST SP 800-38A) expands a key from the operating system.
"""

from __future__ import annotations

import hashlib
import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

if TYPE_CHECKING:
    import numpy.typing as npt

    _Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]

_BLOCK = 1 << 18  # values of noise from one key
_CHUNK = 1 << 14  # values at a time: the working set stays in the second-level cache
_ZEROS = bytes(8 * _CHUNK)


class SecureRandom:
    """A stream of AES-256-CTR output. Never shared between purposes, never saved."""

    def __init__(self, key: bytes | None = None) -> None:
        """`key`: 32 bytes, only for tests; the default asks the operating system."""
        self._stream = _stream(key or secrets.token_bytes(32))

    @classmethod
    def for_test(cls, seed: int, *labels: object) -> SecureRandom:
        """A repeatable stream: whoever knows the seed can remove the noise. NOT PRIVATE."""
        text = "\x1f".join(["fedaipc insecure test seed", str(seed), *map(str, labels)])
        return cls(hashlib.sha256(text.encode()).digest())

    def __repr__(self) -> str:
        return "SecureRandom()"

    def uint64(self, count: int) -> npt.NDArray[np.uint64]:
        """`count` uniform words of 64 bits, read as little-endian on every machine."""
        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8").astype(
            np.uint64, copy=False
        )

    def key(self) -> bytes:
        """32 bytes, for a stream of another purpose."""
        return self._stream.update(bytes(32))

    def poisson_sample(self, count: int, rate: float) -> npt.NDArray[np.int64]:
        """Indices below `count`, each present independently with probability `rate`.

        Exact to 2^-64, and never above `rate`: a rate is a float, hence a multiple of 2^-64 but
        for tiny ones, which are rounded down.
        """
        if not 0 < rate <= 1:
            raise ValueError("rate must lie in (0, 1]")
        words = self.uint64(count)
        threshold = int(rate * 2.0**64)
        present = words <= np.uint64(threshold - 1) if threshold else np.zeros(count, dtype=bool)
        return np.flatnonzero(present)

    def noisy(self, values: _Floats, deviation: float, spacing: float) -> _Floats:
        """`values` plus Gaussian noise, both rounded to multiples of `spacing`; a new array.

        Value and noise are whole multiples of `spacing` before they are added, and their sum is
        exact: so this is Gaussian noise on rounded values, itself rounded, and the uneven gaps
        between floating-point numbers that Mironov (CCS 2012) exploits do not occur. Only then is
        it rounded to the type of `values`. Noise is by Box and Muller in double precision, with 64
        random bits for each radius and 52 for each angle; its tails end at 9.4 deviations.

        `values` is flat, float32 or float64. `spacing` is a power of two; every value and ten
        deviations lie below 2^52 of it. Each block of 2^18 values has a key of its own, so the
        result does not hang on the number of threads.
        """
        result = np.empty_like(values)
        starts = range(0, len(values), _BLOCK)
        keys = [self.key() for _ in starts]

        def fill(start: int, key: bytes) -> None:
            part = slice(start, start + _BLOCK)
            _fill(_stream(key), values[part], result[part], deviation, spacing)

        if len(keys) == 1:
            fill(0, keys[0])
            return result
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(fill, starts, keys))
        return result


def _stream(key: bytes) -> CipherContext:
    return Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()


def _fill(
    cipher: CipherContext, values: _Floats, result: _Floats, deviation: float, spacing: float
) -> None:
    """Write `values` plus noise from the bytes of `cipher` into `result`."""
    half = (min(_CHUNK, len(values)) + 1) // 2
    size, zeros = 2 * half, memoryview(_ZEROS)[: 16 * half]
    stream = bytearray(8 * size + 16)  # the cipher wants room for a block more
    words = np.frombuffer(stream, dtype="<u8", count=size)
    noise, sine, whole = np.empty(size), np.empty(half), np.empty(size)
    radius, angle = noise[:half], noise[half:]
    turned, turned_sine = torch.from_numpy(angle), torch.from_numpy(sine)
    for start in range(0, len(values), size):
        part = values[start : start + size]
        cipher.update_into(zeros, stream)
        np.add(words[:half], 0.5, out=radius)
        radius *= 2.0**-64  # uniform on (0, 1]
        np.log(radius, out=radius)
        radius *= -2.0 * (deviation / spacing) ** 2
        np.sqrt(radius, out=radius)
        bits = words[half:]
        bits >>= np.uint64(12)
        bits |= np.uint64(0x3FF << 52)  # as a double: uniform on [1, 2), in whole turns
        np.multiply(bits.view(np.float64), 2.0 * np.pi, out=angle)
        torch.sin(turned, out=turned_sine)  # four times as fast as NumPy's
        torch.cos(turned, out=turned)
        angle *= radius
        radius *= sine
        np.rint(noise, out=noise)
        rounded = whole[: len(part)]
        np.multiply(part, 1.0 / spacing, dtype=np.float64, out=rounded)
        np.rint(rounded, out=rounded)
        rounded += noise[: len(part)]
        rounded *= spacing
        result[start : start + size] = rounded
