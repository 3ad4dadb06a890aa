"""The attacks: on numbers whose truth is known, and on real runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fedaipc.config import load_settings
from fedaipc.data.records import Records
from fedaipc.errors import DataError
from fedaipc.lab.audit import report
from fedaipc.lab.audit.canary import canary_audit
from fedaipc.lab.audit.canary_clients import CanaryClient, plant, read_data, run_canaries
from fedaipc.lab.audit.gradients import clipped, example_gradients
from fedaipc.lab.audit.inversion import inversion_attack
from fedaipc.lab.audit.membership import curve, judge, membership_attack
from fedaipc.lab.audit.report import at_budget
from fedaipc.model.classifier import Classifier, read_vector
from fedaipc.model.inputs import make_inputs
from fedaipc.privacy.budget import size_class
from fedaipc.protocol.noise_share import NoiseShare
from tests.support.broken_builds.audited import JOB
from tests.support.commands import refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedaipc.config import Settings
    from fedaipc.lab.audit.canary import CanaryAudit
    from tests.support.commands import Ran

SMALL = (
    "model.keep_layers=1", "model.train.kind=head", "model.max_length=16", "data.limit=600",
    "data.validation_size=30", "data.test_size=30", "federation.clients=4", "rounds=2",
    "speed.threads=1", "privacy.sampling_rate=1.0", "training.local_steps=1",
    "privacy.clip_norm=0.1", "evaluation.every=100", "output.plots=false",
)  # fmt: skip


def small(*changes: str) -> Settings:
    private = "privacy.kind=none" not in changes
    return load_settings(None, [*(s for s in SMALL if private or "clip" not in s), *changes])


# Planting


def test_coins_change_no_size_class_and_canaries_lie(minilm: Path, sentiment: Path) -> None:
    data = read_data(small())
    for pc, part in zip(plant(data, 30, seed=1), data.parts, strict=True):
        least, most = len(pc.real), len(pc.real) + len(pc.canaries)
        assert size_class(least) == size_class(most) == size_class(len(pc.held))
        assert len(pc.canaries) == 30
        truth = dict(zip(data.train.texts, data.train.labels, strict=True))
        assert all(
            truth[t] != b for t, b in zip(pc.canaries.texts, pc.canaries.labels, strict=True)
        )
        assert all(truth[t] == b for t, b in zip(pc.real.texts, pc.real.labels, strict=True))
        own = set(data.train.take(part).texts)
        assert set(pc.real.texts) | set(pc.canaries.texts) <= own
        assert not set(pc.real.texts) & set(pc.canaries.texts)
        assert len(pc.held) == least + int(pc.included.sum())


def test_coins_come_from_the_operating_system_unless_asked(minilm: Path, sentiment: Path) -> None:
    data = read_data(small())
    coins = [
        np.concatenate([pc.included for pc in plant(data, 30, seed)]) for seed in (1, 1, None, None)
    ]
    assert np.array_equal(coins[0], coins[1])
    assert not np.array_equal(coins[2], coins[3])


def test_too_many_canaries_are_refused(minilm: Path, sentiment: Path) -> None:
    with pytest.raises(DataError, match="too few for 200 canaries"):
        plant(read_data(small()), 200)


def test_what_is_heard_is_what_each_pc_sent(tmp_path: Path, minilm: Path, sentiment: Path) -> None:
    """The run itself is ordinary: without privacy an update is the mean gradient of its texts."""
    settings = small("privacy.kind=none", "training.learning_rate=0.5")
    data = read_data(settings)
    pcs = plant(data, 20, seed=2)
    audited = run_canaries(settings, data, pcs, tmp_path / "x")
    assert len(audited.updates) == 4 * 2
    classifier = Classifier(settings.model, data.labels)
    for one in audited.updates:
        held = pcs[one.pc].held
        targets = np.array([data.labels.index(label) for label in held.labels])
        inputs = make_inputs(classifier, held.texts, None)
        mean = example_gradients(classifier, inputs, targets, one.vector).mean(axis=0)
        assert np.allclose(one.update, -0.5 * mean, atol=2e-5)


def test_gradients_are_clipped_row_by_row() -> None:
    rows = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]], dtype=np.float32)
    assert np.allclose(clipped(rows, 1.0), [[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]])


def test_example_gradients_add_up_to_the_batchs(minilm: Path) -> None:
    classifier = Classifier(small().model, ("a", "b"))
    inputs = make_inputs(classifier, ["a fine film", "dull"], None)
    found = example_gradients(classifier, inputs, np.array([0, 1]), read_vector(classifier))
    assert found.shape == (2, classifier.layout.size)
    assert np.isfinite(found).all()
    assert np.linalg.norm(found, axis=1).min() > 0


# Membership


def test_a_perfect_and_a_blind_attack_have_the_curves_that_they_should() -> None:
    members = np.arange(2000) % 2 == 0
    perfect = curve(members.astype(float), members)
    assert (perfect.auc, perfect.tpr_at_01_percent) == (1.0, 1.0)
    blind = curve(np.zeros(2000), members)  # equal scores are called together
    assert (blind.auc, blind.tpr_at_1_percent) == (0.5, 0.0)
    noise = curve(np.random.default_rng(0).random(2000), members)
    assert 0.45 < noise.auc < 0.55
    assert noise.tpr_at_1_percent < 0.04


def test_shadows_find_members_where_loss_alone_cannot() -> None:
    """Texts of very different difficulty, and a small change by membership: LiRA's case."""
    random = np.random.default_rng(5)
    coins = random.random((16, 1500)) < 0.5
    hardness = random.normal(0, 5, 1500)
    confidence = hardness + 1.5 * coins + random.normal(0, 0.5, coins.shape)
    found = judge(confidence, coins)
    assert found.loss.auc < 0.62
    assert found.likelihood_ratio.auc > 0.9
    assert found.likelihood_ratio.tpr_at_1_percent > 10 * found.loss.tpr_at_1_percent
    assert found.members + found.outsiders == 16 * 1500


