"""`fedaipc privacy certificate`: what was promised and spent, signed, and its check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedaipc import strict_json
from fedaipc.cli.output import AsJson, make_console, say, say_json
from fedaipc.errors import CertificateError
from fedaipc.report.formatting import at_most
from fedaipc.report.table import Alarm, Table

if TYPE_CHECKING:
    from fedaipc.certificate.document import Certificate
    from fedaipc.secagg.keys import SigningKey

app = typer.Typer(help="What was promised and spent, for others to check.", no_args_is_help=True)
JSON_FILE, PAGE_FILE = "certificate.json", "certificate.html"


@app.command()
def issue(
    folder: Annotated[Path, typer.Argument(help="run folder, or one PC's", show_default=False)],
    federation: Annotated[
        Path | None,
        typer.Option(
            help="folder of the admission key that signed the run's job; a simulated run "
            "has its own"
        ),
    ] = None,
    audit: Annotated[
        Path | None,
        typer.Option(help="audit.json of the same schedule, which `fedaipc privacy audit` wrote"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder for the two files (default: the given one)")
    ] = None,
) -> None:
    """Write certificate.json, which is signed, and certificate.html, which people can read.

    Example: fedaipc privacy certificate issue runs/demo
    """
    from fedaipc.certificate.audited import audit_file, with_audit
    from fedaipc.certificate.issue import pc_certificate, run_certificate
    from fedaipc.certificate.page import certificate_page
    from fedaipc.client.key_store import KeyStore
    from fedaipc.privacy.ledger import LEDGER_FILE
    from fedaipc.results import write_file

    if not folder.is_dir():
        raise CertificateError(f"{folder}: no such folder")
    if (folder / LEDGER_FILE).is_file():
        key = KeyStore(folder).identity
        made = pc_certificate(folder)
    else:
        key = _admission_key(folder, federation)
        made = run_certificate(folder, key)
    if audit is not None:
        made = with_audit(made, audit_file(audit, made.guarantee), key)
    place = out or folder
    write_file(place / JSON_FILE, made.write())
    write_file(place / PAGE_FILE, certificate_page(made).encode())
    say(f"{_said(made)}; wrote {place / JSON_FILE} and {place / PAGE_FILE}")


@app.command()
def verify(
    file: Annotated[
        Path, typer.Argument(help="certificate.json, or its folder", show_default=False)
    ],
    key: Annotated[
        str | None,
        typer.Option(help="fingerprint of the key that must have signed, as you were told it"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check signatures and schedule, and compute epsilon again by dp-accounting alone.

    Stops at the first check that fails. A schedule too large for the accountant fails, too.

    Example: fedaipc privacy certificate verify runs/demo/certificate.json
    """
    from fedaipc.certificate.check import Finding, check
    from fedaipc.certificate.document import Certificate
    from fedaipc.secagg.keys import fingerprint, read_fingerprint

    file = file / JSON_FILE if file.is_dir() else file
    certificate = Certificate.load(file)
    signer = fingerprint(bytes.fromhex(certificate.signer))
    found: list[Finding] = []
    if key is not None:
        holds = read_fingerprint(key) == signer
        found.append(Finding("signer", holds, f"{signer}, asked for {key}"))
    if all(one.holds for one in found):
        found += check(certificate)
    if as_json:
        rows = [{"what": f.what, "holds": f.holds, "detail": f.detail} for f in found]
        say_json({"signer": signer, "findings": rows})
    else:
        lines = [(f.what, "holds" if f.holds else Alarm("FAILS"), f.detail) for f in found]
        table = Table(("checked", "", ""), lines, words=(0, 1, 2))
        make_console(highlight=False).print(table)
        say(f"signed by {signer}" + (": compare it with what you were told" * (key is None)))
    if certificate.guarantee.claim is None:
        say(f"it claims nothing: {_said(certificate)}", err=True)
    wrong = [one.what for one in found if not one.holds]
    if wrong:
        raise CertificateError(
            f"{file}: does not hold: {', '.join(wrong)}; the checks after it were not made"
        )


def _admission_key(folder: Path, federation: Path | None) -> SigningKey:
    """The key in the given folder, or in the folder of the simulation whose run it is."""
    from fedaipc.federation.key import KEY_FILE, Admission

    place = folder / "pc-state.json"
    if federation is None and place.is_file():
        try:
            federation = folder / strict_json.load(place) / "federation"
        except (OSError, ValueError, TypeError):
            raise CertificateError(f"{place}: cannot be read; give --federation") from None
    if federation is None or not (federation / KEY_FILE).is_file():
        where = "" if federation is None else f" ({federation} has none)"
        raise CertificateError(
            f"{folder}: a run's certificate is signed by the admission key of its federation; "
            f"give its folder with --federation{where}, or the folder of one PC"
        )
    return Admission(federation).key


def _said(certificate: Certificate) -> str:
    guarantee = certificate.guarantee
    if guarantee.claim is None:
        return f"NOT PRIVATE: {'; '.join(guarantee.not_private)}"
    said = f"epsilon at most {at_most(guarantee.claim)} at delta {guarantee.delta:g}"
    if guarantee.local is None:
        return said
    local = at_most(guarantee.local)
    return f"{said} if secure aggregation holds; {local} against whoever reads one PC's own updates"
