"""From a source to sets and PCs: no text in two sets, the sizes asked for, the same every time."""

from __future__ import annotations

import csv
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedaipc.config import DataSettings
from fedaipc.data.prepare import SimulatedData, deduplicate, label_list, prepare_simulation
from fedaipc.data.records import Records
from fedaipc.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


def write(path: Path, rows: Sequence[tuple[str, ...]], header: str = "text,label") -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(header.split(","))
        out.writerows(rows)
    return str(path)


def numbered(count: int, start: int = 0) -> list[tuple[str, str]]:
    """Distinct texts, three of four labelled "yes"."""
    return [(f"text {n}", "no" if n % 4 == 0 else "yes") for n in range(start, start + count)]


def same(one: SimulatedData, other: SimulatedData) -> bool:
    sets = all(
        getattr(one, name) == getattr(other, name) for name in ("train", "validation", "test")
    )
    return sets and all(np.array_equal(a, b) for a, b in zip(one.parts, other.parts, strict=True))


# Duplicates.


def test_the_first_of_equal_texts_stays() -> None:
    records = Records(("A  b", "c", "a B ", "\uff21 b", "d"), ("1", "1", "1", "1", "0"))
    kept, dropped = deduplicate(records)
    assert kept == Records(("A  b", "c", "d"), ("1", "1", "0"))
    assert dropped == 2


def test_a_text_with_two_labels_goes_altogether() -> None:
    records = Records(("a", "b", "A", "b"), ("1", "1", "0", "1"), ("x", "y", "z", "w"))
    assert deduplicate(records) == (Records(("b",), ("1",), ("y",)), 3)


def test_a_text_held_back_goes_whatever_its_label() -> None:
    records = Records(("a", "b", "c"), ("1", "1", "0"))
    held_back = (Records(("A",), ("0",)), Records(("c ",), ("0",)))
    assert deduplicate(records, *held_back) == (Records(("b",), ("1",)), 2)


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "A", "b", " b", "ß", "SS", "c"]), st.sampled_from("01"))
    )
)
def test_no_two_texts_are_equal_afterwards(rows: list[tuple[str, str]]) -> None:
    records = Records(tuple(text for text, _ in rows), tuple(label for _, label in rows))
    kept, dropped = deduplicate(records)
    assert len(kept) + dropped == len(records)
    keys = [text.strip().casefold() for text in kept.texts]
    assert len(set(keys)) == len(keys)
    assert deduplicate(kept) == (kept, 0)


