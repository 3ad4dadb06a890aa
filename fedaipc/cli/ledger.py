"""`fedaipc privacy ledger`: what PCs have spent, whether their ledgers are complete, and copies for
others.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedaipc import strict_json
from fedaipc.cli.output import AsJson, make_console, say, say_json
from fedaipc.config import filter_name
from fedaipc.errors import LedgerError, OutputError, os_errors_as
from fedaipc.report.formatting import at_most
from fedaipc.report.table import Alarm, Table

if TYPE_CHECKING:
    from fedaipc.client.peer_heads import Copy

app = typer.Typer(help="What PCs have spent over their lives.", no_args_is_help=True)
Place = Annotated[
    Path, typer.Argument(help="run folder, folder of PCs, or one PC", show_default=False)
]
_COLUMNS = (
    "pc", "line", "time", "run", "round", "attempt", "mechanism", "noise_multiplier",
    "noise", "honest", "sampling_rate", "steps", "clip_norm", "delta", "seeded",
)  # fmt: skip


@app.command()
def show(folder: Place, as_json: AsJson = False) -> None:
    """Show what each PC has spent over its life.

    "charged" is what counts against the budget, valid whatever is asked later: by the PC's privacy
    filter, which was fixed with its ledger. "Gaussian DP" counts Gaussian noise alone, and sampled
    steps as if they were not sampled (Smith and Thakurta 2022). "RDP order" counts Renyi
    divergences of one order (Feldman and Zrnic 2021). RDP and PRV are for the schedule as it
    happened, had it been fixed in advance. Where noise was distributed, these rest on secure
    aggregation, and "local" is by RDP against whoever read the PC's own updates.

    Example: fedaipc privacy ledger show runs/demo
    """
    rows = [_row(path) for path in _ledgers(folder)]
    if as_json:
        say_json(rows)
        return
    local = ["local"] if any(row["local"] is not None for row in rows) else []
    names = ("charged", "lifetime_epsilon", "rdp", "prv", *local)
    lines = []
    for row in rows:
        if row["unprotected"]:
            shown = [Alarm("NOT PRIVATE"), f"{row['lifetime_epsilon']:g}", *["-"] * len(names[2:])]
        else:
            shown = ["-" if row[name] is None else at_most(row[name]) for name in names]
        kept = filter_name(row["filter"])
        lines.append([row["pc"], row["charges"], *shown, f"{row['delta']:g}", row["unit"], kept])
    columns = (
        "PC",
        "rounds",
        "charged",
        "lifetime",
        "RDP",
        "PRV",
        *local,
        "delta",
        "per",
        "filter",
    )
    make_console().print(Table(columns, lines, words=(0, len(columns) - 2, len(columns) - 1)))


@app.command()
def verify(
    place: Annotated[
        Path,
        typer.Argument(
            help="run folder, folder of PCs, one PC, or an exported file", show_default=False
        ),
    ],
    seen_by: Annotated[
        list[Path] | None,
        typer.Option(
            help="folder of a peer, or of PCs, that may remember more; repeat it for more"
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(help="fingerprint of the key that must have signed, as the owner told you"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every line and signature, and that no peer remembers a line that is missing.

    A ledger is "good" if it is signed by the PC in whose folder it lies, or by the key that
    --key names. Otherwise it is at most "consistent", which anybody can forge. Peers remember
    the last state of each ledger with which they shared a sealed round; "remembered by" counts
    the folders asked that do, its own among them. Without such a peer, lines that were cut off
    at the end cannot be noticed.

    Example: fedaipc privacy ledger verify runs/demo
    """
    from fedaipc.client.peer_heads import memories, peers_in, read_copy, read_export
    from fedaipc.client.peer_heads import verify as verify_copy
    from fedaipc.secagg.keys import read_fingerprint

    if place.is_file():
        copies, folders = read_export(place), []
    else:
        if not place.exists():
            raise LedgerError(f"{place}: no such file or folder")
        paths = _ledgers(place)
        copies, folders = [read_copy(path) for path in paths], [path.parent for path in paths]
    for folder in seen_by or ():
        found = peers_in(folder)
        if not found:
            raise LedgerError(f"{folder}: holds no PC that could remember anything")
        folders += found
    remembered = memories(dict.fromkeys(folder.resolve() for folder in folders))
    told = None if key is None else read_fingerprint(key)
    verdicts = [verify_copy(copy, remembered, told) for copy in copies]
    problems = [verdict.problem for verdict in verdicts if verdict.problem]
    if as_json:
        rows = [
            {
                "pc": v.pc, "lines": v.lines, "charges": v.charges, "key": v.key,
                "peers": v.peers, "torn": v.torn, "problem": v.problem or None,
                "verdict": v.word.lower(),
            }
            for v in verdicts
        ]  # fmt: skip
        say_json(rows)
    else:
        lines = []
        for v in verdicts:
            word = v.word + ", the last line is incomplete: a crash cut it off" * bool(v.torn)
            good = Alarm(word) if v.problem else word
            lines.append((v.pc, v.lines, v.charges, v.key or "nobody", v.peers, good))
        columns = ("PC", "lines", "charges", "signed by", "remembered by", "verdict")
        make_console().print(Table(columns, lines, words=(0, 3, 5)))
        if any(v.word == "consistent" for v in verdicts):
            say(
                "consistent: complete in itself, but nothing here shows who its owner is; give "
                "--key with the fingerprint that the owner told you"
            )
    if problems:
        raise LedgerError("; ".join(problems))


