"""The README tells the truth: its figures come from result files, its commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from fedaipc.cli.main import app
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


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))])
def test_every_command_and_option_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [
        *re.findall(r"^(?:\.venv/bin/)?fedaipc (.*)$", text, re.MULTILINE),
        *re.findall(r"`fedaipc ([^`]*)`", text),
    ]
    assert lines or page.name != "README.md"
    for line in lines:
        command: Any = typer.main.get_command(app)
        words = line.partition("#")[0].split()
        while hasattr(command, "commands") and words:
            assert words[0] in command.commands, line
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        named = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert named <= known, line


@pytest.mark.parametrize("path", sorted((ROOT / "simulations" / "sweeps").glob("*.toml")))
def test_every_sweep_is_valid(path: Path) -> None:
    sweep = read_sweep(path)
    assert sweep.config is not None
    cells = cells_of(sweep, path.parent / sweep.config)
    assert cells
    assert not [cell.error for cell in cells if cell.settings is None]


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
