"""What all tests share: quiet libraries, the real assets, and the command line in this process."""

from __future__ import annotations

import csv
import os
import random
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING
from unittest import mock

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# Set before torch, transformers or rich are imported, none of which happens above.
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "120"}
os.environ.setdefault("MPLBACKEND", "Agg")
for name in ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "RAY_ADDRESS"):
    os.environ.pop(name, None)

# The same examples on every machine and every day: a failure can be repeated.
settings.register_profile("fedaipc", deadline=None, derandomize=True, database=None)
settings.load_profile("fedaipc")


@pytest.fixture(autouse=True)
def _no_extension_stays() -> Iterator[None]:
    """What a test registers is known in that test alone."""
    from fedaipc import config
    from fedaipc.config.family import FAMILIES
    from fedaipc.data.registry import SOURCES
    from fedaipc.report.tracking import TRACKERS

    choices = (
        config.TrainingMethod, config.Privacy, config.Aggregation, config.ServerOptimizer,
        config.Partition,
    )  # fmt: skip
    registries = [FAMILIES, SOURCES, TRACKERS, *(choice.kinds for choice in choices)]
    before = [dict(registry) for registry in registries]
    yield
    for registry, known in zip(registries, before, strict=True):
        registry.clear()
        registry.update(known)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of the real default model."""
    from fedaipc.data.assets import fetch_asset

    return fetch_asset("minilm-l6")


@pytest.fixture(scope="session")
def sentiment() -> Path:
    """The real default texts: a CSV with text, label and domain."""
    from fedaipc.data.assets import fetch_asset

    return fetch_asset("sentiment-4")


@pytest.fixture(scope="session")
def spam() -> Path:
    """The real text messages: a CSV with text and label."""
    from fedaipc.data.assets import fetch_asset

    return fetch_asset("sms-spam")


def write_reviews(path: Path, rows: int = 90, customers: int = 3) -> Path:
    """Someone's own CSV with other column names: id, body, stars (1 or 5), customer."""
    draw = random.Random(rows)
    words = {"1": ("awful", "dull", "broken", "sad"), "5": ("great", "lovely", "superb", "kind")}
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["id", "body", "stars", "customer"])
        for number in range(rows):
            stars = draw.choice("15")
            thing = draw.choice(("film", "meal", "book", "trip"))
            body = f"number {number}: the {thing} was {draw.choice(words[stars])}"
            out.writerow([number, body, stars, f"customer {number % customers}"])
    return path


@dataclass(frozen=True)
class Ran:
    """What a command gave back."""

    code: int
    out: str
    err: str


@pytest.fixture
def fedaipc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ran]:
    """The console command, run in this process within `tmp_path`."""
    from fedaipc.cli import main

    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["fedaipc", *map(str, words)])
        capsys.readouterr()
        try:
            with mock.patch.dict(os.environ):  # which a command cleans for what it starts
                main.run()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return call
