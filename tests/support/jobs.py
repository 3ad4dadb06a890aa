"""Small jobs and messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.common.serde import message_from_proto, message_to_proto

from fedaipc.config import load_settings
from fedaipc.protocol.job import Job, SignedJob, make_job
from fedaipc.secagg.keys import SigningKey

if TYPE_CHECKING:
    from flwr.app import Message

    from fedaipc.config import Settings

ADMISSION = SigningKey(b"\x07" * 32)
LABELS = ("negative", "positive")
TINY = (
    "model.keep_layers=1",
    "model.train.kind=head",
    "model.max_length=16",
    "data.limit=300",
    "privacy.noise_multiplier=1.0",
    "privacy.sampling_rate=0.1",
    "training.learning_rate=0.5",
    "server.kind=fedavg",
    "federation.lifetime_epsilon=1000",
    "federation.clients=3",
    "rounds=2",
    "speed.threads=1",
    "speed.device=cpu",
    "output.plots=false",
)


def tiny(*changes: str) -> Settings:
    return load_settings(overrides=[*TINY, *changes])


def tiny_job(*changes: str, layout_hash: str = "0" * 64) -> Job:
    return make_job(tiny(*changes), LABELS, layout_hash, "0123456789abcdef", (32, 64), 1)


def signed(job: Job) -> SignedJob:
    return SignedJob.sign(ADMISSION, job)


def on_the_wire(message: Message) -> bytes:
    """The bytes that Flower's serialisation makes of a message."""
    return message_to_proto(message).SerializeToString(deterministic=True)


def sent(message: Message) -> Message:
    """The message as the other side gets it."""
    return message_from_proto(message_to_proto(message))
