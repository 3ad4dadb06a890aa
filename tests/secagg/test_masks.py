"""Key streams against AES itself, and masks that hide and cancel."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from fedaipc.secagg import masks
from fedaipc.secagg.masks import add_masks

ONE, TWO, THREE = (bytes([number]) * 32 for number in (1, 2, 3))


def stream(key: bytes, count: int) -> bytes:
    """Counter mode spelt out: each counter, 16 bytes big-endian, through AES-256 alone."""
    aes = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()
    blocks = -(-count // 16)
    return b"".join(aes.update(i.to_bytes(16, "big")) for i in range(blocks))[:count]


def test_the_stream_is_the_published_one() -> None:
    # NIST SP 800-38A, F.5.5 CTR-AES256.Encrypt, with its counter in place of ours.
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    plain = bytes.fromhex("6bc1bee22e409f96e93d7e117393172a")
    cipher = Cipher(algorithms.AES256(key), modes.CTR(counter)).encryptor()
    assert cipher.update(plain) == bytes.fromhex("601ec313775789a5b7a7f504bbf3d228")


@pytest.mark.parametrize("dtype", ["<u4", "<u2"])
@pytest.mark.parametrize("size", [0, 1, 3, 1000, 65_536, 65_537, 600_001])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_masks_are_added_and_subtracted_in_the_ring(dtype: str, size: int, threads: int) -> None:
    start = np.arange(size).astype(dtype) * 7919
    vector = start.copy()
    add_masks(vector, [ONE, TWO], [THREE], threads=threads)
    words = [np.frombuffer(stream(k, vector.nbytes), dtype) for k in (ONE, TWO, THREE)]
    assert np.array_equal(vector, start + words[0] + words[1] - words[2])
    add_masks(vector, [THREE], [TWO, ONE], threads=threads)
    assert np.array_equal(vector, start)


def test_how_work_is_divided_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.zeros(700_000, "<u4")
    add_masks(whole, [ONE], [TWO], threads=1)
    for chunk, threads in ((1 << 12, 2), (1 << 16, 5), (1 << 22, 2)):
        monkeypatch.setattr(masks, "_CHUNK", chunk)
        vector = np.zeros(700_000, "<u4")
        add_masks(vector, [ONE], [TWO], threads=threads)
        assert np.array_equal(vector, whole)


@pytest.mark.parametrize("value", [0, 1, 2**32 - 1])
def test_masked_values_look_uniform_whatever_they_are(value: int) -> None:
    vector = np.full(200_000, value, dtype="<u4")
    add_masks(vector, [ONE])
    counts = np.bincount(vector.view(np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-6
    assert abs(np.corrcoef(vector[1:], vector[:-1])[0, 1]) < 4.9 / np.sqrt(len(vector))


def test_a_vector_of_another_kind_is_refused() -> None:
    for wrong in (np.zeros(4, ">u4"), np.zeros(4, "<u8"), np.zeros(8, "<u4")[::2]):
        with pytest.raises(ValueError, match="little-endian"):
            add_masks(wrong, [ONE])
