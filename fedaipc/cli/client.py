"""`fedaipc client`: run a PC, and see what left it."""

from __future__ import annotations

import logging
import os
from threading import Thread
from typing import Annotated

import typer

from fedaipc import bounds
from fedaipc.cli import enroll
from fedaipc.cli.enroll import DEFAULT_FOLDER, PcFolder
from fedaipc.cli.output import make_console, say, say_json
from fedaipc.errors import AdmissionError
from fedaipc.report.formatting import at_most
from fedaipc.report.table import Table
from fedaipc.stopping import signals
from fedaipc.terminal import log_to_stderr

_BESIDE_MODEL = 64 * 2**20  # bytes of a message beside the part of the model that is trained

app = typer.Typer(help="A PC and its owner: join a federation, train, leave.", no_args_is_help=True)
app.command("enroll")(enroll.enroll)


@app.command()
def start(folder: PcFolder = DEFAULT_FOLDER) -> None:
    """Take part in what the federation trains, until Ctrl-C or SIGTERM.

    Every job is checked against the federation's signature and your policy in owner.toml; only
    sealed, noisy updates leave. Example: fedaipc client start --folder fedaipc-pc
    """
    os.environ["FLWR_HOME"] = str(folder.resolve() / "flwr")
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
    log_to_stderr("%(asctime)s %(message)s", "%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    from fedaipc.client.availability import Availability
    from fedaipc.client.client import OWNER_FILE, Client
    from fedaipc.client.client_app import app as client_app
    from fedaipc.client.moving import AUTHORITY_FILE, NODE_KEY_FILE, check_not_moved
    from fedaipc.config import load_owner
    from fedaipc.data.sources import local_path
    from fedaipc.fleet.node import FleetNode
    from fedaipc.model.base import weights_bytes

    check_not_moved(folder)
    if not (folder / OWNER_FILE).is_file():
        raise AdmissionError(
            f"{folder}: no PC is enrolled here; see `fedaipc client enroll --help`"
        )
    owner = load_owner(folder / OWNER_FILE)
    if owner.server is None:
        raise AdmissionError(
            f"{folder / OWNER_FILE}: names no server; run `fedaipc client leave`, and enroll "
            "again in the same folder"
        )
    pc = Client(folder)  # its keys can be read
    node = FleetNode(
        owner.server,
        bounds.read_bytes(folder / AUTHORITY_FILE, bounds.MAX_KEY),
        folder / NODE_KEY_FILE,
        folder.resolve(),
        client_app,
        # Weights may be stored by half, and adapters come with large ranks.
        largest=4 * weights_bytes(owner.base) + _BESIDE_MODEL,
        answer_slot=owner.availability.answer_slot,
        may_work=Availability(owner.availability, lambda: local_path(Client(folder).source)),
        each_hour=pc.key_store.expire,  # deletes keys that have expired
    )

    def announce() -> None:
        node.await_stop()
        say("stopping after the current message; press Ctrl-C again to stop immediately")

    with signals(node.stop):
        Thread(target=announce, daemon=True).start()
        say(f"{owner.name} serves {owner.server}; Ctrl-C stops it")
        node.serve()
        say(f"{owner.name} has stopped")


@app.command()
def log(
    folder: PcFolder = DEFAULT_FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="print as JSON lines")] = False,
) -> None:
    """Show all that ever left this PC: when, for which run and round, how much, at what epsilon.

    Example: fedaipc client log --folder fedaipc-pc
    """
    from fedaipc.client.disclosure_log import read
    from fedaipc.privacy.ledger import LEDGER_FILE

    if not (folder / LEDGER_FILE).is_file():  # which outlives `fedaipc client leave`
        raise AdmissionError(f"{folder}: no PC is enrolled here; give its --folder")
    entries = read(folder)
    if as_json:
        for entry in entries:
            say_json(entry.model_dump(mode="json"), indent=None)
        return
    rows = [
        (
            entry.time, entry.kind, entry.run or "-", entry.number or "-", f"{entry.bytes:,}",
            entry.sha256[:16], "" if entry.epsilon is None else at_most(entry.epsilon),
        )
        for entry in entries
    ]  # fmt: skip
    columns = ("time", "kind", "run", "round", "bytes", "SHA-256", "epsilon so far")
    make_console(width_in_a_file=120).print(Table(columns, rows, words=(0, 1, 2, 5)))
    say(f"{sum(e.bytes for e in entries):,} bytes in {len(entries)} answers")


app.command("leave")(enroll.leave)
app.command("move-out")(enroll.move_out)
app.command("move-in")(enroll.move_in)
