"""A federation of real processes over TLS: the simulation's model, and what may go wrong."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

import fedaipc as fa
from fedaipc.client.disclosure_log import read as read_sent
from fedaipc.config import load_settings
from fedaipc.privacy.ledger import Ledger
from fedaipc.results import Results
from fedaipc.simulation.simulation import prepare, simulate
from scripts import fleet_demo
from tests.support.fleets import CONFIG, PCS, ROUNDS, Fleet, wait_for_line

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.alone]


@pytest.fixture(autouse=True)
def _no_process_stays() -> Iterator[None]:
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    yield
    left = [
        p for p in psutil.Process().children(recursive=True)
        if p.pid not in before and "resource_tracker" not in " ".join(p.cmdline())
    ]  # fmt: skip
    assert left == []


@pytest.fixture
def config(tmp_path: Path, minilm: Path) -> Path:
    del minilm
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return path


def test_a_fleet_trains_the_model_that_a_simulation_trains(tmp_path: Path, config: Path) -> None:
    fleet = tmp_path / "fleet"
    fleet.mkdir()
    real = fleet_demo.demo(fleet, config, PCS, None, [], seed=7)
    assert (real.engine, real.status, len(real.rounds)) == ("fleet", "finished", 3)
    settings = load_settings(config, [f"output.folder='{tmp_path / 'runs'}'"])
    run = prepare(settings, test_seed=7)
    simulated = simulate(run, "in-process", lambda _: None)
    assert real.model.vector_hash == simulated.model.vector_hash
    assert real.test == simulated.test
    assert real.aggregation.kind == "secagg"
    _check_what_left(fleet, real)
    log = (fleet / "acme" / "server" / "state" / "front.log").read_text()
    assert "/v1/fleet/pull-messages" in log
    assert "get-fab" not in log  # no PC ever asks for code


def _check_what_left(fleet: Path, results: Results) -> None:
    """Each PC's log has every answer, and as many bytes as the coordinator counted."""
    logs = [read_sent(fleet / f"pc-{number:04d}") for number in range(PCS)]
    for log in logs:
        kinds = [entry.kind for entry in log]
        assert kinds.count("mask") == 3
        assert kinds[0] == "setup"
        assert {entry.run for entry in log} == {results.run_id}
    sent = sum(entry.bytes for log in logs for entry in log if entry.kind == "mask")
    counted = sum(r.traffic["mask"].up for r in results.rounds)
    assert sent == pytest.approx(counted, rel=0.02)
    for number, log in enumerate(logs):
        ledger = Ledger(fleet / f"pc-{number:04d}" / "ledger.jsonl")
        assert len(ledger.charges) == 3
        assert not [entry for entry in log if entry.epsilon is not None]  # a test seed protects not


def test_killed_pcs_and_killed_servers_cost_time_and_nothing_else(fleet: Fleet) -> None:
    fleet.start_server()
    for number in range(PCS):
        fleet.start_client(number)
    assert fleet.command("server", "train", fleet.out / "first-job", "--server", fleet.server,
                         "--detach").returncode == 0  # fmt: skip
    fleet.wait_for_round(2)
    fleet.kill("pc-0001")
    fleet.start_client(1)
    after = fleet.wait_for_round(4)
    fleet.kill("server")
    fleet.start_server()
    assert fleet.wait_for_round(ROUNDS, 200).resumed >= 1
    end = time.monotonic() + 60
    while (results := fleet.results()) is None or results.unfinished:
        assert time.monotonic() < end
        time.sleep(0.2)
    assert results.status == "finished"
    assert results.rounds[: len(after.rounds)] == after.rounds
    for number in range(PCS):
        ledger = Ledger(fleet.out / f"pc-{number:04d}" / "ledger.jsonl")
        attempts = [charge.attempt for charge in ledger.charges]
        assert len(attempts) == len(set(attempts))
        assert not ledger.unprotected


def test_a_notebook_hands_its_job_to_a_fleet(fleet: Fleet) -> None:
    """Without a test seed: noise is real, and every PC's ledger is charged."""
    federation = fa.Federation(fleet.out / "acme")
    assert len(federation.members) == PCS
    job = fa.Job.from_toml(fleet.out / "job.toml")
    signed = federation.sign(job, out=fleet.out / "own-job")
    fleet.start_server()
    for number in range(PCS):
        fleet.start_client(number)
    run = signed.submit(fleet.server, timeout=200)
    assert (run.results.engine, run.results.status) == ("fleet", "finished")
    assert len([row for row in run.history if not row.void]) == job.rounds
    assert run.epsilon is None  # the PCs' ledgers stay with their owners
    assert run.planned_epsilon is not None
    for number in range(PCS):
        ledger = fa.Ledger.open(fleet.out / f"pc-{number:04d}")
        assert 0 < ledger.spent <= run.planned_epsilon * (1 + 1e-6)
    assert run.predict(["what a lovely film"])[0] in run.model.labels


def test_a_revoked_pc_is_shut_out_while_the_server_runs(fleet: Fleet) -> None:
    fleet.start_server()
    fleet.start_client(0)
    wait_for_line(fleet.out / "pc-0000.log", "connected")
    assert fleet.command("federation", "revoke", fleet.out / "acme", "pc-0000").returncode == 0
    wait_for_line(fleet.out / "pc-0000.log", "does not admit this PC")


def test_another_authoritys_server_gets_nothing(fleet: Fleet) -> None:
    """Who answers at the address without the federation's certificate."""
    do = fleet_demo.do
    other = fleet.out / "other"
    do("federation", "init", other, "--address", f"localhost:{fleet.port}")
    fleet.server, real = other / "server", fleet.server
    fleet.start_server()
    fleet.start_client(0)
    wait_for_line(
        fleet.out / "pc-0000.log", "certificate is not signed by this federation's authority"
    )
    assert read_sent(fleet.out / "pc-0000") == []
    fleet.server = real


def test_a_second_server_and_a_second_client_are_refused(fleet: Fleet) -> None:
    fleet.start_server()
    fleet.start_client(0)
    wait_for_line(fleet.out / "pc-0000.log", "connected")
    again = fleet.command("server", "start", fleet.server, "--bind", "127.0.0.1", "--port", "0")
    assert (again.returncode, again.stderr.count("\n")) == (11, 1)
    twice = fleet.command("client", "start", "--folder", fleet.out / "pc-0000")
    assert (twice.returncode, twice.stderr.count("\n")) == (14, 1)
    assert "another process serves this PC" in twice.stderr
    fleet.stop()
    assert (fleet.out / "pc-0000.log").read_text().endswith("has stopped\n")


def test_the_demo_script_is_what_people_run() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.fleet_demo", "2"],
        capture_output=True, text=True, check=False, cwd=fleet_demo.ROOT,
    )  # fmt: skip
    assert done.returncode == 2
    assert "three PCs at least" in done.stderr
