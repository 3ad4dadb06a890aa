"""Partitions: every record once, the sizes that were asked for, the same for the same seed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fedaipc.config import DataSettings, Partition, TextSource
from fedaipc.data.partition import apportion, partition
from fedaipc.data.records import Records
from fedaipc.data.sources import read_records
from fedaipc.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


def records(labels: list[str], groups: list[str] | None = None) -> Records:
    texts = tuple(f"text {number}" for number in range(len(labels)))
    return Records(texts, tuple(labels), None if groups is None else tuple(groups))


def settings(kind: str, **others: Any) -> DataSettings:
    column = "who" if kind == "column" else None
    chosen = Partition.kinds[kind]
    own = {key: others.pop(key) for key in list(others) if key in ("alpha", "power")}
    own = {key: value for key, value in own.items() if key in chosen.model_fields}
    return DataSettings(partition=chosen(**own), client_column=column, **others)


def assert_each_once(parts: tuple[np.ndarray, ...], total: int) -> None:
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(total))
    assert all(len(part) for part in parts)
    assert all(np.array_equal(part, np.sort(part)) for part in parts)


label_lists = st.lists(st.sampled_from("abc"), min_size=1, max_size=80)
seeds = st.integers(0, 2**63 - 1)


@given(
    labels=label_lists,
    pcs=st.integers(1, 12),
    seed=seeds,
    kind=st.sampled_from(["iid", "dirichlet", "skewed"]),
    alpha=st.sampled_from([1e-9, 0.01, 0.5, 1e9]),
    skew=st.floats(0, 10),
)
def test_every_record_is_on_one_pc(
    labels: list[str], pcs: int, seed: int, kind: str, alpha: float, skew: float
) -> None:
    given_records = records(labels)
    how = settings(kind, seed=seed, alpha=alpha, power=skew)
    try:
        parts = partition(given_records, how, pcs)
    except DataError:
        assert kind != "iid" or len(labels) < pcs
        return
    assert len(parts) == pcs
    assert_each_once(parts, len(labels))
    again = partition(given_records, how, pcs)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


@given(labels=label_lists, pcs=st.integers(1, 12), seed=seeds)
def test_iid_sizes_differ_by_one_at_most(labels: list[str], pcs: int, seed: int) -> None:
    assume(len(labels) >= pcs)
    sizes = [len(part) for part in partition(records(labels), settings("iid", seed=seed), pcs)]
    assert max(sizes) - min(sizes) <= 1


@given(
    groups=st.lists(
        st.sampled_from(["a", "b", "c", "d", "e", "f", "a\x00"]), min_size=1, max_size=60
    ),
    pcs=st.integers(1, 60),
    seed=seeds,
)
def test_by_column_no_value_is_torn_needlessly(groups: list[str], pcs: int, seed: int) -> None:
    assume(len(groups) >= pcs)
    parts = partition(records(["x"] * len(groups), groups), settings("column", seed=seed), pcs)
    assert_each_once(parts, len(groups))
    sizes = Counter(groups)
    held = [{groups[index] for index in part} for part in parts]
    if len(sizes) >= pcs:  # whole values per PC
        assert sum(len(values) for values in held) == len(sizes)
        # greedy: the fullest PC without its last value was not fuller than any other
        fullest = max(parts, key=len)
        last = min(sizes[groups[index]] for index in fullest)
        assert len(fullest) - last <= min(len(part) for part in parts)
    else:  # one value per PC, dealt evenly
        assert all(len(values) == 1 for values in held)
        for value in sizes:
            own = [len(part) for part, values in zip(parts, held, strict=True) if value in values]
            assert sum(own) == sizes[value]
            assert max(own) - min(own) <= 1


@pytest.mark.parametrize(
    ("sizes", "pcs", "expected"),
    [
        ({"a": 60, "b": 30, "c": 10}, 10, {"a": 6, "b": 3, "c": 1}),
        ({"a": 50, "b": 49, "c": 1}, 4, {"a": 2, "b": 1, "c": 1}),
        ({"a": 900, "b": 2, "c": 1}, 5, {"a": 3, "b": 1, "c": 1}),
        ({"a": 3, "b": 1, "c": 1}, 5, {"a": 3, "b": 1, "c": 1}),
    ],
)
def test_values_get_pcs_in_proportion_to_their_size(
    sizes: dict[str, int], pcs: int, expected: dict[str, int]
) -> None:
    groups = [value for value, size in sizes.items() for _ in range(size)]
    parts = partition(records(["x"] * len(groups), groups), settings("column"), pcs)
    assert Counter(groups[part[0]] for part in parts) == expected


def test_more_values_than_pcs_are_grouped_largest_first() -> None:
    sizes = {"a": 7, "b": 6, "c": 5, "d": 4, "e": 3}
    groups = [value for value, size in sizes.items() for _ in range(size)]
    parts = partition(records(["x"] * len(groups), groups), settings("column"), 2)
    held = [sorted({groups[index] for index in part}) for part in parts]
    # a: 7, b: 6, c joins b: 11, d joins a: 11, e goes to the first of the two
    assert held == [["a", "d", "e"], ["b", "c"]]


def test_skewed_sizes_fall_as_rank_to_the_power() -> None:
    parts = partition(records(["x"] * 1100), settings("skewed", power=1.0), 3)
    assert [len(part) for part in parts] == [600, 300, 200]
    parts = partition(records(["x"] * 90), settings("skewed", power=0.0), 3)
    assert [len(part) for part in parts] == [30, 30, 30]


def test_a_small_alpha_is_less_even_than_a_large_one() -> None:
    many = records(["a", "b"] * 5000)

    def spread(alpha: float) -> float:
        """Standard deviation over PCs of the share of one label."""
        parts = partition(many, settings("dirichlet", alpha=alpha, seed=3), 10)
        return float(np.std([np.mean(part % 2) for part in parts]))

    assert spread(0.3) > 5 * spread(1000.0)


def test_another_seed_is_another_partition() -> None:
    many = records(["a", "b"] * 50)
    one, other = (partition(many, settings("iid", seed=seed), 4) for seed in (0, 1))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@given(total=st.integers(0, 10_000), shares=st.lists(st.floats(0, 1e6), min_size=1, max_size=40))
def test_apportion_adds_up_and_is_within_one(total: int, shares: list[float]) -> None:
    assume(sum(shares) > 1e-6)
    parts = apportion(total, np.array(shares))
    assert sum(parts) == total
    exact = total * np.array(shares) / sum(shares)
    assert np.all(np.abs(parts - exact) < 1 + 1e-6)


def test_what_cannot_be_spread_is_refused_with_the_mend() -> None:
    few = records(["a", "b", "a"])
    with pytest.raises(DataError, match=r"set federation\.clients to 3 or less"):
        partition(few, settings("iid"), 4)
    said = r"set a smaller data\.partition\.power or a smaller federation\.clients"
    with pytest.raises(DataError, match=said):
        partition(few, settings("skewed", power=9.0), 3)
    with pytest.raises(DataError, match=r"set a larger data\.partition\.alpha"):
        partition(records(["a"] * 100), settings("dirichlet", alpha=1e-9), 50)
    with pytest.raises(DataError, match=r"data\.client_column"):
        partition(few, settings("column"), 2)


def test_the_order_of_hashes_changes_nothing() -> None:
    """Sets of texts are ordered by a hash that differs from one process to the next."""
    code = """
