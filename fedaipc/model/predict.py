"""Logits over many texts, and the loss that goes with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    import numpy.typing as npt

    from fedaipc.model.classifier import Classifier
    from fedaipc.model.inputs import Inputs


@torch.no_grad()
def logits(classifier: Classifier, inputs: Inputs, batch_size: int) -> npt.NDArray[np.float32]:
    """Logits of all texts, shape (texts, labels), in the order of `inputs`."""
    classifier.eval()
    result = np.empty((len(inputs), len(classifier.labels)), dtype=np.float32)
    for indices, batch in inputs.batches(batch_size, classifier.device):
        frozen = classifier.freeze_through(batch) if inputs.is_tokens else batch
        result[indices] = classifier(frozen)[: len(indices)].cpu().numpy()
    return result


def mean_loss(values: npt.NDArray[np.float32], truth: npt.NDArray[np.int64]) -> float:
    """Mean cross entropy in nats of logits (N, K) against class numbers (N,)."""
    shifted = values.astype(np.float64) - values.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(shifted).sum(axis=1))
    return float(np.mean(log_total - shifted[np.arange(len(truth)), truth]))
