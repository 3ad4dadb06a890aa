"""A certificate for people to read: one page that needs no network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedaipc import strict_json
from fedaipc.config import DPSGD, filter_name, filter_source
from fedaipc.report.table import Table
from fedaipc.report.template import render
from fedaipc.secagg.keys import fingerprint

if TYPE_CHECKING:
    from fedaipc.certificate.document import Certificate
    from fedaipc.config import Schedule


def certificate_page(certificate: Certificate) -> str:
    """The whole page. It repeats the JSON beside it, which alone is signed."""
    run, packages = certificate.run, certificate.software.packages
    return render(
        "certificate.html.j2",
        certificate=certificate,
        schedule=Table(
            ("noise", "honest PCs", "noise multiplier", "sampling rate", "clip bound", "steps"),
            [_schedule_row(one) for one in certificate.guarantee.schedule],
            words=(0,),
        ),
        base="" if run is None else str(strict_json.parse(run.job)["model"]["base"]),
        versions=", ".join(f"{name} {number}" for name, number in packages.items()),
        filter_name=filter_name,
        filter_source=filter_source,
        signer=fingerprint(bytes.fromhex(certificate.signer)),
    )


def _schedule_row(one: Schedule) -> tuple[str, ...]:
    mechanism = one.mechanism
    assert isinstance(mechanism, DPSGD)  # noqa: S101 - what is not private costs no epsilon
    return (
        mechanism.noise, "-" if mechanism.honest is None else f"{mechanism.honest:,}",
        f"{mechanism.multiplier:g}", f"{mechanism.sampling_rate:g}", f"{mechanism.clip_norm:g}",
        f"{one.steps:,}",
    )  # fmt: skip
