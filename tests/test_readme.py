"""The README tells the truth: its figures come from result files, its commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from fedaipc.cli.main import app
from fedaipc.config import load_settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_figures_are_those_of_the_committed_results() -> None:
    script = ROOT / "scripts" / "readme_table.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_command_named_exists() -> None:
    group = typer.main.get_command(app)
    named = set(re.findall(r"fedaipc ((?:[a-z]+ ?){1,2})", README))
    assert named
    for words in named:
        command = group.get_command(None, words.split()[0])  # type: ignore[attr-defined]
        assert command is not None, words


@pytest.mark.parametrize("path", re.findall(r"\]\(([a-z][\w./-]*)\)", README))
def test_every_link_leads_somewhere(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "simulations").glob("*.toml")), ids=lambda p: p.stem
)
def test_every_claims_config_is_valid(path: Path) -> None:
    load_settings(path)


def test_both_commands_of_the_readme_can_be_run() -> None:
    for name in ("demo", "test"):
        assert f"scripts/{name} " in README
        assert (ROOT / "scripts" / name).stat().st_mode & 0o111
