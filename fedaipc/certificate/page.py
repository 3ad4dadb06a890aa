"""A certificate for people to read: one page that needs no network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedaipc import strict_json
from fedaipc.config import DPSGD
from fedaipc.report import formatting
from fedaipc.report.markup import escape, facts, page, section, table
from fedaipc.secagg.keys import fingerprint

if TYPE_CHECKING:
    from fedaipc.certificate.document import Certificate, PcFacts, RunFacts
    from fedaipc.config import Schedule


def certificate_page(certificate: Certificate) -> str:
    """The whole page. It repeats the JSON beside it, which alone is signed."""
    guarantee, subject = certificate.guarantee, _subject(certificate)
    schedule = table(
        ("noise multiplier", "sampling rate", "clip bound", "steps"),
        [_schedule_row(one) for one in guarantee.schedule],
        words_in=(),
    )  # fmt: skip
    told = facts(
        [
            ("unit", guarantee.unit),
            ("neighbours", guarantee.neighbours),
            ("mechanism", guarantee.mechanism),
            ("sampling", guarantee.sampling),
            ("amplification", guarantee.amplification),
            ("composition", guarantee.composition),
            ("delta", formatting.delta_text(guarantee.delta)),
        ]
    )
    software = certificate.software
    versions = ", ".join(f"{name} {number}" for name, number in software.packages.items())
    return page(
        f"{subject} | fedaipc privacy certificate",
        "<header>",
        f"<h1>Privacy certificate: {escape(subject)}</h1>",
        _headline(certificate),
        "</header>",
        section("What is promised", told, "<h3>Schedule</h3>", schedule),
        section("Epsilon", _epsilons(certificate)),
        section("What it rests on", "<ul>", *(f"<li>{escape(t)}</li>" for t in certificate.trust),
                "</ul>"),
        section("Attacked", _audit(certificate)),
        section("Of what", facts(_run(certificate.run) if certificate.run is not None
                                 else _pc(certificate.pc) if certificate.pc is not None else [])),
        section(
            "Software",
            facts([("fedaipc", software.fedaipc), ("code", software.code), ("with", versions)]),
        ),
        section(
            "Signature",
            facts([
                ("issued", certificate.issued),
                ("signed by", fingerprint(bytes.fromhex(certificate.signer))),
            ]),
            "<p>The JSON file beside this page is what is signed. "
            "<code>fedaipc privacy certificate verify FILE</code> checks it.</p>",
        ),
    )  # fmt: skip


def _subject(certificate: Certificate) -> str:
    if certificate.run is not None:
        return f"run {certificate.run.name} ({certificate.run.run})"
    return f"PC {certificate.pc.name}" if certificate.pc is not None else ""


def _headline(certificate: Certificate) -> str:
    guarantee = certificate.guarantee
    if guarantee.epsilon is None:
        reasons = escape("; ".join(guarantee.not_private))
        return f'<p class="alarm"><strong>{formatting.NOT_PRIVATE}</strong>: {reasons}</p>'
    epsilon = formatting.epsilon_text(guarantee.claim)
    return (
        f'<p class="lead">At most epsilon {epsilon} at delta '
        f"{escape(formatting.delta_text(guarantee.delta))} for {escape(guarantee.unit)}: "
        f"{escape(guarantee.basis)}.</p>"
    )


def _epsilons(certificate: Certificate) -> str:
    epsilon = certificate.guarantee.epsilon
    if epsilon is None:
        return "<p>None is claimed.</p>"
    rows: list[tuple[str, object]] = [
        ("of the schedule below", "as if it had been fixed in advance"),
        ("PLD (dp-accounting)", f"{epsilon.pld:.4f}"),
        ("PRV (Opacus)", f"{epsilon.prv:.4f}"),
        ("RDP (Opacus)", f"{epsilon.rdp:.4f}"),
    ]
    if certificate.pc is not None:
        spent = certificate.pc.filter
        rows.append(
            (
                f"charged (RDP filter of order {spent.order:g})",
                f"{spent.epsilon:.4f} of {spent.lifetime_epsilon:g} for life",
            )
        )
    return facts(rows)


def _audit(certificate: Certificate) -> str:
    audit = certificate.audit
    if audit is None:
        return "<p>No audit is attached.</p>"
    promised = (
        "nothing" if audit.promised is None else f"at most {formatting.at_most(audit.promised)}"
    )
    return facts(
        [
            ("method", audit.method),
            (
                "epsilon is at least",
                f"{formatting.at_least(audit.lower)}, with confidence {audit.confidence:g}",
            ),
            ("promised there", promised),
            ("canaries", f"{audit.canaries:,}"),
            ("result file", audit.result_hash),
        ]
    )


def _schedule_row(one: Schedule) -> tuple[str, ...]:
    mechanism = one.mechanism
    assert isinstance(mechanism, DPSGD)  # noqa: S101 - what is not private costs no epsilon
    return (
        f"{mechanism.noise:g}", f"{mechanism.sampling_rate:g}", f"{mechanism.clip_norm:g}",
        f"{one.steps:,}",
    )  # fmt: skip


def _run(run: RunFacts) -> list[tuple[str, object]]:
    job = strict_json.parse(run.job)
    accuracy = formatting.UNKNOWN if run.test_accuracy is None else f"{run.test_accuracy:.3f}"
    return [
        ("run", run.run),
        ("engine", run.engine),
        ("rounds", f"{run.rounds:,} in {run.attempts:,} attempts ({run.status})"),
        ("PCs", f"{run.pcs:,}"),
        ("updates", "sealed" if run.aggregation != "plain" else formatting.NOT_SEALED),
        ("base model", str(job["model"]["base"])),
        ("model vector", run.vector_hash),
        ("test accuracy", accuracy),
        ("config.toml", run.config_hash),
    ]


def _pc(pc: PcFacts) -> list[tuple[str, object]]:
    return [
        ("PC", pc.name),
        ("rounds charged", f"{pc.charges:,}"),
        ("ledger", f"{len(pc.ledger):,} signed lines, in the JSON file"),
        ("size class", formatting.UNKNOWN if pc.size_class is None else f"{pc.size_class:,}"),
    ]
