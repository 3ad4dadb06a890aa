"""Gradients of single texts by autograd: slow, plain, and independent of how PCs clip.

An attacker has to compute what a text would have contributed; so does an auditor, who must not
use the audited code.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy

from fedaipc.model.classifier import Classifier, write_vector
from fedaipc.model.inputs import Inputs


def example_gradients(
    classifier: Classifier,
    inputs: Inputs,
    targets: npt.NDArray[np.int64],
    vector: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    """Gradient of each text's loss at `vector`, shape (texts, parameters). Not clipped."""
    write_vector(classifier, vector)
    classifier.train()  # as PCs do; dropout is off in all bases
    parameters = [parameter for _, parameter in classifier.trainable()]
    found = np.empty((len(inputs), len(vector)), dtype=np.float32)
    for index in range(len(inputs)):
        batch = inputs.batch(np.array([index]), 2, classifier.device)
        if inputs.is_tokens:
            batch = classifier.freeze_through(batch)
        target = torch.tensor([targets[index]], device=classifier.device)
        loss = cross_entropy(classifier(batch)[:1], target)
        parts = torch.autograd.grad(loss, parameters, allow_unused=True)
        flat = [
            torch.zeros(p.numel()) if part is None else part.reshape(-1).float().cpu()
            for p, part in zip(parameters, parts, strict=True)
        ]
        found[index] = torch.cat(flat).numpy()
    classifier.eval()
    return found


def clipped(gradients: npt.NDArray[np.float32], clip: float) -> npt.NDArray[np.float32]:
    """Each row scaled to L2 norm `clip` at most."""
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    factors = np.minimum(1.0, clip / np.maximum(norms, 1e-30))
    short: npt.NDArray[np.float32] = (gradients * factors).astype(np.float32, copy=False)
    return short
