"""Whole private runs are recorded: nothing of any PC's data is in what left it, or in the logs.

Canaries are planted into every update before it is masked: a text, a label, a count and a loss,
as bytes. A run whose updates travel open shows them all; a sealed one shows none.
"""

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
from scipy import stats

from fedaipc.client import trainer as trainer_module
from fedaipc.privacy import training
from fedaipc.privacy.training import train_round
from fedaipc.protocol.messages import decode_answer, decode_update
from fedaipc.secagg.committee import Agreement, Release
from fedaipc.secagg.encoding import Encoding
from fedaipc.secagg.roster import Bundle
from fedaipc.secagg.round_keys import KeyShares
from fedaipc.secagg.uploads import Upload
from fedaipc.simulation.flower_adapter import InProcessGrid
from fedaipc.simulation.simulation import prepare, simulate
from tests.support.jobs import on_the_wire, tiny

if TYPE_CHECKING:
    from pathlib import Path

    from flwr.app import Message

    from fedaipc.results import Results, RoundResult
    from fedaipc.simulation.simulation import Run

CANARY = re.compile(r"zq[a-z]{6}")  # in every text, a word of its own
LABELS = ("zlnegative", "zlpositive")
USERS = "abbcccddddeeeeeffffff"
STAGES = ("query.setup", "train.mask", "query.agree", "query.unmask")


class Recorded:
    """A run with all replies by stage, and what must not be in them."""

    def __init__(self) -> None:
        self.replies: list[tuple[str, Message]] = []
        self.losses: list[float] = []
        self.sizes: list[int] = []
        self.counts: list[int] = []
        self.updates: list[bytes] = []
        self.told: list[RoundResult] = []
        self.logs = ""
        self.words: set[str] = set()
        self.run: Run
        self.results: Results

    def answers(self, stage: str) -> list[Message]:
        return [reply for name, reply in self.replies if name == stage and reply.has_content()]

    def sent(self) -> list[bytes]:
        """Every byte that left a PC."""
        return [on_the_wire(reply) for _, reply in self.replies]

    def found(self) -> set[str]:
        """What kinds of secret are anywhere in what was sent."""
        wires = self.sent()
        secrets = {
            "text": [word.encode() for word in self.words],
            "label": [label.encode() for label in LABELS],
            "update": [update[start : start + 64] for update in self.updates
                       for start in range(256, len(update) - 64, 1024)],
            # Eight bytes of a small number are in any frame.
            "count": [f"count {count};".encode() for count in self.counts],
            "loss": [struct.pack(order + kind, loss) for loss in self.losses
                     for order, kind in (("<", "d"), (">", "d"))],
        }  # fmt: skip
        return {
            kind
            for kind, values in secrets.items()
            if any(value in wire for wire in wires for value in values)
        }


def write_texts(path: Path) -> set[str]:
    """CSV of 300 texts over users of different sizes; the canary words in them."""
    draw = random.Random(4)
    words = set()
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["text", "label", "user"])
        for number in range(300):
            word = "zq" + "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6))
            user = "zquserx" + USERS[number % len(USERS)]
            words |= {word, user}
            out.writerow([f"{word} was here {number}", LABELS[draw.random() < 0.5], user])
    return words


def record(folder: Path, mode: str) -> Recorded:
    found = Recorded()
    found.words = write_texts(folder / "texts.csv")
    with pytest.MonkeyPatch.context() as patch:
        real_reply, real_loss = InProcessGrid.answer, training._loss
        real_train, real_encode = train_round, Encoding.encode

        def reply(self: InProcessGrid, message: Message) -> Message:
            answer = real_reply(self, message)
            found.replies.append((message.metadata.message_type, answer))
            return answer

        def loss(*args: Any) -> Any:
            value = real_loss(*args)
            found.losses.append(float(value.detach()))
            found.sizes.append(len(args[-1]))
            return value

        def train(classifier: Any, inputs: Any, *args: Any, **named: Any) -> Any:
            found.counts.append(len(inputs))
            return real_train(classifier, inputs, *args, **named)

        def encode(self: Encoding, *args: Any) -> Any:
            words = real_encode(self, *args)
            planted = b"".join(
                [
                    min(found.words).encode(),
                    LABELS[0].encode(),
                    f"count {found.counts[-1]};".encode(),
                    struct.pack("<d", found.losses[-1]),
                ]
            )
            words.view(np.uint8)[: len(planted)] = np.frombuffer(planted, np.uint8)
            found.updates.append(words.tobytes())
            return words

        patch.setattr(InProcessGrid, "answer", reply)
        patch.setattr(training, "_loss", loss)
        patch.setattr(trainer_module, "train_round", train)
        patch.setattr(Encoding, "encode", encode)
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
                    "data.partition.kind=column",
                    "data.client_column=user",
                    "data.validation_size=20",
                    "data.test_size=20",
                    "privacy.sampling_rate=0.3",
                    "training.local_steps=2",
                    "federation.clients=6",
                    "rounds=4",
                    "federation.dropout_rate=0.1",
                    "federation.seed=1",
                    f"aggregation.kind={mode}",
                    f"output.folder='{folder}'",
                )
            )
            found.results = simulate(found.run, "in-process", found.told.append)
        finally:
            root.removeHandler(handler)
            root.setLevel(level)
        found.logs = stream.getvalue()
    return found


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Recorded:
    return record(tmp_path_factory.mktemp("sealed"), "secagg")


