"""The page that auditors read names functions and tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

from fedaipc.privacy import bookkeeping, dp_sgd
from fedaipc.privacy.ledger import Ledger
from tests.support.broken_builds import faults

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "explanation" / "audit-us.md").read_text(encoding="utf-8")


def test_every_test_that_the_page_names_exists() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    there = set(re.findall(r"^def (test_\w+)\(", "\n".join(sources), re.MULTILINE))
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 20
    assert named - there == set()


def test_every_function_that_the_page_names_is_where_it_says() -> None:
    found = {
        "poisson_sample": dp_sgd.poisson_sample,
        "clipped_sums": bookkeeping.BookKeepingModule.clipped_sums,
        "noisy": dp_sgd.noisy,
        "private_step": dp_sgd.private_step,
        "Ledger.charge": Ledger.charge,
    }
    for number, (name, function) in enumerate(found.items(), start=1):
        assert f"## {number}. `{name}`" in PAGE
        assert function.__doc__
    for place in re.findall(r"`(privacy/\w+\.py)`", PAGE):
        assert (ROOT / "fedaipc" / place).is_file()


def test_the_number_of_broken_builds_is_right() -> None:
    made = [
        one
        for name, one in vars(faults).items()
        if callable(one) and one.__module__ == faults.__name__ and not name.startswith("_")
    ]
    assert len(made) == 25
