"""What `simulate` and `data describe` take alike: a config, or data and a few flags."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import click
import typer
from typer.core import TyperCommand

from fedaipc.config import load_settings, settings_from
from fedaipc.config.remedy import FLAGS
from fedaipc.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fedaipc.config import Settings

Source = Annotated[
    str | None,
    typer.Argument(
        help="a config (.toml), or data: a .csv, .tsv, .jsonl or .parquet file, a folder with a "
        "sub-folder of .txt per label, hf:ID, or an asset (default: the built-in task)",
        show_default=False,
    ),
]
Text = Annotated[str | None, typer.Option(help="column with the text", show_default=False)]
Label = Annotated[str | None, typer.Option(help="column with the label", show_default=False)]
By = Annotated[
    str | None,
    typer.Option(help="column whose values (users, speakers) become the PCs", show_default=False),
]
Encoding = Annotated[
    str | None,
    typer.Option(
        help="encoding of a text file, such as cp1252 (default: UTF-8)", show_default=False
    ),
]
Quoting = Annotated[
    Literal["auto", "csv", "line", "none"] | None,
    typer.Option(help="what quotation marks mean in a CSV or TSV", show_default=False),
]
NoHeader = Annotated[
    bool,
    typer.Option("--no-header", help="the first row is a record: give columns by number, from 1"),
]
SkipUnusable = Annotated[
    bool,
    typer.Option("--skip-unusable", help="leave out records that cannot be used, and count them"),
]
Pcs = Annotated[int | None, typer.Option("--clients", help="how many PCs", show_default=False)]


_SETTING = re.compile(r"--set (data|warm_up)\.(\w+)=([\w-]+)")


def as_given(text: str) -> str:
    """`text`, with each `--set` in it as the running command takes it: a flag, otherwise a key."""
    running = click.get_current_context(silent=True)
    if running is None:
        return text
    known = {flag for param in running.command.params for flag in param.opts}

    def own(found: re.Match[str]) -> str:
        section, key, value = found.groups()
        flag = FLAGS.get(key)
        if section == "data" and flag in known:
            return flag if value in ("true", "false") else f"{flag} {value}"
        return found[0] if "--set" in known else f"{section}.{key} = {_toml(value)}"

    return _SETTING.sub(own, text)


def _toml(value: str) -> str:
    return value if value in ("true", "false") else f'"{value}"'


class SourceCommand(TyperCommand):
    """Words its advice about texts `as_given`."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (ConfigError, DataError) as error:
            error.args = (as_given(str(error)),)
            raise


def read_settings(
    source: str | None,
    overrides: Sequence[str] | None,
    flags: Mapping[str, object],
    *,
    text: str | None,
    label: str | None,
    by: str | None,
    pcs: int | None,
    encoding: str | None = None,
    quoting: str | None = None,
    no_header: bool = False,
    skip_unusable: bool = False,
) -> Settings:
    """Settings of a job; None stands for a flag that was not given. Raises ConfigError or
    DataError.
    """
    is_config = source is not None and source.endswith(".toml")
    given = {
        "data.source": None if is_config else source,
        "data.text_column": text,
        "data.label_column": label,
        "data.encoding": encoding,
        "data.quoting": quoting,
        "data.header": False if no_header else None,
        "data.skip_unusable": True if skip_unusable else None,
        "data.client_column": by,
        "data.partition.kind": None if by is None else "column",
        "federation.clients": pcs,
        **flags,
    }
    given = {key: value for key, value in given.items() if value is not None}
    config = Path(source) if source is not None and is_config else None
    settings = load_settings(config, overrides or (), given)
    return settings if by is None or pcs is not None else _with_fewer_pcs(settings)


def _with_fewer_pcs(settings: Settings) -> Settings:
    """As many PCs as the column has values at most: a user's records stay on one PC."""
    from fedaipc.data.prepare import prepare_simulation

    groups = prepare_simulation(settings.data, 1).train.groups or ()
    # What was not given stays open.
    tree = settings.model_dump(exclude_none=True, exclude_unset=True)
    tree.setdefault("federation", {})["clients"] = min(
        len(set(groups)), settings.federation.clients
    )
    return settings_from(tree)
