"""The README tells the truth: its figures come from result files, its configs are valid."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedaipc.config import load_settings
from fedaipc.lab.sweep.cells import cells_of, read_sweep

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_figures_are_those_of_the_committed_results() -> None:
    script = ROOT / "scripts" / "readme_table.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "simulations" / "sweeps").glob("*.toml")))
def test_every_sweep_is_valid(path: Path) -> None:
    sweep = read_sweep(path)
    assert sweep.config is not None
    cells = cells_of(sweep, path.parent / sweep.config)
    assert cells
    assert not [cell.error for cell in cells if cell.settings is None]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "simulations").glob("*.toml")), ids=lambda p: p.stem
)
def test_every_claims_config_is_valid(path: Path) -> None:
    load_settings(path)


def test_both_commands_of_the_readme_can_be_run() -> None:
    for name in ("demo", "test"):
        assert f"scripts/{name} " in README
        assert (ROOT / "scripts" / name).stat().st_mode & 0o111
