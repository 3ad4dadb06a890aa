"""The generator against AES itself, the Gaussian law and a slow way with one number at a time.

Statistical checks reject what a right generator gives with probability 1e-6 (two-sided, |z| < 4.9);
the keys are fixed, so that a check which passed once always passes.
"""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from fedaipc.privacy import randomness
from fedaipc.privacy.randomness import SecureRandom

KEY = bytes(range(32))
FALSE_ALARM = 1e-6
Z = 4.9


def key_stream(key: bytes, blocks: int) -> bytes:
    """Counter mode spelt out: each counter, 16 bytes big-endian, through AES-256 alone."""
    aes = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()
    return b"".join(aes.update(number.to_bytes(16, "big")) for number in range(blocks))


def gaussian_faults(values: np.ndarray, deviation: float) -> list[str]:
    """What is wrong with `values` as independent draws of N(0, deviation^2)."""
    count = len(values)
    scaled = values / deviation
    found = {
        "mean": scaled.mean() * math.sqrt(count),
        "variance": (np.mean(scaled**2) - 1) * math.sqrt(count / 2),
        "skew": stats.skew(scaled) * math.sqrt(count / 6),
        "kurtosis": stats.kurtosis(scaled) * math.sqrt(count / 24),
        "neighbours": np.mean(scaled[1:] * scaled[:-1]) * math.sqrt(count - 1),
        "squares of neighbours": np.mean((scaled[1:] ** 2 - 1) * (scaled[:-1] ** 2 - 1))
        * math.sqrt((count - 1) / 4),
    }
    faults = [name for name, z in found.items() if not abs(z) < Z]
    if stats.kstest(scaled, "norm").pvalue < FALSE_ALARM:
        faults.append("distribution")
    return faults


def test_the_stream_gives_the_published_first_block() -> None:
    # NIST AESAVS, appendix B to E: AES-256, key and plaintext (here: counter) all zero.
    expected = bytes.fromhex("dc95c078a2408989ad48a21492842087")
    assert SecureRandom(bytes(32)).uint64(2).astype("<u8").tobytes() == expected


def test_the_stream_is_aes_256_in_counter_mode_across_calls_of_odd_length() -> None:
    stream = SecureRandom(KEY)
    words = np.concatenate([stream.uint64(count) for count in (1, 2, 0, 5, 32)])
    assert words.dtype == np.uint64
    assert words.astype("<u8").tobytes() == key_stream(KEY, 20)


def test_two_streams_of_the_operating_system_differ() -> None:
    # Equal by chance: 2^-256.
    assert not np.array_equal(SecureRandom().uint64(4), SecureRandom().uint64(4))


