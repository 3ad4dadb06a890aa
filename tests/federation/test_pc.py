"""A PC before a coordinator that lies: what it checks first, what it charges, what leaves it."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w
from flwr.app import ConfigRecord, Message, RecordDict

from fedaipc.data.records import Records
from fedaipc.errors import (
    BudgetExhausted,
    DataError,
    EncodingError,
    LedgerError,
    ModelError,
    PrivacyError,
    RoundError,
)
from fedaipc.federation import pc as module
from fedaipc.federation.client_app import PC_FAILED, app
from fedaipc.federation.flower_adapter import InProcessGrid
from fedaipc.federation.job import Job
from fedaipc.federation.messages import (
    DESCRIBE,
    EXHAUSTED,
    REFUSED,
    TRAIN,
    Description,
    TrainRequest,
    decode_reply,
)
from fedaipc.federation.pc import LEDGER_FILE, LOG_FILE, OWNER_FILE, Pc
from fedaipc.federation.simulation import prepare
from fedaipc.model.classifier import Classifier, read_vector
from fedaipc.privacy import training
from fedaipc.privacy.accountant import Mechanism
from fedaipc.privacy.ledger import Ledger
from fedaipc.privacy.plan import charged_epsilon
from tests.federation.parts import on_the_wire, tiny
from tests.model.tiny import make_folder
from tests.model.tiny import settings as model_settings

if TYPE_CHECKING:
    from collections.abc import Callable

CANARY = "canary-5f3a-zebra"
TEXT = f"the {CANARY} told nobody"


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> tuple[Path, Job]:
    """A PC with 40 records (size class 64) and the job of its run."""
    folder = tmp_path_factory.mktemp("enrolled")
    with (folder / "texts.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["text", "label"])
        for number in range(52):
            mood = ("negative", "positive")[number % 2]
            out.writerow([f"{TEXT} {number} {mood}", mood])
    run = prepare(
        tiny(
            f"data.source='{folder / 'texts.csv'}'",
            "federation.pcs=1",
            "federation.rounds=3",
            "federation.spare_attempts=2",
            f"output.folder='{folder}'",
            "privacy.delta=1e-5",
        )
    )
    job = Job.parse((run.folder / "job.json").read_text())
    return run.pc_state / "pc-0000", job


@pytest.fixture
def folder(enrolled: tuple[Path, Job], tmp_path: Path) -> Path:
    """That PC, fresh."""
    return Path(shutil.copytree(enrolled[0], tmp_path / "pc"))


@pytest.fixture
def job(enrolled: tuple[Path, Job]) -> Job:
    return enrolled[1]


@pytest.fixture(scope="module")
def vector(enrolled: tuple[Path, Job]) -> np.ndarray:
    return read_vector(Classifier(enrolled[1].model, enrolled[1].labels))


@pytest.fixture
def ask(folder: Path, job: Job, vector: np.ndarray) -> Callable[..., Message]:
    """Send the PC one request as a coordinator would; its reply."""

    def send(
        content: RecordDict | None = None,
        *,
        number: int = 1,
        attempt: int = 1,
        model: np.ndarray = vector,
        where: Path = folder,
        **changes: Any,
    ) -> Message:
        if content is None:
            if "job_model" in changes:
                changes["model"] = changes.pop("job_model")
            asked = Job.model_construct(**{**dict(job), **changes})
            content = TrainRequest(asked, number, attempt, model).encode()
        grid = InProcessGrid(app, [{"pc-folder": str(where)}], {})
        message = Message(content, grid.get_node_ids()[0], TRAIN)
        (reply,) = grid.send_and_receive([message])
        return reply

    return send


@pytest.fixture
def touched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the steps that see the PC's data, as they are taken."""
    steps: list[str] = []
    for name in ("read_records", "make_inputs", "train_round"):
        real = getattr(module, name)

        def step(*args: Any, _real: Any = real, _name: str = name, **named: Any) -> Any:
            steps.append(_name)
            return _real(*args, **named)

        monkeypatch.setattr(module, name, step)
    return steps


def charges(folder: Path) -> int:
    return len(Ledger(folder / LEDGER_FILE).charges)


def owner(folder: Path, **changes: Any) -> None:
    """Change what the owner decided."""
    settings = Pc(folder).owner.model_dump(mode="json", exclude_none=True)
    (folder / OWNER_FILE).write_text(tomli_w.dumps({**settings, **changes}))


def refused(reply: Message) -> bool:
    return reply.has_content() and decode_reply(reply.content) == REFUSED


