"""`fedaipc federation`: what the holder of the admission key does, away from the server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedaipc import bounds
from fedaipc.cli import job
from fedaipc.cli.output import agreed, make_console, say
from fedaipc.errors import AdmissionError
from fedaipc.report.table import Alarm, Table

if TYPE_CHECKING:
    from fedaipc.protocol.enrollment import Request

app = typer.Typer(
    help="Make a federation, invite and admit PCs, sign jobs. Run it where the admission key is, "
    "not on the server.",
    no_args_is_help=True,
)
app.command("sign")(job.sign)
app.command("base")(job.base)
Folder = Annotated[Path, typer.Argument(help="the federation's folder", show_default=False)]
Names = Annotated[
    list[str] | None, typer.Argument(help="names or fingerprints of members", show_default=False)
]


@app.command()
def init(
    folder: Folder,
    address: Annotated[
        str, typer.Option(help="host:port at which PCs reach the server", show_default=False)
    ],
    name: Annotated[
        list[str] | None,
        typer.Option(help="another host name or address of the server; repeat it for more"),
    ] = None,
) -> None:
    """Make a federation: its admission key, its TLS authority, its server's certificate.

    Example: fedaipc federation init acme --address fleet.acme.example:8443
    """
    from fedaipc.federation.federation import SERVER_FOLDER, Federation

    host = _host(address)
    names = list(dict.fromkeys([host, *(name or [])]))
    made = Federation.create(folder, address, names)
    say(f"made {folder}: keep it safe and off the server; whoever holds it decides who belongs")
    say(f"copy {folder / SERVER_FOLDER} to the server, now and after every change of members")
    say(f"fingerprint {made.fingerprint}")


@app.command()
def invite(
    folder: Folder,
    config: Annotated[
        Path | None, typer.Option(help="the job that is planned (default: fedaipc's default job)")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=365, help="how long the invite is valid")] = 14,
    out: Annotated[
        Path | None, typer.Option(help="file for the invite (default: print it)")
    ] = None,
) -> None:
    """Write an invite, which owners need to enroll their PCs. It holds no secret.

    Example: fedaipc federation invite acme --out invite.txt
    """
    from fedaipc.config import load_settings, settings_from
    from fedaipc.federation.federation import Federation
    from fedaipc.files import write_text
    from fedaipc.privacy.budget import best_filter
    from fedaipc.protocol.job import job_schedule

    settings = settings_from({}) if config is None else load_settings(config)
    federation, privacy = Federation(folder), settings.privacy
    token = federation.invite(
        days=days,
        base=settings.model.base,
        labels=settings.data.labels or (),
        lifetime_epsilon=settings.federation.lifetime_epsilon,
        unit=privacy.unit,
        delta=privacy.delta,
        filter_kind=best_filter(
            job_schedule(settings), settings.rounds, settings.federation.lifetime_epsilon
        ),
    )
    if out is None:
        say(*token.splitlines())
        return
    write_text(out, token.strip())
    say(
        f"wrote {out}; tell owners this fingerprint through another channel: "
        f"{federation.fingerprint}"
    )
    if settings.warm_up.source is not None:
        say(
            "the job warms its base up: make it with "
            f"`fedaipc federation base {config} --out base`, and "
            "give owners the folder for `enroll --base`"
        )


@app.command()
def admit(
    folder: Folder,
    requests: Annotated[
        list[Path], typer.Argument(help="files with requests; - reads one", show_default=False)
    ],
    days: Annotated[int, typer.Option(min=1, max=3650, help="how long they belong")] = 365,
    yes: Annotated[
        bool, typer.Option("--yes", help="do not ask: the fingerprints were compared")
    ] = False,
) -> None:
    """Add PCs to the signed list of members, once their owners confirmed the fingerprints.

    Example: fedaipc federation admit acme office-1.txt office-2.txt
    """
    from fedaipc.federation.federation import SERVER_FOLDER, Federation

    federation = Federation(folder)
    tokens = list(dict.fromkeys(_request(path) for path in requests))
    known = {member.identity for member in federation.members.active}
    for request in tokens:
        again = " (a member already; this renews it)" if request.issuer in known else ""
        say(f"{request.name}, up to {request.size_class:,} records, {request.fingerprint}{again}")
    if not yes and not agreed("Did each owner confirm the fingerprint?"):
        raise AdmissionError("nobody was admitted: compare the fingerprints first")
    federation.admit(tokens, days)
    say(f"{len(federation.members.active)} members; copy {folder / SERVER_FOLDER} to the server")


@app.command("list")
def show(folder: Folder) -> None:
    """Show current, expired and revoked members.

    Example: fedaipc federation list acme
    """
    from datetime import UTC, datetime

    from fedaipc.federation.federation import Federation

    federation = Federation(folder)
    rows = [
        (
            member.name, member.state if member.state == "member" else Alarm(member.state),
            datetime.fromtimestamp(member.not_after, UTC).date().isoformat(),
            f"{member.size_class:,}", member.fingerprint,
        )
        for member in federation.members.members
    ]  # fmt: skip
    columns = ("PC", "state", "until", "records, at most", "fingerprint")
    make_console(width_in_a_file=120).print(Table(columns, rows, words=(0, 1, 2, 4)))
    facts = federation.facts
    say(f"server {facts.address}, certificate until {federation.server_until():%Y-%m-%d}")


@app.command()
def revoke(folder: Folder, names: Names) -> None:
    """Leave PCs out of all rounds to come; what they gave to earlier rounds stays in the model.

    Example: fedaipc federation revoke acme office-2
    """
    from fedaipc.federation.federation import SERVER_FOLDER, Federation

    federation = Federation(folder)
    for name in names or []:
        gone = federation.revoke(name)
        say(f"revoked {gone.name}, {gone.fingerprint}")
    say(
        f"{len(federation.members.active)} members are left; copy {folder / SERVER_FOLDER} to "
        "the server"
    )


@app.command()
def renew(
    folder: Folder,
    names: Names = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="how long they belong")] = 365,
    server: Annotated[
        bool, typer.Option("--server", help="a new key and certificate for the server")
    ] = False,
) -> None:
    """Renew memberships, or make a new certificate for the server.

    Example: fedaipc federation renew acme office-1 --days 365
    """
    from fedaipc.federation.federation import SERVER_FOLDER, Federation

    if not names and not server:
        raise AdmissionError("nothing to renew: name members, or give --server")
    federation = Federation(folder)
    federation.renew(names or [], days)
    if server:
        say(f"the server's certificate is valid until {federation.renew_server():%Y-%m-%d}")
    say(f"copy {folder / SERVER_FOLDER} to the server")


def _request(path: Path) -> Request:
    from fedaipc.protocol.enrollment import Request

    try:
        # A longer text is not a request; the check of the request says so.
        text = (
            sys.stdin.read(bounds.MAX_TOKEN + 1)
            if str(path) == "-"
            else bounds.read_text(path, bounds.MAX_TOKEN, encoding="ascii")
        )
    except OSError as error:
        raise AdmissionError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise AdmissionError(
            f"{path}: is not a text file; give the request that the owner sent"
        ) from None
    try:
        return Request.read(text)
    except AdmissionError as error:
        raise AdmissionError(f"{path}: {error}") from None


def _host(address: str) -> str:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise AdmissionError(f"--address {address}: give host:port, as fleet.example.org:8443")
    return host.strip("[]")
