"""Fixtures of this folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.coordinator import FakePc

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def pcs(tmp_path: Path) -> Callable[..., list[FakePc]]:
    """Makes PCs; each call makes new ones."""
    made: list[FakePc] = []

    def make(count: int = 7) -> list[FakePc]:
        new = [FakePc(tmp_path / f"pcs-{len(made)}", number) for number in range(count)]
        made.extend(new)
        return new

    return make
