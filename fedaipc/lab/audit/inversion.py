"""Gradient inversion on text: which words can a server read out of what it gets?

Where the word embeddings are trained (`full`), the gradient of a word's row is not zero only if the
word was in the batch, so an update lists the words of the texts (Melis et al., S&P 2019; Fowl et
al., "Decepticons", ICLR 2023, go on from there to whole sentences). The attacker ranks words by the
length of their rows' change and is told how many different words there are, which only helps it.

The same is done with a private update, with a sealed upload read as if it were none, and with the
sum that a sealed round opens. The order of the words is not recovered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedaipc.data.records import Records
from fedaipc.errors import DataError
from fedaipc.lab.audit.planted import Planted, run_planted
from fedaipc.model.classifier import Classifier
from fedaipc.model.inputs import make_inputs

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from fedaipc.config import Settings
    from fedaipc.data.prepare import SimulatedData
    from fedaipc.lab.audit.planted import Audited

TEXTS = 4  # on each PC: what one small batch holds
_EMBEDDINGS = "word_embeddings.weight"


@dataclass(frozen=True, slots=True)
class Reading:
    """What an attacker reads as the words of one PC's texts.

    `recall` is the share of the PC's words among those that are read, `chance` what as many words
    drawn from the vocabulary would have.
    """

    source: str
    words: tuple[str, ...]
    right: tuple[bool, ...]
    recall: float
    chance: float


@dataclass(frozen=True, slots=True)
class Inversion:
    """Of the first PC: its texts, and what is read out of each source."""

    texts: tuple[str, ...]
    readings: tuple[Reading, ...]


def inversion_attack(
    settings: Settings, data: SimulatedData, private: Settings, folder: Path
) -> Inversion:
    """Run one round three ways and read: open, open and private, sealed.

    `settings` is a job without privacy that trains all layers, `private` the same with it. Raises
    DataError where word embeddings are not trained.
    """
    pcs = tuple(
        Planted(data.train.take(part[:TEXTS]), Records((), ()), np.zeros(0, dtype=bool))
        for part in data.parts
    )
    if any(len(pc.real) < TEXTS for pc in pcs):
        raise DataError(f"each PC needs {TEXTS} texts")
    plain = run_planted(settings, data, pcs, folder / "open")
    noisy = run_planted(private, data, pcs, folder / "private")
    sealed = run_planted(settings, data, pcs, folder / "sealed", sealed=True)
    eye = _Eye(plain, data)
    sources = {
        "its update, open and not private": _own(plain),
        "its update, open and private": _own(noisy),
        "its sealed upload": _own(sealed),
        "the sum of all PCs that a sealed round opens": _sum(sealed),
    }
    return Inversion(
        pcs[0].real.texts,
        tuple(eye.read(source, update) for source, update in sources.items()),
    )


class _Eye:
    """Reads words out of vectors of one layout; knows the truth only to judge."""

    def __init__(self, run: Audited, data: SimulatedData) -> None:
        classifier = Classifier(run.settings.model, data.labels)
        start, self._shape = _place(classifier)
        self._rows = slice(start, start + self._shape[0] * self._shape[1])
        self._tokenizer = classifier.tokenizer
        special = set(self._tokenizer.all_special_ids)
        inputs = make_inputs(classifier, run.pcs[0].real.texts, None)
        self._truth = set(map(int, np.unique(np.asarray(inputs.rows)))) - special
        self._special = np.array(sorted(special))

    def read(self, source: str, update: npt.NDArray[np.float64]) -> Reading:
        lengths = np.linalg.norm(update[self._rows].reshape(self._shape), axis=1)
        lengths[self._special] = -1.0
        count = len(self._truth)
        order = np.argsort(-lengths, kind="stable")[:count]
        seen = [int(token) for token in order if lengths[token] > 0]
        right = tuple(token in self._truth for token in seen)
        return Reading(
            source=source,
            words=tuple(self._tokenizer.convert_ids_to_tokens(seen)),
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
    raise DataError('word embeddings are trained by model.method = "full" alone')


def _own(run: Audited) -> npt.NDArray[np.float64]:
    """The first PC's first update."""
    return next(one.update for one in run.heard if one.pc == 0)


def _sum(run: Audited) -> npt.NDArray[np.float64]:
    """What the first round changed, as the second round's model shows it."""
    first = next(one.vector for one in run.heard if one.round == 1)
    second = next((one.vector for one in run.heard if one.round == 2), None)
    if second is None:
        raise DataError("the opened sum shows in the second round: federation.rounds = 2")
    return second.astype(np.float64) - first
