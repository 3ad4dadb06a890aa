"""`fedaipc client enroll`, `leave`, `move-out`, `move-in`: what the owner of a PC does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import click
import typer
from click.core import ParameterSource

from fedaipc import bounds
from fedaipc.cli.output import agreed, say
from fedaipc.cli.source import NoHeader
from fedaipc.config import SpeedSettings
from fedaipc.errors import AdmissionError
from fedaipc.report.formatting import at_most

if TYPE_CHECKING:
    from fedaipc.client.enrollment import Enrolled

DEFAULT_FOLDER = Path("fedaipc-pc")
_SHORTEST_TOKEN = 200  # characters; below it is a name of a file
PcFolder = Annotated[Path, typer.Option("--folder", help="this PC's own folder")]


def enroll(
    invite: Annotated[
        str | None, typer.Argument(help="the federation's invite: a file, or its text")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="your texts: CSV, JSONL, Parquet or a folder")
    ] = None,
    name: Annotated[str | None, typer.Option(help="public name of this PC")] = None,
    text: Annotated[str, typer.Option(help="column with the text")] = "text",
    label: Annotated[str, typer.Option(help="column with the label")] = "label",
    encoding: Annotated[
        str,
        typer.Option(
            help="encoding of a text file, such as cp1252; auto: UTF-8, or UTF-16 "
            "with a byte order mark"
        ),
    ] = "auto",
    quoting: Annotated[
        Literal["auto", "csv", "line", "none"],
        typer.Option(help="what quotation marks mean in a CSV or TSV"),
    ] = "auto",
    no_header: NoHeader = False,
    skip_unusable: Annotated[
        bool, typer.Option("--skip-unusable", help="enroll even if most records cannot be used")
    ] = False,
    base: Annotated[str | None, typer.Option(help="base model (default: the invite's)")] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(min=1e-3, max=1e6, help="this PC's lifetime budget (default: the invite's)"),
    ] = None,
    folder: PcFolder = DEFAULT_FOLDER,
    out: Annotated[
        Path | None, typer.Option(help="file for the request (default: print it)")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="only print the request again")] = False,
) -> None:
    """Prepare this PC to join a federation: check your data, make keys, a ledger and a request.

    Sends nothing. Example: fedaipc client enroll invite.txt --data reviews.csv --name office-1
    """
    from fedaipc.client.enrollment import enroll as enroll_pc
    from fedaipc.client.enrollment import request_again
    from fedaipc.files import write_text
    from fedaipc.protocol.enrollment import Invite

    if out is not None and out.exists():
        raise AdmissionError(f"{out}: is there already; give another name")
    if again:
        _check_nothing_else_given()
        found = request_again(folder)
    else:
        if invite is None or data is None or name is None:
            raise AdmissionError("give the invite, --data and --name (or --again)")
        token = Invite.read(_text(invite))
        say(f"federation {token.federation} at {token.address}")
        say(f"its fingerprint {token.fingerprint}: compare it with what you were told")
        # Now, and not in a round that costs budget: can this PC train privately?
        from fedaipc.doctor.rehearsal import rehearse_base

        rehearsed = rehearse_base(base or token.base, token.labels, SpeedSettings())
        found = enroll_pc(
            folder, token, name=name, source=data, text_column=text, label_column=label,
            encoding=encoding, quoting=quoting, header=not no_header,
            skip_unusable=skip_unusable, base=base, lifetime_epsilon=epsilon,
        )  # fmt: skip
    _show(found, folder)
    if not again and found.ledger.lifetime_epsilon > token.lifetime_epsilon:
        say(f"note: the invite advises epsilon {token.lifetime_epsilon:g}; yours is fixed for life")
    if not (again or rehearsed):
        say(
            "the base model is not on this PC yet: once it is, `fedaipc doctor --folder "
            f"{folder}` says whether this PC can train privately"
        )
    if out is None:
        say("", "send this request to the federation:", "")
        say(*found.token.splitlines())
    else:
        write_text(out, found.token.strip())
        say(f"send {out} to the federation")


def _check_nothing_else_given() -> None:
    """Raise AdmissionError for what --again would ignore."""
    context = click.get_current_context()
    unused = [
        param.opts[0] if param.param_type_name == "option" else "the invite"
        for param in context.command.params
        if param.name not in ("again", "folder", "out")
        and context.get_parameter_source(param.name or "") is ParameterSource.COMMANDLINE
    ]
    if unused:
        raise AdmissionError(
            f"--again takes --folder and --out only; leave out {', '.join(unused)}, and change "
            "owner.toml instead"
        )


def leave(
    folder: PcFolder = DEFAULT_FOLDER,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask for confirmation")] = False,
) -> None:
    """Delete this PC's keys. Its ledger stays: what was spent stays spent.

    Example: fedaipc client leave --folder fedaipc-pc
    """
    from fedaipc.client.client import OWNER_FILE
    from fedaipc.client.enrollment import leave as leave_federation

    if not (folder / OWNER_FILE).is_file():
        raise AdmissionError(f"{folder}: no PC is enrolled here")
    if not yes and not agreed(f"Delete the keys of the PC in {folder}? This cannot be undone."):
        raise AdmissionError(f"{folder}: nothing was changed")
    leave_federation(folder)
    say(f"{folder}: keys deleted; ask the federation to revoke this PC, too")


def move_out(
    file: Annotated[Path, typer.Argument(help="the secret file to write", show_default=False)],
    folder: PcFolder = DEFAULT_FOLDER,
) -> None:
    """Move this PC's identity and ledger into one file, for another machine.

    Example: fedaipc client move-out office-1.pc
    """
    from fedaipc.client.moving import move_out as move

    move(folder, file)
    say(
        f"wrote {file}: whoever has this file can act as this PC; take it to the new machine and "
        "run `fedaipc client move-in` "
        "once"
    )


def move_in(
    file: Annotated[Path, typer.Argument(help="the file that move-out wrote", show_default=False)],
    folder: PcFolder = DEFAULT_FOLDER,
) -> None:
    """Make this machine the PC that was moved out of another.

    Example: fedaipc client move-in office-1.pc
    """
    from fedaipc.client.moving import move_in as move

    move(file, folder)
    say(
        f"{folder}: is the PC now, and {file} is deleted: two copies of one PC would spend its "
        "budget twice; see that source in owner.toml finds your texts here"
    )


def _text(invite: str) -> str:
    path = Path(invite)
    try:
        if path.is_file():
            return bounds.read_text(path, bounds.MAX_TOKEN, encoding="ascii")
    except bounds.TooLarge as error:
        raise AdmissionError(f"{path}: cannot be read ({error.strerror})") from None
    except (OSError, UnicodeDecodeError):
        pass  # too long for a name, or no text
    if len(invite) < _SHORTEST_TOKEN and not invite.startswith("fedaipc-"):
        raise AdmissionError(f"{invite}: no such file; give the file of the invite, or its text")
    return invite


def _show(found: Enrolled, folder: Path) -> None:
    from fedaipc.data.reading import label_hints
    from fedaipc.privacy.budget import outgrown
    from fedaipc.report.formatting import fit_text, fit_warnings

    request, reading = found.request, found.reading
    count = len(reading.records)
    say(f"{folder}: {count:,} records can be used")
    hints = (
        f"left out: {reading.left_out_text()}" if reading.dropped else "",
        *label_hints(reading.records.labels),
        reading.quoted_hint,
        outgrown(count, request.size_class),
    )
    for hint in filter(None, hints):
        say(hint)
    if found.fit is not None:
        say(f"how your texts fit the federation's model (shown only to you): {fit_text(found.fit)}")
        for line in fit_warnings(your=found.fit):
            say(f"note: {line}")
    ledger = found.ledger
    spent = (
        "NOT PRIVATE already" if ledger.unprotected else f"{at_most(ledger.spent_epsilon())} spent"
    )
    say(
        f"this PC's lifetime privacy budget: epsilon {ledger.lifetime_epsilon:g} at delta "
        f"{ledger.delta:g} per {ledger.unit}, {spent}"
    )
    say(
        f"{request.name} will tell the federation its name, its keys, and that it holds at most "
        f"{request.size_class:,} records"
    )
    say(
        f"this PC's fingerprint {request.fingerprint}: tell it to the federation in person or by "
        "telephone"
    )