# Labels.


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("b", "a", "b"), ("a", "b")),
        (("10", "9", "-1"), ("-1", "9", "10")),
        (("10", "9", "x"), ("10", "9", "x")),
        (("--1", "2"), ("--1", "2")),
        (("1", "01", "2"), ("01", "1", "2")),
        (("9" * 5000, "2"), ("2", "9" * 5000)),
    ],
)
def test_labels_are_in_a_fixed_order(labels: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert label_list(Records(labels, labels), None) == expected


def test_a_given_list_keeps_its_order_and_may_hold_more() -> None:
    records = Records(("a", "b"), ("yes", "yes"))
    assert label_list(records, ("yes", "no")) == ("yes", "no")


def test_bad_labels_are_refused_and_named_where_that_helps() -> None:
    records = Records(("a", "b"), ("secret", "secret"))
    with pytest.raises(DataError, match="one label; a classifier needs at least two") as one:
        label_list(records, None)
    with pytest.raises(DataError, match=r"complete data\.labels with 'secret'"):
        label_list(records, ("yes", "no"))
    assert "secret" not in str(one.value)
    many = tuple(str(number) for number in range(1001))
    with pytest.raises(DataError, match=r"more than 1,000 .* is data\.label_column right"):
        label_list(Records(many, many), None)


# All of it.


def test_the_sets_are_apart_and_stratified(tmp_path: Path) -> None:
    source = write(tmp_path / "data.csv", numbered(1000) + numbered(40))
    data = prepare_simulation(DataSettings(source=source), 7)
    assert (len(data.train), len(data.validation), len(data.test)) == (800, 100, 100)
    texts = [text for part in (data.train, data.validation, data.test) for text in part.texts]
    assert sorted(texts) == sorted(text for text, _ in numbered(1000))
    for part in (data.validation, data.test):
        assert abs(Counter(part.labels)["no"] - 25) <= 1
    assert np.array_equal(np.sort(np.concatenate(data.parts)), np.arange(800))
    assert len(data.parts) == 7
    assert data.labels == ("no", "yes")
    assert data.notes == ("40 duplicates and contradictions dropped",)


def test_the_same_settings_give_the_same_and_another_seed_does_not(tmp_path: Path) -> None:
    source = write(tmp_path / "data.csv", numbered(200))
    one, again, other = (
        prepare_simulation(DataSettings(source=source, seed=seed, limit=150), 3)
        for seed in (1, 1, 2)
    )
    assert same(one, again)
    assert not same(one, other)


def test_a_limit_is_a_sample_taken_first(tmp_path: Path) -> None:
    source = write(tmp_path / "data.csv", numbered(500))
    data = prepare_simulation(DataSettings(source=source, limit=100), 2)
    assert (len(data.train), len(data.validation), len(data.test)) == (80, 10, 10)
    assert data.notes == ("a random sample of 100 records",)
    assert max(int(text.split()[1]) for text in data.train.texts) > 200  # not just the first
    assert prepare_simulation(DataSettings(source=source, limit=500), 2).notes == ()


def test_given_sets_win_over_the_source(tmp_path: Path) -> None:
    settings = DataSettings(
        source=write(tmp_path / "data.csv", numbered(100)),
        validation=write(tmp_path / "validation.csv", numbered(20, start=90)),
        test=write(tmp_path / "test.csv", numbered(15, start=100) + numbered(1)),
    )
    data = prepare_simulation(settings, 2)
    assert data.test.texts == tuple(text for text, _ in numbered(15, start=100) + numbered(1))
    # texts 100 to 109 are in both files: they stay in test
    assert data.validation.texts == tuple(text for text, _ in numbered(10, start=90))
    assert data.train.texts == tuple(text for text, _ in numbered(89, start=1))


def test_one_given_set_and_one_split_off(tmp_path: Path) -> None:
    settings = DataSettings(
        source=write(tmp_path / "data.csv", numbered(100)),
        test=write(tmp_path / "test.csv", numbered(10)),
        validation_size=30,
    )
    data = prepare_simulation(settings, 2)
    assert (len(data.train), len(data.validation), len(data.test)) == (60, 30, 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation_size": 34}, r"hold 34 back for validation; set data\.validation_size to 33"),
        ({"test_size": 1000}, r"hold 1,000 back for test; set data\.test_size to 33 or less"),
        ({"labels": ("yes", "maybe")}, r"25 of 100 .* not in the label list .*: 'no'"),
        ({"limit": 2}, "too few|one label"),
        ({"limit": 1}, "one label"),
        ({"text_column": "txt"}, "did you mean 'text'"),
        ({"partition": "column", "client_column": "who"}, "no column 'who'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = write(tmp_path / "data.csv", numbered(100))
    with pytest.raises(DataError, match=message):
        prepare_simulation(DataSettings(source=source, **changes), 2)


def test_given_sets_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "data.csv", numbered(100))
    other = write(tmp_path / "other.csv", [("new", "perhaps")])
    with pytest.raises(DataError, match=r"data\.test = .*: holds labels"):
        prepare_simulation(DataSettings(source=source, test=other), 2)
    with pytest.raises(DataError, match=r"data\.source = .*data.csv: nothing is left"):
        prepare_simulation(DataSettings(source=source, test=source), 2)
    with pytest.raises(DataError, match=r"data\.test holds all its texts"):
        prepare_simulation(DataSettings(source=source, test=other, validation=other), 2)


def test_too_many_pcs_are_refused_with_the_number_that_fits(tmp_path: Path) -> None:
    source = write(tmp_path / "data.csv", numbered(20))
    with pytest.raises(
        DataError, match=r"16 training records .* 17 PCs; set federation\.clients to 16"
    ):
        prepare_simulation(DataSettings(source=source), 17)


def test_a_value_that_lies_on_several_pcs_is_told(tmp_path: Path) -> None:
    rows = [(*row, f"c{n % 3}") for n, row in enumerate(numbered(60))]
    source = write(tmp_path / "own.csv", rows, "text,label,who")
    settings = DataSettings(source=source, partition="column", client_column="who")
    assert prepare_simulation(settings, 3).notes == ()
    (note,) = prepare_simulation(settings, 4).notes
    assert "data.client_column = who has 3 values for 4 PCs" in note
    assert prepare_simulation(DataSettings(source=source, client_column="who"), 4).notes == ()


def test_the_real_default_task(sentiment: Path) -> None:
    settings = DataSettings(partition="column", client_column="domain")
    data = prepare_simulation(settings, 20)
    assert (len(data.train), len(data.validation), len(data.test)) == (19_176, 2_000, 2_000)
    assert data.labels == ("negative", "positive")
    assert data.notes[0] == "144 duplicates and contradictions dropped"
    assert "domain has 4 values for 20 PCs" in data.notes[1]
    assert all(850 < len(part) < 1_010 for part in data.parts)
    share = Counter(data.test.labels)["positive"] / 2_000
    assert abs(share - 0.535) < 0.002


# The command line.


def test_describe_shows_each_pc(fedaipc: Callable[..., Any], tmp_path: Path) -> None:
    rows = [(text, label, f"[bold]{n % 3}") for n, (text, label) in enumerate(numbered(120))]
    write(tmp_path / "own.csv", rows, "text,label,who")
    sets = ("--set", "data.source=own.csv", "--set", "data.partition.kind=column",
            "--set", "data.client_column=who", "--set", "federation.clients=3")  # fmt: skip
    shown = fedaipc("data", "describe", *sets, "--plot", "pcs.png")
    assert (shown.code, shown.err) == (0, "")
    assert "[bold]2" in shown.out
    assert "96 training, 12 validation and 12 test texts" in shown.out
    assert (tmp_path / "pcs.png").read_bytes().startswith(b"\x89PNG")
    pcs = json.loads(fedaipc("data", "describe", *sets, "--json").out)
    assert [pc["pc"] for pc in pcs] == ["pc-0000", "pc-0001", "pc-0002"]
    assert sum(pc["records"] for pc in pcs) == 96
    assert all(sum(pc["labels"].values()) == pc["records"] for pc in pcs)
    assert sorted(group for pc in pcs for group in pc["groups"]) == [f"[bold]{n}" for n in range(3)]


def test_describe_stays_short_with_many_pcs_and_labels(
    fedaipc: Callable[..., Any], tmp_path: Path
) -> None:
    write(tmp_path / "own.csv", [(f"text {n}", f"label{n % 12}") for n in range(600)])
    shown = fedaipc(
        "data", "describe", "--set", "data.source=own.csv", "--set", "federation.clients=60"
    )
    assert "labels held" in shown.out
    assert "label11" not in shown.out
    assert "... and 10 more" in shown.out


def test_describe_refuses_in_one_line(fedaipc: Callable[..., Any]) -> None:
    ran = fedaipc("data", "describe", "--set", "data.source=gone.csv")
    assert ran.code == DataError.exit_code
    assert ran.out == ""
    assert ran.err.count("\n") == 1
