"""Shamir's secret sharing of 32-byte keys (Shamir 1979).

Over the smallest prime above 2^256, so that every key is a field element as it is. With fewer
shares than the threshold every key is equally likely.
"""

from __future__ import annotations

import secrets
from functools import lru_cache
from typing import TYPE_CHECKING

from fedaipc.errors import SecAggError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PRIME = 2**256 + 297
SHARE_BYTES = 33
SECRET_BYTES = 32
_DRAW_BYTES = 48


def split_all(keys: Sequence[bytes], threshold: int, count: int) -> list[list[bytes]]:
    """`count` lists, one for each holder, of a 33-byte share of each key.

    Holder number i (from 0) has the values at x = i + 1. Any `threshold` shares of a key give its
    32 bytes back, fewer tell nothing. Coefficients come from the operating system.
    """
    if any(len(key) != SECRET_BYTES for key in keys) or not 1 <= threshold <= count:
        raise ValueError("a secret has 32 bytes, a threshold lies in 1 to the number of shares")
    # All polynomials side by side in one long integer, in lanes so wide that none runs over: a
    # step of Horner's rule is then one multiplication, and each lane is reduced once, at the end.
    lane = (
        8 * _DRAW_BYTES + (threshold - 1) * count.bit_length() + threshold.bit_length()
    ) // 8 + 1
    pad = bytes(lane - _DRAW_BYTES)
    powers = []
    for _ in range(threshold - 1):
        # 48 bytes modulo a 257-bit prime are within 2^-127 of uniform.
        random = secrets.token_bytes(_DRAW_BYTES * len(keys))
        draws = (random[i : i + _DRAW_BYTES] for i in range(0, len(random), _DRAW_BYTES))
        powers.append(int.from_bytes(b"".join(draw + pad for draw in draws), "little"))
    width = bytes(lane - SECRET_BYTES)
    powers.append(int.from_bytes(b"".join(key[::-1] + width for key in keys), "little"))
    found = []
    for x in range(1, count + 1):
        value = 0
        for coefficient in powers:
            value = value * x + coefficient
        lanes = value.to_bytes(lane * len(keys), "little")
        found.append(
            [
                (int.from_bytes(lanes[i : i + lane], "little") % PRIME).to_bytes(SHARE_BYTES, "big")
                for i in range(0, len(lanes), lane)
            ]
        )
    return found


def is_share(content: bytes) -> bool:
    """Whether it is a value of the field, in its one form."""
    return len(content) == SHARE_BYTES and int.from_bytes(content, "big") < PRIME


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret of these shares, by number from 0; as many as the threshold, no more are needed.

    Raises SecAggError where they give no 32-byte secret. A wrong share that gives another one is
    found by the check value, not here.
    """
    weights = _weights(tuple(sorted(shares)))
    total = 0
    for number, weight in weights:
        if not is_share(shares[number]):
            raise SecAggError(f"share {number} is not a share")
        total += int.from_bytes(shares[number], "big") * weight
    secret = total % PRIME
    if secret >> 256:
        raise SecAggError("the shares belong to no key: one of them is wrong")
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
