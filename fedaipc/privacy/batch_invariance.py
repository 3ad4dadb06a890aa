"""Whether this machine computes a record alike in every row of a batch.

The clip bound holds for a record's own contribution. If the last bits of a matrix product or an
activation depend on a row's place in the batch, removing one record changes the contributions of
those behind it. Hostile weights can amplify last bits to many times the bound. Libraries do
that: they compute the rows behind the last whole block, or the values at the end of a thread's
share, by another kernel. Which rows follows from shapes, threads and machine and not from values,
so it is tested with public values before any record is touched. Where rows differ, each record
is multiplied by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedaipc.errors import ModelError
from fedaipc.model.classifier import write_vector
from fedaipc.model.inputs import FREEZE_BATCH, FREEZE_WIDTHS, Inputs, batch_rows
from fedaipc.model.products import ALL, NARROW, NONE, in_words

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedaipc.model.classifier import Classifier
    from fedaipc.privacy.bookkeeping import BookKeepingModule

_SPREAD = 0.05  # of the public random weights
_CHOICES = (NARROW, ALL, NONE)  # in this order; the first costs nothing


class RowsDifferError(ModelError):
    """The result for a record depends on its place in the batch on this machine."""


def settle_rows(
    classifier: Classifier,
    module: BookKeepingModule,
    loss: Callable[[torch.Tensor], torch.Tensor],
    micro_batch: int,
    *,
    cached: bool,
) -> None:
    """Let the classifier multiply in the first way under which `check_rows` passes.

    Raises RowsDifferError where it passes under no way.
    """
    first: RowsDifferError | None = None
    for by_record in _CHOICES:
        classifier.by_record = by_record
        try:
            check_rows(classifier, module, loss, micro_batch, cached=cached)
        except RowsDifferError as error:
            first = first or error
        else:
            return
    classifier.by_record = _CHOICES[0]
    tried = ", ".join(map(in_words, _CHOICES))
    raise RowsDifferError(
        f"{first}; tried on {classifier.device} with {torch.get_num_threads()} threads and "
        f"micro-batches of {batch_rows(micro_batch)}, each record multiplied by itself {tried}: "
        "none gives all rows the same bits, so this machine cannot train privately"
    )


def check_rows(
    classifier: Classifier,
    module: BookKeepingModule,
    loss: Callable[[torch.Tensor], torch.Tensor],
    micro_batch: int,
    *,
    cached: bool,
) -> None:
    """Fill all rows of a batch with one text, for every width that a text can have, and compare.

    Inputs and output gradients of every trained layer, the norms and, with `cached`, the frozen
    states must be equal in all rows to the last bit. `loss` makes a number of the logits. Sets the
    trained parameters to random values. Raises RowsDifferError where rows differ.
    """
    random = np.random.default_rng()  # public values; no promise depends on them
    size = classifier.layout.size
    write_vector(classifier, random.normal(0, _SPREAD, size).astype(np.float32))
    seen: list[tuple[str, torch.Tensor]] = []
    handles = [
        layer.register_forward_hook(_noting(name, seen))
        for name, layer in classifier.named_modules()
        if any(True for _ in layer.parameters(recurse=False))
    ]
    try:
        for width in _widths(classifier, FREEZE_WIDTHS) if classifier.has_frozen_part else ():
            _frozen(classifier, _one_text(classifier, width, random), width, FREEZE_BATCH)
        for width in _widths(classifier):
            tokens = states = _one_text(classifier, width, random)
            if classifier.has_frozen_part and cached:
                # A full disk leaves tokens, which go through the frozen layers in a step's batches.
                rows = FREEZE_BATCH if classifier.pooled else micro_batch
                states = _as_inputs(classifier, _frozen(classifier, tokens, width, rows), tokens)
            batch = _filled(classifier, states, micro_batch, width)
            if classifier.has_frozen_part and not cached:
                batch = classifier.freeze_through(batch)
            seen.clear()
            module.zero_grad()
            loss(module(batch)).backward()
            for name, values in seen:
                _compare(name, values)
            _compare("norms", module.norms())
    finally:
        seen.clear()
        module.zero_grad()
        while handles:
            handles.pop().remove()


def _noting(name: str, seen: list[tuple[str, torch.Tensor]]) -> Any:
    def note(_module: object, given: tuple[Any, ...], output: Any) -> None:
        seen.extend((name, value) for value in given if isinstance(value, torch.Tensor))
        if isinstance(output, torch.Tensor):
            seen.append((name, output.detach()))
            if output.requires_grad:
                output.register_hook(lambda grad: seen.append((name, grad)))

    return note


def _compare(name: str, values: torch.Tensor) -> None:
    """All rows but the last, which is always padding."""
    rows = values[:-1]
    if len(values) > 1 and not torch.equal(rows, rows[:1].expand_as(rows)):
        raise RowsDifferError(
            f"{name}: on this machine the result for a record depends on its place in the batch, "
            "so that one record would change the others' contributions"
        )


def _frozen(classifier: Classifier, text: Inputs, width: int, rows: int) -> Any:
    """What the frozen layers make of one text, which is compared in all rows of a batch."""
    states = classifier.freeze_through(_filled(classifier, text, rows, width)).values
    _compare("frozen layers", states)
    return states[0].cpu().numpy()


def _widths(classifier: Classifier, *steps: int) -> list[int]:
    """All that texts are padded to."""
    most = classifier.settings.max_length
    lengths = Inputs(np.zeros(0, np.int32), np.arange(most + 1).cumsum(), most)
    return sorted({int(width) for width in lengths.widths(*steps)})


def _one_text(classifier: Classifier, width: int, random: np.random.Generator) -> Inputs:
    """Random tokens; one less than there is room for, so that a mask is in play."""
    length = max(1, width - 1)
    most = classifier.hf.config.vocab_size
    ids = random.integers(0, most, length, dtype=np.int32)
    return Inputs(ids, np.array([0, length]), classifier.settings.max_length)


def _as_inputs(classifier: Classifier, states: Any, tokens: Inputs) -> Inputs:
    if classifier.pooled:
        return Inputs(states[None], None, tokens.most)
    length = int(tokens.lengths()[0])
    return Inputs(states[:length], tokens.offsets, tokens.most)


def _filled(classifier: Classifier, text: Inputs, size: int, width: int) -> Any:
    rows = batch_rows(size)
    return text.batch(np.zeros(rows, dtype=np.int64), rows, classifier.device, width)
