"""Tokens and frozen states: padding, order, and a cache that is private and never half there."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedaipc.model import inputs as module
from fedaipc.model.classifier import Classifier
from fedaipc.model.inputs import (
    Inputs,
    batch_rows,
    freeze_together,
    longest_input,
    make_inputs,
)
from tests.support.tiny_models import LABELS, TEXTS, settings, shared_folder

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["bitfit", "head"])
def classifier(request: pytest.FixtureRequest) -> Classifier:
    """With states per token, and with one pooled state per text."""
    return Classifier(settings(shared_folder("bert"), method=request.param), LABELS)


def same(left: Inputs, right: Inputs) -> bool:
    if left.offsets is None or right.offsets is None:
        return left.offsets is right.offsets and np.array_equal(left.rows, right.rows)
    return np.array_equal(left.rows, right.rows) and np.array_equal(left.offsets, right.offsets)


def test_tokens_are_the_tokenizers_own(classifier: Classifier) -> None:
    inputs = make_inputs(classifier, TEXTS, None)
    for number, text in enumerate(TEXTS):
        ids = inputs.rows[inputs.offsets[number] : inputs.offsets[number + 1]]
        assert ids.tolist() == classifier.tokenizer(text)["input_ids"]
    assert len(inputs) == len(TEXTS)


def test_a_batch_has_all_its_rows_however_few_are_filled() -> None:
    inputs = Inputs(np.arange(1, 11, dtype=np.int32), np.array([0, 3, 4, 10]), most=8)
    batch = inputs.batch(np.array([1, 0]), 4, CPU)
    assert batch.values.tolist() == [[4, 0, 0, 0], [1, 2, 3, 0], [0] * 4, [0] * 4]
    assert batch.mask.tolist() == [[1, 0, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert batch.values.dtype == torch.int64


def test_padded_states_are_zero() -> None:
    rows = np.arange(1, 13, dtype=np.float32).reshape(6, 2)
    inputs = Inputs(rows, np.array([0, 1, 6]), most=5)
    first, second = inputs.batch(np.array([0]), 2, CPU), inputs.batch(np.array([1]), 2, CPU)
    assert first.values.tolist() == [[[1, 2], *[[0, 0]] * 3], [[0, 0]] * 4]
    assert second.values[0].tolist() == rows[1:].tolist()


def test_a_text_without_any_token_is_a_row_like_another() -> None:
    inputs = Inputs(np.array([5, 6], dtype=np.int32), np.array([0, 0, 2]), most=8)
    assert inputs.widths().tolist() == [4, 4]
    batch = inputs.batch(np.array([0, 1]), 3, CPU)
    assert batch.mask.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]]


def test_the_longest_input_is_as_wide_as_any_can_be(classifier: Classifier) -> None:
    for cached in (False, True):
        longest = longest_input(classifier, cached=cached)
        assert len(longest) == 1
        assert longest.is_tokens != cached
        if longest.offsets is not None:
            assert longest.widths().tolist() == [classifier.settings.max_length]


def test_pooled_states_are_filled_up_with_zeros() -> None:
    rows = np.arange(1, 7, dtype=np.float32).reshape(3, 2)
    batch = Inputs(rows, None).batch(np.array([2, 0]), 4, CPU)
    assert batch.values.tolist() == [[5, 6], [1, 2], [0, 0], [0, 0]]
    assert batch.mask is None


@pytest.mark.parametrize("steps", [4, 8])
@pytest.mark.parametrize("most", [1, 2, 4, 5, 16, 63, 64, 128, 512])
def test_a_width_holds_the_text_and_depends_on_its_length_alone(most: int, steps: int) -> None:
    lengths = np.arange(1, most + 1)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    widths = Inputs(np.zeros(offsets[-1], dtype=np.int32), offsets, most).widths(steps)
    assert (widths >= lengths).all()
    assert widths.max() == most
    assert len(set(widths.tolist())) <= steps
    for length, width in zip(lengths, widths, strict=True):
        alone = Inputs(np.zeros(length, dtype=np.int32), np.array([0, length]), most)
        assert alone.widths(steps).tolist() == [width]


def test_batches_hold_every_text_once(classifier: Classifier, tmp_path: Path) -> None:
    for inputs in (make_inputs(classifier, TEXTS, None), make_inputs(classifier, TEXTS, tmp_path)):
        seen = [(indices, batch) for indices, batch in inputs.batches(5, CPU)]
        assert sorted(np.concatenate([indices for indices, _ in seen])) == list(range(len(TEXTS)))
        assert {len(batch.values) for _, batch in seen} == {8}
        assert max(len(indices) for indices, _ in seen) <= 7  # one row is padding
        chosen = np.array([7, 2, 11])
        picked = [indices for indices, _ in inputs.batches(2, CPU, chosen)]
        assert sorted(np.concatenate(picked)) == [2, 7, 11]
        assert max(map(len, picked)) == 1


@pytest.mark.parametrize(("size", "rows"), [(1, 2), (2, 2), (3, 4), (16, 16), (17, 32), (64, 64)])
def test_rows_are_a_power_of_two(size: int, rows: int) -> None:
    assert batch_rows(size) == rows


def test_a_text_of_any_length_is_cut_before_it_is_tokenised(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = type(classifier.tokenizer).__call__

    def watched(self: object, texts: list[str], **named: Any) -> object:
        seen.extend(map(len, texts))
        return real(self, texts, **named)

    monkeypatch.setattr(type(classifier.tokenizer), "__call__", watched)
    long = make_inputs(classifier, ["w1 " * 1_000_000, "w2"], None)
    assert max(seen) == 64 * classifier.settings.max_length
    assert long.lengths().tolist() == [classifier.settings.max_length, 3]


def test_inputs_of_a_pc_without_texts_have_no_batches() -> None:
    assert len(Inputs.nothing()) == 0
    assert list(Inputs.nothing().batches(4, CPU)) == []


def test_a_repr_shows_no_text() -> None:
    assert "rows" not in repr(Inputs(np.array([1], dtype=np.int32), np.array([0, 1])))


# The cache


def test_frozen_states_are_those_of_each_text_alone(classifier: Classifier, tmp_path: Path) -> None:
    tokens, frozen = make_inputs(classifier, TEXTS, None), make_inputs(classifier, TEXTS, tmp_path)
    for number in range(len(TEXTS)):
        indices = np.array([number])
        batch = tokens.batch(indices, 2, CPU)
        alone = classifier.freeze_through(batch).values[0]
        if batch.mask is not None and not classifier.pooled:
            alone = alone * batch.mask[0, :, None]
        assert torch.allclose(frozen.batch(indices, 2, CPU).values[0], alone, atol=1e-5)


def test_the_second_time_nothing_is_computed(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_inputs(classifier, TEXTS, tmp_path)
    monkeypatch.setattr(module, "_freeze", None)
    monkeypatch.setattr(module, "_tokenise", None)
    assert same(first, make_inputs(classifier, TEXTS, tmp_path))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")
def test_only_the_owner_can_read_the_cache(classifier: Classifier, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_inputs(classifier, TEXTS, tmp_path / "cache")
    finally:
        os.umask(before)
    files = list((tmp_path / "cache").iterdir())
    assert len(files) == 2
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def test_other_texts_or_another_model_have_another_cache(
    classifier: Classifier, tmp_path: Path
) -> None:
    make_inputs(classifier, TEXTS, tmp_path)
    make_inputs(classifier, TEXTS[::-1], tmp_path)
    make_inputs(classifier, [*TEXTS[:-1], TEXTS[-1] + " w1"], tmp_path)
    # Joined they are equal: each text must count by itself.
    make_inputs(classifier, ["w1 w2", "w3"], tmp_path)
    make_inputs(classifier, ["w1", " w2w3"], tmp_path)
    shorter = settings(shared_folder("bert"), method=classifier.settings.train.kind, max_length=5)
    make_inputs(Classifier(shorter, LABELS), TEXTS, tmp_path)
    rougher = Classifier(
        settings(shared_folder("bert"), method=classifier.settings.train.kind), LABELS
    )
    rougher.half_precision = True
    make_inputs(rougher, TEXTS, tmp_path)
    assert len(list(tmp_path.glob("*.states.npy"))) == 7


@pytest.mark.parametrize("kept", [0, 60, 200])
@pytest.mark.parametrize("kind", ["states", "offsets"])
def test_a_half_written_cache_is_never_used(
    classifier: Classifier, tmp_path: Path, kind: str, kept: int
) -> None:
    whole = make_inputs(classifier, TEXTS, tmp_path)
    rows: Any = np.array(whole.rows)
    expected = Inputs(rows, whole.offsets)
    [file] = tmp_path.glob(f"*.{kind}.npy")
    content = file.read_bytes()
    assert kept < len(content)
    file.write_bytes(content[:kept])
    assert same(expected, make_inputs(classifier, TEXTS, tmp_path))
    assert file.read_bytes() == content


def test_a_crash_while_freezing_leaves_nothing_behind(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = classifier.freeze_through

    def crash(batch: Any) -> Any:
        calls.append(batch)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(batch)

    monkeypatch.setattr(module, "FREEZE_BATCH", 5)
    with monkeypatch.context() as patch:
        patch.setattr(classifier, "freeze_through", crash)
        with pytest.raises(KeyboardInterrupt):
            make_inputs(classifier, TEXTS, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not make_inputs(classifier, TEXTS, tmp_path).is_tokens


@pytest.mark.parametrize("where", ["posix_fallocate", "replace", "fsync"])
def test_a_full_disk_costs_speed_and_not_the_round(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if not hasattr(os, where):
        pytest.skip("not on this system")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path if where == "replace" else os, where, full)
    inputs = make_inputs(classifier, TEXTS, tmp_path)
    monkeypatch.undo()
    # Not as tokens where the states are pooled: nobody tried batches of a head's size for them.
    assert inputs.is_tokens is not classifier.pooled
    kept = make_inputs(classifier, TEXTS, tmp_path / "kept" if classifier.pooled else None)
    assert same(inputs, kept)


def test_a_cache_folder_that_cannot_be_made_costs_speed_only(
    classifier: Classifier, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    inputs = make_inputs(classifier, TEXTS, tmp_path / "file" / "cache")
    assert inputs.is_tokens is not classifier.pooled


def test_without_a_frozen_part_there_is_no_cache(tmp_path: Path) -> None:
    full = Classifier(settings(shared_folder("bert"), method="full"), LABELS)
    assert make_inputs(full, TEXTS, tmp_path).is_tokens
    assert list(tmp_path.iterdir()) == []


# Many PCs at once


@pytest.mark.parametrize("together", [1, 3, 1000])
def test_what_many_pcs_freeze_together_is_what_each_would_alone_to_the_last_bit(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    parts = [TEXTS[:1], TEXTS[1:4], [], TEXTS[::-1]]
    alone = {
        n: make_inputs(classifier, texts, tmp_path / f"a{n}")
        for n, texts in enumerate(parts)
        if texts
    }
    monkeypatch.setattr(module, "_TEXTS_TOGETHER", together)
    freeze_together(classifier, ((texts, tmp_path / f"b{n}") for n, texts in enumerate(parts)))

    def broken(*_: Any) -> None:
        raise AssertionError("the states were not found in the cache")

    monkeypatch.setattr(module, "_freeze", broken)
    for number, texts in enumerate(parts):
        if texts:
            found = make_inputs(classifier, texts, tmp_path / f"b{number}")
            assert same(found, alone[number])
            assert not isinstance(found.rows, np.memmap)
            files = list((tmp_path / f"b{number}").iterdir())
            assert {file.stat().st_mode & 0o77 for file in files} == {0}
    assert not (tmp_path / "b2").exists()


def test_what_lies_in_the_cache_is_not_frozen_again(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_inputs(classifier, TEXTS, tmp_path)

    def broken(*_: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(module, "_fill", broken)
    freeze_together(classifier, [(TEXTS, tmp_path)])


def test_a_large_file_is_mapped(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_READ_WHOLE", 0)
    assert isinstance(make_inputs(classifier, TEXTS, tmp_path).rows, np.memmap)
