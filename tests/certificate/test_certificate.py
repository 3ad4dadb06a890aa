"""Certificates of real runs and PCs: true ones hold, and every lie in one is found."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fedaipc.certificate import check as checker
from fedaipc.certificate.audited import with_audit
from fedaipc.certificate.check import check
from fedaipc.certificate.document import (
    AS_DECLARED,
    COMPOSITION,
    AuditFacts,
    Certificate,
    Epsilons,
    Guarantee,
    RunFacts,
    Software,
    lifetime_basis,
    wording,
)
from fedaipc.certificate.issue import code_hash, pc_certificate, run_certificate
from fedaipc.certificate.page import certificate_page
from fedaipc.client.key_store import KeyStore
from fedaipc.config import (
    DPSGD,
    GAUSSIAN,
    FilterKind,
    NoPrivacy,
    Schedule,
    filter_name,
    load_settings,
)
from fedaipc.errors import CertificateError
from fedaipc.federation.key import Admission
from fedaipc.privacy.accountant import epsilon_pld
from fedaipc.privacy.chain import signed_line
from fedaipc.privacy.ledger import Charge, Ledger
from fedaipc.secagg.keys import SigningKey, fingerprint
from fedaipc.simulation.simulation import Run, prepare, simulate
from tests.support.commands import refused
from tests.support.jobs import TINY, tiny
from tests.support.runs import quiet
from tests.support.schedules import dp_sgd, mechanism_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.commands import Ran


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Run:
    """A finished private run of three PCs, two rounds."""
    folder = tmp_path_factory.mktemp("runs")
    made = prepare(tiny(f"output.folder='{folder}'", "privacy.noise_multiplier=2.0"))
    simulate(made, "in-process", quiet)
    return made


@pytest.fixture(scope="module")
def key(run: Run) -> SigningKey:
    return Admission(run.pc_state / "federation").key


@pytest.fixture(scope="module")
def certificate(run: Run, key: SigningKey) -> Certificate:
    """The true one of the run; it cannot be changed."""
    return run_certificate(run.folder, key)


def wrong(certificate: Certificate) -> list[str]:
    return [one.what for one in check(certificate) if not one.holds]


def told(certificate: Certificate, key: SigningKey, change: Callable[[Any], None]) -> Certificate:
    """The certificate with a change, signed anew by who may sign it: a lie, not a forgery."""
    content = certificate.model_dump(mode="json")
    change(content)
    return Certificate.model_validate({**content, "signature": ""}).signed_by(key)


def test_a_run_has_a_certificate_that_holds(run: Run, key: SigningKey, tmp_path: Path) -> None:
    made = run_certificate(run.folder, key)
    (tmp_path / "c.json").write_bytes(made.write())
    read = Certificate.load(tmp_path / "c.json")
    assert read == made
    assert wrong(read) == []
    guarantee = read.guarantee
    (step,) = guarantee.schedule
    assert read.run is not None
    assert (read.run.rounds, read.run.attempts, read.run.pcs) == (2, 2, 3)
    job = json.loads(read.run.job)
    steps = 2 * job["training"]["local_steps"]
    mechanism = step.mechanism
    assert isinstance(mechanism, DPSGD)
    assert (mechanism.multiplier, step.steps) == (2.0, steps)
    assert guarantee.epsilon is not None
    taken = dp_sgd(2.0, mechanism.sampling_rate, steps)
    assert guarantee.claim == guarantee.epsilon.pld == epsilon_pld([taken], guarantee.delta)
    assert guarantee.basis == AS_DECLARED


def test_a_pc_has_a_certificate_that_holds_with_its_whole_ledger(run: Run) -> None:
    folder = run.pc_state / "pc-0001"
    made = pc_certificate(folder)
    assert wrong(made) == []
    assert made.pc is not None
    assert "\n".join(made.pc.ledger) + "\n" == (folder / "ledger.jsonl").read_text()
    assert made.signer == KeyStore(folder).identity.public.hex()
    # Its life was not fixed in advance: only the filter's budget can be claimed.
    kind = Ledger(folder / "ledger.jsonl").filter_kind
    assert kind == made.pc.filter.kind
    assert (made.guarantee.claim, made.guarantee.basis) == (1000.0, lifetime_basis(kind))
    assert "the privacy filter (RDP order 17)" in made.guarantee.basis  # its job samples
    assert made.pc.filter.epsilon == Ledger(folder / "ledger.jsonl").spent_epsilon()


def pc_of(folder: Path, kind: FilterKind) -> Path:
    """A PC with three charges, sampled and not, under this filter."""
    folder.mkdir()
    identity = KeyStore.create(folder).identity
    ledger = Ledger.create(
        folder / "ledger.jsonl", identity, lifetime_epsilon=8.0, delta=1e-5, filter_kind=kind
    )
    for number, step in enumerate(
        (dp_sgd(3.0, 1.0, 2), dp_sgd(5.0, 0.3, 4), dp_sgd(3.0, 1.0, 1)), start=1
    ):
        ledger.charge(Charge(run="r", round=number, attempt=number, schedule=step))
    return folder


@pytest.mark.parametrize("kind", [GAUSSIAN, 4.0])
def test_each_filter_is_recomputed_by_dp_accounting(tmp_path: Path, kind: FilterKind) -> None:
    folder = pc_of(tmp_path / "pc", kind)
    made, identity = pc_certificate(folder), KeyStore(folder).identity
    assert wrong(made) == []
    page = certificate_page(made)
    assert f"charged by the privacy filter ({filter_name(kind)})" in page
    assert ("Smith" in page) == (kind == GAUSSIAN)
    assert ("Feldman" in page) == (kind != GAUSSIAN)
    assert made.pc is not None
    spent = made.pc.filter.epsilon
    for lie in (spent * 0.99, spent * 1.01, 0.0):

        def change(content: Any, lie: float = lie) -> None:
            content["pc"]["filter"].update(epsilon=lie)

        assert wrong(told(made, identity, change)) == ["lifetime budget"]


@pytest.mark.parametrize(("kind", "other"), [(GAUSSIAN, 4.0), (4.0, GAUSSIAN), (4.0, 3.0)])
def test_a_lie_about_the_filter_is_found(
    tmp_path: Path, kind: FilterKind, other: FilterKind
) -> None:
    """What would have been charged under another one is not what this ledger enforced."""
    folder = pc_of(tmp_path / "pc", kind)
    made, identity = pc_certificate(folder), KeyStore(folder).identity
    elsewhere = pc_certificate(pc_of(tmp_path / "other", other)).pc
    assert elsewhere is not None

    def lie(content: Any) -> None:
        content["pc"]["filter"].update(kind=other, epsilon=elsewhere.filter.epsilon)
        content["guarantee"].update(basis=lifetime_basis(other))

    assert wrong(told(made, identity, lie)) == ["ledger's terms"]
    words = told(made, identity, lambda c: c["guarantee"].update(basis=lifetime_basis(other)))
    assert wrong(words) == ["claim"]


def test_a_life_beyond_its_budget_has_no_certificate_that_holds(tmp_path: Path) -> None:
    """Though each line is signed by the PC: the filter is computed again, and not believed."""
    folder = pc_of(tmp_path / "pc", GAUSSIAN)
    path, identity = folder / "ledger.jsonl", KeyStore(folder).identity
    last = json.loads(path.read_text().splitlines()[-1])
    body = {k: v for k, v in last.items() if k not in ("hash", "signature", "previous")}
    line = signed_line({**body, "steps": 30, "attempt": 9}, last["hash"], identity)
    path.write_bytes(path.read_bytes() + line)
    made = pc_certificate(folder)
    assert made.pc is not None
    assert made.pc.filter.epsilon > 8
    assert wrong(made) == ["lifetime budget"]
    low = told(made, identity, lambda c: c["pc"]["filter"].update(epsilon=7.9))
    assert wrong(low) == ["lifetime budget"]


@pytest.mark.parametrize("what", ["signature", "signer", "guarantee"])
def test_who_has_no_key_can_change_nothing(certificate: Certificate, what: str) -> None:
    content = certificate.model_dump(mode="json")
    if what == "guarantee":
        content["guarantee"]["epsilon"]["pld"] *= 1.001
    elif what == "signer":
        content["signer"] = SigningKey().public.hex()
    else:
        content["signature"] = content["signature"][::-1]
    (found,) = check(Certificate.model_validate(content))  # and nothing else is looked at
    assert (found.what, found.holds) == ("signature", False)


RUN_LIES: dict[str, tuple[Callable[[Any], None], str]] = {
    "less epsilon by PLD": (lambda c: c["guarantee"]["epsilon"].update(pld=0.1), "epsilon by PLD"),
    "less epsilon by PRV": (lambda c: c["guarantee"]["epsilon"].update(prv=0.1), "epsilon by PRV"),
    "less epsilon by RDP": (lambda c: c["guarantee"]["epsilon"].update(rdp=0.1), "epsilon by RDP"),
    "more noise": (
        lambda c: c["guarantee"]["schedule"][0]["mechanism"].update(
            noise_multiplier=3.0), "schedule"),
    "fewer steps": (lambda c: c["guarantee"]["schedule"][0].update(steps=1), "schedule"),
    "a smaller rate": (
        lambda c: c["guarantee"]["schedule"][0]["mechanism"].update(
            sampling_rate=0.01), "schedule"),
    "no schedule": (lambda c: c["guarantee"].update(schedule=[]), "schedule"),
    "another delta": (lambda c: c["guarantee"].update(delta=1e-3), "job's terms"),
    "another clip": (
        lambda c: c["guarantee"]["schedule"][0]["mechanism"].update(clip_norm=0.1), "schedule"),
    "more attempts than the job has": (lambda c: c["run"].update(attempts=10**6), "job's terms"),
    "another job": (
        lambda c: c["run"].update(job=c["run"]["job"].replace("2.0", "9.0")), "job's signature"),
    "no job": (lambda c: c["run"].update(job="[]"), "job's signature"),
    "another unit": (lambda c: c["guarantee"].update(unit="one person"), "wording"),
    "less to rest on": (lambda c: c.update(trust=[]), "wording"),
    "more rounds than attempts": (lambda c: c["run"].update(rounds=30), "job's terms"),
    "a round left out": (lambda c: c["run"].update(rounds=1, attempts=1), "job's terms"),
    "a smaller claim": (lambda c: c["guarantee"].update(claim=0.01), "claim"),
    "one percent less by PLD": (
        lambda c: c["guarantee"]["epsilon"].update(
            pld=0.99 * c["guarantee"]["epsilon"]["pld"]), "epsilon by PLD"),
    "an audit with another promise": (
        lambda c: c.update(audit={"method": "m", "lower": 50.0, "confidence": 0.95,
                                  "promised": 60.0, "canaries": 10, "result_hash": "0" * 64}),
        "audit"),
    "an audit without a promise": (
        lambda c: c.update(audit={"method": "m", "lower": 50.0, "confidence": 0.95,
                                  "promised": None, "canaries": 10, "result_hash": "0" * 64}),
        "audit"),
    "an audit above the promise": (
        lambda c: c.update(audit={"method": "m", "lower": 3.0, "confidence": 0.95, "promised": 2.0,
                                  "canaries": 10, "result_hash": "0" * 64}), "audit"),
}  # fmt: skip


@pytest.mark.parametrize("lie", RUN_LIES)
def test_a_lie_about_a_run_is_found_though_it_is_signed(
    certificate: Certificate, key: SigningKey, lie: str
) -> None:
    change, where = RUN_LIES[lie]
    assert where in wrong(told(certificate, key, change))


def clean(content: Any) -> None:
    content["guarantee"].update(
        not_private=[], epsilon={"rdp": 1.0, "prv": 1.0, "pld": 1.0}, claim=1.0
    )


PC_LIES: dict[str, tuple[Callable[[Any], None], str]] = {
    "a charge left out": (lambda c: c["pc"].update(ledger=c["pc"]["ledger"][:-1]), "ledger"),
    "a charge left out and counted so": (
        lambda c: c["pc"].update(ledger=c["pc"]["ledger"][:-1], charges=1), "schedule"),
    "a changed line": (
        lambda c: c["pc"].update(ledger=[x.replace("2.0", "9.0") for x in c["pc"]["ledger"]]),
        "ledger"),
    "a smaller claim": (lambda c: c["guarantee"].update(claim=0.01), "claim"),
    "an empty ledger": (lambda c: c["pc"].update(ledger=[]), "ledger"),
    "less charged": (lambda c: c["pc"]["filter"].update(epsilon=0.01), "lifetime budget"),
    "another budget": (
        lambda c: c["pc"]["filter"].update(lifetime_epsilon=9000), "ledger's terms"),
    "another filter": (lambda c: c["pc"]["filter"].update(kind=2.0), "ledger's terms"),
    "not private, and it was": (
        lambda c: c["guarantee"].update(not_private=["x"], epsilon=None, claim=None),
        "private or not"),
}  # fmt: skip


@pytest.mark.parametrize("lie", PC_LIES)
def test_a_lie_about_a_pc_is_found_though_it_is_signed(run: Run, lie: str) -> None:
    folder = run.pc_state / "pc-0001"
    change, where = PC_LIES[lie]
    assert where in wrong(told(pc_certificate(folder), KeyStore(folder).identity, change))


def test_a_charge_that_gives_budget_back_is_found(run: Run, tmp_path: Path) -> None:
    """Signed by the PC, and no charge all the same."""
    folder = Path(shutil.copytree(run.pc_state / "pc-0001", tmp_path / "pc"))
    path, identity = folder / "ledger.jsonl", KeyStore(folder).identity
    last = json.loads(path.read_text().splitlines()[-1])
    body = {k: v for k, v in last.items() if k not in ("hash", "signature", "previous")}
    line = signed_line({**body, "steps": -1, "attempt": 9}, last["hash"], identity)
    true = pc_certificate(folder)

    def lie(content: Any) -> None:
        content["pc"]["ledger"].append(line.decode().strip())
        content["pc"]["charges"] += 1
        content["guarantee"]["schedule"][0]["steps"] -= 1

    assert "ledger" in wrong(told(true, identity, lie))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["run"].update(job=c["run"]["job"].replace("[", "{")),
        lambda c: c["run"].update(job='{"privacy": {"noise_multiplier": "x"}}'),
        lambda c: c["run"].update(job=c["run"]["job"].replace('"local_steps":', '"local_steps":"')),
        lambda c: c["run"].update(job="null"),
    ],
)
def test_a_certificate_that_wants_the_reader_to_stumble_is_a_failed_check(
    certificate: Certificate, key: SigningKey, change: Callable[[Any], None]
) -> None:
    def signed_change(content: Any) -> None:
        change(content)
        job = content["run"]["job"].encode()
        content["run"]["job_signature"] = key.sign(b"fedaipc job" + job).hex()

    assert wrong(told(certificate, key, signed_change)) == ["contents"]


@pytest.mark.parametrize("value", [1e-9, 1e300, -1.0])
def test_noise_that_no_accountant_can_take_is_no_certificate(
    certificate: Certificate, tmp_path: Path, value: float
) -> None:
    content = certificate.model_dump(mode="json")
    content["guarantee"]["schedule"][0]["mechanism"]["noise_multiplier"] = value
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(CertificateError, match="no certificate"):
        Certificate.load(tmp_path / "c.json")


def by_a_stranger(noise: float, rate: float, local: int, rounds: int) -> Certificate:
    """Signed, job and all, by a key that anybody can make; its numbers agree."""
    key = SigningKey()
    step = dp_sgd(noise, rate, local * rounds)
    job = {"privacy": step.mechanism.model_dump(), "training": {"local_steps": local},
           "max_attempts": rounds, "rounds": rounds, "run": "0" * 16}  # fmt: skip
    text, said = json.dumps(job), asdict(wording([step], "record"))
    trust = said.pop("trust")
    return Certificate(
        issued="now",
        trust=trust,
        guarantee=Guarantee(
            **said, composition=COMPOSITION, delta=1e-5, schedule=(step,), claim=1e9,
            basis=AS_DECLARED, epsilon=Epsilons(rdp=1.0, prv=1.0, pld=1.0), not_private=(),
        ),
        software=Software(fedaipc="0", code="0" * 64, packages={}),
        run=RunFacts(
            run="0" * 16, name="x", engine="x", status="finished", rounds=rounds, attempts=rounds,
            pcs=3, aggregation="secagg", job=text,
            job_signature=key.sign(b"fedaipc job" + text.encode()).hex(),
            config_hash="0" * 64, vector_hash="", test_accuracy=None,
        ),
        signer=key.public.hex(),
    ).signed_by(key)  # fmt: skip


@pytest.mark.parametrize(
    ("noise", "rate", "local", "rounds"),
    [(1.0, 1.0, 100, 100_000), (5.0, 0.5, 100, 100_000), (0.1, 0.1, 1, 1000), (0.1, 1.0, 1, 10)],
)
def test_a_schedule_that_would_cost_its_verifier_is_not_computed(
    monkeypatch: pytest.MonkeyPatch, noise: float, rate: float, local: int, rounds: int
) -> None:
    """10,000,000 steps took 22 GB, and 1,000 steps of noise 0.1 took minutes."""

    def computed(*_: Any) -> float:
        raise AssertionError("the accountant was asked")

    monkeypatch.setattr(checker, "_pld", computed)
    *before, last = check(by_a_stranger(noise, rate, local, rounds))
    assert all(one.holds for one in before)
    assert (last.what, last.holds) == ("size", False)
    assert "not checked: too large" in last.detail


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "steps"), [(1.0, 10_000_000), (0.1, 1000), (0.61, 220)])
def test_a_certificate_of_anybody_takes_little_memory(
    tmp_path: Path, noise: float, steps: int
) -> None:
    """The last one is about the largest whose epsilon is computed."""
    (tmp_path / "c.json").write_bytes(by_a_stranger(noise, 1.0, 1, steps).write())
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n"
        "sys.argv = ['fedaipc', 'privacy', 'certificate', 'verify', sys.argv[1]]\n"
        "from fedaipc.cli.main import run\n"
        "run()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "c.json")],
        capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 15, done.stderr
    assert "does not hold" in done.stderr
    assert "MemoryError" not in done.stdout + done.stderr


def test_of_more_kinds_of_steps_than_a_life_has_none_is_computed() -> None:
    steps = [dp_sgd(100.0 + n, 0.001) for n in range(101)]
    assert not checker._size(steps).holds
    assert checker._size(steps[:2]).holds


def test_nothing_is_checked_after_what_failed(
    certificate: Certificate, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    lie = told(certificate, key, lambda c: c["guarantee"].update(delta=1e-3))
    monkeypatch.setattr(checker, "_pld", lambda *_: pytest.fail("asked"))
    *before, last = check(lie)
    assert all(one.holds for one in before)
    assert last.what == "job's terms"


def test_another_pcs_ledger_is_found(run: Run) -> None:
    mine, other = (run.pc_state / f"pc-000{n}" for n in (1, 2))
    ledger = pc_certificate(other).model_dump(mode="json")["pc"]["ledger"]
    lie = told(
        pc_certificate(mine), KeyStore(mine).identity, lambda c: c["pc"].update(ledger=ledger)
    )
    assert "ledger" in wrong(lie)


@pytest.mark.parametrize("how", ["none", "seeded"])
def test_a_pc_that_was_not_private_once_has_no_epsilon(run: Run, tmp_path: Path, how: str) -> None:
    folder = Path(shutil.copytree(run.pc_state / "pc-0001", tmp_path / "pc"))
    ledger = Ledger(folder / "ledger.jsonl", KeyStore(folder).identity)
    step = Schedule(mechanism=NoPrivacy(), steps=1) if how == "none" else ledger.schedules[0]
    ledger.charge(Charge(run="r", round=1, attempt=1, schedule=step, seeded=how == "seeded"))
    made = pc_certificate(folder)
    assert made.guarantee.epsilon is None
    assert wrong(made) == []
    assert "NOT PRIVATE" in certificate_page(made)
    assert "private or not" in wrong(told(made, KeyStore(folder).identity, clean))


def test_a_run_without_privacy_says_so(tmp_path: Path, minilm: Path) -> None:
    job = [change for change in TINY if "noise" not in change]
    made = prepare(
        load_settings(overrides=[*job, f"output.folder='{tmp_path}'", "privacy.kind=none"])
    )
    simulate(made, "in-process", quiet)
    key = Admission(made.pc_state / "federation").key
    certificate = run_certificate(made.folder, key)
    assert certificate.guarantee.epsilon is None
    assert wrong(certificate) == []
    assert "private or not" in wrong(told(certificate, key, clean))


def test_only_the_key_that_signed_the_job_certifies_its_run(run: Run) -> None:
    with pytest.raises(CertificateError, match="another admission key"):
        run_certificate(run.folder, SigningKey())


def test_a_run_that_has_not_ended_gets_none(run: Run, key: SigningKey, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run.folder, tmp_path / "run"))
    path = folder / "results.json"
    path.write_text(path.read_text().replace('"status": "finished"', '"status": "running"'))
    with pytest.raises(CertificateError, match="has not ended"):
        run_certificate(folder, key)


def test_it_is_checked_without_our_accountants() -> None:
    """Else a mistake in them would vouch for itself."""
    tree = ast.parse(Path(checker.__file__).read_text(encoding="utf-8"))
    found = {
        str(node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("fedaipc")
    }
    assert found == {
        "fedaipc", "fedaipc.config", "fedaipc.errors", "fedaipc.privacy.chain",
        "fedaipc.secagg.keys",
        "fedaipc.certificate.document",
    }  # fmt: skip
    source = Path(checker.__file__).read_text(encoding="utf-8")
    assert "opacus" not in source
    assert "accountant import" not in source


def test_the_page_says_what_is_promised_and_escapes(
    certificate: Certificate, key: SigningKey
) -> None:
    epsilon = certificate.guarantee.epsilon
    assert epsilon is not None
    audit = AuditFacts(
        method="<b>one run</b>", lower=0.05, confidence=0.95, promised=epsilon.pld, canaries=100,
        result_hash="0" * 64,
    )  # fmt: skip
    made = with_audit(certificate, audit, key)
    assert wrong(made) == []
    page = certificate_page(made)
    assert made.guarantee.epsilon is not None
    for said in (
        "one record", "added or removed", "Poisson", fingerprint(key.public), "0.050",
        made.guarantee.composition, made.software.code, "&lt;b&gt;one run",
    ):  # fmt: skip
        assert said in page
    assert "<b>one run" not in page


def test_the_code_hash_is_of_this_code() -> None:
    assert code_hash() == code_hash()
    assert len(code_hash()) == 64


def test_the_commands_write_and_verify(
    fedaipc: Callable[..., Ran], run: Run, key: SigningKey, tmp_path: Path
) -> None:
    ran = fedaipc("privacy", "certificate", "issue", run.folder, "--out", tmp_path / "c")
    assert ran.code == 0
    assert "epsilon " in ran.out
    assert "<html" in (tmp_path / "c" / "certificate.html").read_text()
    file, own = tmp_path / "c" / "certificate.json", fingerprint(key.public)
    ran = fedaipc("privacy", "certificate", "verify", file, "--key", own, "--json")
    assert ran.code == 0
    assert all(row["holds"] for row in json.loads(ran.out)["findings"])
    other = fedaipc("privacy", "certificate", "verify", file, "--key", "0" * 32)
    assert other.code == 15
    assert "does not hold: signer" in other.err
    file.write_text(file.read_text().replace('"finished"', '"stopped"'))
    ran = fedaipc("privacy", "certificate", "verify", file)
    assert ran.code == 15
    assert "does not hold: signature" in ran.err
    assert "FAILS" in ran.out
    pc = fedaipc("privacy", "certificate", "issue", run.pc_state / "pc-0000", "--out", tmp_path)
    assert pc.code == 0
    assert fedaipc("privacy", "certificate", "verify", tmp_path / "certificate.json").code == 0


def test_an_audit_of_the_same_schedule_goes_into_a_certificate(
    fedaipc: Callable[..., Ran], run: Run, key: SigningKey, tmp_path: Path
) -> None:
    (step,) = run_certificate(run.folder, key).guarantee.schedule
    bound = {"lower": 0.05, "guesses": 9, "right": 8, "canaries": 40, "confidence": 0.95}
    epsilon = run_certificate(run.folder, key).guarantee.epsilon
    assert epsilon is not None
    mechanism = mechanism_of(step)
    setting: dict[str, Any] = {
        "noise_multiplier": mechanism.multiplier, "sampling_rate": mechanism.sampling_rate,
        "steps": step.steps, "canary": {"bound": bound, "promised": epsilon.pld, "delta": 1e-5},
    }  # fmt: skip
    report = {"format": "fedaipc audit", "version": 1, "settings": [setting]}
    (tmp_path / "audit.json").write_text(json.dumps(report))
    words = ("privacy", "certificate", "issue", run.folder, "--out", tmp_path / "c", "--audit")
    delta = json.loads((run.folder / "job.json").read_text())["privacy"]["delta"]
    if delta != 1e-5:
        setting["canary"]["delta"] = delta
        (tmp_path / "audit.json").write_text(json.dumps(report))
    assert fedaipc(*words, tmp_path / "audit.json").code == 0
    made = Certificate.load(tmp_path / "c" / "certificate.json")
    assert made.audit is not None
    assert (made.audit.lower, made.audit.canaries) == (0.05, 40)
    assert wrong(made) == []
    setting["steps"] = step.steps + 1
    (tmp_path / "other.json").write_text(json.dumps(report))
    assert "holds no audit of" in refused(fedaipc(*words, tmp_path / "other.json"), 15)
    (tmp_path / "none.json").write_text("{}")
    assert "is not what" in refused(fedaipc(*words, tmp_path / "none.json"), 15)
    assert "gone.json: no such file" in refused(fedaipc(*words, tmp_path / "gone.json"), 15)
    verify = ("privacy", "certificate", "verify")
    assert "signed by" in fedaipc(*verify, tmp_path / "c").out
    assert "certificate.json: no such file" in refused(fedaipc(*verify, tmp_path), 15)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "null", "[" * 100_000, '{"version": 2}', "\xff"]
)
def test_what_is_no_certificate_is_refused_in_one_line(
    fedaipc: Callable[..., Ran], tmp_path: Path, content: str
) -> None:
    (tmp_path / "x.json").write_text(content, encoding="latin-1")
    assert "no certificate" in refused(fedaipc("privacy", "certificate", "verify", "x.json"), 15)


def test_a_certificate_with_a_key_twice_is_none(certificate: Certificate, tmp_path: Path) -> None:
    """Its signature is good for whoever takes the last one, and no other reader need do so."""
    text = certificate.write().decode()
    path = tmp_path / "twice.json"
    path.write_text(text.replace('"claim"', '"claim": 0.1, "claim"', 1), encoding="utf-8")
    with pytest.raises(CertificateError, match="twice"):
        Certificate.load(path)


def test_a_run_of_a_fleet_needs_the_federations_key(
    fedaipc: Callable[..., Ran], run: Run, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(run.folder, tmp_path / "run"))
    (folder / "pc-state.json").unlink()
    words = ("privacy", "certificate", "issue", folder)
    assert "give its folder with --federation" in refused(fedaipc(*words), 15)
    assert "has none" in refused(fedaipc(*words, "--federation", tmp_path), 15)
    assert not (tmp_path / "admission.key").exists()
    assert fedaipc(*words, "--federation", run.pc_state / "federation").code == 0