import hashlib
from fedaipc.config import DataSettings
from fedaipc.data.partition import partition
from fedaipc.data.records import Records
from fedaipc.data.prepare import _split_off, label_list
words = [f"w{n % 7}" for n in range(200)]
records = Records(tuple(map(str, range(200))), tuple(words), tuple(words[::-1]))
found = [label_list(records, None)]
for kind in ("iid", "dirichlet", "skewed", "column"):
    own = {"alpha": 5.0} if kind == "dirichlet" else {}
    how = DataSettings(partition={"kind": kind, **own}, client_column="w", seed=5)
    found += [part.tolist() for pcs in (4, 11) for part in partition(records, how, pcs)]
found += [part.texts for part in _split_off(records, 30, seed=[1])]
print(hashlib.sha256(repr(found).encode()).hexdigest())
"""
    outs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outs) == 1


def test_four_domains_over_twenty_pcs(sentiment: Path) -> None:
    real = read_records(str(sentiment), TextSource(), group_column="domain").records
    parts = partition(real, settings("column"), 20)
    assert all(1000 < len(part) < 1300 for part in parts)
    assert real.groups is not None
    held = Counter(real.groups[part[0]] for part in parts)
    assert held == {"movies": 9, "nyt": 4, "tweets": 4, "amazon": 3}
