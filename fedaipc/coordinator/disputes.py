"""Who is left out when two PCs contradict each other and nobody can tell which of them lies.

A dispute is a pair of PCs of which at least one breaks the rules: one says that the other's ledger
went back, or has no share of the other that fits. Honest PCs never dispute with each other.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def to_leave_out(disputes: Iterable[tuple[bytes, bytes]]) -> set[bytes]:
    """PCs without which no dispute is left: the one with most disputes goes first, of equals both.

    A liar that picks many victims is left out alone; one that picks a single victim takes it along.
    So a coalition costs about as many honest PCs as it has members, whatever it does.
    """
    left = {frozenset(pair) for pair in disputes}
    out: set[bytes] = set()
    while left:
        counts = Counter(pc for pair in left for pc in pair)
        most = max(counts.values())
        worst = {pc for pc, count in counts.items() if count == most}
        out |= worst
        left = {pair for pair in left if not pair & worst}
    return out
