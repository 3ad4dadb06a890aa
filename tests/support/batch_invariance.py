"""What a lying coordinator and an odd processor do to the rows of a batch, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fedaipc.config import DPSGD, Schedule, TrainingSettings
from fedaipc.model.classifier import Classifier, read_vector
from fedaipc.model.inputs import longest_input, make_inputs
from fedaipc.privacy import dp_sgd, training
from fedaipc.privacy.randomness import SecureRandom
from tests.support.tiny_models import LABELS, settings, shared_folder

CLIP = 0.05
MECHANISM = DPSGD(noise_multiplier=2.0, sampling_rate=1.0, clip_norm=CLIP)
ONCE = Schedule(mechanism=MECHANISM, steps=1)


class Everything(SecureRandom):
    """Draws every record."""

    def poisson_sample(self, count: int, rate: float) -> np.ndarray:
        return np.arange(count)


class Weights:
    """A vector of weights that a coordinator shapes tensor by tensor."""

    def __init__(self, classifier: Classifier, start: np.ndarray) -> None:
        self.vector = start.copy()
        self._places: dict[str, np.ndarray] = {}
        place = 0
        for name, shape in zip(classifier.layout.names, classifier.layout.shapes, strict=True):
            size = int(np.prod(shape))
            self._places[name] = self.vector[place : place + size].reshape(shape)
            place += size

    def __getitem__(self, end: str) -> np.ndarray:
        (name,) = [name for name in self._places if name.endswith(end)]
        return self._places[name]


def clipped_sum(
    classifier: Classifier,
    weights: np.ndarray,
    texts: Sequence[str],
    targets: np.ndarray | None = None,
    micro_batch: int = 0,
) -> np.ndarray:
    """What the noise would be added to; the update itself is rounded to the weights' last bits.

    All texts have the first label unless `targets` says another.
    """
    assert np.isfinite(weights).all()  # else the PC refuses the request
    sums: list[np.ndarray] = []
    real = dp_sgd.noisy

    def watched(total: torch.Tensor, **known: Any) -> torch.Tensor:
        sums.append(total.double().numpy().ravel())
        return real(total, **known)

    with mock.patch.object(dp_sgd, "noisy", watched):
        training.train_round(
            classifier,
            make_inputs(classifier, texts, None),
            np.zeros(len(texts), dtype=np.int64) if targets is None else targets,
            weights,
            schedule=ONCE,
            training=TrainingSettings(learning_rate=1.0),
            size_class=1,
            micro_batch=micro_batch,
            random=Everything(),
        )
    return np.concatenate(sums)


def rehearse(method: str, micro_batch: int = 0, family: str = "bert", *, cached: bool) -> None:
    classifier = Classifier(settings(shared_folder(family), method=method), LABELS)
    training.rehearse(
        classifier, longest_input(classifier, cached=cached), read_vector(classifier),
        mechanism=MECHANISM, training=TrainingSettings(learning_rate=1.0),
        micro_batch=micro_batch,
    )  # fmt: skip


class Kernels(TorchDispatchMode):
    """A processor whose kernels give the rows behind the half other last bits in some products.

    As MKL has for SSE4.2 where a product has few columns, and on Intel for AVX2.
    """

    def __init__(self, faulty: Callable[[str, int], bool]) -> None:
        super().__init__()
        self._faulty = faulty

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in {"mm", "addmm", "bmm", "baddbmm"} and self._faulty(name, found.shape[-1]):
            found = found.clone()
            half = len(found) // 2
            found[half:] = torch.nextafter(found[half:], torch.tensor(torch.inf))
        return found
