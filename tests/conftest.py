"""What all tests share: quiet libraries, the real assets, and the command line in this process."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.commands import Ran

pytest.register_assert_rewrite("tests.support")

# Set before torch, transformers or rich are imported, none of which happens above.
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "120"}
os.environ.setdefault("MPLBACKEND", "Agg")
# Several tests share the cores: a thread that has nothing to do must not hold one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
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
    from fedaipc.data import sources  # noqa: F401 - registers those of fedaipc
    from fedaipc.data.registry import SOURCES
    from fedaipc.report.tracking import TRACKERS

    choices = (
        config.TrainingMethod, config.Privacy, config.Aggregation, config.ServerOptimizer,
        config.Partition,
    )  # fmt: skip
    registries: list[dict[str, Any]] = [
        FAMILIES,
        SOURCES,
        TRACKERS,
        *(choice.kinds for choice in choices),
    ]
    before = [dict(registry) for registry in registries]
    yield
    for registry, known in zip(registries, before, strict=True):
        registry.clear()
        registry.update(known)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny models only wait for a second thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


@pytest.fixture
def fedaipc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ran]:
    """The console command, run in this process within `tmp_path`."""
    from fedaipc.cli import main
    from tests.support.commands import Ran

    monkeypatch.chdir(tmp_path)

    def call(*words: Any) -> Ran:
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
