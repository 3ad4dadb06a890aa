"""Which simulated PC holds which record. Deterministic in the public `data.seed`."""

from __future__ import annotations

import heapq
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from fedaipc.config import Dirichlet, Iid, Skewed
from fedaipc.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt

    from fedaipc.config import DataSettings
    from fedaipc.data.records import Records

    Part = npt.NDArray[np.int64]


def partition(records: Records, settings: DataSettings, pcs: int) -> tuple[Part, ...]:
    """Indices into `records` for each of `pcs` PCs; each record goes to exactly one.

    iid: at random, sizes equal to within one. skewed: at random, sizes fall as rank to minus
    `power`. dirichlet: each label by shares of its own. column: by `records.groups`, whole
    values per PC where there are at least as many values as PCs. Otherwise each PC has part of
    one value.

    Raises DataError where a PC would be left without a record, or a column without values.
    """
    if len(records) < pcs:
        raise DataError(
            f"{len(records):,} training records cannot be spread over {pcs:,} PCs; set "
            f"federation.clients to {len(records)} or less"
        )
    kind, random = settings.partition, np.random.default_rng([settings.seed, 1])
    if isinstance(kind, Iid):
        parts = _deal(random.permutation(len(records)), np.ones(pcs))
    elif isinstance(kind, Skewed):
        shares = np.arange(1, pcs + 1, dtype=float) ** -kind.power
        parts = _deal(random.permutation(len(records)), shares)
    elif isinstance(kind, Dirichlet):
        parts = _by_dirichlet(records, kind.alpha, pcs, random)
    else:
        parts = _by_column(records, pcs, random)
    if any(len(part) == 0 for part in parts):
        key = "a larger data.partition.alpha"
        cure = key if isinstance(kind, Dirichlet) else "a smaller data.partition.power"
        raise DataError(
            f"partition {kind.kind!r} leaves a PC without records; set {cure} or a "
            "smaller federation.clients"
        )
    return tuple(np.sort(part) for part in parts)


def apportion(total: int, shares: npt.NDArray[np.float64]) -> list[int]:
    """Whole numbers that add up to `total`, nearest to `shares` (largest remainders).

    `shares` are not negative and not all zero, of shape (n,); ties go to the first.
    """
    exact = total * shares / shares.sum()
    whole = np.floor(exact).astype(int)
    for index in np.argsort(whole - exact, kind="stable")[: total - whole.sum()]:
        whole[index] += 1
    return [int(n) for n in whole]


def _deal(indices: Part, shares: npt.NDArray[np.float64]) -> list[Part]:
    ends = np.cumsum(apportion(len(indices), shares))
    return np.split(indices, ends[:-1])


def _by_dirichlet(
    records: Records, alpha: float, pcs: int, random: np.random.Generator
) -> list[Part]:
    """Each label's records are spread by shares drawn from Dirichlet(alpha) (Hsu et al. 2019)."""
    labels = np.array(records.labels, dtype=object)
    for _ in range(100):  # a small alpha can leave a PC with nothing: draw again
        parts: list[list[Part]] = [[] for _ in range(pcs)]
        for label in sorted(set(records.labels)):
            shuffled = random.permutation(np.flatnonzero(labels == label))
            shares = random.dirichlet(np.full(pcs, alpha)) + 1e-12
            for part, chunk in zip(parts, _deal(shuffled, shares), strict=True):
                part.append(chunk)
        joined = [np.concatenate(part) for part in parts]
        if all(len(part) for part in joined):
            break
    return joined


def _by_column(records: Records, pcs: int, random: np.random.Generator) -> list[Part]:
    """Whole values per PC where there are enough; otherwise each PC holds part of one value."""
    if records.groups is None:
        raise DataError('partition = "column" needs a source with data.client_column')
    groups = np.array(records.groups, dtype=object)
    # Largest first; ties by name, so that the order never depends on a hash.
    sizes = sorted(Counter(records.groups).items(), key=lambda item: (-item[1], item[0]))
    if len(sizes) >= pcs:
        loads = [(0, number) for number in range(pcs)]
        home: dict[str, int] = {}
        for value, size in sizes:
            load, home[value] = loads[0]
            heapq.heapreplace(loads, (load + size, home[value]))
        owner = np.array([home[value] for value in records.groups])
        return [np.flatnonzero(owner == number) for number in range(pcs)]
    parts: list[Part] = []
    counts = _pcs_per_value([size for _, size in sizes], pcs)
    for (value, _), count in zip(sizes, counts, strict=True):
        parts += _deal(random.permutation(np.flatnonzero(groups == value)), np.ones(count))
    return parts


def _pcs_per_value(sizes: list[int], pcs: int) -> list[int]:
    """How many of `pcs` PCs hold each value, for falling `sizes` of fewer values than PCs.

    In proportion to size by largest remainders, at least one, and never more than the value has
    records (as long as there are no more PCs than records).
    """
    counts = apportion(pcs, np.array(sizes, dtype=float))
    if min(counts) >= 1:
        return counts
    # The values that are too small for their own PC get one; the others share the rest.
    large = sum(count > 0 for count in counts)
    small = len(sizes) - large
    return _pcs_per_value(sizes[:large], pcs - small) + [1] * small
