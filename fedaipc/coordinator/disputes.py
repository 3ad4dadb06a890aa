"""Who is left out when two PCs contradict each other and nobody can tell which of them lies.

A dispute is a pair of PCs of which at least one breaks the rules: one says that the other's ledger
went back, or has no share of the other that fits. Honest PCs never dispute with each other.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


def to_leave_out(
    disputes: Iterable[tuple[bytes, bytes]], out: Collection[bytes], colluding: int
) -> set[bytes]:
    """PCs without which no dispute is left, beside those that are `out` already.

    One that disputes with more PCs than may be `colluding` is wrong, and goes alone. Of any other
    dispute both go. So each colluding PC takes at most one honest PC along, whatever it does.
    """
    pairs = sorted({(min(pair), max(pair)) for pair in disputes})
    counts = Counter(pc for pair in pairs for pc in pair)
    found = {pc for pc, count in counts.items() if count > colluding} - set(out)
    for pair in pairs:
        if not {*out, *found}.intersection(pair):
            found |= set(pair)
    return found