@pytest.fixture(scope="module")
def in_the_open(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Recorded:
    return record(tmp_path_factory.mktemp("open"), "plain")


def test_the_recording_saw_what_it_looks_for(sealed: Recorded) -> None:
    """Else the tests below could not fail."""
    assert len(set(sealed.counts)) == 6
    assert len(sealed.losses) >= 20
    assert len(sealed.words) > 200
    assert all(sealed.answers(stage) for stage in STAGES)
    assert len(sealed.updates) >= 20
    size_classes = {pc.size_class for pc in sealed.results.pcs}
    assert not size_classes & set(sealed.counts)


def test_in_the_open_every_kind_of_canary_is_found(in_the_open: Recorded) -> None:
    assert in_the_open.found() == {"text", "label", "update", "count", "loss"}


def test_of_a_sealed_run_nothing_is_found_in_any_byte_that_left_a_pc(sealed: Recorded) -> None:
    assert sealed.found() == set()
    for wire in sealed.sent():
        assert b"was here" not in wire
    assert not CANARY.search(sealed.logs)
    assert "was here" not in sealed.logs


def test_every_byte_of_a_sealed_run_is_of_a_kind_that_the_specification_lists(
    sealed: Recorded,
) -> None:
    """M16: each reply is one record of one frame, and each frame has the size of its round."""
    names = {pc.name for pc in sealed.results.pcs}
    for reply in sealed.answers("query.setup"):
        assert set(reply.content) == {"pc"}
        described: Any = reply.content["pc"]
        assert set(described) == {"name", "bundle"}
        assert described["name"] in names
        assert Bundle.decode(described["bundle"]).encode() == described["bundle"]
    for reply in sealed.answers("query.ready"):
        assert set(reply.content) == {"ready"}
        said: Any = reply.content["ready"]
        assert set(said) == {"charged", "shares"}
        count = len(KeyShares.decode(said["shares"]).blobs)
        assert count in (5, 6)
        # Label and version, round key, check value, commitments, blobs.
        assert len(said["shares"]) == 2 + 160 + 16 + 4 + 32 * count + 4 + 82 * count
    parameters = sealed.results.model.trainable_parameters
    for reply in sealed.answers("train.mask"):
        assert set(reply.content) == {"update"}
        assert set(reply.content["update"]) == {"frame"}
        frame = decode_update(reply.content)
        assert isinstance(frame, bytes)
        assert Upload.decode(frame).encode() == frame
        assert len(frame) == 2 + 136 + 64 + 4 + 4 * parameters
    for reply in sealed.answers("query.agree"):
        assert set(reply.content) == {"answer"}
        assert set(reply.content["answer"]) == {"frame"}
        frame = decode_answer(reply.content)
        assert len(frame) == 2 + 32 + 32 + 64
        assert Agreement.decode(frame).encode() == frame
    for reply in sealed.answers("query.unmask"):
        assert set(reply.content) == {"answer"}
        frame = decode_answer(reply.content)
        count = len(Release.decode(frame).shares)
        assert count in (5, 6)
        assert len(frame) == 2 + 32 + 4 + 33 * count


def upload_of(reply: Message) -> Upload:
    frame = decode_update(reply.content)
    assert isinstance(frame, bytes)
    return Upload.decode(frame)


def test_what_is_masked_or_sealed_looks_like_noise(sealed: Recorded) -> None:
    vectors = [bytes(upload_of(r).vector) for r in sealed.answers("train.mask")]
    said: list[Any] = [reply.content["ready"] for reply in sealed.answers("query.ready")]
    blobs = [blob for one in said for blob in KeyShares.decode(one["shares"]).blobs]
    for parts in (vectors, blobs):
        content = b"".join(parts)
        counts = np.bincount(np.frombuffer(content, np.uint8), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-6


def test_no_count_is_a_word_of_a_vector(sealed: Recorded) -> None:
    for reply in sealed.answers("train.mask"):
        words = np.frombuffer(upload_of(reply).vector, "<u4")
        for count in {*sealed.counts, *sealed.sizes}:
            assert count not in words


def test_a_pc_that_vanished_sent_a_code_and_nothing_else(sealed: Recorded) -> None:
    errors = [reply for _, reply in sealed.replies if reply.has_error()]
    assert errors
    assert {(reply.error.code, reply.error.reason) for reply in errors} == {(100, "")}


def test_logs_and_rounds_hold_no_loss_of_a_pc(sealed: Recorded) -> None:
    rounds = "\n".join(result.model_dump_json() for result in sealed.told)
    assert len(sealed.told) >= 4
    numbers = set(re.findall(r"\d+\.\d{3,}", sealed.logs + rounds))
    assert numbers  # of the coordinator's own evaluation
    assert not numbers & {f"{loss:.{digits}f}" for loss in sealed.losses for digits in (3, 4, 6)}
    assert not numbers & {str(loss) for loss in sealed.losses}


def test_what_the_coordinator_keeps_holds_no_text_of_a_pc(sealed: Recorded) -> None:
    """Its own public sets apart, which it holds by design."""
    folder = sealed.run.folder
    assert not (folder / "uploads").exists()
    for path in (*folder.glob("*.json"), *folder.glob("*.toml"), *folder.glob("*.safetensors")):
        content = path.read_bytes().decode("latin-1")
        if path.name != "results.json":  # a simulator writes there which group each PC holds
            assert not CANARY.search(content), path.name


def test_the_job_that_was_sent_names_no_seed_and_no_count(sealed: Recorded) -> None:
    job = json.loads((sealed.run.folder / "job.json").read_text())
    text = json.dumps(job)
    assert "insecure" not in text
    for count in sealed.counts:
        assert not re.search(rf"\b{count}\b", text)
