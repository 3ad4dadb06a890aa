"""What changes under a PC between two rounds: its data, its log, its seed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedaipc.client import examples, trainer
from fedaipc.privacy.training import train_round
from tests.support.clients import CANARY, Federation, exotic, gave, owner
from tests.support.jobs import on_the_wire


def test_a_data_file_that_was_replaced_is_read_again(
    ask: Any, folder: Path, touched: list[str]
) -> None:
    ask(attempt=1)
    ask(attempt=2)
    assert touched.count("read_records") == 1
    exotic(folder, 50)
    ask(attempt=3)
    assert touched.count("read_records") == 2


def test_more_records_than_the_size_class_give_no_larger_update(
    ask: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The divisor is the declared class, whatever the PC holds by now."""
    divisors = []
    real = train_round

    def train(*args: Any, **named: Any) -> Any:
        divisors.append(named["size_class"])
        return real(*args, **named)

    monkeypatch.setattr(trainer, "train_round", train)
    exotic(folder, 90)
    assert gave(ask())
    assert divisors == [64]


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (90, "more records than its size class"),
        (12, "most of the records that this PC enrolled with are gone"),
        (0, "trained on nothing"),
        (40, ""),
    ],
)
def test_an_owner_is_told_where_the_size_class_does_not_fit_any_more(
    ask: Any, folder: Path, caplog: pytest.LogCaptureFixture, count: int, said: str
) -> None:
    """With numbers in the PC's own log alone, once for a file, and nothing in the answer."""
    exotic(folder, count)
    answers = [ask(attempt=1)]
    assert "size class" not in caplog.text  # a simulation's log is the coordinator's
    owner(folder, server="localhost:1")
    examples.kept = examples.Kept()
    answers += [ask(attempt=2), ask(attempt=3)]
    assert all(map(gave, answers))
    assert len({len(answer.content) for answer in answers}) == 1
    log = (folder / "pc.log").read_text() if (folder / "pc.log").is_file() else ""
    if not said:
        assert log == caplog.text == ""
        return
    assert caplog.text.count(said) == 1
    assert "fedaipc client enroll" in caplog.text or count == 0
    shown = " ".join(caplog.messages).replace(str(folder), "")  # without line numbers
    assert str(count) not in shown or count == 0
    assert f"{count} records, size class 64: " in log


def test_an_owner_finds_in_the_log_what_was_left_out_and_why(ask: Any, folder: Path) -> None:
    texts = folder / "texts.csv"
    rows = [f"{CANARY} {n},positive" for n in range(40)]
    rows[3:5] = [f'"{CANARY},positive', f"{CANARY},unheard-of"]
    texts.write_text("text,label\n" + "\n".join(rows))
    owner(folder, source="./texts.csv", quoting="line")
    answer = ask()
    assert gave(answer)
    log = (folder / "pc.log").read_text()
    assert "2 of 40 records cannot be used" in log
    assert "(line 5)" in log
    assert "(line 6: 'unheard-of')" in log
    assert CANARY not in log
    assert CANARY.encode() not in on_the_wire(answer.reply)


def test_a_test_seed_repeats_a_round_in_any_attempt(ask: Any, folder: Path, tmp_path: Path) -> None:
    owner(folder, insecure_test_seed=9)
    again = shutil.copytree(folder, tmp_path / "again")
    first = ask(attempt=1).update
    assert np.array_equal(first, ask(attempt=4, where=again).update)
    assert not np.array_equal(first, ask(number=2, attempt=5).update)


def test_a_request_is_not_changed_by_training(ask: Any, vector: np.ndarray) -> None:
    before = vector.copy()
    ask()
    np.testing.assert_array_equal(vector, before)


def test_what_many_pcs_cannot_freeze_together_each_does_by_itself(
    enrolled: Federation,
    ask: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One PC's data must not end a simulation, nor be told in its log."""

    def fail(*_: Any) -> None:
        raise ValueError(CANARY)

    monkeypatch.setattr(trainer, "freeze_together", fail)
    trainer.freeze_for_all(enrolled.folders.values(), enrolled.job)
    assert "not frozen together (ValueError)" in caplog.text
    assert CANARY not in caplog.text
    assert gave(ask())