def failed(reply: Message) -> bool:
    """One fixed code without a word, and nothing besides."""
    return reply.has_error() and not reply.has_content() and (
        reply.error.code, reply.error.reason
    ) == (PC_FAILED, "")  # fmt: skip


# The order of events


def test_a_round_charges_first_and_then_reads_trains_and_replies(
    ask: Any, folder: Path, touched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Ledger.charge

    def charge(self: Ledger, charge: Any) -> None:
        touched.append("charge")
        real(self, charge)
        touched.append("charged")

    monkeypatch.setattr(Ledger, "charge", charge)
    reply = ask()
    assert isinstance(decode_reply(reply.content), np.ndarray)
    assert touched == ["charge", "charged", "read_records", "make_inputs", "train_round"]


def test_the_charge_is_on_the_disk_when_the_first_text_is_read(
    ask: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real_sync, real_read = os.fsync, module.read_records
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(file), real_sync(file))[1])

    def read(*args: Any, **named: Any) -> Records:
        assert charges(folder) == 1
        assert len(synced) >= 1
        return real_read(*args, **named)

    monkeypatch.setattr(module, "read_records", read)
    assert isinstance(decode_reply(ask().content), np.ndarray)


@pytest.mark.parametrize("error", [LedgerError, PrivacyError, BudgetExhausted, OSError, ValueError])
def test_without_a_charge_no_data_is_touched(
    ask: Any,
    folder: Path,
    touched: list[str],
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
) -> None:
    def charge(self: Ledger, charge: Any) -> None:
        raise error(CANARY)

    monkeypatch.setattr(Ledger, "charge", charge)
    reply = ask()
    assert touched == []
    assert CANARY.encode() not in on_the_wire(reply)
    assert reply.has_error() or decode_reply(reply.content) in (REFUSED, EXHAUSTED)


@pytest.mark.parametrize("step", ["read_records", "make_inputs", "train_round"])
@pytest.mark.parametrize(
    "error",
    [
        DataError,
        ModelError,
        EncodingError,
        PrivacyError,
        BudgetExhausted,
        RoundError,
        OSError,
        MemoryError,
    ],
)
def test_a_charge_stands_whatever_fails_after_it(
    ask: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: type[Exception]
) -> None:
    def fail(*args: Any, **named: Any) -> None:
        raise error(CANARY)

    monkeypatch.setattr(module, step, fail)
    reply = ask()
    if step == "train_round":  # it cannot even make noise
        assert failed(reply)
    else:
        assert isinstance(decode_reply(reply.content), np.ndarray)
    assert charges(folder) == 1
    assert refused(ask())  # the same attempt again
    assert charges(folder) == 1


def test_a_simulated_drop_out_is_charged_and_looks_like_any_failure(
    ask: Any, folder: Path, touched: list[str]
) -> None:
    owner(folder, drop_out=1.0)
    assert failed(ask())
    assert charges(folder) == 1
    assert touched == []


# What is refused before anything is charged


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "none", "noise_multiplier": None},
        {"mode": "none"},
        {"mode": "local", "noise_multiplier": None},
        {"layout_hash": "f" * 64},
        {"labels": ("positive", "negative")},
        {"labels": ("negative", "positive", "other")},
        {"delta": 2e-5},
        {"delta": 1e-6},
        {"number": 4},
        {"attempt": 6},
        {"number": 2**63 - 1, "attempt": 2**63 - 1},
        {"model": np.zeros(3, np.float32)},
        {"model": np.zeros(0, np.float32)},
        {"model": np.full(770, np.nan, np.float32)},
        {"model": np.full(770, np.inf, np.float32)},
    ],
    ids=lambda changes: " ".join(f"{k} {str(v)[:20]}" for k, v in changes.items()),
)
def test_a_job_against_the_rules_costs_nothing(
    ask: Any, folder: Path, touched: list[str], changes: dict[str, Any]
) -> None:
    before = (folder / LEDGER_FILE).read_bytes()
    assert refused(ask(**changes))
    assert (folder / LEDGER_FILE).read_bytes() == before
    assert touched == []


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_multiplier": 0.05},
        {"run": "../../etc"},
        {"rounds": 0},
        {"clip": -1.0},
        {"clip": 1e-12},
        {"noise_multiplier": 1e7},
        {"sampling_rate": 2.0},
        {"attempt": 0},
        {"number": -1},
    ],
    ids=str,
)
def test_what_is_no_job_costs_nothing(
    ask: Any, folder: Path, touched: list[str], changes: dict[str, Any]
) -> None:
    before = (folder / LEDGER_FILE).read_bytes()
    assert failed(ask(**changes))
    assert (folder / LEDGER_FILE).read_bytes() == before
    assert touched == []


