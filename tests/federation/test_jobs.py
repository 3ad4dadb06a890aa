"""Signed jobs: by the admission key, for the members there are, measured on public texts."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fedaipc.config import DPSGD, SecAgg, settings_from, to_toml
from fedaipc.errors import (
    AdmissionError,
    ConfigError,
    DataError,
    OutputError,
    PrivacyError,
    SecAggError,
)
from fedaipc.federation.federation import Federation
from fedaipc.federation.jobs import hand_out_base, sign_job
from fedaipc.model.base import base_hash, weights_bytes
from fedaipc.model.classifier import Classifier
from fedaipc.privacy.budget import best_filter, charged_epsilon
from fedaipc.protocol.enrollment import Request
from fedaipc.protocol.job_folder import FILES, read_facts, read_job
from fedaipc.report.formatting import at_most
from fedaipc.secagg.keys import SigningKey
from tests.support.commands import refused
from tests.support.node_keys import node_key
from tests.support.tiny_models import shared_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedaipc.config import Settings
    from tests.support.commands import Ran


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    made = Federation.create(tmp_path / "acme", "fleet.example:8443", ["fleet.example"])
    for number, size in ((1, 64), (2, 256), (3, 128)):
        made.admit(
            [
                Request(
                    federation=made.facts.federation,
                    issuer=SigningKey(bytes([number]) * 32).public.hex(),
                    not_after=int(time.time()) + 1000,
                    name=f"pc-{number}",
                    node_key=node_key(number),
                    size_class=size,
                )
            ]
        )
    return made


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    for name in ("validation", "test"):
        rows = [f"{name} w{n},{('no', 'yes')[n % 2]}" for n in range(12)]
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "\n".join(rows))
    return settings_from(
        {
            "model": {"base": str(shared_folder("bert")), "train": "head", "max_length": 16},
            "privacy": {"epsilon": 8.0},
            "rounds": 3,
            "federation": {"clients": 20},
            "data": {
                "validation": str(tmp_path / "validation.csv"), "test": str(tmp_path / "test.csv"),
            },
        }
    )  # fmt: skip


def test_a_job_whose_noise_no_pc_could_share_is_not_signed(
    tmp_path: Path, federation: Federation, settings: Settings
) -> None:
    privacy = DPSGD(epsilon=8.0, noise="distributed")
    wanted = settings.model_copy(update={"privacy": privacy})
    job = sign_job(federation, wanted, tmp_path / "first")
    assert isinstance(job.privacy, DPSGD)
    assert job.privacy.honest == 2
    coarse = wanted.model_copy(update={"aggregation": SecAgg(bits=16)})
    with pytest.raises(ConfigError, match="too coarse"):
        sign_job(federation, coarse, tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_a_job_is_for_the_members_there_are_and_can_be_read_with_their_list(
    tmp_path: Path, federation: Federation, settings: Settings
) -> None:
    job = sign_job(federation, settings, tmp_path / "first")
    assert (job.cohort, job.smallest_class, job.largest_class) == (3, 64, 256)
    folder = tmp_path / "first"
    assert {path.name for path in folder.iterdir()} == set(FILES)
    (folder / "roster.bin").write_bytes((federation.folder / "server" / "roster.bin").read_bytes())
    signed, roster = read_job(folder)
    assert signed.job == job
    assert len(roster.members) == 3
    facts = read_facts(folder)
    assert facts["train"] is facts["train_fit"] is None  # nobody here has what PCs train on
    assert facts["validation_fit"] == {"unknown_tokens": 0.5, "cut_texts": 0.0}


def test_signing_says_what_a_job_costs_at_worst(
    tmp_path: Path, federation: Federation, settings: Settings, fedaipc: Callable[..., Ran]
) -> None:
    (tmp_path / "job.toml").write_text(to_toml(settings))
    ran = fedaipc("federation", "sign", "job.toml", "--federation", "acme", "--out", "first")
    assert ran.code == 0, ran.err
    (tmp_path / "first/roster.bin").write_bytes((tmp_path / "acme/server/roster.bin").read_bytes())
    job = read_job(tmp_path / "first")[0].job
    assert job.max_attempts == 3 + settings.federation.spare_attempts
    kept = best_filter(job.schedule, job.rounds, settings.federation.lifetime_epsilon)
    worst = charged_epsilon(job.schedule, job.max_attempts, kept)  # as a ledger for this job does
    assert worst > charged_epsilon(job.schedule, job.rounds, kept)
    assert (
        f"at worst, if all {job.max_attempts} attempts that it allows are charged: epsilon "
        f"{at_most(worst, 2)}; owners whose policy.max_epsilon is lower refuse it, and so do "
        "PCs whose invite had another delta"
    ) in " ".join(ran.out.split())


def test_signing_says_when_pcs_will_decline(
    tmp_path: Path, federation: Federation, settings: Settings, fedaipc: Callable[..., Ran]
) -> None:
    (tmp_path / "job.toml").write_text(to_toml(settings))
    sign = ("federation", "sign", "job.toml", "--federation", "acme", "--set")
    ran = fedaipc(*sign, "federation.lifetime_epsilon=6", "--out", "first")
    line = re.search(
        r"PCs will decline after 2 of 3 rounds: federation.lifetime_epsilon is 6", ran.out
    )
    assert line, ran.out
    assert "decline" not in fedaipc(*sign, "federation.lifetime_epsilon=9", "--out", "second").out
    ran = fedaipc(*sign, "federation.lifetime_epsilon=0.1", "--out", "third")
    assert "does not cover a single round" in refused(ran, 6)
    assert not Path("third").exists()


def test_a_delta_that_the_largest_pc_refuses_is_not_signed(
    tmp_path: Path, federation: Federation, settings: Settings
) -> None:
    privacy = DPSGD(epsilon=8.0, delta=5e-4)  # for a class of 128 it would do
    with pytest.raises(PrivacyError, match="too large for size class 256"):
        sign_job(federation, settings.model_copy(update={"privacy": privacy}), tmp_path / "first")
    assert not (tmp_path / "first").exists()


def test_a_changed_job_is_refused(
    tmp_path: Path, federation: Federation, settings: Settings
) -> None:
    sign_job(federation, settings, tmp_path / "first")
    folder = tmp_path / "first"
    (folder / "roster.bin").write_bytes((federation.folder / "server" / "roster.bin").read_bytes())
    text = (folder / "job.json").read_text()
    (folder / "job.json").write_text(text.replace('"rounds": 3', '"rounds": 4'))
    with pytest.raises(SecAggError, match="the job: the signature is wrong"):
        read_job(folder)


def test_a_job_of_another_federation_is_refused(
    tmp_path: Path, federation: Federation, settings: Settings
) -> None:
    sign_job(federation, settings, tmp_path / "first")
    other = Federation.create(tmp_path / "other", "o:1", ["o"])
    roster = (other.folder / "server" / "roster.bin").read_bytes()
    (tmp_path / "first" / "roster.bin").write_bytes(roster)
    with pytest.raises((SecAggError, OutputError)):
        read_job(tmp_path / "first")


def test_every_job_is_another_run(
    tmp_path: Path, federation: Federation, settings: Settings
) -> None:
    first = sign_job(federation, settings, tmp_path / "first")
    assert first.run != sign_job(federation, settings, tmp_path / "second").run
    with pytest.raises(AdmissionError, match="already"):
        sign_job(federation, settings, tmp_path / "first")


def test_nothing_is_left_of_a_job_that_cannot_be_signed(
    tmp_path: Path, federation: Federation, settings: Settings
) -> None:
    data = settings.data.model_copy(update={"test": None})
    with pytest.raises(DataError, match=r"data\.test is not given: a real federation"):
        sign_job(federation, settings.model_copy(update={"data": data}), tmp_path / "first")
    federation.revoke("pc-1")
    with pytest.raises(ConfigError, match=r"; admit more PCs: `fedaipc federation admit`$"):
        sign_job(federation, settings, tmp_path / "first")
    for name in ("pc-2", "pc-3"):
        federation.revoke(name)
    with pytest.raises(AdmissionError, match="no members yet"):
        sign_job(federation, settings, tmp_path / "first")
    assert not (tmp_path / "first").exists()
    assert not list(tmp_path.glob(".first*"))


def test_a_base_is_handed_out_as_the_job_has_it(tmp_path: Path, settings: Settings) -> None:
    hand_out_base(settings, tmp_path / "base")
    base = settings.model.base
    assert base_hash(str(tmp_path / "base"), None) == base_hash(base, None)
    assert weights_bytes(str(tmp_path / "base")) == weights_bytes(base) > 0
    with pytest.raises(AdmissionError, match="already"):
        hand_out_base(settings, tmp_path / "base")


def test_a_warmed_up_base_is_handed_out_and_is_what_the_job_trains(
    tmp_path: Path, federation: Federation, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDAIPC_CACHE", str(tmp_path / "cache"))
    rows = [f"public w{n},{('no', 'yes')[n % 2]}" for n in range(20)]
    (tmp_path / "public.csv").write_text("text,label\n" + "\n".join(rows))
    warm_up = settings.warm_up.model_copy(
        update={"source": str(tmp_path / "public.csv"), "passes": 1}
    )
    settings = settings.model_copy(update={"warm_up": warm_up})
    hand_out_base(settings, tmp_path / "base")
    job = sign_job(federation, settings, tmp_path / "first")
    assert base_hash(str(tmp_path / "base"), None) == base_hash(job.model.base, None)
    model = job.model.model_copy(update={"base": str(tmp_path / "base")})
    assert Classifier(model, job.labels).layout.hash == job.layout_hash
