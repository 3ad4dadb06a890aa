"""`fedaipc privacy plan`: numbers that a researcher can take over, and one line where it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fedaipc.config import OwnerSettings, to_toml
from fedaipc.lab import planner
from fedaipc.privacy.accountant import epsilon_rdp
from fedaipc.privacy.ledger import Charge, Ledger
from fedaipc.report.formatting import at_most
from fedaipc.secagg.keys import SigningKey
from tests.support.commands import refused
from tests.support.schedules import dp_sgd

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.commands import Ran

ROUNDS, RATE = ("--rounds", "10"), ("--rate", "0.1")
SMALL = ("--delta", "1e-6", *ROUNDS, *RATE, "--json")


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them take seconds each time, and are tested in tests/lab."""
    monkeypatch.setattr(planner, "GROUPS", (1,))
    monkeypatch.setattr(planner, "TARGETS", (1.0, 4.0))


@pytest.fixture
def _two(monkeypatch: pytest.MonkeyPatch) -> None:
    """What two records of one person add up to, too."""
    monkeypatch.setattr(planner, "GROUPS", (1, 2))


def planned(fedaipc: Callable[..., Ran], *words: Any) -> dict[str, Any]:
    ran = fedaipc("privacy", "plan", *words)
    assert ran.code == 0, ran.err
    return dict(json.loads(ran.out))


@pytest.mark.usefixtures("_two")
def test_the_noise_for_a_budget_is_that_of_a_job(fedaipc: Callable[..., Ran]) -> None:
    found = planned(fedaipc, "--epsilon", 2, "--records", 1000, *SMALL)
    schedule = found["schedule"]
    assert found["found"] == "noise"
    assert schedule["records"] == 1024
    steps = [
        dp_sgd(noise_multiplier=schedule["noise"], sampling_rate=0.1, steps=schedule["steps"] * 10)
    ]
    assert found["epsilon"]["rdp"] == pytest.approx(epsilon_rdp(steps, 1e-6))
    assert found["epsilon"]["rdp"] <= 2
    assert found["epsilon"]["prv"] < found["epsilon"]["rdp"]
    assert [row["rounds"] for row in found["curve"]] == list(range(1, 11))
    assert found["records_of_one_person"]["1"] == found["epsilon"]["pld"]
    assert found["records_of_one_person"]["2"] > 2 * found["epsilon"]["pld"] * 0.99
    assert found["records_of_one_person"]["1024"] is None


def test_any_other_unknown_is_found_too(fedaipc: Callable[..., Ran]) -> None:
    noise = planned(fedaipc, "--epsilon", 2, *SMALL)["schedule"]["noise"]
    assert planned(fedaipc, "--noise", noise, *SMALL)["schedule"]["epsilon"] <= 2
    both = ("--delta", "1e-6", "--epsilon", 2, "--noise", noise, "--json")
    rounds = planned(fedaipc, "--find", "rounds", *both, *RATE)
    assert rounds["schedule"]["rounds"] == 10
    rate = planned(fedaipc, "--find", "rate", *both, *ROUNDS)
    assert rate["schedule"]["rate"] == pytest.approx(0.1, rel=1e-3)


def test_both_promises_of_distributed_noise_are_planned(fedaipc: Callable[..., Ran]) -> None:
    shared = ("--set", "privacy.noise=distributed", "--set", "federation.clients=10")
    found = planned(fedaipc, "--epsilon", 2, *SMALL, *shared)
    assert found["distributed"]["honest"] == 6
    assert found["distributed"]["local_epsilon"] > 2 >= found["schedule"]["epsilon"]
    assert planned(fedaipc, "--epsilon", 2, *SMALL)["distributed"] is None
    said = " ".join(fedaipc("privacy", "plan", "--epsilon", 2, *SMALL[:-1], *shared).out.split())
    assert f"epsilon {at_most(found['distributed']['local_epsilon'])} (RDP)" in said
    assert "with 6 honest PCs in each sum" in said
    steps = fedaipc("privacy", "plan", "--epsilon", 2, "--steps", 3, *shared)
    assert "leave out --steps" in refused(steps, 2)