@app.command()
def export(
    folder: Place,
    file: Annotated[
        Path,
        typer.Argument(help=".json, which can be verified, or .csv to read", show_default=False),
    ],
) -> None:
    """Write the ledgers into one file: JSON with every signed line, or the charges as CSV.

    The file shows runs, rounds, noise and times. It shows nothing about texts or labels.

    Example: fedaipc privacy ledger export runs/demo ledgers.json
    """
    from fedaipc.client.peer_heads import read_copy, write_export
    from fedaipc.files import write_atomic

    if file.suffix not in (".json", ".csv"):
        raise LedgerError(f"{file}: give a name that ends in .json or .csv")
    if file.exists():
        raise OutputError(f"{file}: is there already; give a new name")
    paths = _ledgers(folder)
    for path in paths:
        _open(path)  # a damaged ledger is not exported
    copies = [read_copy(path) for path in paths]
    content = write_export(copies) if file.suffix == ".json" else _csv(copies).encode()
    with os_errors_as(OutputError, f"{file}: cannot be written"):
        write_atomic(file, content)
    lines = sum(len(copy.lines) for copy in copies)
    say(f"wrote {file}: {len(copies)} ledgers, {lines:,} lines")


def _ledgers(folder: Path) -> list[Path]:
    if not folder.is_dir():
        what = "is a file, which `verify` alone takes" if folder.exists() else "no such folder"
        raise LedgerError(f"{folder}: {what}; give a run, a folder of PCs, or one PC")
    from fedaipc.privacy.ledger import LEDGER_FILE

    place = folder / "pc-state.json"
    if place.is_file():
        try:
            folder = folder / strict_json.load(place)
        except (OSError, ValueError, TypeError):
            raise LedgerError(f"{place}: cannot be read; give the folder of the PCs") from None
    found = sorted(folder.glob(f"*/{LEDGER_FILE}"))
    own = folder / LEDGER_FILE
    if own.is_file():
        found = [own]
    if not found:
        raise LedgerError(f"{folder}: holds no ledger; give a run, a folder of PCs, or one PC")
    return found


def _open(path: Path) -> Any:
    from fedaipc.privacy.ledger import Ledger

    return Ledger(path)


def _row(path: Path) -> dict[str, Any]:
    from fedaipc.client.peer_heads import pc_name

    opened = _open(path)
    clean = not opened.unprotected
    prv = _prv(opened.schedules, opened.delta)
    return {
        "pc": pc_name(path.parent),
        "charges": len(opened.charges),
        "unprotected": opened.unprotected,
        "charged": opened.spent_epsilon() if clean else None,
        "lifetime_epsilon": opened.lifetime_epsilon,
        "rdp": opened.best_epsilon() if clean else None,
        "prv": prv if clean else None,
        "local": opened.local_epsilon(),
        "delta": opened.delta,
        "unit": opened.unit,
        "filter": opened.filter_kind,
    }


def _prv(schedules: tuple[Any, ...], delta: float) -> float | None:
    """None where it would take minutes."""
    from fedaipc.privacy.accountant import epsilon_prv, is_dear

    return None if is_dear(schedules) else epsilon_prv(schedules, delta)


def _csv(copies: list[Copy]) -> str:
    file = io.StringIO(newline="")
    table = csv.DictWriter(file, _COLUMNS, extrasaction="ignore")
    table.writeheader()
    for copy in copies:
        for number, line in enumerate(copy.lines, start=1):
            entry = strict_json.parse(line)
            if entry["kind"] == "charge":
                own = {k: v for k, v in entry["mechanism"].items() if k != "kind"}
                kind = entry["mechanism"]["kind"]
                table.writerow({**entry, **own, "mechanism": kind, "pc": copy.pc, "line": number})
    return file.getvalue()
