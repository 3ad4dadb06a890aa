"""Gradient inversion on text: which words can a server read out of what it gets?

Where the word embeddings are trained (`full`), the gradient of a word's row is zero unless the
word was in the batch. So an update lists the words of the texts (Melis et al., S&P 2019; Fowl et
al., "Decepticons", ICLR 2023, extend this to whole sentences). The attacker ranks words by the
length of their rows' change and is told how many different words there are, which only helps it.

The same is done with a private update, with a sealed upload read as if it were plain, and with the
sum that a round unmasks. The order of the words is not recovered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedaipc.config import Settings
from fedaipc.data.prepare import SimulatedData
from fedaipc.data.records import Records
from fedaipc.errors import DataError
from fedaipc.lab.audit.bound import Floats
from fedaipc.lab.audit.canary_clients import Audited, CanaryClient, run_canaries
from fedaipc.model.classifier import Classifier
from fedaipc.model.inputs import make_inputs

TEXTS = 4  # on each PC: what one small batch holds
_EMBEDDINGS = "word_embeddings.weight"


@dataclass(frozen=True, slots=True)
class Reading:
    """What an attacker reads as the words of one PC's texts.

    `recall` is the share of the PC's words among those that are read, `chance` the share that as
    many random words of the vocabulary would have.
    """

    source: str
    words: tuple[str, ...]
    right: tuple[bool, ...]
    recall: float
    chance: float


@dataclass(frozen=True, slots=True)
class Inversion:
    """What is read out of each source about the texts of the first PC."""

    texts: tuple[str, ...]
    readings: tuple[Reading, ...]


def inversion_attack(
    settings: Settings, data: SimulatedData, private: Mapping[str, Settings], folder: Path
) -> Inversion:
    """Run one round plain, plain and private, and with secure aggregation, and read.

    `settings` is a job without privacy that trains all layers, `private` the same with it at some
    budgets, by name. Raises DataError where word embeddings are not trained.
    """
    pcs = tuple(
        CanaryClient(data.train.take(part[:TEXTS]), Records((), ()), np.zeros(0, dtype=bool))
        for part in data.parts
    )
    if any(len(pc.real) < TEXTS for pc in pcs):
        raise DataError(f"each PC needs {TEXTS} texts")
    eye = _Eye(settings, data, pcs)
    with_sum = "the sum of all PCs that a round unmasks"
    readings: list[Reading] = []

    def read(source: str, job: Settings, *, sealed: bool = False) -> None:
        place = folder / f"run-{len(readings)}"
        run = run_canaries(job, data, pcs, place, sealed=sealed, listen=1)
        readings.append(eye.read(source, run.updates[0].update, run.updates[0].pc))
        if sealed:
            readings.append(eye.read(with_sum, _sum(run), run.updates[0].pc))

    read("its update, plain and not private", settings)
    for name, job in private.items():
        read(f"its update, plain, {name}", job)
    read("its sealed upload", settings, sealed=True)
    return Inversion(pcs[eye.last].real.texts, tuple(readings))


class _Eye:
    """Reads words out of vectors of one layout; knows the truth only to judge."""

    def __init__(
        self, settings: Settings, data: SimulatedData, pcs: tuple[CanaryClient, ...]
    ) -> None:
        self.last = 0  # whose words were read last: the run's first PC
        self._classifier = Classifier(settings.model, data.labels)
        start, self._shape = _place(self._classifier)
        self._rows = slice(start, start + self._shape[0] * self._shape[1])
        self._pcs = pcs
        self._special = np.array(sorted(set(self._classifier.tokenizer.all_special_ids)))

    def read(self, source: str, update: Floats, pc: int) -> Reading:
        self.last = pc
        inputs = make_inputs(self._classifier, self._pcs[pc].real.texts, None)
        truth = set(map(int, np.unique(np.asarray(inputs.rows)))) - set(self._special.tolist())
        lengths = np.linalg.norm(update[self._rows].reshape(self._shape), axis=1)
        lengths[self._special] = -1.0
        count = len(truth)
        order = np.argsort(-lengths, kind="stable")[:count]
        seen = [int(token) for token in order if lengths[token] > 0]
        right = tuple(token in truth for token in seen)
        return Reading(
            source=source,
            words=tuple(self._classifier.tokenizer.convert_ids_to_tokens(seen)),
            right=right,
            recall=sum(right) / count,
            chance=count / (self._shape[0] - len(self._special)),
        )


def _place(classifier: Classifier) -> tuple[int, tuple[int, int]]:
    """Where the word embeddings lie in the flat vector, and their shape."""
    start = 0
    for name, parameter in classifier.trainable():
        if name.endswith(_EMBEDDINGS):
            return start, (int(parameter.shape[0]), int(parameter.shape[1]))
        start += parameter.numel()
    raise DataError('word embeddings are trained by model.train.kind = "full" alone')


def _sum(run: Audited) -> Floats:
    """What the first round changed, as the second round's model shows it."""
    first = next(one.vector for one in run.updates if one.round == 1)
    second = next((one.vector for one in run.updates if one.round == 2), None)
    if second is None:
        raise DataError("the unmasked sum shows in the second round: rounds = 2")
    return second.astype(np.float64) - first