def test_a_batch_is_a_rate_of_the_public_size_class(fedaipc: Callable[..., Ran]) -> None:
    words = ("--epsilon", 2, "--delta", "1e-6", "--records", 1000, "--batch", 51.2, "--json")
    assert planned(fedaipc, *words, "--rounds", 5)["schedule"]["rate"] == pytest.approx(0.05)


def test_a_config_is_planned_as_it_stands(fedaipc: Callable[..., Ran]) -> None:
    Path("job.toml").write_text(
        "rounds = 7\n[privacy]\nepsilon = 3.0\ndelta = 1e-6\nsampling_rate = 0.2\n"
    )
    schedule = planned(fedaipc, "job.toml", "--json")["schedule"]
    assert (schedule["rate"], schedule["rounds"], schedule["delta"]) == (0.2, 7, 1e-6)
    assert 2.99 < schedule["epsilon"] <= 3


@pytest.mark.parametrize(
    "words",
    [
        (),
        (Path(__file__).parents[2] / "simulations/demo.toml",),
        ("--epsilon", 8, "--rounds", 30),
        ("--find", "epsilon", "--noise", 1.1045, "--rounds", 30),
    ],
    ids=["bare", "demo", "budget", "epsilon"],
)
@pytest.mark.usefixtures("_two")
def test_every_record_in_each_step_is_planned(
    fedaipc: Callable[..., Ran], words: tuple[object, ...]
) -> None:
    """It is the default, and no mixture."""
    found = planned(fedaipc, *words, "--json")
    groups = found["records_of_one_person"]
    assert found["schedule"]["rate"] == 1.0
    assert groups["1"] == found["epsilon"]["pld"]
    assert 0 < 2 * groups["1"] < groups["2"] < 100
    shown = fedaipc("privacy", "plan", *words)
    assert (shown.code, shown.err) == (0, "")
    assert "no bound" in shown.out  # for somebody who has all 1,024


def test_a_plan_that_promises_next_to_nothing_is_one_all_the_same(
    fedaipc: Callable[..., Ran],
) -> None:
    """PLD would take tens of GB."""
    ran = fedaipc("privacy", "plan", "--noise", 0.1, "--rounds", 1000)
    assert (ran.code, ran.err) == (0, "")
    assert "PLD not computed: too large" in " ".join(ran.out.split())


@pytest.mark.slow
def test_work_is_measured_and_follows_the_plan(
    fedaipc: Callable[..., Ran], minilm: Path, sentiment: Path
) -> None:
    few = ("--set", "data.limit=300", "--set", "model.keep_layers=1", "--set", "model.train=head",
           "--set", "model.max_length=16", "--set", "federation.clients=4", "--work")  # fmt: skip
    short = planned(fedaipc, "--noise", 2, "--records", 100, *few, *SMALL)["work"]
    long = planned(fedaipc, "--noise", 2, "--records", 100, *few, *SMALL, "--rounds", 100)["work"]
    assert short["pcs"] == 4
    assert short["minutes"] > 0
    assert long["bytes_up"] == 10 * short["bytes_up"]
    assert long["bytes_down"] == 10 * short["bytes_down"]
    assert 770 * 4 * 10 < short["bytes_up"] < 770 * 4 * 10 + 50_000  # the vector, and its sealing
    shown = fedaipc("privacy", "plan", "--noise", 2, "--delta", "1e-6", "--rounds", 3, *few).out
    assert "work of one of 4 PCs" in shown


