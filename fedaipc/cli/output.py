"""All that a command prints. Nothing else in this layer writes to a terminal.

Labels, names, paths and whole documents come from strangers. Here, on the way out, control
characters that could steer the terminal are spelt out (`terminal.printable`): no caller has to
remember it.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
from rich.console import Console
from rich.segment import Segment
from typer.core import TyperGroup

from fedaipc.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import ConsoleOptions, RenderableType
    from rich.text import Text


AsJson = Annotated[bool, typer.Option("--json", help="print as JSON")]


def say(*lines: object, err: bool = False) -> None:
    """Print each of `lines` on a line of its own."""
    for line in lines:
        typer.echo(printable(str(line)), err=err)


def say_json(value: object, indent: int | None = 2) -> None:
    """Print `value` as JSON, in ASCII. It must hold no NaN."""
    typer.echo(json.dumps(value, indent=indent, allow_nan=False, default=str))


def say_row(*fields: str) -> None:
    """Print one line of fields with tabs between them."""
    typer.echo("\t".join(map(printable, fields)))


def agreed(question: str) -> bool:
    """Ask the user; "n" is the default."""
    return typer.confirm(printable(question))


def make_console(
    *, stderr: bool = False, highlight: bool = True, width_in_a_file: int | None = None
) -> Console:
    """For tables and progress. `width_in_a_file` is used where the output is not a terminal."""
    made = _Console(stderr=stderr, highlight=highlight)
    if width_in_a_file is not None and not made.is_terminal:
        made.width = width_in_a_file
    return made


class _Console(Console):
    def render_str(self, text: str, **kwargs: Any) -> Text:
        return super().render_str(printable(text), **kwargs)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:  # rich's own: the cursor of a progress bar
                yield segment
            else:
                text = "\n".join(map(printable, segment.text.split("\n")))
                yield segment if text == segment.text else Segment(text, segment.style)


class Commands(TyperGroup):
    """Its errors repeat what was typed, or what a shell made of `*`."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _printable_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _printable_errors():
            return super().invoke(ctx)


@contextmanager
def _printable_errors() -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        vars(error)["message"] = printable(error.message)
        raise