def test_a_job_without_privacy_is_taken_only_where_the_owner_allows_it(
    ask: Any, folder: Path
) -> None:
    changes = {"mode": "none", "noise_multiplier": None}
    assert refused(ask(**changes))
    owner(folder, allow_not_private=True)
    assert isinstance(decode_reply(ask(**changes).content), np.ndarray)
    assert Ledger(folder / LEDGER_FILE).unprotected


@pytest.mark.parametrize("attempt", [1, 2])
def test_an_attempt_is_never_answered_twice(ask: Any, folder: Path, attempt: int) -> None:
    assert ask(attempt=2).has_content()
    before = (folder / LEDGER_FILE).read_bytes()
    assert refused(ask(attempt=attempt))
    assert (folder / LEDGER_FILE).read_bytes() == before
    assert isinstance(decode_reply(ask(attempt=3).content), np.ndarray)


def test_another_run_is_charged_beside_the_first(ask: Any, folder: Path) -> None:
    ask(attempt=1)
    ask(attempt=1, run="f" * 16)
    assert charges(folder) == 2


def test_a_budget_ends_however_the_coordinator_names_its_runs(
    ask: Any, folder: Path, job: Job
) -> None:
    order = Ledger(folder / LEDGER_FILE).order
    (folder / LEDGER_FILE).unlink()
    allowed = (charged_epsilon(job.plan, 2, order) + charged_epsilon(job.plan, 3, order)) / 2
    Ledger.create(folder / LEDGER_FILE, lifetime_epsilon=allowed, delta=job.delta, order=order)
    words = [ask(attempt=1, run=f"{number:016x}") for number in range(4)]
    assert [isinstance(decode_reply(reply.content), np.ndarray) for reply in words] == [
        True, True, False, False,
    ]  # fmt: skip
    assert [decode_reply(reply.content) for reply in words[2:]] == [EXHAUSTED, EXHAUSTED]
    weak = ask(attempt=1, run="e" * 16, noise_multiplier=0.1, sampling_rate=1.0)
    assert decode_reply(weak.content) == EXHAUSTED
    assert charges(folder) == 2


# What a lying coordinator could learn


def test_a_label_list_without_one_of_the_pcs_labels_tells_nothing_about_it(
    ask: Any, folder: Path, job: Job
) -> None:
    """To answer with an error there would say, without any noise, which labels the PC holds."""
    labels = ("canary", "negative")
    layout = Classifier(job.model, labels).layout.hash
    reply = ask(labels=labels, layout_hash=layout)
    assert isinstance(decode_reply(reply.content), np.ndarray)
    neither = ("left", "right")
    layout = Classifier(job.model, neither).layout.hash
    other = ask(labels=neither, layout_hash=layout, attempt=2)
    update = decode_reply(other.content)
    assert isinstance(update, np.ndarray)
    assert np.std(update) > 0  # noise alone
    assert charges(folder) == 2


