"""The result of an audit, within a certificate of the same schedule."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from fedaipc import bounds, strict_json
from fedaipc.certificate.document import AuditFacts, Certificate, Guarantee
from fedaipc.config import DPSGD
from fedaipc.errors import CertificateError

if TYPE_CHECKING:
    from pathlib import Path

    from fedaipc.secagg.keys import SigningKey

_FORMAT = "fedaipc audit"
_METHOD = "one-run canary audit (Steinke, Nasr and Jagielski 2023)"


def audit_file(path: Path, guarantee: Guarantee) -> AuditFacts:
    """The canary audit in `path` whose schedule is that of `guarantee`.

    Raises CertificateError where the audit has none: an audit of another schedule proves nothing
    here.
    """
    if len(guarantee.schedule) != 1 or guarantee.epsilon is None:
        raise CertificateError("an audit fits a private run of one kind of step")
    (taken,) = guarantee.schedule
    mechanism = taken.mechanism
    if type(mechanism) is not DPSGD:
        raise CertificateError(f'an audit fits DP-SGD, and not "{mechanism.kind}"')
    if mechanism.noise_at_encoding:
        raise CertificateError(
            "a certificate takes in audits of single updates: none of jobs with distributed noise, "
            "nor of those that protect whole clients"
        )
    wanted = (mechanism.multiplier, mechanism.sampling_rate, taken.steps, guarantee.delta)
    try:
        content = bounds.read_bytes(path, strict_json.MAX_BYTES)
        report: Any = strict_json.parse(content)
        if report["format"] != _FORMAT:
            raise ValueError  # noqa: TRY301 - all that is no report ends in one line
        for one in report["settings"]:
            canary = one["canary"]
            own = (one["noise_multiplier"], one["sampling_rate"], one["steps"], canary["delta"])
            if own == wanted:
                return AuditFacts(
                    method=_METHOD,
                    lower=canary["bound"]["lower"],
                    confidence=canary["bound"]["confidence"],
                    promised=canary["promised"],
                    canaries=canary["bound"]["canaries"],
                    result_hash=hashlib.sha256(content).hexdigest(),
                )
    except FileNotFoundError:
        raise CertificateError(f"{path}: no such file") from None
    except OSError as error:
        raise CertificateError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError):
        raise CertificateError(f"{path}: is not what `fedaipc privacy audit` writes") from None
    raise CertificateError(
        f"{path}: holds no audit of noise multiplier {mechanism.multiplier:g}, sampling rate "
        f"{mechanism.sampling_rate:g}, {taken.steps} steps; audit a job with this schedule"
    )


def with_audit(certificate: Certificate, audit: AuditFacts, key: SigningKey) -> Certificate:
    """The same certificate with an audit's result, signed again by the `key` that signed it."""
    return certificate.model_copy(update={"audit": audit, "signature": ""}).signed_by(key)
