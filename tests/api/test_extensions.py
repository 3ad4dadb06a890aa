"""What others can add, by the examples: each in a process of its own, as its reader runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

import fedaipc as fa
from fedaipc.errors import ConfigError, LedgerError, PrivacyError
from fedaipc.secagg.keys import SigningKey
from tests.support.examples import EXAMPLES, load

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.commands import Ran

NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_example_runs_as_it_stands(name: str, minilm: Path, tmp_path: Path) -> None:
    del minilm
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")], capture_output=True, text=True, check=False,
        cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert "accuracy" in said


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_short_and_uses_public_names(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    imports = [line for line in text.splitlines() if "fedaipc" in line and "import" in line]
    assert set(imports) <= {"import fedaipc as fa", "from fedaipc.errors import DataError"}
    assert f"({name}.py)" in (EXAMPLES / "README.md").read_text(encoding="utf-8")


def test_a_method_says_what_is_trained_and_toml_knows_it(minilm: Path, tmp_path: Path) -> None:
    del minilm
    load("norms_only")
    (tmp_path / "job.toml").write_text('[model]\ntrain = "norms-only"\n')
    job = fa.Job.from_toml(tmp_path / "job.toml")
    assert job.model.train.model_dump() == {
        "kind": "norms-only", "version": "1", "layers": 2,
    }  # fmt: skip
    from fedaipc.model.classifier import Classifier

    names = [name for name, _ in Classifier(job.model, ("no", "yes")).trainable()]
    body = [name for name in names if "classifier" not in name]
    assert body
    assert all("LayerNorm" in name for name in body)
    assert {int(name.split(".layer.")[1].split(".")[0]) for name in body} == {4, 5}


def test_a_mechanism_is_charged_by_its_own_event(tmp_path: Path) -> None:
    module = load("two_coins")
    from fedaipc.config import Schedule
    from fedaipc.privacy.accountant import epsilon_pld, epsilon_prv, epsilon_rdp
    from fedaipc.privacy.ledger import Charge, Ledger

    coins = Schedule(mechanism=module.TwoCoins(noise_multiplier=2.0, sampling_rate=0.5), steps=30)
    poisson = Schedule(mechanism=fa.DPSGD(noise_multiplier=2.0, sampling_rate=0.25), steps=30)
    for bound in (epsilon_rdp, epsilon_pld):
        assert bound([coins], 1e-5) == pytest.approx(bound([poisson], 1e-5), rel=0.01)
    assert epsilon_prv([coins], 1e-5) == epsilon_pld([coins], 1e-5)
    ledger = Ledger.create(
        tmp_path / "ledger.jsonl", SigningKey(), lifetime_epsilon=8.0, delta=1e-5, filter_kind=4.0
    )
    ledger.charge(Charge(run="r", round=1, attempt=1, schedule=coins))
    assert Ledger(ledger.path).schedules == (coins,)


def test_a_mechanism_whose_event_no_accountant_knows_is_refused_in_one_line() -> None:
    from dp_accounting import dp_event

    from fedaipc.config import Schedule
    from fedaipc.privacy.accountant import epsilon_pld, epsilon_rdp

    class Odd(fa.DPSGD):
        kind: Any = "odd"

        def event(self) -> Any:
            return None if self.clip_norm == 2 else dp_event.UnsupportedDpEvent()

    for clip, name in ((1, "UnsupportedDpEvent"), (2, "NoneType")):
        odd = Schedule(mechanism=Odd(noise_multiplier=2.0, clip_norm=clip), steps=1)
        for bound in (epsilon_rdp, epsilon_pld):
            with pytest.raises(PrivacyError, match=f"`event` gives {name}") as caught:
                bound([odd], 1e-5)
            assert "\n" not in str(caught.value)
    with pytest.raises(PrivacyError, match="`event` gives"):
        fa.Job(privacy=Odd()).plan()


def test_a_ledger_with_a_mechanism_that_is_not_installed_is_refused(tmp_path: Path) -> None:
    module = load("two_coins")
    from fedaipc.config import Privacy, Schedule
    from fedaipc.privacy.ledger import Charge, Ledger

    coins = Schedule(mechanism=module.TwoCoins(noise_multiplier=2.0), steps=1)
    ledger = Ledger.create(
        tmp_path / "ledger.jsonl", SigningKey(), lifetime_epsilon=8.0, delta=1e-5, filter_kind=4.0
    )
    ledger.charge(Charge(run="r", round=1, attempt=1, schedule=coins))
    kind: Any = Privacy.kinds.pop("two-coins")
    with pytest.raises(LedgerError, match=r"two-coins.*not installed"):
        Ledger(ledger.path)

    class Later(kind):
        version: str = "2"

    Privacy.kinds["two-coins"] = Later
    with pytest.raises(LedgerError, match=r"installed here in version 2, and version 1 is asked"):
        Ledger(ledger.path)


def _job_text(privacy: dict[str, object]) -> str:
    job = {"version": 1, "privacy": privacy, "model": {"train": {"kind": "head"}}}
    return json.dumps(job)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"kind": "two-coins", "version": "2"}, "installed here in version 1, and version 2 is"),
        ({"kind": "two-coins"}, "installed here in version 1, and version - is"),
        ({"kind": "dp-sgd", "version": "7"}, "installed here in version -, and version 7 is"),
        ({"kind": "three-coins", "version": "1"}, '"three-coins" is not installed here'),
    ],
)
def test_what_was_written_down_is_run_in_its_version_alone(
    asked: dict[str, object], words: str
) -> None:
    from fedaipc.errors import RoundError
    from fedaipc.protocol.job import Job

    load("two_coins")
    with pytest.raises(RoundError, match=words):
        Job.parse(_job_text(asked))


def test_a_settings_file_may_leave_the_version_out_and_not_name_another_one(tmp_path: Path) -> None:
    load("two_coins")
    path = tmp_path / "job.toml"
    path.write_text('[privacy]\nkind = "two-coins"\n')
    assert fa.Job.from_toml(path).privacy.model_dump()["version"] == "1"
    path.write_text('[privacy]\nkind = "two-coins"\nversion = "2"\n')
    with pytest.raises(ConfigError, match=r"privacy: .* version 1, and version 2 is asked for"):
        fa.Job.from_toml(path)


def test_a_kind_of_another_package_has_a_version() -> None:
    with pytest.raises(ConfigError, match=r"mine: give it a version, as in"):

        @fa.register
        class Mine(fa.ServerOptimizer):
            kind: str = "mine"


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lora: .* has this name already"):

        @fa.register
        class Mine(fa.TrainingMethod):
            kind: str = "lora"
            version: str = "1"

    with pytest.raises(ConfigError, match=r"two letters"):
        fa.register_source("c")
    with pytest.raises(ConfigError, match=r"hf: .* reads these already"):
        fa.register_source("hf")(lambda name, columns: [])
    with pytest.raises(ConfigError, match=r"output.trackers: nobody is not known here"):
        fa.simulate(fa.Job(output={"trackers": ["nobody"]}), progress=False)


def test_a_method_that_trains_what_it_calls_frozen_is_refused(minilm: Path) -> None:
    del minilm
    from fedaipc.errors import ModelError
    from fedaipc.model.classifier import Classifier

    class Liar(fa.TrainingMethod):
        kind: str = "liar"

        def frozen_layers(self, depth: int) -> int:
            return depth

        def trains(self, name: str, part: str) -> bool:
            return True

    with pytest.raises(ModelError, match=r"frozen"):
        Classifier(fa.TextClassifier("minilm-l6", train=Liar()), ("no", "yes"))


def test_json_of_a_job_names_its_kinds() -> None:
    job = fa.Job(model=fa.TextClassifier(train=fa.LoRA()), server=fa.FedAvgM())
    tree = json.loads(job.model_dump_json())
    kinds = [tree["model"]["train"], tree["privacy"], tree["aggregation"], tree["server"]]
    assert [one["kind"] for one in kinds] == ["lora", "dp-sgd", "secagg", "fedavgm"]


def test_a_mechanism_says_what_accountants_must_count() -> None:
    with pytest.raises(ConfigError, match=r"Quiet: samples or steps in its own way; say"):

        class Quiet(fa.DPSGD):
            def sample(self, draw: Any) -> Any:
                return draw.poisson(1.0)

    with pytest.raises(ConfigError, match=r"Open: a mechanism below DPSGD is private"):

        class Open(fa.DPSGD):
            private: ClassVar[bool] = False


def test_a_charge_that_does_not_read_back_is_not_made(tmp_path: Path) -> None:
    """Memory and disk would count two mechanisms."""
    from fedaipc.config import Schedule
    from fedaipc.privacy.ledger import Charge, Ledger

    @fa.register
    class Repeated(fa.DPSGD):
        kind: Any = "repeated"
        version: str = "1"
        times: int | None = 1

    ledger = Ledger.create(
        tmp_path / "ledger.jsonl", SigningKey(), lifetime_epsilon=8.0, delta=1e-5, filter_kind=4.0
    )
    schedule = Schedule(mechanism=Repeated(noise_multiplier=2.0, times=None), steps=1)
    with pytest.raises(LedgerError, match="does not read back"):
        ledger.charge(Charge(run="r", round=1, attempt=1, schedule=schedule))
    assert Ledger(ledger.path).charges == ()


def test_what_states_dp_sgd_refuses_another_mechanism(tmp_path: Path) -> None:
    from fedaipc.certificate.check import _composed
    from fedaipc.certificate.issue import _check_size
    from fedaipc.config import Schedule, load_settings
    from fedaipc.errors import CertificateError
    from fedaipc.lab.audit.report import at_budget

    module = load("two_coins")
    coins = Schedule(mechanism=module.TwoCoins(noise_multiplier=2.0), steps=1)
    with pytest.raises(CertificateError, match='was of "two-coins": no certificate'):
        _check_size([coins])
    with pytest.raises(ValueError, match="not DP-SGD"):
        _composed(None, [coins], 1e-5)
    path = tmp_path / "job.toml"
    path.write_text('[privacy]\nkind = "two-coins"\nepsilon = 3.0\n')
    assert at_budget(load_settings(path), 2.0).privacy == module.TwoCoins(epsilon=2.0)


@pytest.mark.parametrize("kind", [["two-coins"], 3, {"a": 1}, None])
def test_a_kind_that_is_no_word_is_refused_in_one_line(kind: object) -> None:
    from pydantic import ValidationError

    from fedaipc.config import Privacy

    with pytest.raises(ValidationError, match="is not known here"):
        Privacy.model_validate({"kind": kind})


def test_a_word_alone_stands_for_no_version_in_a_signed_job() -> None:
    from fedaipc.errors import RoundError
    from fedaipc.protocol.job import Job

    load("norms_only")
    text = json.dumps({"version": 1, "model": {"train": "norms-only"}})
    with pytest.raises(RoundError, match=r"version 1, and version - is asked for"):
        Job.parse(text)


def test_a_family_keeps_its_name() -> None:
    with pytest.raises(ConfigError, match="bert: another family has this model_type"):
        fa.register_family(fa.ModelFamily(model_type="bert", token_types=False))
    load("electra")
    load("electra")  # the same again, as a notebook does


def test_accounting_for_another_mechanism_is_quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Orders at which its series do not converge are left out, which costs tightness alone."""
    from fedaipc.config import Schedule
    from fedaipc.privacy.accountant import epsilon_rdp

    coins = load("two_coins").TwoCoins(noise_multiplier=1.393191, sampling_rate=0.7)
    assert 0 < epsilon_rdp([Schedule(mechanism=coins, steps=3)], 1e-5) < 8
    assert caplog.messages == []


def test_a_plan_is_of_dp_sgd_and_says_so(fedaipc: Callable[..., Ran], tmp_path: Path) -> None:
    load("two_coins")
    (tmp_path / "job.toml").write_text('[privacy]\nkind = "two-coins"\n')
    ran = fedaipc("privacy", "plan", tmp_path / "job.toml")
    assert (ran.code, ran.err.count("\n")) == (6, 1)
    assert 'privacy.kind = "two-coins": this plans DP-SGD' in ran.err


def test_a_sweep_composes_the_mechanism_that_was_charged(tmp_path: Path) -> None:
    from fedaipc.lab.sweep.run import SweepResult
    from fedaipc.lab.sweep.table import Row

    coins = load("two_coins").TwoCoins(noise_multiplier=2.0, sampling_rate=0.5)
    row = Row(cell="a", values={}, seed=1, state="done", private=True, mechanism=coins,
              noise_multiplier=2.0, sampling_rate=0.5, steps=3)  # fmt: skip
    assert row.schedule is not None
    assert row.schedule.mechanism == coins
    assert "mechanism" not in SweepResult("s", tmp_path, [row]).records()[0]
