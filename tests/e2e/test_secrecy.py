"""A whole private run is recorded: nothing of any PC's data is in what left it, or in the logs."""

from __future__ import annotations

import csv
import io
import json
import logging
import random
import re
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fedaipc.federation import pc as pc_module
from fedaipc.federation.flower_adapter import InProcessGrid
from fedaipc.federation.simulation import prepare, simulate
from fedaipc.privacy import training
from tests.federation.parts import on_the_wire, tiny

if TYPE_CHECKING:
    from pathlib import Path

    from flwr.app import Message

    from fedaipc.federation.simulation import Run
    from fedaipc.results import Results, RoundResult

CANARY = re.compile(r"zq[a-z]{6}")  # in every text, a word of its own


class Recorded:
    """A run with all replies, all losses and all batch sizes of its PCs."""

    def __init__(self) -> None:
        self.replies: list[Message] = []
        self.losses: list[float] = []
        self.sizes: list[int] = []
        self.counts: list[int] = []
        self.told: list[RoundResult] = []
        self.logs = ""
        self.words: set[str] = set()
        self.run: Run
        self.results: Results


def write_texts(path: Path) -> set[str]:
    """CSV of 260 texts over groups of different sizes; the canary words in them."""
    draw = random.Random(4)
    words = set()
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["text", "label", "user"])
        for number in range(260):
            word = "zq" + "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6))
            words.add(word)
            user = f"zquserx{'aabbbccccc'[number % 10]}"
            label = ("negative", "positive")[draw.random() < 0.5]
            out.writerow([f"{word} was here {number}", label, user])
            words.add(user)
    return words


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Recorded:
    folder = tmp_path_factory.mktemp("recorded")
    found = Recorded()
    found.words = write_texts(folder / "texts.csv")
    with pytest.MonkeyPatch.context() as patch:
        real_reply, real_loss = InProcessGrid._run_client, training._loss
        real_train = pc_module.train_round

        def reply(self: InProcessGrid, message: Message) -> Message:
            answer = real_reply(self, message)
            found.replies.append(answer)
            return answer

        def loss(*args: Any) -> Any:
            value = real_loss(*args)
            found.losses.append(float(value.detach()))
            found.sizes.append(len(args[-1]))
            return value

        def train(classifier: Any, inputs: Any, *args: Any, **named: Any) -> Any:
            found.counts.append(len(inputs))
            return real_train(classifier, inputs, *args, **named)

        patch.setattr(InProcessGrid, "_run_client", reply)
        patch.setattr(training, "_loss", loss)
        patch.setattr(pc_module, "train_round", train)
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        root = logging.getLogger()
        level = root.level
        root.addHandler(handler)
        root.setLevel(logging.DEBUG)
        try:
            found.run = prepare(
                tiny(
                    f"data.source='{folder / 'texts.csv'}'",
                    "data.partition=column",
                    "data.partition_column=user",
                    "data.validation_size=20",
                    "data.test_size=20",
                    "privacy.sampling_rate=0.3",
                    "training.local_steps=2",
                    "federation.rounds=4",
                    "federation.drop_out=0.5",
                    f"output.folder='{folder}'",
                )
            )
            found.results = simulate(found.run, "in-process", found.told.append)
        finally:
            root.removeHandler(handler)
            root.setLevel(level)
        found.logs = stream.getvalue()
    return found


def test_the_recording_saw_what_it_looks_for(recorded: Recorded) -> None:
    """Else the tests below could not fail."""
    assert len(set(recorded.counts)) == 3
    assert len(recorded.losses) >= 6
    assert len(recorded.words) > 200
    assert sum(reply.has_content() for reply in recorded.replies) >= 6
    size_classes = {pc.size_class for pc in recorded.results.pcs}
    assert not size_classes & set(recorded.counts)


def test_no_word_of_any_text_is_in_what_left_or_in_a_log(recorded: Recorded) -> None:
    for reply in recorded.replies:
        sent = on_the_wire(reply).decode("latin-1")
        assert not recorded.words & set(CANARY.findall(sent))
        assert "was here" not in sent
    assert not CANARY.search(recorded.logs)
    assert "was here" not in recorded.logs


def test_replies_differ_in_nothing_but_their_values(recorded: Recorded) -> None:
    updates = [r for r in recorded.replies if r.has_content() and "update" in r.content]
    assert len(updates) >= 3
    assert {tuple(reply.content) for reply in updates} == {("update",)}
    arrays = [reply.content["update"]["vector"] for reply in updates]
    assert {tuple(reply.content["update"]) for reply in updates} == {("vector",)}
    assert len({(a.dtype, a.shape, a.stype, len(a.data), a.data[:128]) for a in arrays}) == 1


def test_no_count_and_no_loss_is_in_a_reply(recorded: Recorded) -> None:
    """As a number of 8 bytes nowhere, of 4 bytes not beside the noisy values.

    Among those one in some thousand runs would hold the 4 bytes of some loss by chance.
    """
    doubles, floats = (
        {struct.pack(order + kind, loss) for loss in recorded.losses for order in "<>"}
        for kind in "df"
    )
    for reply in recorded.replies:
        if not (reply.has_content() and "update" in reply.content):
            assert not reply.has_content() or set(reply.content) == {"pc"}
            continue
        values = reply.content["update"]["vector"].data[128:]
        wire = on_the_wire(reply)
        assert not any(secret in wire for secret in doubles)
        beside = wire.replace(values, b"")
        assert len(beside) == len(wire) - len(values)
        assert not any(secret in beside for secret in floats)
        numbers = np.frombuffer(values, np.float32)
        for count in {*recorded.counts, *recorded.sizes}:
            assert count not in numbers
        assert len(values) == 4 * recorded.results.model.trainable_parameters


def test_a_pc_that_vanished_sent_a_code_and_nothing_else(recorded: Recorded) -> None:
    errors = [reply for reply in recorded.replies if reply.has_error()]
    assert errors
    assert {(reply.error.code, reply.error.reason) for reply in errors} == {(100, "")}


def test_logs_and_rounds_hold_no_loss_of_a_pc(recorded: Recorded) -> None:
    rounds = "\n".join(result.model_dump_json() for result in recorded.told)
    assert len(recorded.told) >= 4
    numbers = set(re.findall(r"\d+\.\d{3,}", recorded.logs + rounds))
    assert numbers  # of the coordinator's own evaluation
    assert not numbers & {f"{loss:.{digits}f}" for loss in recorded.losses for digits in (3, 4, 6)}
    assert not numbers & {str(loss) for loss in recorded.losses}


def test_what_the_coordinator_keeps_holds_no_text_of_a_pc(recorded: Recorded) -> None:
    """Its own public sets apart, which it holds by design."""
    folder = recorded.run.folder
    for path in (*folder.glob("*.json"), *folder.glob("*.toml"), *folder.glob("*.safetensors")):
        content = path.read_bytes().decode("latin-1")
        if path.name != "results.json":  # a simulator writes there which group each PC holds
            assert not CANARY.search(content), path.name


def test_the_job_that_was_sent_names_no_seed_and_no_count(recorded: Recorded) -> None:
    job = json.loads((recorded.run.folder / "job.json").read_text())
    text = json.dumps(job)
    assert "insecure" not in text
    for count in recorded.counts:
        assert not re.search(rf"\b{count}\b", text)