@pytest.mark.parametrize("damage", ["no data", "other data", "a row", "tokenizer", "out of memory"])
def test_whether_a_pc_can_use_its_data_shows_in_nothing_but_noise(
    ask: Any,
    enrolled: tuple[Path, Job],
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
            monkeypatch.setattr(module, "make_inputs", fail)
        case _:
            ask(attempt=1)  # so that the rehearsal is behind it
            shutil.rmtree(folder)
            shutil.copytree(enrolled[0], folder)
            monkeypatch.setattr(training, "cross_entropy", fail)
    # The rate is so low that what remains is a step on nothing whatever the data is.
    rate = 1.0 if damage == "out of memory" else 1e-9
    owner(folder, insecure_test_seed=3)
    update = decode_reply(ask(sampling_rate=rate, noise_multiplier=1e4).content)
    assert isinstance(update, np.ndarray)
    assert np.std(update) == pytest.approx(deviation(job, 1e4, rate), rel=0.13)
    log = folder / LOG_FILE
    assert log.is_file() == (damage != "a row")  # one bad record costs no other
    if log.is_file():
        assert "round 1: trained on nothing" in log.read_text()
        assert log.stat().st_mode & 0o777 == 0o600


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

    monkeypatch.setattr(module, "_rehearsed", set())
    with monkeypatch.context() as patch:
        patch.setattr(training, "cross_entropy", fail)
        assert refused(ask())
    assert (touched, charges(folder)) == ([], 0)
    assert "not enough memory" in (folder / LOG_FILE).read_text()
    assert isinstance(decode_reply(ask().content), np.ndarray)


def test_without_privacy_a_pc_that_cannot_use_its_data_fails(ask: Any, folder: Path) -> None:
    owner(folder, allow_not_private=True)
    (folder / "records.parquet").unlink()
    assert failed(ask(mode="none", noise_multiplier=None))


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


def deviation(job: Job, noise: float, rate: float) -> float:
    """Of one step's noise on an update of the PC with size class 64."""
    return noise * job.clip * job.training.learning_rate / (rate * 64)


def exotic(folder: Path, count: int) -> Path:
    """The PC with other texts, `count` of them, and the same size class."""
    texts = tuple(f"{number} other words" * (1 + number % 5) for number in range(count))
    labels = tuple("positive" for _ in range(count))
    Records(texts, labels).write_parquet(folder / "records.parquet")
    return folder


@pytest.mark.parametrize("method", ["head", "bitfit", "lora"])
def test_two_true_counts_of_one_class_send_the_same_but_for_the_values(
    ask: Any, folder: Path, job: Job, tmp_path: Path, method: str
) -> None:
    model = job.model.model_copy(update={"method": method})
    classifier = Classifier(model, job.labels)
    named = {"model": read_vector(classifier), "layout_hash": classifier.layout.hash}
    wires = []
    for count in (40, 33, 64, 1):
        where = exotic(Path(shutil.copytree(folder, tmp_path / str(count))), count)
        content = TrainRequest(
            job.model_copy(update={"model": model, "layout_hash": named["layout_hash"]}),
            1, 1, named["model"],
        ).encode()  # fmt: skip
        reply = ask(content, where=where)
        update = decode_reply(reply.content)
        assert isinstance(update, np.ndarray)
        assert update.shape == (classifier.layout.size,)
        assert np.isfinite(update).all()
        assert (update != 0).all()  # noise on every coordinate
        wires.append(without_values(reply, classifier.layout.size))
    assert len(set(wires)) == 1


@pytest.mark.parametrize("count", [40, 33, 64, 1])
def test_what_a_step_on_nothing_sends_does_not_depend_on_the_true_count(
    ask: Any, folder: Path, job: Job, count: int
) -> None:
    exotic(folder, count)
    owner(folder, insecure_test_seed=5)
    rate = 1e-12
    update = decode_reply(ask(sampling_rate=rate, noise_multiplier=2.0).content)
    assert isinstance(update, np.ndarray)
    assert np.std(update) == pytest.approx(deviation(job, 2.0, rate), rel=0.13)


def test_every_local_step_is_charged(ask: Any, folder: Path, job: Job) -> None:
    three_steps = job.training.model_copy(update={"local_steps": 3})
    ask(training=three_steps, sampling_rate=0.25, noise_multiplier=1.5, clip=0.125)
    (charge,) = Ledger(folder / LEDGER_FILE).charges
    assert charge.mechanism == Mechanism(noise_multiplier=1.5, sampling_rate=0.25, steps=3)
    assert charge.clip == 0.125
    assert not charge.seeded


def test_a_charge_says_that_the_noise_came_from_a_test_seed(ask: Any, folder: Path) -> None:
    owner(folder, insecure_test_seed=3)
    ask()
    assert Ledger(folder / LEDGER_FILE).unprotected


def without_values(reply: Message, size: int) -> bytes:
    data = reply.content["update"]["vector"].data
    for key in ("_message_id", "_reply_to_message_id"):
        reply.metadata.__dict__[key] = "x"
    reply.metadata.created_at = 0.0
    reply.metadata.delivered_at = ""
    reply.metadata.ttl = 0.0  # what was left of the time to answer: set by Flower from the clock
    wire = on_the_wire(reply)
    assert wire.count(data) == 1
    return wire.replace(data, data[: -4 * size] + bytes(4 * size))


def test_a_reply_holds_the_update_and_nothing_else(ask: Any) -> None:
    reply = ask()
    assert list(reply.content) == ["update"]
    assert list(reply.content["update"]) == ["vector"]
    array = reply.content["update"]["vector"]
    assert (array.dtype, array.shape, array.stype) == ("float32", (770,), "numpy.ndarray")
    assert len(array.data) == 128 + 4 * 770


def test_a_description_holds_two_public_facts_and_nothing_else(folder: Path) -> None:
    grid = InProcessGrid(app, [{"pc-folder": str(folder)}], {})
    message = Message(RecordDict(), grid.get_node_ids()[0], DESCRIBE)
    (reply,) = grid.send_and_receive([message])
    assert Description.decode(reply.content) == Description("pc-0000", 64)
    assert {k: dict(v) for k, v in reply.content.items()} == {
        "pc": {"name": "pc-0000", "size-class": 64}
    }


def test_the_noise_is_another_one_each_time(ask: Any, folder: Path, tmp_path: Path) -> None:
    again = shutil.copytree(folder, tmp_path / "again")
    nothing = {"sampling_rate": 1e-12}  # so that noise is all there is
    updates = [
        decode_reply(ask(**nothing).content),
        decode_reply(ask(attempt=2, **nothing).content),
        decode_reply(ask(attempt=3, number=2, **nothing).content),
        decode_reply(ask(where=again, **nothing).content),
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
@pytest.mark.parametrize("mode", ["local", "none"])
def test_no_word_of_an_exception_leaves_the_pc(
    ask: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    folder: Path,
    where: str,
    mode: str,
    error: BaseException,
) -> None:
    def fail(*args: Any, **named: Any) -> None:
        raise error

    changes = {}
    if mode == "none":
        owner(folder, allow_not_private=True)
        changes = {"mode": "none", "noise_multiplier": None}
    monkeypatch.setattr(module, where, fail)
    caplog.set_level(logging.DEBUG)
    reply = ask(**changes)
    # What cannot read its data sends noise, where noise is what it has promised.
    silent = mode == "local" and where == "read_records" and isinstance(error, Exception)
    assert failed(reply) != silent
    assert b"canary" not in on_the_wire(reply)
    assert type(error).__name__.encode() not in on_the_wire(reply)
    assert "canary" not in caplog.text
    said = capfd.readouterr()
    assert "canary" not in said.out + said.err


@pytest.mark.parametrize(
    "damage",
    ["no owner file", "broken owner file", "no ledger", "damaged ledger", "no data", "other data"],
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
        case "no data":
            (folder / "records.parquet").unlink()
        case _:
            (folder / "records.parquet").write_text(CANARY)
    reply = ask()
    if damage in ("no data", "other data"):
        update = decode_reply(reply.content)
        assert isinstance(update, np.ndarray)
        assert (update != 0).all()  # noise alone
        assert charges(folder) == 1
    else:
        assert failed(reply) or refused(reply)
    assert CANARY.encode() not in on_the_wire(reply)
    assert CANARY not in caplog.text


def test_a_request_full_of_rubbish_gets_the_fixed_code(ask: Any, folder: Path) -> None:
    for content in (RecordDict(), RecordDict({"ask": ConfigRecord({"job": CANARY})})):
        reply = ask(content)
        assert failed(reply)
        assert CANARY.encode() not in on_the_wire(reply)
    assert charges(folder) == 0


# What changes under it


def test_a_data_file_that_was_replaced_is_read_again(
    ask: Any, folder: Path, touched: list[str]
) -> None:
    ask(attempt=1)
    ask(attempt=2)
    assert touched.count("read_records") == 1
    exotic(folder, 50)
    ask(attempt=3)
    assert touched.count("read_records") == 2


def test_more_records_than_the_size_class_give_no_larger_update(
    ask: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The divisor is the declared class, whatever the PC holds by now."""
    divisors = []
    real = module.train_round

    def train(*args: Any, **named: Any) -> Any:
        divisors.append(named["size_class"])
        return real(*args, **named)

    monkeypatch.setattr(module, "train_round", train)
    exotic(folder, 90)
    assert isinstance(decode_reply(ask().content), np.ndarray)
    assert divisors == [64]


def test_a_test_seed_repeats_a_round_in_any_attempt(ask: Any, folder: Path, tmp_path: Path) -> None:
    owner(folder, insecure_test_seed=9)
    again = shutil.copytree(folder, tmp_path / "again")
    first = decode_reply(ask(attempt=1).content)
    assert np.array_equal(first, decode_reply(ask(attempt=4, where=again).content))
    assert not np.array_equal(first, decode_reply(ask(number=2, attempt=5).content))


def test_a_request_is_not_changed_by_training(ask: Any, vector: np.ndarray) -> None:
    before = vector.copy()
    ask()
    np.testing.assert_array_equal(vector, before)