def test_what_a_ledger_holds_is_taken_into_account(fedaipc: Callable[..., Ran]) -> None:
    Path("pc").mkdir()
    ledger = Ledger.create(
        Path("pc/ledger.jsonl"), SigningKey(), lifetime_epsilon=8.0, delta=1e-6, filter_kind=4.0
    )
    step = dp_sgd(noise_multiplier=1.0, sampling_rate=0.1, steps=5)
    ledger.charge(Charge(run="r", round=1, attempt=1, schedule=step))
    held = planned(fedaipc, "--epsilon", 2, *SMALL, "--ledger", "pc")["ledger"]
    assert held["spent"] == pytest.approx(ledger.spent_epsilon())
    assert held["rounds_left"] > 0
    assert held["same_delta"]
    own = planned(fedaipc, "--epsilon", 2, "--rounds", 3, "--ledger", "pc", "--json")
    assert own["schedule"]["delta"] == 1e-6  # the PC's, where none is named
    shown = fedaipc("privacy", "plan", "--ledger", "pc", "--delta", "1e-7", "--rounds", 3).out
    assert "a job must have the same" in " ".join(shown.split())


def test_a_pcs_size_class_is_that_of_its_folder(fedaipc: Callable[..., Ran]) -> None:
    """The class decides which delta is allowed at all."""
    owner = OwnerSettings(name="pc", source="x.csv", size_class=128, base="b", admission="0" * 64)
    Path("pc").mkdir()
    Path("pc/owner.toml").write_text(to_toml(owner))
    Ledger.create(
        Path("pc/ledger.jsonl"), SigningKey(), lifetime_epsilon=8.0, delta=1e-4, filter_kind=4
    )
    schedule = planned(fedaipc, "--epsilon", 2, "--rounds", 3, "--ledger", "pc", "--json")
    assert (schedule["schedule"]["records"], schedule["schedule"]["delta"]) == (128, 1e-4)
    assert "too large for size class 1024" in refused_plan(
        fedaipc, 6, "--epsilon", 2, "--ledger", "pc", "--records", 1000
    )


def test_a_config_with_noise_is_planned_for_a_budget(fedaipc: Callable[..., Ran]) -> None:
    Path("job.toml").write_text("[privacy]\nnoise_multiplier = 1.0\ndelta = 1e-6\n")
    assert planned(fedaipc, "job.toml", "--rounds", 3, "--json")["found"] == "epsilon"
    found = planned(fedaipc, "job.toml", "--epsilon", 2, "--rounds", 3, "--json")
    assert found["found"] == "noise"
    assert 1.99 < found["schedule"]["epsilon"] <= 2


def test_it_is_drawn(fedaipc: Callable[..., Ran]) -> None:
    ran = fedaipc("privacy", "plan", "--delta", "1e-6", "--rounds", 3, "--plot", "plan.png")
    assert ran.code == 0
    assert Path("plan.png").read_bytes().startswith(b"\x89PNG")
    assert "wrote plan.png" in ran.out
    line = refused_plan(fedaipc, 12, "--delta", "1e-6", "--rounds", 3, "--plot", "plan.bmp")
    assert ".bmp" in line


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (("--find", "rate"), 2, "needs --noise"),
        (("--find", "epsilon"), 2, "needs --noise"),
        (("--find", "noise", "--noise", 1), 2, "noise is what is to be found, and was given too"),
        (("--epsilon", 1, "--noise", 1), 2, "epsilon is what is to be found, and was given too"),
        (("--find", "rounds", "--epsilon", 1, "--noise", 1, "--rounds", 7), 2, "rounds is what is"),
        (("--noise", 0), 2, "without noise no epsilon is finite"),
        (("--batch", 5000), 2, "at most 1,024"), (("--rate", 0), 2, "sampling rate"),
        (("--batch", 5, "--rate", 0.1), 2, "not both"), (("--delta", 2), 2, "--delta"),
        (("--delta", 0.001), 6, "too large for size class"),
        (("--set", "privacy.kind=none"), 6, "nothing to plan"),
        (("--noise", 1e-9), 2, "(allowed: from 0.1 to 1e+06)"),
        (("--ledger", "nowhere"), 8, "nowhere: holds no ledger; give the folder of one PC"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_planned_is_one_line(
    fedaipc: Callable[..., Ran], words: tuple[object, ...], code: int, why: str
) -> None:
    assert why in refused_plan(fedaipc, code, *words)


def refused_plan(fedaipc: Callable[..., Ran], code: int, *words: Any) -> str:
    return refused(fedaipc("privacy", "plan", *words), code)