def test_where_membership_changes_nothing_neither_attack_finds_it() -> None:
    random = np.random.default_rng(6)
    coins = random.random((16, 1500)) < 0.5
    found = judge(random.normal(0, 5, 1500) + random.normal(0, 0.5, coins.shape), coins)
    for one in (found.loss, found.likelihood_ratio):
        assert 0.47 < one.auc < 0.53
        assert one.tpr_at_1_percent < 0.03


@pytest.mark.slow
def test_a_model_that_learns_by_heart_gives_its_members_away(
    tmp_path: Path, minilm: Path, sentiment: Path
) -> None:
    """On real runs: the attack works. That privacy stops it is in simulations/results/audit."""
    job = ("federation.clients=3", "rounds=2", "training.local_steps=10",
           "training.optimizer=adam", "training.learning_rate=0.002", "model.train=last-layers",
           "data.limit=400")  # fmt: skip
    settings = small(*job, "privacy.kind=none")
    found = membership_attack(settings, read_data(settings), tmp_path / "x", runs=4)
    assert found.likelihood_ratio.auc > 0.65
    assert found.loss.auc > 0.65


def test_too_few_runs_or_texts_are_refused(tmp_path: Path, minilm: Path, sentiment: Path) -> None:
    data = read_data(small("data.limit=200"))
    with pytest.raises(DataError, match="too few to compare"):
        membership_attack(small(), data, tmp_path / "x", runs=2)
    few = read_data(small("data.limit=200", "data.test_size=40", "data.validation_size=40"))
    with pytest.raises(DataError, match="48 at least"):
        membership_attack(small(), few, tmp_path / "y", runs=4)


# Inversion


@pytest.mark.slow
def test_words_are_read_out_of_an_open_update_and_out_of_nothing_else(
    tmp_path: Path, minilm: Path, sentiment: Path
) -> None:
    settings = small("model.train.kind=full", "privacy.kind=none", "training.learning_rate=0.1",
                     "server.kind=fedavg")  # fmt: skip
    data = read_data(settings)
    budgets = {"epsilon 8": at_budget(settings, 8.0)}
    found = inversion_attack(settings, data, budgets, tmp_path / "x")
    plain, private, sealed, summed = found.readings
    assert plain.recall == 1.0
    assert all(plain.right)
    said = " ".join(found.texts).lower()
    whole = [word for word in plain.words if not word.startswith("##")]
    assert all(word in said for word in whole)
    assert len(whole) > 10
    assert private.recall <= 0.05
    assert sealed.recall <= 0.05
    assert summed.recall < 0.8  # words of all PCs, and nobody says whose
    assert sum(summed.right) < len(summed.words)


def test_a_job_without_word_embeddings_cannot_be_inverted(
    tmp_path: Path, minilm: Path, sentiment: Path
) -> None:
    settings = small("privacy.kind=none")
    with pytest.raises(DataError, match="full"):
        inversion_attack(settings, read_data(settings), {}, tmp_path / "x")


# Sums with distributed noise


def sums_audited(folder: Path, epsilon: float) -> CanaryAudit:
    settings = load_settings(
        None,
        [*JOB, f"privacy.epsilon={epsilon}", f"federation.lifetime_epsilon={epsilon}",
         "privacy.noise=distributed", "server.kind=fedavgm", f"speed.cache_folder='{folder}'"],
    )  # fmt: skip
    data = read_data(settings)
    pcs = plant(data, 20, seed=1)
    return canary_audit(run_canaries(settings, data, pcs, folder / "runs"), folder)


@pytest.mark.slow
def test_what_sums_with_distributed_noise_prove_is_below_the_promise(
    tmp_path: Path, minilm: Path, sentiment: Path
) -> None:
    found = sums_audited(tmp_path, 8.0)
    assert found.promised is not None
    assert 0 <= found.bound.lower <= found.promised < 8
    assert found.accuracy > 0.53  # it is an attack: of 400 coins


