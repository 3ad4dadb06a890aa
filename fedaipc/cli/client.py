"""`fedaipc client`: a PC at work."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import Annotated

import typer

from fedaipc.cli.enrol import DEFAULT_FOLDER
from fedaipc.errors import AdmissionError


def client(
    folder: Annotated[Path, typer.Argument(help="this PC's own folder")] = DEFAULT_FOLDER,
) -> None:
    """Take part in what the federation trains, until Ctrl-C or SIGTERM.

    Every job is checked against the federation's signature and your policy in owner.toml; only
    sealed, noisy updates leave. Example: fedaipc client fedaipc-pc
    """
    os.environ["FLWR_HOME"] = str(folder.resolve() / "flwr")
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    from fedaipc.config import load_owner
    from fedaipc.fleet.node import FleetNode
    from fedaipc.pc.client_app import app
    from fedaipc.pc.enrol import AUTHORITY_FILE, NODE_KEY_FILE
    from fedaipc.pc.pc import OWNER_FILE, Pc

    if not (folder / OWNER_FILE).is_file():
        raise AdmissionError(f"{folder}: no PC is enrolled here; see `fedaipc enroll --help`")
    owner = load_owner(folder / OWNER_FILE)
    if owner.server is None:
        raise AdmissionError(f"{folder / OWNER_FILE}: names no server; enrol this PC anew")
    Pc(folder)  # its keys can be read
    authority = (folder / AUTHORITY_FILE).read_bytes()
    node = FleetNode(owner.server, authority, folder / NODE_KEY_FILE, folder.resolve(), app)

    def stop(*_: object) -> None:
        typer.echo("stopping")
        node.stop()

    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop)
    typer.echo(f"{owner.name} serves {owner.server}; Ctrl-C stops it")
    node.serve()
