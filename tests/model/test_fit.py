"""How texts fit a model: unknown tokens and cut texts, and who is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedaipc.model.fit import fit_of_base, measure_fit
from fedaipc.model.load import load_tokenizer
from fedaipc.report.formatting import fit_text, fit_warnings
from fedaipc.results import TextFit
from tests.support.tiny_models import TEXTS, WORDS, settings, shared_folder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return load_tokenizer(settings(shared_folder("bert")))


@given(st.lists(st.lists(st.sampled_from([*WORDS, "chemistry", "bank"])), min_size=1, max_size=9))
def test_shares_are_those_of_a_count_by_hand(rows: list[list[str]]) -> None:
    tokens = [word for row in rows for word in row]
    fit = measure_fit(load_cached(), [" ".join(row) for row in rows], 8)
    assert fit is not None
    unknown = sum(word not in WORDS for word in tokens) / max(1, len(tokens))
    assert fit.unknown_tokens == pytest.approx(unknown)
    assert fit.cut_texts == sum(len(row) + 2 > 8 for row in rows) / len(rows)


_CACHE: list[object] = []


def load_cached() -> object:
    if not _CACHE:
        _CACHE.append(load_tokenizer(settings(shared_folder("bert"))))
    return _CACHE[0]


def test_no_text_has_no_share(tokenizer: object) -> None:
    assert measure_fit(tokenizer, [], 8) is None


def test_a_text_that_is_cut_before_it_is_read_counts_as_cut(tokenizer: object) -> None:
    """One word of many thousand characters is one unknown token."""
    fit = measure_fit(tokenizer, ["x" * 100_000 + " w1 w2"], 16)
    assert fit == TextFit(unknown_tokens=1.0, cut_texts=1.0)


def test_many_texts_are_sampled_over_all_of_them(tokenizer: object) -> None:
    fit = measure_fit(tokenizer, ["w1"] * 5000 + ["bank"] * 5000, 8)
    assert fit is not None
    assert fit.unknown_tokens == pytest.approx(0.5, abs=0.01)


def test_bytes_are_never_unknown() -> None:
    fit = measure_fit(load_tokenizer(settings(shared_folder("roberta"))), ["Überraschung 🙂"], 64)
    assert fit is not None
    assert fit.unknown_tokens == 0


def test_the_owner_is_told_where_the_base_is_here_and_nothing_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = str(shared_folder("bert"))
    assert fit_of_base(base, TEXTS) == TextFit(unknown_tokens=0, cut_texts=0)
    monkeypatch.setenv("FEDAIPC_CACHE", str(tmp_path))
    monkeypatch.setattr("fedaipc.data.assets._install", lambda *_: pytest.fail("fetched"))
    for missing in ("minilm-l6", "warm-up:0123", "org/name", str(tmp_path / "none")):
        assert fit_of_base(missing, TEXTS) is None


def test_a_warning_says_what_to_do_and_a_good_fit_says_nothing() -> None:
    good = TextFit(unknown_tokens=0.001, cut_texts=0.015)
    assert fit_warnings(training=good, validation=None) == []
    chemistry = TextFit(unknown_tokens=0.88, cut_texts=0.0)
    (line,) = fit_warnings(training=chemistry)
    assert line.startswith("88% of the tokens of the training texts are not in the model's")
    long = TextFit(unknown_tokens=0.0, cut_texts=0.99)
    (line,) = fit_warnings(validation=long)
    assert "99% of the validation texts are longer than model.max_length" in line
    assert fit_text(long) == "0.0% of tokens unknown, 99.0% of texts cut"
    assert fit_text(None) == "-"
