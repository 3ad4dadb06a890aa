"""What a coordinator that lies could learn from what a PC sends, or does not send."""

from __future__ import annotations

import json
import logging
import shutil
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flwr.app import ConfigRecord, RecordDict

from fedaipc.client import client as client_module
from fedaipc.client import examples, trainer
from fedaipc.client.client import LOG_FILE, OWNER_FILE
from fedaipc.config import NoPrivacy, TrainingMethod
from fedaipc.errors import DataError, ModelError
from fedaipc.model.classifier import Classifier, read_vector
from fedaipc.privacy import training
from fedaipc.privacy.ledger import LEDGER_FILE, Ledger
from fedaipc.privacy.training import train_round
from fedaipc.protocol.job import Job, SignedJob
from fedaipc.protocol.messages import AGREE, MASK, SETUP, UNMASK, MaskRequest, SetupRequest
from fedaipc.secagg.round_keys import Group
from tests.support.clients import (
    CANARY,
    Answer,
    Federation,
    charges,
    deviation,
    exotic,
    failed,
    gave,
    owner,
    refused,
    send,
    without_values,
)
from tests.support.jobs import on_the_wire
from tests.support.schedules import dp_sgd
from tests.support.tiny_models import make_folder
from tests.support.tiny_models import settings as model_settings

# What a lying coordinator could learn


def test_a_label_list_without_one_of_the_pcs_labels_tells_nothing_about_it(
    ask: Any, folder: Path, job: Job
) -> None:
    """To answer with an error there would say, without any noise, which labels the PC holds."""
    labels = ("canary", "negative")
    layout = Classifier(job.model, labels).layout.hash
    assert gave(ask(labels=labels, layout_hash=layout))
    neither = ("left", "right")
    layout = Classifier(job.model, neither).layout.hash
    other = ask(labels=neither, layout_hash=layout, attempt=2)
    assert np.std(other.update) > 0  # noise alone
    assert charges(folder) == 2


