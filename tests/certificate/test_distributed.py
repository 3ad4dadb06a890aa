"""Certificates of runs with distributed noise: two promises, and what the first rests on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fedaipc.certificate.audited import audit_file
from fedaipc.certificate.check import check
from fedaipc.certificate.document import AT_MOST, MECHANISM, Certificate, wording
from fedaipc.certificate.issue import pc_certificate, run_certificate
from fedaipc.certificate.page import certificate_page
from fedaipc.errors import BudgetExhausted, CertificateError
from fedaipc.federation.key import Admission
from fedaipc.privacy.budget import local_epsilon
from fedaipc.simulation.simulation import prepare, simulate
from tests.support.jobs import tiny
from tests.support.runs import allow, job_of, quiet

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedaipc.simulation.simulation import Run
    from tests.support.commands import Ran

TRUST = wording([], "record").trust


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Run:
    folder = tmp_path_factory.mktemp("runs")
    made = prepare(
        tiny(f"output.folder='{folder}'", "privacy.noise=distributed", "federation.clients=4",
             "privacy.noise_multiplier=2.0")
    )  # fmt: skip
    simulate(made, "in-process", quiet)
    return made


@pytest.fixture(scope="module")
def certificate(run: Run) -> Certificate:
    return run_certificate(run.folder, Admission(run.pc_state / "federation").key)


def test_it_holds_and_says_both_promises(run: Run, certificate: Certificate) -> None:
    findings = check(certificate)
    assert [one.what for one in findings if not one.holds] == []
    assert "local" in {one.what for one in findings}
    job, guarantee = job_of(run), certificate.guarantee
    assert guarantee.local == local_epsilon([job.schedule.times(2)], job.privacy.delta)
    assert guarantee.claim is not None
    assert guarantee.local is not None
    assert guarantee.local > guarantee.claim
    assert certificate.trust == wording(guarantee.schedule, "record").trust
    assert set(certificate.trust) != set(TRUST)
    page = certificate_page(certificate)
    assert "Secure aggregation holds" in page
    assert "<td>distributed</td>" in page
    assert f"{guarantee.local:.4f}" in page


def test_the_command_says_what_the_claim_rests_on(
    fedaipc: Callable[..., Ran], run: Run, tmp_path: Path
) -> None:
    ran = fedaipc("privacy", "certificate", "issue", run.folder, "--out", tmp_path / "c")
    assert ran.code == 0
    assert "if secure aggregation holds; " in ran.out
    assert "against whoever reads one PC's own updates" in ran.out


def test_where_the_claim_is_for_all_attempts_the_second_promise_is_too(
    tmp_path: Path, minilm: Path
) -> None:
    """Budgets end after one round of two: PCs cannot know what the coordinator may still ask."""
    made = prepare(
        tiny(f"output.folder='{tmp_path}'", "privacy.noise=distributed", "federation.clients=4",
             "privacy.noise_multiplier=2.0")
    )  # fmt: skip
    for number in range(4):
        allow(made, number, rounds=1)
    with pytest.raises(BudgetExhausted):
        simulate(made, "in-process", quiet)
    found = run_certificate(made.folder, Admission(made.pc_state / "federation").key)
    assert [one.what for one in check(found) if not one.holds] == []
    job, guarantee = job_of(made), found.guarantee
    assert guarantee.basis == AT_MOST
    (charged,) = guarantee.schedule
    assert charged.steps < job.max_attempts
    most = local_epsilon([job.schedule.times(job.max_attempts)], job.privacy.delta)
    assert guarantee.local == most


def test_an_audit_of_single_updates_is_not_taken_in(certificate: Certificate) -> None:
    """Though its schedule is the same: its attacker saw all of the noise on one update."""
    with pytest.raises(CertificateError, match="single updates"):
        audit_file(Path("audit.json"), certificate.guarantee)


def test_so_does_a_pcs(run: Run) -> None:
    made = pc_certificate(run.pc_state / "pc-0001")
    assert [one.what for one in check(made) if not one.holds] == []
    assert made.trust == wording(made.guarantee.schedule, "record").trust
    assert made.guarantee.local is not None


AUDIT = {"method": "m", "lower": 0.1, "confidence": 0.95, "canaries": 10, "result_hash": "0" * 64}


@pytest.mark.parametrize(
    ("lie", "found"),
    [
        (lambda c: c["guarantee"].update(local=0.1), "local"),
        (lambda c: c["guarantee"].update(local=None), "local"),
        (lambda c: c.update(trust=list(TRUST)), "wording"),
        (lambda c: c["guarantee"].update(mechanism=MECHANISM), "wording"),
        (lambda c: c["guarantee"]["schedule"][0]["mechanism"].update(honest=30), "schedule"),
        (lambda c: c["guarantee"]["schedule"][0]["mechanism"].pop("honest"), "schedule"),
        (lambda c: c["run"].update(aggregation="plain"), "job's terms"),
        (lambda c: c.update(audit=AUDIT | {"promised": c["guarantee"]["epsilon"]["pld"]}), "audit"),
    ],
    ids=[
        "a smaller promise",
        "none",
        "nothing to rest on",
        "local noise",
        "more honest PCs",
        "no honest PCs",
        "read by the server",
        "an audit of single updates",
    ],
)
def test_a_lie_is_found_though_it_is_signed(
    run: Run, certificate: Certificate, lie: Callable[[Any], None], found: str
) -> None:
    content = certificate.model_dump(mode="json")
    lie(content)
    key = Admission(run.pc_state / "federation").key
    signed = Certificate.model_validate({**content, "signature": ""}).signed_by(key)
    assert found in [one.what for one in check(signed) if not one.holds]


@pytest.mark.parametrize(
    "change",
    [
        {"training": {"local_steps": 50}},
        {"weighting": "equal"},
        {"aggregation": {"kind": "plain"}},
    ],
    ids=["many steps", "other weights", "read by the server"],
)
def test_a_job_that_no_pc_takes_has_no_certificate(
    run: Run, certificate: Certificate, change: dict[str, Any]
) -> None:
    """Though the federation's key signed it: the theorem is about other jobs."""
    key = Admission(run.pc_state / "federation").key
    content = certificate.model_dump(mode="json")
    job = json.loads(content["run"]["job"])
    for name, value in change.items():
        job[name] = {**job[name], **value} if isinstance(value, dict) else value
    text = json.dumps(job)
    content["run"] |= {
        "job": text, "job_signature": key.sign(b"fedaipc job" + text.encode()).hex(),
        "aggregation": job["aggregation"]["kind"],
    }  # fmt: skip
    signed = Certificate.model_validate({**content, "signature": ""}).signed_by(key)
    assert [one.what for one in check(signed) if not one.holds] in (["job's terms"], ["contents"])


def test_local_noise_claims_nothing_else(tmp_path: Path, minilm: Path) -> None:
    made = prepare(tiny(f"output.folder='{tmp_path}'", "privacy.noise_multiplier=2.0"))
    simulate(made, "in-process", quiet)
    certificate = run_certificate(made.folder, Admission(made.pc_state / "federation").key)
    assert certificate.guarantee.local is None
    assert certificate.trust == TRUST
