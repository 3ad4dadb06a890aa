"""One PC's local steps of one round, private or not.

Everything that decides what leaves (how many steps, how a sample is drawn, what is divided by) is
public. The micro-batch only bounds memory: the logical Poisson batch is the same for any of them.

The sensitivity of a step is C only if a record's gradient depends on no other record. Hence
batches of public shape (`Inputs.batches`), a sum of losses and not a mean, and no layer that mixes
examples.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from fedaipc.config import DPSGD, NoPrivacy, Schedule
from fedaipc.model.classifier import read_vector, write_vector
from fedaipc.model.device import has_fused_steps
from fedaipc.model.inputs import batch_rows
from fedaipc.privacy import dp_sgd
from fedaipc.privacy.batch_invariance import settle_rows
from fedaipc.privacy.bookkeeping import BookKeepingModule
from fedaipc.privacy.randomness import SecureRandom
from fedaipc.privacy.rounding import EXACT, Rounding, rounding_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from fedaipc.config import TrainingSettings
    from fedaipc.model.classifier import Batch, Classifier
    from fedaipc.model.inputs import Inputs

_USUAL_BATCH, _HEAD_BATCH = 16, 256  # rows; a batch is computed whole, however few are filled
_NO_TEXT = -100


def train_round(
    classifier: Classifier,
    inputs: Inputs,
    targets: npt.NDArray[np.int64],
    start: npt.NDArray[np.float32],
    *,
    schedule: Schedule,
    training: TrainingSettings,
    size_class: int,
    micro_batch: int,
    random: SecureRandom,
    rounding: Rounding | None = None,
    rehearsed: bool = False,
) -> npt.NDArray[np.float32]:
    """Train `schedule.steps` steps from the global vector; return the difference to it.

    `targets` are class numbers, shape (texts,). Where the mechanism is private, the result is a
    function of noisy sums alone: (epsilon, delta)-DP by the schedule, which the caller has charged
    already. Draws from `random` one Poisson sample and one noise vector per step, in that order.
    `micro_batch` is a public number of texts, 0 for the usual one of the method; `rounding` follows
    from public numbers where it is not given. `rehearsed` takes all texts for the sample: of texts
    that are made up, to see that the memory lasts.
    """
    write_vector(classifier, start)
    optimizer = _optimizer(classifier, training)
    micro_batch = micro_batch or usual_micro_batch(classifier)
    mechanism = schedule.mechanism
    if not isinstance(mechanism, DPSGD):
        _train_plain(classifier, optimizer, inputs, targets, schedule, micro_batch, random)
    else:
        expected = mechanism.sampling_rate * size_class
        rounding = rounding or _rounding(classifier, micro_batch, expected)
        with _book_keeping(classifier, rounding) as module:
            for _ in range(schedule.steps):
                draw = dp_sgd.Draw(random, len(inputs))
                sample = np.arange(len(inputs)) if rehearsed else mechanism.sample(draw)
                losses = _losses(classifier, module, inputs, targets, sample, micro_batch)
                mechanism.step(dp_sgd.Step(optimizer, module, losses, expected, random))
    update = read_vector(classifier)
    update -= start
    return update


def clipped_sum(
    classifier: Classifier,
    inputs: Inputs,
    targets: npt.NDArray[np.int64],
    start: npt.NDArray[np.float32],
    *,
    mechanism: DPSGD,
    clip_norm: float,
    size_class: int,
    micro_batch: int,
    random: SecureRandom,
) -> npt.NDArray[np.float64]:
    """The sum of clipped gradients over one sample at the global vector, shape (size,).

    It holds NO noise yet: one record moves it by `clip_norm` at most, in L2. Nothing of it may
    leave before a share of noise is added (`protocol.noise_share`). All else is as in
    `train_round`.
    """
    write_vector(classifier, start)
    micro_batch = micro_batch or usual_micro_batch(classifier)
    rounding = _rounding(classifier, micro_batch, mechanism.sampling_rate * size_class)
    sample = mechanism.sample(dp_sgd.Draw(random, len(inputs)))
    with _book_keeping(classifier, rounding) as module:
        losses = _losses(classifier, module, inputs, targets, sample, micro_batch)
        sums = dp_sgd.sample_sums(module, losses, clip_norm)
        module.zero_grad()
    return dp_sgd.flat(sums, [parameter for _, parameter in classifier.trainable()])


def clipped_update(
    classifier: Classifier,
    inputs: Inputs,
    targets: npt.NDArray[np.int64],
    start: npt.NDArray[np.float32],
    *,
    mechanism: DPSGD,
    clip_norm: float,
    training: TrainingSettings,
    micro_batch: int,
    random: SecureRandom,
) -> npt.NDArray[np.float64]:
    """What `training.local_steps` ordinary steps change, clipped as a whole; shape (size,).

    It holds NO noise yet: all records of the PC together move it by `clip_norm` at most, in L2,
    away from the zeros of a PC without records. Nothing of it may leave before the noise is added
    (`protocol.noise_share`). All else is as in `train_round`.
    """
    plain = NoPrivacy(sampling_rate=mechanism.sampling_rate)
    update = train_round(
        classifier,
        inputs,
        targets,
        start,
        schedule=Schedule(mechanism=plain, steps=training.local_steps),
        training=training,
        size_class=1,  # of no account: the mean is over what was really drawn
        micro_batch=micro_batch,
        random=random,
    )
    return dp_sgd.clipped_update(update, clip_norm)


def usual_micro_batch(classifier: Classifier) -> int:
    """Rows of a micro-batch by default: public, by the method alone."""
    return _HEAD_BATCH if classifier.pooled else _USUAL_BATCH


def rehearse(
    classifier: Classifier,
    longest: Inputs,
    start: npt.NDArray[np.float32],
    *,
    mechanism: DPSGD,
    training: TrainingSettings,
    micro_batch: int,
) -> None:
    """Settle how batches are multiplied, then train a step on `longest`, the longest text there is.

    If memory runs out, it must run out here. If it ran out later for the length of one record,
    that record would remove the contributions of all others. Raises ModelError (`settle_rows`).
    """
    if mechanism.unit == "client":
        clipped_update(
            classifier,
            longest,
            np.zeros(1, dtype=np.int64),
            start,
            mechanism=mechanism.model_copy(update={"sampling_rate": 1.0}),
            clip_norm=mechanism.clip_norm,
            training=training.model_copy(update={"local_steps": 1}),
            micro_batch=micro_batch,
            random=SecureRandom(),
        )
        return
    with _book_keeping(classifier, EXACT) as module:
        settle_rows(
            classifier,
            module,
            lambda logits: cross_entropy(
                logits, logits.new_zeros(len(logits)).long(), reduction="sum"
            ),
            micro_batch or usual_micro_batch(classifier),
            cached=not longest.is_tokens,
        )
    train_round(
        classifier,
        longest,
        np.zeros(1, dtype=np.int64),
        start,
        schedule=Schedule(mechanism=mechanism, steps=1),
        training=training,
        size_class=1,
        micro_batch=micro_batch,
        random=SecureRandom(),
        rounding=EXACT,  # takes the most memory
        rehearsed=True,
    )


def _losses(
    classifier: Classifier,
    module: BookKeepingModule,
    inputs: Inputs,
    targets: npt.NDArray[np.int64],
    sample: npt.NDArray[np.int64],
    micro_batch: int,
) -> Iterator[tuple[torch.Tensor, int]]:
    """For each micro-batch of the sample: its loss, and how many of its rows are records."""
    if len(sample):
        for part, batch in inputs.batches(micro_batch, classifier.device, sample):
            yield _loss(classifier, module, inputs, batch, targets[part]), len(part)


def _train_plain(
    classifier: Classifier,
    optimizer: torch.optim.Optimizer,
    inputs: Inputs,
    targets: npt.NDArray[np.int64],
    schedule: Schedule,
    micro_batch: int,
    random: SecureRandom,
) -> None:
    """Ordinary training: no clip, no noise, the mean over the examples really drawn."""
    classifier.train()
    for _ in range(schedule.steps):
        sample = random.poisson_sample(len(inputs), schedule.mechanism.sampling_rate)
        if len(sample) == 0:
            continue
        optimizer.zero_grad()
        for part, batch in inputs.batches(micro_batch, classifier.device, sample):
            (_loss(classifier, classifier, inputs, batch, targets[part]) / len(sample)).backward()
        optimizer.step()
    optimizer.zero_grad()
    classifier.eval()


def _loss(
    classifier: Classifier,
    module: Any,
    inputs: Inputs,
    batch: Batch,
    targets: npt.NDArray[np.int64],
) -> torch.Tensor:
    """Sum of the cross entropies of all rows; those that stand for no text count as 0."""
    if inputs.is_tokens:
        batch = classifier.freeze_through(batch)
    # A mean would divide by how many others were drawn, and a row could vanish in the rounding.
    truth = np.full(len(batch.values), _NO_TEXT)
    truth[: len(targets)] = targets
    return cross_entropy(
        module(batch),
        torch.from_numpy(truth).to(classifier.device),
        reduction="sum",
        ignore_index=_NO_TEXT,
    )


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
    fused = has_fused_steps(classifier.device)
    if training.optimizer == "adam":
        return torch.optim.Adam(groups, fused=fused)
    return torch.optim.SGD(groups, fused=fused)


def _rounding(classifier: Classifier, micro_batch: int, expected: float) -> Rounding:
    longest = classifier.settings.max_length
    return rounding_for(expected, batch_rows(micro_batch) * longest, longest)


@contextmanager
def _book_keeping(classifier: Classifier, rounding: Rounding) -> Iterator[BookKeepingModule]:
    """Per-example gradients of the trained part; the hooks are removed whatever happens."""
    classifier.train()
    module = BookKeepingModule(classifier, loss_reduction="sum", rounding=rounding)
    try:
        yield module
    finally:
        module.remove_hooks()
        module.cleanup()
        classifier.eval()