@pytest.mark.parametrize("damage", ["no data", "other data", "a row", "tokenizer", "out of memory"])
def test_whether_a_pc_can_use_its_data_shows_in_nothing_but_noise(
    ask: Any,
    enrolled: Federation,
    folder: Path,
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    """To fail would be an answer about the data without any noise; the owner's own log has it."""

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    records = folder / "records.parquet"
    match damage:
        case "no data":
            records.unlink()
        case "other data":
            records.write_bytes(b"PAR1 and no more")
        case "a row":
            pq.write_table(pa.table({"text": ["good", None], "label": ["positive"] * 2}), records)
        case "tokenizer":
            monkeypatch.setattr(examples, "make_inputs", fail)
        case _:
            ask(attempt=1)  # so that the rehearsal is behind it
            shutil.rmtree(folder)
            (fresh,) = enrolled.folders.values()
            shutil.copytree(fresh, folder)
            monkeypatch.setattr(training, "cross_entropy", fail)
    # The rate is so low that what remains is a step on nothing whatever the data is.
    rate = 1.0 if damage == "out of memory" else 1e-9
    owner(folder, insecure_test_seed=3)
    answer = ask(sampling_rate=rate, noise_multiplier=1e4)
    assert np.std(answer.update) == pytest.approx(deviation(job, 1e4, rate), rel=0.13)
    log = folder / LOG_FILE
    on_nothing = "round 1: trained on nothing" in log.read_text()
    assert on_nothing == (damage != "a row")  # one bad record costs no other
    assert log.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_becomes_noise_alone(
    ask: Any, folder: Path, job: Job, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """It could not be encoded, and to fail would tell that some record does this."""
    real = train_round

    def train(classifier: Any, inputs: Any, *args: Any, **named: Any) -> np.ndarray:
        update = real(classifier, inputs, *args, **named)
        if len(inputs):
            update[5] = value
        return update

    monkeypatch.setattr(trainer, "train_round", train)
    answer = ask(sampling_rate=1e-9, noise_multiplier=1e4)
    assert np.isfinite(answer.update).all()
    assert np.std(answer.update) == pytest.approx(deviation(job, 1e4, 1e-9), rel=0.13)
    assert "not finite" in (folder / LOG_FILE).read_text()
    assert charges(folder) == 1


@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
def test_a_pc_without_the_memory_for_a_batch_says_so_before_it_looks_at_its_data(
    ask: Any,
    folder: Path,
    touched: list[str],
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
) -> None:
    """Later, memory that runs out on one long record would silence all the others."""

    def fail(*_: Any, **__: Any) -> None:
        raise error("not enough memory")

    monkeypatch.setattr(trainer, "_rehearsed", {})
    with monkeypatch.context() as patch:
        patch.setattr(training, "cross_entropy", fail)
        assert refused(ask())
    assert (touched, charges(folder)) == ([], 0)
    assert "not enough memory" in (folder / LOG_FILE).read_text()
    assert gave(ask())


def test_without_privacy_a_pc_that_cannot_use_its_data_fails(ask: Any, folder: Path) -> None:
    owner(folder, policy={"allow_not_private": True})
    (folder / "records.parquet").unlink()
    assert failed(ask(privacy=NoPrivacy()))


def test_a_job_cannot_choose_the_base_and_with_it_the_tokenizer(
    ask: Any, folder: Path, job: Job, tmp_path: Path
) -> None:
    """A tokenizer that maps one word beyond the embedding would tell who holds the word."""
    evil = make_folder(tmp_path / "evil", "bert")
    words = json.loads((evil / "tokenizer.json").read_text())
    words["model"]["vocab"]["secret"] = 60
    (evil / "tokenizer.json").write_text(json.dumps(words))
    model = model_settings(evil, method="head")
    before = (folder / LEDGER_FILE).read_bytes()
    for base in (str(evil), str(folder), str(tmp_path / "not there")):
        named = model.model_copy(update={"base": base})
        assert refused(ask(model=np.zeros(51, np.float32), job_model=named))
    assert (folder / LEDGER_FILE).read_bytes() == before
    with pytest.raises(ModelError, match="tokenizer"):
        Classifier(model, job.labels)


@pytest.mark.parametrize("method", ["head", "bitfit", "lora"])
def test_two_true_counts_of_one_class_send_the_same_but_for_the_values(
    ask: Any, folder: Path, job: Job, tmp_path: Path, method: str
) -> None:
    model = job.model.model_copy(update={"train": TrainingMethod.kinds[method](kind=method)})
    classifier = Classifier(model, job.labels)
    changes = {"job_model": model, "layout_hash": classifier.layout.hash}
    wires = []
    for count in (40, 33, 64, 1):
        where = exotic(Path(shutil.copytree(folder, tmp_path / str(count))), count)
        answer = ask(model=read_vector(classifier), where=where, **changes)
        update = answer.update
        assert update.shape == (classifier.layout.size,)
        assert np.isfinite(update).all()
        # Noise on every coordinate; one in a billion is rounded to 0.
        assert np.count_nonzero(update == 0) <= 1
        wires.append(without_values(answer.reply))
    assert len(set(wires)) == 1


@pytest.mark.parametrize("count", [40, 33, 64, 1])
def test_what_a_step_on_nothing_sends_does_not_depend_on_the_true_count(
    ask: Any, folder: Path, job: Job, count: int
) -> None:
    exotic(folder, count)
    owner(folder, insecure_test_seed=5)
    rate = 1e-12
    answer = ask(sampling_rate=rate, noise_multiplier=2.0)
    assert np.std(answer.update) == pytest.approx(deviation(job, 2.0, rate), rel=0.13)


def test_every_local_step_is_charged(ask: Any, folder: Path, job: Job) -> None:
    three_steps = job.training.model_copy(update={"local_steps": 3})
    ask(training=three_steps, sampling_rate=0.25, noise_multiplier=1.5, clip_norm=0.125)
    (charge,) = Ledger(folder / LEDGER_FILE).charges
    assert charge.schedule == dp_sgd(1.5, 0.25, 3, clip_norm=0.125)
    assert not charge.seeded


def test_a_charge_says_that_the_noise_came_from_a_test_seed(ask: Any, folder: Path) -> None:
    owner(folder, insecure_test_seed=3)
    ask()
    assert Ledger(folder / LEDGER_FILE).unprotected


def test_a_reply_holds_the_update_and_nothing_else(ask: Any) -> None:
    content = ask().reply.content
    assert list(content) == ["update"]
    assert list(content["update"]) == ["frame"]
    array = content["update"]["frame"]
    assert (array.dtype, array.shape, array.stype) == ("uint8", (4 * 770,), "bytes")
    assert len(array.data) == 4 * 770


def test_a_description_holds_a_name_and_public_keys_and_nothing_else(
    folder: Path, enrolled: Federation
) -> None:
    request = SetupRequest(enrolled.job.run, 1, enrolled.roster.encode())
    reply = send(folder, SETUP, request.encode())
    (bundle,) = enrolled.bundles  # the ones that it made for this epoch before
    assert {k: dict(v) for k, v in reply.content.items()} == {
        "pc": {"name": "pc-0000", "bundle": bundle.encode()}
    }
    bundle.check(enrolled.roster, enrolled.job.run, time.time())
    assert bundle.size_class == 64


def test_the_noise_is_another_one_each_time(ask: Any, folder: Path, tmp_path: Path) -> None:
    again = shutil.copytree(folder, tmp_path / "again")
    nothing = {"sampling_rate": 1e-12}  # so that noise is all there is
    updates = [
        ask(**nothing).update,
        ask(attempt=2, **nothing).update,
        ask(attempt=3, number=2, **nothing).update,
        ask(where=again, **nothing).update,
    ]
    for first, second in combinations(updates, 2):
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.2  # 770 values: 5.5 standard errors


# What must not get out


class OddError(Exception):
    """An exception that fails even when it is printed."""

    def __str__(self) -> str:
        raise RuntimeError(CANARY)


@pytest.mark.parametrize(
    "error",
    [
        ValueError(CANARY),
        DataError(f"{CANARY} is not a label"),
        KeyError(CANARY),
        UnicodeDecodeError("utf-8", CANARY.encode(), 0, 1, CANARY),
        RecursionError(CANARY),
        SystemExit(CANARY),
        StopIteration(CANARY),
        OddError(CANARY),
        ExceptionGroup(CANARY, [ValueError(CANARY)]),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("where", ["load_owner", "_classifier", "read_records", "train_round"])
@pytest.mark.parametrize("privacy", ["dp-sgd", "none"])
def test_no_word_of_an_exception_leaves_the_pc(
    ask: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    folder: Path,
    where: str,
    privacy: str,
    error: BaseException,
) -> None:
    def fail(*args: Any, **named: Any) -> None:
        raise error

    changes = {}
    if privacy == "none":
        owner(folder, policy={"allow_not_private": True})
        changes = {"privacy": NoPrivacy()}
    modules = {"load_owner": client_module, "read_records": examples}
    monkeypatch.setattr(modules.get(where, trainer), where, fail)
    (folder / OWNER_FILE).touch()  # so that it is read again
    caplog.set_level(logging.DEBUG)
    reply = ask(**changes).reply
    # What cannot read its data sends noise, where noise is what it has promised.
    silent = privacy != "none" and where == "read_records" and isinstance(error, Exception)
    assert failed(reply) != silent
    assert b"canary" not in on_the_wire(reply)
    assert type(error).__name__.encode() not in on_the_wire(reply)
    assert "canary" not in caplog.text
    said = capfd.readouterr()
    assert "canary" not in said.out + said.err


@pytest.mark.parametrize(
    "damage",
    [
        "no owner file",
        "broken owner file",
        "no ledger",
        "damaged ledger",
        "no identity",
        "damaged identity",
        "no members",
        "damaged members",
        "no data",
        "other data",
    ],
)
def test_a_damaged_pc_says_nothing_of_what_is_wrong(
    ask: Any, folder: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    caplog.set_level(logging.DEBUG)
    match damage:
        case "no owner file":
            (folder / OWNER_FILE).unlink()
        case "broken owner file":
            (folder / OWNER_FILE).write_text(f'name = "{CANARY} and more"')
        case "no ledger":
            (folder / LEDGER_FILE).unlink()
        case "damaged ledger":
            (folder / LEDGER_FILE).write_text(CANARY)
        case "no identity":
            (folder / "keys" / "identity.key").unlink()
        case "damaged identity":
            (folder / "keys" / "identity.key").write_text(CANARY)
        case "no members":
            (folder / "keys" / "roster").unlink()
        case "damaged members":
            (folder / "keys" / "roster").write_text(CANARY)
        case "no data":
            (folder / "records.parquet").unlink()
        case _:
            (folder / "records.parquet").write_text(CANARY)
    answer = ask()
    if damage in ("no data", "other data"):
        assert (answer.update != 0).all()  # noise alone
        assert charges(folder) == 1
    else:
        assert failed(answer) or refused(answer)
    assert CANARY.encode() not in on_the_wire(answer.reply)
    assert CANARY not in caplog.text


@pytest.mark.parametrize("stage", [SETUP, MASK, AGREE, UNMASK])
def test_a_request_full_of_rubbish_gets_the_fixed_code(folder: Path, stage: str) -> None:
    rubbish = ConfigRecord({"job": CANARY, "run": CANARY, "attempt": 1, "epoch": 1})
    rubbish["roster"] = rubbish["frame"] = rubbish["terms"] = CANARY.encode()
    for content in (RecordDict(), RecordDict({"ask": rubbish})):
        reply = send(folder, stage, content)
        assert failed(reply)
        assert CANARY.encode() not in on_the_wire(reply)
    assert charges(folder) == 0


@pytest.mark.parametrize("part", ["job", "terms"])
def test_a_job_or_terms_that_cannot_be_read_are_refused(
    folder: Path, enrolled: Federation, part: str
) -> None:
    signed = SignedJob.sign(enrolled.admission, enrolled.job)
    terms = enrolled.terms(signed)
    text = CANARY if part == "job" else signed.text
    signature = enrolled.admission.sign(b"fedaipc job" + text.encode())
    frame = CANARY.encode() if part == "terms" else terms.encode()
    group = Group(terms, ())
    request = MaskRequest(text, signature, 1, frame, group.encode_keys(), enrolled.vector)
    answer = Answer(send(folder, MASK, request.encode()), group)
    assert refused(answer)
    assert CANARY.encode() not in on_the_wire(answer.reply)
    assert charges(folder) == 0
