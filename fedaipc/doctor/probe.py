"""How fast this PC trains, measured with the code that trains."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch

from fedaipc.config import DPSGD, NoPrivacy, Schedule
from fedaipc.doctor.machine import features
from fedaipc.machine import cpus, memory_available
from fedaipc.model.classifier import Classifier, read_vector
from fedaipc.model.device import Device, choose_device
from fedaipc.model.inputs import longest_input, make_inputs
from fedaipc.privacy.randomness import SecureRandom
from fedaipc.privacy.training import rehearse, train_round, usual_micro_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from fedaipc.config import Settings
    from fedaipc.model.inputs import Inputs

_PROBES = 3  # of each kind; the median counts
_WORTH = 1.03  # how much faster a larger micro-batch must be
_MEMORY_SHARE = 0.5  # of what is free now
_SIZES = (8, 16, 32, 64)
_SAMPLE = 192  # texts that are measured


@dataclass(frozen=True, slots=True)
class Speed:
    """Texts per second of one way to compute; `frozen` is the part that is computed once."""

    device: str
    precision: str
    threads: int
    micro_batch: int
    frozen: float | None
    ordinary: float
    private: float

    def seconds(self, passes: float) -> float:
        """Seconds that one text takes in a whole private job."""
        return (0.0 if self.frozen is None else 1 / self.frozen) + passes / self.private


def probe(
    settings: Settings, texts: Sequence[str], say: Callable[[str], None] = lambda _: None
) -> list[Speed]:
    """Measure a sample of `texts` on every device here; the best for the job is first.

    Threads and micro-batch are found by measuring: the fewest and the smallest that are within 3 %
    of the best. The micro-batch never changes the logical batch. Raises ModelError,
    also where the machine cannot train privately at all.
    """
    texts = texts[:: max(1, len(texts) // _SAMPLE)][:_SAMPLE]
    labels = settings.data.labels or ("no", "yes")
    classifier = Classifier(settings.model, labels)
    kinds = [
        name
        for name, there in (
            ("cuda", torch.cuda.is_available()),
            ("xpu", torch.xpu.is_available()),
            ("mps", torch.backends.mps.is_available()),
            ("cpu", True),
        )
        if there and settings.speed.device in {"auto", name}
    ]
    before = torch.get_num_threads()
    found = []
    try:
        for kind in kinds:
            for precision in _precisions(kind, settings.speed.precision):
                speed = settings.speed.model_copy(update={"device": kind, "precision": precision})
                say(f"measuring {kind}, {precision}")
                found.append(_measure(settings, classifier, choose_device(speed), texts))
    finally:
        torch.set_num_threads(before)
    steps = settings.rounds * settings.training.local_steps
    passes = steps * settings.privacy.sampling_rate
    return sorted(found, key=lambda speed: speed.seconds(passes))


def _precisions(kind: str, asked: str) -> tuple[str, ...]:
    """Without instructions for bfloat16 a processor is hardly faster with it: only when asked."""
    quick = (
        asked == "bfloat16"
        or kind != "cpu"
        or any("bfloat16" in one or "AMX" in one for one in features())
    )
    return ("float32", "bfloat16") if quick else ("float32",)


def _measure(
    settings: Settings, classifier: Classifier, device: Device, texts: Sequence[str]
) -> Speed:
    classifier.use(device)
    start = read_vector(classifier)
    asked = settings.privacy
    mechanism = asked.with_noise(1.0) if isinstance(asked, DPSGD) else DPSGD(noise_multiplier=1.0)
    mechanism = mechanism.model_copy(update={"sampling_rate": 1.0})
    plain = NoPrivacy(sampling_rate=1.0)
    with tempfile.TemporaryDirectory() as folder:
        inputs = make_inputs(classifier, texts, Path(folder))  # warms up, too

        def rate(micro_batch: int, *, private: bool) -> float:
            step = Schedule(mechanism=mechanism if private else plain, steps=1)
            return statistics.median(
                _one(settings, step, classifier, inputs, start, micro_batch) for _ in range(_PROBES)
            )

        usual = settings.speed.micro_batch or usual_micro_batch(classifier)
        rate(usual, private=True)
        threads = torch.get_num_threads()
        if device.torch.type == "cpu" and not settings.speed.threads:
            # A head alone trains in no time: what takes long is the frozen part.
            threads = _threads(
                (lambda: _frozen(classifier, texts))
                if classifier.pooled
                else (lambda: rate(usual, private=True))
            )
        size = usual
        if not settings.speed.micro_batch and not classifier.pooled:
            size = _micro_batch(lambda size: rate(size, private=True))
        rehearse(  # as before a round: shapes and threads decide how rows are computed
            classifier, longest_input(classifier, cached=settings.speed.cache_frozen), start,
            mechanism=mechanism, training=settings.training, micro_batch=size,
        )  # fmt: skip
        return Speed(
            device=str(device.torch),
            precision=device.dtype,
            threads=threads,
            micro_batch=size,
            frozen=_frozen(classifier, texts) if classifier.has_frozen_part else None,
            ordinary=rate(size, private=False),
            private=rate(size, private=True),
        )


def _frozen(classifier: Classifier, texts: Sequence[str]) -> float:
    """Texts per second through tokenizer and frozen layers."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        make_inputs(classifier, texts, Path(folder))
        return len(texts) / (time.perf_counter() - started)


def _one(
    settings: Settings,
    step: Schedule,
    classifier: Classifier,
    inputs: Inputs,
    start: npt.NDArray[np.float32],
    micro_batch: int,
) -> float:
    """Texts per second of one step over all `inputs`."""
    started = time.perf_counter()
    train_round(
        classifier,
        inputs,
        np.zeros(len(inputs), dtype=np.int64),
        start,
        schedule=step,
        training=settings.training,
        size_class=len(inputs),
        micro_batch=micro_batch,
        random=SecureRandom(),
    )
    return len(inputs) / (time.perf_counter() - started)


def _threads(rate: Callable[[], float]) -> int:
    """The fewest threads that are within 3 % of the best; left set."""
    most = cpus()
    counts = sorted({1, 2, most // 2, psutil.cpu_count(logical=False) or most, most} - {0})
    found = {}
    for count in (count for count in counts if count <= most):
        torch.set_num_threads(count)
        found[count] = rate()
    best = max(found.values())
    chosen = min(count for count, speed in found.items() if speed * _WORTH >= best)
    torch.set_num_threads(chosen)
    return chosen


def _micro_batch(rate: Callable[[int], float]) -> int:
    """The smallest micro-batch within 3 % of the best, of those that memory has room for."""
    process, found = psutil.Process(), {}
    for size in _SIZES:
        free, used = memory_available(), process.memory_info().rss
        try:
            found[size] = rate(size)
        except (RuntimeError, MemoryError):  # how torch reports that memory ran out
            break
        grown = process.memory_info().rss - used
        if 2 * grown > _MEMORY_SHARE * free:  # the next size takes twice as much
            break
    if not found:
        return 1
    best = max(found.values())
    return min(size for size, speed in found.items() if speed * _WORTH >= best)
