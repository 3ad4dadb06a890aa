"""The coordinator's own public texts: a validation set for each round, a test set for the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedaipc.data.records import Records
from fedaipc.model.classifier import write_vector
from fedaipc.model.inputs import make_inputs
from fedaipc.model.metrics import scores
from fedaipc.model.predict import logits, mean_loss

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from fedaipc.model.classifier import Classifier
    from fedaipc.results import ClassScore, Score


class Evaluation:
    """One set of texts, ready to be classified again and again."""

    def __init__(self, classifier: Classifier, path: Path, cache: Path | None, batch: int) -> None:
        """Read the set at `path`. Raises DataError."""
        records = Records.read_parquet(path)
        number = {label: i for i, label in enumerate(classifier.labels)}
        self.truth = np.array([number[label] for label in records.labels], dtype=np.int64)
        self._inputs = make_inputs(classifier, records.texts, cache)
        self._classifier = classifier
        self._batch = batch

    @property
    def majority(self) -> float:
        """Share of the most frequent label: the accuracy of a model that knows nothing."""
        return float(np.bincount(self.truth).max() / len(self.truth))

    def score(self, vector: npt.NDArray[np.float32]) -> tuple[Score, list[ClassScore]]:
        """Accuracy, macro-F1 and loss of the model with this vector, and a row per class."""
        write_vector(self._classifier, vector)
        values = logits(self._classifier, self._inputs, self._batch)
        loss = mean_loss(values, self.truth)
        return scores(values.argmax(1), self.truth, self._classifier.labels, loss)