@pytest.mark.slow
def test_shares_that_are_too_small_are_found_in_sums_alone(
    tmp_path: Path, minilm: Path, sentiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is divided by the root of all records in place of the honest PCs'."""
    real = NoiseShare.encode

    def encode(self: NoiseShare, total: Any, random: Any) -> Any:
        return real(replace(self, deviation=self.deviation / 20), total, random)

    monkeypatch.setattr(NoiseShare, "encode", encode)
    found = sums_audited(tmp_path, 2.0)
    assert found.promised is not None
    assert found.bound.lower > found.promised


# The command


@pytest.mark.slow
def test_the_command_leaves_a_report_and_a_page(
    fedaipc: Callable[..., Ran], minilm: Path, sentiment: Path
) -> None:
    words = [word for change in SMALL for word in ("--set", change)]
    ran = fedaipc("privacy", "audit", *words, "--epsilon", "none", "--epsilon", 4, "--canaries",
                  80, "--runs", 4, "--no-inversion", "--out", "out")  # fmt: skip
    assert ran.code == 0, ran.err
    written = json.loads(Path("out/audit.json").read_text())
    assert [one["epsilon"] for one in written["settings"]] == [None, 4.0]
    for one in written["settings"]:
        bound = one["canary"]["bound"]
        assert bound["canaries"] == 80
        assert bound["lower"] >= 0
        assert one["membership"]["runs"] == 4
    private = written["settings"][1]
    assert private["canary"]["bound"]["lower"] <= private["canary"]["promised"] <= 4
    page = Path("out/audit.html").read_text()
    assert page.count("<svg") == 2
    assert "Steinke" in page
    assert (
        ran.out.count("holds") == page.count("<td>holds</td>") == 1
    )  # nothing is promised of none
    assert {p.name for p in Path("out").iterdir()} == {"audit.json", "audit.html", "plots"}
    again = fedaipc("privacy", "audit", *words, "--out", "out")
    assert "is there already" in refused(again, 12)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--set", "training.optimizer=adam"), "reads sums out of updates"),
        (("--set", "privacy.noise=distributed", "--set", "server=fedadam"), "two rounds"),
        (("--runs", 3), "3 runs are too few"),
        (("--canaries", 400), "too few for 100 canaries"),
        (("--epsilon", 1e-9), "epsilon"),
    ],
)
def test_what_would_be_refused_is_refused_before_the_first_run(
    fedaipc: Callable[..., Ran], minilm: Path, sentiment: Path, monkeypatch: pytest.MonkeyPatch,
    words: tuple[object, ...], message: str,
) -> None:  # fmt: skip
    def run(*_: Any, **__: Any) -> None:
        raise AssertionError("a run was made")

    monkeypatch.setattr(report, "run_canaries", run)
    job = [word for change in SMALL for word in ("--set", change)]
    ran = fedaipc("privacy", "audit", *job, "--epsilon", "none", *words, "--out", "out")
    assert message in refused(ran, ran.code)
    assert ran.code > 1
    assert not Path("out").exists()


@pytest.mark.slow
def test_an_audit_that_is_stopped_keeps_the_budgets_that_were_done(
    fedaipc: Callable[..., Ran], minilm: Path, sentiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audits = [canary_audit]

    def audit(*given: Any) -> CanaryAudit:
        if not audits:
            raise OSError(28, "No space left on device")
        return audits.pop()(*given)

    monkeypatch.setattr(report, "canary_audit", audit)
    job = [word for change in SMALL for word in ("--set", change)]
    ran = fedaipc("privacy", "audit", *job, "--epsilon", "none", "--epsilon", 4, "--canaries", 40,
                  "--runs", 0, "--no-inversion", "--out", "out")  # fmt: skip
    assert ran.code == 12
    assert ran.err == "fedaipc: out: cannot be written (No space left on device)\n"
    assert [path.name for path in Path("out").iterdir()] == ["audit.json"]
    kept = json.loads(Path("out/audit.json").read_text())
    assert [one["epsilon"] for one in kept["settings"]] == [None]


@pytest.mark.parametrize("epsilon", ["-1", "0", "inf", "nan", "some"])
def test_a_budget_that_is_none_is_refused(fedaipc: Callable[..., Ran], epsilon: str) -> None:
    assert "give a number above 0, or none" in refused(
        fedaipc("privacy", "audit", f"--epsilon={epsilon}", "--out", "out"), 2
    )
    assert not Path("out").exists()


def test_a_pc_of_nothing_but_canaries_holds_what_its_coins_say() -> None:
    records = Records(("a", "b", "c"), ("0", "1", "0"))
    pc = CanaryClient(Records((), ()), records, np.array([True, False, True]))
    assert pc.held.texts == ("a", "c")
