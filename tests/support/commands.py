"""What a command gave back, and all commands that there are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Ran:
    """What a command gave back."""

    code: int
    out: str
    err: str


def refused(ran: Ran, code: int) -> str:
    """The one line on stderr of a command that was refused."""
    assert ran.code == code
    assert ran.out == ""
    assert ran.err.startswith("fedaipc: ")
    assert ran.err.count("\n") == 1
    return ran.err


@cache
def all_commands() -> dict[tuple[str, ...], Any]:
    """By their words."""
    import typer.main

    from fedaipc.cli.main import app

    return dict(_commands(typer.main.get_command(app)))


def _commands(group: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, *path, name)
        else:
            yield (*path, name), command
