"""One PC's local steps of one round, private or not.

Everything that decides what leaves (how many steps, how a sample is drawn, what is divided by) is
public. The micro-batch only bounds memory: the logical Poisson batch is the same for any of them.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule
from torch.nn.functional import cross_entropy

from fedaipc.model.classifier import read_vector, write_vector
from fedaipc.privacy.optimizer import PrivateOptimizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from fedaipc.config import TrainingSettings
    from fedaipc.model.classifier import Classifier
    from fedaipc.model.inputs import Inputs
    from fedaipc.privacy.plan import PrivacyPlan
    from fedaipc.privacy.randomness import SecureRandom

_GRADIENT_MEMORY = 1 << 30  # bytes that per-example gradients of one micro-batch may take


def train_round(
    classifier: Classifier,
    inputs: Inputs,
    targets: npt.NDArray[np.int64],
    start: npt.NDArray[np.float32],
    *,
    plan: PrivacyPlan,
    training: TrainingSettings,
    size_class: int,
    micro_batch: int,
    random: SecureRandom,
) -> npt.NDArray[np.float32]:
    """Train `plan.local_steps` steps from the global vector; return the difference to it.

    `targets` are class numbers, shape (texts,). In a private mode the result is a function of
    noisy sums alone: (epsilon, delta)-DP with the plan's mechanism, which the caller has charged
    already. Draws from `random` one Poisson sample and one noise vector per step, in that order.
    """
    write_vector(classifier, start)
    optimizer = _optimizer(classifier, training)
    if plan.noise_multiplier is None:
        _train_plain(classifier, optimizer, inputs, targets, plan, micro_batch, random)
    else:
        memory_bound = max(1, _GRADIENT_MEMORY // (4 * classifier.layout.size))
        private = PrivateOptimizer(
            optimizer,
            noise_multiplier=plan.noise_multiplier,
            clip=plan.clip,
            expected_batch_size=plan.sampling_rate * size_class,
            random=random,
        )
        _train_privately(
            classifier, private, inputs, targets, plan, min(micro_batch, memory_bound), random
        )
    update = read_vector(classifier)
    update -= start
    return update


def _train_privately(
    classifier: Classifier,
    optimizer: PrivateOptimizer,
    inputs: Inputs,
    targets: npt.NDArray[np.int64],
    plan: PrivacyPlan,
    micro_batch: int,
    random: SecureRandom,
) -> None:
    with _per_example_gradients(classifier) as module:
        for _ in range(plan.local_steps):
            sample = random.poisson_sample(len(inputs), plan.sampling_rate)
            optimizer.zero_grad()
            if len(sample) == 0:
                optimizer.step_on_nothing()
                continue
            parts = list(_micro_batches(inputs, sample, micro_batch))
            for number, part in enumerate(parts):
                loss = _loss(classifier, module, inputs, targets, part)
                loss.backward()
                optimizer.signal_skip_step(do_skip=number < len(parts) - 1)
                optimizer.step()
                optimizer.zero_grad()


def _train_plain(
    classifier: Classifier,
    optimizer: torch.optim.Optimizer,
    inputs: Inputs,
    targets: npt.NDArray[np.int64],
    plan: PrivacyPlan,
    micro_batch: int,
    random: SecureRandom,
) -> None:
    """Ordinary training: no clip, no noise, the mean over the examples really drawn."""
    classifier.train()
    for _ in range(plan.local_steps):
        sample = random.poisson_sample(len(inputs), plan.sampling_rate)
        if len(sample) == 0:
            continue
        optimizer.zero_grad()
        for part in _micro_batches(inputs, sample, micro_batch):
            loss = _loss(classifier, classifier, inputs, targets, part)
            (loss * (len(part) / len(sample))).backward()
        optimizer.step()
    optimizer.zero_grad()


def _loss(
    classifier: Classifier,
    module: Any,
    inputs: Inputs,
    targets: npt.NDArray[np.int64],
    part: npt.NDArray[np.int64],
) -> torch.Tensor:
    batch = inputs.batch(part, classifier.device)
    if inputs.is_tokens:
        batch = classifier.freeze_through(batch)
    truth = torch.from_numpy(targets[part]).to(classifier.device)
    return cross_entropy(module(batch), truth)


def _micro_batches(
    inputs: Inputs, sample: npt.NDArray[np.int64], size: int
) -> Iterator[npt.NDArray[np.int64]]:
    """The sample in parts of at most `size`, texts of like length together (less padding)."""
    ordered = sample[np.argsort(inputs.lengths()[sample], kind="stable")]
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def _optimizer(classifier: Classifier, training: TrainingSettings) -> torch.optim.Optimizer:
    head: list[torch.nn.Parameter] = []
    body: list[torch.nn.Parameter] = []
    for name, parameter in classifier.trainable():
        (head if "classifier" in name else body).append(parameter)
    head_rate = training.head_learning_rate or training.learning_rate
    groups = [
        {"params": parameters, "lr": rate}
        for parameters, rate in ((head, head_rate), (body, training.learning_rate))
        if parameters
    ]
    if training.optimizer == "adam":
        return torch.optim.Adam(groups)
    return torch.optim.SGD(groups)


@contextmanager
def _per_example_gradients(classifier: Classifier) -> Iterator[Any]:
    """Opacus' hooks on the trained part, removed again whatever happens."""
    classifier.train()
    module = GradSampleModule(classifier, loss_reduction="mean")
    try:
        with warnings.catch_warnings():
            # The lowest trained layer's inputs need no gradient; Opacus uses its outputs' alone.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield module
    finally:
        module.remove_hooks()
        module.cleanup()
        classifier.eval()
