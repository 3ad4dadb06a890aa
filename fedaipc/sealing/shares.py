"""Shamir's secret sharing of 32-byte keys (Shamir 1979).

Over the smallest prime above 2^256, so that every key is a field element as it is. With fewer
shares than the threshold every key is equally likely.
"""

from __future__ import annotations

import secrets
from functools import lru_cache
from typing import TYPE_CHECKING

from fedaipc.errors import SealingError

if TYPE_CHECKING:
    from collections.abc import Mapping

PRIME = 2**256 + 297
SHARE_BYTES = 33
SECRET_BYTES = 32


def split(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """`count` shares of 33 bytes; share number i (from 0) is the value at x = i + 1.

    Any `threshold` of them give `secret` (32 bytes) back, fewer tell nothing. Coefficients come
    from the operating system.
    """
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= count:
        raise ValueError("a secret has 32 bytes, a threshold lies in 1 to the number of shares")
    line = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    line.append(int.from_bytes(secret, "big"))
    shares = []
    for x in range(1, count + 1):
        value = 0
        for coefficient in line:  # x is small: reducing at the end of each step is cheap
            value = (value * x + coefficient) % PRIME
        shares.append(value.to_bytes(SHARE_BYTES, "big"))
    return shares


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret of these shares, by number from 0; as many as the threshold, no more are needed.

    Raises SealingError where they give no 32-byte secret. A wrong share that gives another one is
    found by the check value, not here.
    """
    weights = _weights(tuple(sorted(shares)))
    total = 0
    for number, weight in weights:
        value = int.from_bytes(shares[number], "big")
        if len(shares[number]) != SHARE_BYTES or value >= PRIME:
            raise SealingError(f"share {number} is no share")
        total += value * weight
    secret = total % PRIME
    if secret >> 256:
        raise SealingError("the shares belong to no key: one of them is wrong")
    return secret.to_bytes(SECRET_BYTES, "big")


@lru_cache(maxsize=64)
def _weights(numbers: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Lagrange's weights at 0 for these shares: one committee's are used for many keys."""
    found = []
    for own in numbers:
        above, below = 1, 1
        for other in numbers:
            if other != own:
                above = above * (other + 1) % PRIME
                below = below * (other - own) % PRIME
        found.append((own, above * pow(below, -1, PRIME) % PRIME))
    return tuple(found)
