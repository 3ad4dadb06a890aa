"""Randomness that nobody outside this PC can predict.

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
_CHUNK = 1 << 16  # values at a time: few enough for the cache, enough for two threads to take turns
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
        result does not depend on the number of threads.
        """
        result = np.empty_like(values)
        blocks = [
            (slice(start, start + _BLOCK), self.key()) for start in range(0, len(values), _BLOCK)
        ]
        threads = max(1, min(torch.get_num_threads(), len(blocks)))

        def fill(first: int) -> None:
            buffer = _NoiseBuffer(min(_CHUNK, len(values)))
            for part, key in blocks[first::threads]:
                buffer.fill(_stream(key), values[part], result[part], deviation, spacing)

        if threads < 2:
            fill(0)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(fill, range(threads)))
        return result


def _stream(key: bytes) -> CipherContext:
    return Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()


class _NoiseBuffer:
    """Room for `count` values at a time, in one thread."""

    def __init__(self, count: int) -> None:
        self._half = half = (count + 1) // 2
        # torch's memory begins at multiples of 64, which vector instructions want.
        made = [
            torch.empty(n, dtype=torch.float64) for n in (2 * half + 2, 2 * half, half, 2 * half)
        ]
        self._torch_angle, self._torch_sine = made[1][half:], made[2]
        stream, self._noise, self._sine, self._whole = (one.numpy() for one in made)
        self._bytes = stream.view(np.uint8).data  # the cipher wants room for a block more
        self._words = stream.view("<u8")[: 2 * half]

    def fill(
        self,
        cipher: CipherContext,
        values: _Floats,
        result: _Floats,
        deviation: float,
        spacing: float,
    ) -> None:
        """Write `values` plus noise from the bytes of `cipher` into `result`."""
        half, size = self._half, 2 * self._half
        zeros = memoryview(_ZEROS)[: 8 * size]
        radius, angle, bits = self._noise[:half], self._noise[half:], self._words[half:]
        for start in range(0, len(values), size):
            part = values[start : start + size]
            cipher.update_into(zeros, self._bytes)
            np.add(self._words[:half], 0.5, out=radius)
            radius *= 2.0**-64  # uniform on (0, 1]
            np.log(radius, out=radius)
            radius *= -2.0 * (deviation / spacing) ** 2
            np.sqrt(radius, out=radius)
            bits >>= np.uint64(12)
            bits |= np.uint64(0x3FF << 52)  # as a double: uniform on [1, 2), in whole turns
            np.multiply(bits.view(np.float64), 2.0 * np.pi, out=angle)
            torch.sin(self._torch_angle, out=self._torch_sine)  # four times as fast as NumPy's
            torch.cos(self._torch_angle, out=self._torch_angle)
            angle *= radius
            radius *= self._sine
            np.rint(self._noise, out=self._noise)
            rounded = self._whole[: len(part)]
            np.multiply(part, 1.0 / spacing, dtype=np.float64, out=rounded)
            np.rint(rounded, out=rounded)
            rounded += self._noise[: len(part)]
            rounded *= spacing
            result[start : start + size] = rounded