def test_the_key_is_32_bytes_of_the_operating_systems_randomness(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def token_bytes(count: int) -> bytes:
        asked.append(count)
        return KEY[:count]

    monkeypatch.setattr("fedaipc.privacy.randomness.secrets.token_bytes", token_bytes)
    assert SecureRandom().uint64(2).astype("<u8").tobytes() == key_stream(KEY, 1)
    assert asked == [32]


def test_test_streams_repeat_and_every_label_counts() -> None:
    first = SecureRandom.for_test(7, "pc-1", 3).uint64(4)
    assert np.array_equal(first, SecureRandom.for_test(7, "pc-1", 3).uint64(4))
    others: list[tuple[Any, ...]] = [
        (8, "pc-1", 3),
        (7, "pc-2", 3),
        (7, "pc-1", 4),
        (7, "pc-1"),
        (7, "pc-13"),
    ]
    others += [(7 + 2**32, "pc-1", 3)]  # torch's CPU generator cannot tell these two apart
    for seed, *labels in others:
        assert not np.array_equal(first, SecureRandom.for_test(seed, *labels).uint64(4))


def test_a_repr_tells_nothing() -> None:
    assert repr(SecureRandom(KEY)) == "SecureRandom()"


def normal(
    stream: SecureRandom, count: int, deviation: float, spacing: float = 2.0**-30
) -> np.ndarray:
    """Noise alone."""
    return stream.noisy(np.zeros(count), deviation, spacing)


def test_noise_is_gaussian() -> None:
    assert gaussian_faults(normal(SecureRandom(KEY), 1_000_000, 2.5), 2.5) == []


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_a_deviation_three_percent_off_is_rejected_twice(factor: float) -> None:
    faults = gaussian_faults(normal(SecureRandom(KEY), 1_000_000, 2.5 * factor), 2.5)
    assert {"variance", "distribution"} <= set(faults)


def test_other_laws_and_dependent_draws_are_rejected() -> None:
    noise = normal(SecureRandom(KEY), 500_000, 1.0)
    assert "mean" in gaussian_faults(noise + 0.01, 1.0)
    uniform = (SecureRandom(KEY).uint64(500_000) / 2.0**64 - 0.5) * math.sqrt(12)
    assert {"kurtosis", "distribution"} <= set(gaussian_faults(uniform, 1.0))
    assert "neighbours" in gaussian_faults(np.repeat(noise[::2], 2), 1.0)
    signs = np.where(SecureRandom(bytes(32)).uint64(500_000) & np.uint64(1), 1.0, -1.0)
    same_size = np.repeat(noise[::2], 2) * signs
    assert "squares of neighbours" in gaussian_faults(same_size, 1.0)


@pytest.mark.parametrize(
    ("count", "chunk", "block"),
    [(1, 8, 64), (2, 8, 64), (7, 8, 64), (8, 8, 64), (21, 4, 64), (30, 4, 10), (64, 8, 16)],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_noise_equals_the_slow_way(
    count: int, chunk: int, block: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draw by draw in plain Python; each block from a key of its own, whatever the threads."""
    monkeypatch.setattr(randomness, "_CHUNK", chunk)
    monkeypatch.setattr(randomness, "_BLOCK", block)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    keys, expected = key_stream(KEY, 200), []
    for number in range(-(-count // block)):
        left = min(block, count - number * block)
        stream = iter(np.frombuffer(key_stream(keys[32 * number :][:32], 200), dtype="<u8"))
        half = (min(chunk, left) + 1) // 2
        while left > 0:
            radii = [(int(next(stream)) + 0.5) / 2**64 for _ in range(half)]
            turns = [(int(next(stream)) >> 12) / 2**52 for _ in range(half)]
            polar = [
                (math.sqrt(-2 * math.log(radius)), 2 * math.pi * turn)
                for radius, turn in zip(radii, turns, strict=True)
            ]
            values = [r * math.sin(a) for r, a in polar] + [r * math.cos(a) for r, a in polar]
            expected += values[:left]
            left -= 2 * half
    got = SecureRandom(KEY).noisy(np.zeros(count), 3.0, 2.0**-40)
    assert got == pytest.approx([3.0 * value for value in expected], rel=1e-9, abs=2.0**-40)


@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_what_leaves_is_the_rounded_value_plus_whole_steps_of_the_lattice(kind: str) -> None:
    rng = np.random.default_rng(0)
    values, spacing = rng.normal(0, 40, 10_000).astype(kind), 2.0**-6
    got = SecureRandom(KEY).noisy(values, 3.0, spacing)
    alone = SecureRandom(KEY).noisy(np.zeros_like(values), 3.0, spacing)
    assert got.dtype == values.dtype
    for each in (got, alone):
        assert np.array_equal(each / spacing, np.rint(each / spacing))
    assert np.array_equal(got - alone, np.rint(values / spacing) * spacing)


def test_nothing_gets_no_noise() -> None:
    assert len(SecureRandom(KEY).noisy(np.zeros(0), 1.0, 2.0**-20)) == 0


def test_noise_on_a_coarse_lattice_is_the_rounded_gaussian() -> None:
    """Cell by cell: each multiple of the spacing as often as the Gaussian falls into its cell."""
    steps = np.rint(normal(SecureRandom(KEY), 1_000_000, 1.0, 0.5) / 0.5).astype(int)
    cells = np.arange(-7, 8)
    found = [np.sum(steps == cell) for cell in cells] + [np.sum(abs(steps) > 7)]
    edges = stats.norm.cdf((cells[:, None] + [-0.5, 0.5]) * 0.5)
    shares = list(edges[:, 1] - edges[:, 0])
    expected = np.array([*shares, 1 - sum(shares)]) * 1_000_000
    assert stats.chisquare(found, expected).pvalue > FALSE_ALARM
    assert stats.chisquare(found, np.roll(expected, 1)).pvalue < FALSE_ALARM


@pytest.mark.parametrize(("word", "radius"), [(0, 9.49), (2**64 - 1, 0.0)])
def test_the_first_and_last_random_words_give_finite_noise(word: int, radius: float) -> None:
    class Given:
        def update_into(self, zeros: memoryview, stream: memoryview) -> None:
            np.frombuffer(stream, "<u8")[: len(zeros) // 8] = np.uint64(word)

    stream: Any = Given()
    result = np.empty(4)
    randomness._NoiseBuffer(4).fill(stream, np.zeros(4), result, 1.0, 2.0**-40)
    assert np.hypot(result[0], result[2]) == pytest.approx(radius, abs=0.01)


class Words(SecureRandom):
    """A stream of given words."""

    def __init__(self, *words: int) -> None:
        self._words = words

    def uint64(self, count: int) -> np.ndarray:
        return np.array(self._words[:count], dtype=np.uint64)


def test_sampling_decides_at_the_exact_threshold() -> None:
    assert Words(2**63 - 1, 2**63, 0).poisson_sample(3, 0.5).tolist() == [0, 2]
    assert Words(0, 2**64 - 1).poisson_sample(2, 1.0).tolist() == [0, 1]
    assert Words(0, 1).poisson_sample(2, 2.0**-64).tolist() == [0]
    assert Words(0).poisson_sample(1, 2.0**-65).tolist() == []  # rounded down, never up


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.937])
def test_sampling_has_the_rate_and_is_independent(rate: float) -> None:
    count = 400_000
    present = np.zeros(count, dtype=bool)
    present[SecureRandom(KEY).poisson_sample(count, rate)] = True
    assert stats.binomtest(int(present.sum()), count, rate).pvalue > FALSE_ALARM
    both = int((present[::2] & present[1::2]).sum())
    assert stats.binomtest(both, count // 2, rate**2).pvalue > FALSE_ALARM
    # The same test rejects a rate that is wrong.
    assert stats.binomtest(int(present.sum()), count, min(1, rate * 1.35)).pvalue < FALSE_ALARM


def test_the_size_of_a_sample_varies_as_a_binomial_does() -> None:
    # 2000 samples of 200 at rate 0.3: a sampler of fixed size, or one that shuffles, has none.
    stream = SecureRandom(KEY)
    sizes = np.array([len(stream.poisson_sample(200, 0.3)) for _ in range(2000)])
    statistic = sizes.var(ddof=1) * 1999 / (200 * 0.3 * 0.7)
    low, high = stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], 1999)
    assert low < statistic < high


def test_sample_at_rate_one_holds_everything_and_of_nothing_nothing() -> None:
    assert SecureRandom(KEY).poisson_sample(50, 1.0).tolist() == list(range(50))
    assert SecureRandom(KEY).poisson_sample(0, 0.5).tolist() == []


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.0000001, math.nan])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        SecureRandom(KEY).poisson_sample(5, rate)


def test_no_global_generator_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    before = (np.random.get_state()[1].tobytes(), random.getstate(), torch.get_rng_state())  # noqa: NPY002
    monkeypatch.setattr(torch, "Generator", None)
    stream = SecureRandom()
    normal(stream, 1000, 1.0)
    stream.poisson_sample(1000, 0.5)
    normal(SecureRandom.for_test(1, "a"), 10, 1.0)
    assert before[0] == np.random.get_state()[1].tobytes()  # noqa: NPY002
    assert before[1] == random.getstate()
    assert torch.equal(before[2], torch.get_rng_state())
