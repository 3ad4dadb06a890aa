"""Warm-up: ordinary training on public texts, which gives private training a better base.

The result is an ordinary transformers model, to be named as `model.base`. No PC's text
is used, so it costs no privacy. Noise and clipping act on a head over mean-pooled states. So
that they act evenly, the last LayerNorm is shifted and scaled until the mean-pooled states of
the public texts have mean 0 and root mean square norm 1. The head is adjusted to match, so the
model computes what it did before.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock
from torch.nn.functional import cross_entropy

from fedaipc.config import Full, WarmUpSettings
from fedaipc.data.prepare import deduplicate, label_list
from fedaipc.data.sources import read_records
from fedaipc.errors import DataError, ModelError, os_errors_as
from fedaipc.model.base import WARM_UP, base_hash, warm_folder
from fedaipc.model.classifier import Classifier, read_vector
from fedaipc.model.device import choose_device, has_fused_steps
from fedaipc.model.export import export_base
from fedaipc.model.inputs import make_inputs
from fedaipc.results import WarmUpFacts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from fedaipc.config import Settings, TextClassifier
    from fedaipc.data.prepare import HeldBack
    from fedaipc.data.records import Records
    from fedaipc.model.device import Device
    from fedaipc.model.inputs import Inputs

_VERSION = 2  # of the procedure: a change gives new models
_ALIKE = 16  # batches whose texts are sorted by length together, so that little is padding
_RISING, _DECAY, _LONGEST_GRADIENT, _SMOOTHING = 0.1, 0.01, 1.0, 0.1


def warmed_up(
    settings: WarmUpSettings,
    model: TextClassifier,
    labels: tuple[str, ...],
    records: Records,
    device: Device,
    on_step: Callable[[int, int], None] = lambda *_: None,
) -> str:
    """`model.base` after training on `records`; found again if this machine has it already.

    Raises ModelError: the base cannot be loaded, or training fails.
    """
    base = WARM_UP + _key(settings, model, labels, records)
    folder = warm_folder(base)
    with os_errors_as(
        ModelError, f"{folder.parent}: cannot be written", "; set FEDAIPC_CACHE to another folder"
    ):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            for left in folder.parent.glob(f".{folder.name}.*"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(
                dir=folder.parent, prefix=f".{folder.name}."
            ) as temporary:
                made = Path(temporary) / "model"
                _train(settings, model, labels, records, device, on_step, made)
                made.replace(folder)
    return base


def warm_base(
    settings: Settings,
    held_back: HeldBack,
    on_step: Callable[[int, int], None] = lambda *_: None,
) -> tuple[Settings, WarmUpFacts | None]:
    """Settings with the warmed-up base, and what it was; as they were without a warm-up.

    A text that is also in the validation or test set is not trained on. Raises DataError or
    ModelError.
    """
    wanted, before = settings.warm_up, settings.model
    public = _public_texts(settings, held_back)
    if public is None:
        return settings, None
    started, device = time.monotonic(), choose_device(settings.speed)
    base = warmed_up(wanted, before, held_back.labels, public, device, on_step)
    model = before.model_copy(update={"base": base, "keep_layers": None})
    facts = WarmUpFacts(
        base=before.base,
        source=str(wanted.source),
        texts=len(public),
        seconds=time.monotonic() - started,
    )
    # Without the source: a second run with the resolved settings starts from the same base.
    return settings.model_copy(update={"model": model, "warm_up": WarmUpSettings()}), facts


def check_model(settings: Settings, held_back: HeldBack) -> Classifier:
    """The job's model as it is before any warm-up, and a look at the warm-up's texts.

    What cannot work is found here, before anything is trained or written. Raises DataError or
    ModelError.
    """
    _public_texts(settings, held_back)
    return Classifier(settings.model, held_back.labels)


def _public_texts(settings: Settings, held_back: HeldBack) -> Records | None:
    """What the warm-up trains on; None without one. Raises DataError."""
    wanted = settings.warm_up
    if wanted.source is None:
        return None
    name = f"warm_up.source = {wanted.source}"
    reading = read_records(wanted.source, wanted, labels=held_back.labels)
    usable = reading.some() if settings.data.skip_unusable else reading.all()
    public, _ = deduplicate(usable, held_back.validation, held_back.test)
    if not len(public):
        raise DataError(f"{name}: nothing is left but texts of the validation and test sets")
    label_list(public, held_back.labels, what=name)
    return public


def _train(
    settings: WarmUpSettings,
    model: TextClassifier,
    labels: tuple[str, ...],
    records: Records,
    device: Device,
    on_step: Callable[[int, int], None],
    folder: Path,
) -> None:
    whole = model.model_copy(update={"train": Full()})
    classifier = Classifier(whole, labels)
    classifier.use(device)
    number = {label: i for i, label in enumerate(labels)}
    targets = np.array([number[label] for label in records.labels], dtype=np.int64)
    inputs = make_inputs(classifier, records.texts, None)
    optimizer, schedule = _optimizer(classifier, settings, len(inputs))
    total = settings.passes * -(-len(inputs) // settings.batch)
    classifier.train()
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    words = classifier.hf.base_model.embeddings.requires_grad_(False)
    for step, chosen in enumerate(_order(settings, inputs)):
        optimizer.zero_grad()
        width = int(inputs.lengths()[chosen].max())
        logits = classifier(inputs.batch(chosen, len(chosen), device.torch, width))
        truth = torch.from_numpy(targets[chosen]).to(device.torch)
        cross_entropy(logits, truth, label_smoothing=_SMOOTHING).backward()
        torch.nn.utils.clip_grad_norm_(trained, _LONGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        on_step(step + 1, total)
    classifier.eval()
    words.requires_grad_(True)  # back into the flat vector
    if not all(bool(torch.isfinite(p).all()) for p in trained):
        raise ModelError("the warm-up diverged: choose a smaller warm_up.learning_rate")
    if model.pooling == "mean":
        _centre(classifier, inputs)
    export_base(folder, whole, labels, classifier.layout, read_vector(classifier))


def _order(settings: WarmUpSettings, inputs: Inputs) -> Iterator[npt.NDArray[np.int64]]:
    """Texts of each step: a new random order in each pass, texts of like length together."""
    random = np.random.default_rng([settings.seed, _VERSION])
    lengths, size = inputs.lengths(), settings.batch
    for _ in range(settings.passes):
        order = random.permutation(len(inputs))
        for start in range(0, len(order), _ALIKE * size):
            part = order[start : start + _ALIKE * size]
            part[:] = part[np.argsort(lengths[part], kind="stable")]
        steps = [order[start : start + size] for start in range(0, len(order), size)]
        for step in random.permutation(len(steps)):
            yield steps[step]


def _optimizer(
    classifier: Classifier, settings: WarmUpSettings, texts: int
) -> tuple[torch.optim.Optimizer, Any]:
    head, body = [], []
    for name, parameter in classifier.trainable():
        if "classifier" in name:
            head.append(parameter)
        elif ".embeddings." not in name:  # few texts would move few of them
            body.append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": body, "lr": settings.learning_rate},
            {"params": head, "lr": settings.head_learning_rate},
        ],
        weight_decay=_DECAY,
        fused=has_fused_steps(classifier.device),
    )
    total = settings.passes * -(-texts // settings.batch)

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / (_RISING * total)) * (1 - step / total)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


@torch.no_grad()
def _centre(classifier: Classifier, inputs: Inputs) -> None:
    """Shift and scale the last LayerNorm; see the module's text."""
    found: dict[str, torch.Tensor] = {}
    head = classifier.hf.classifier

    def keep(_module: object, given: tuple[torch.Tensor, ...]) -> None:
        found["pooled"] = given[0]

    handle = head.register_forward_pre_hook(keep)
    pooled = []
    for part, batch in inputs.batches(128, classifier.device):
        classifier(batch)
        pooled.append(found["pooled"][: len(part)].float())
    handle.remove()
    states = torch.cat(pooled)
    mean = states.mean(0)
    scale = (states - mean).square().sum(1).mean().sqrt()
    norms = [m for m in classifier.hf.base_model.modules() if isinstance(m, torch.nn.LayerNorm)]
    last = norms[-1]
    head.bias += head.weight @ mean
    head.weight *= scale
    last.weight.div_(scale)
    last.bias.copy_((last.bias - mean) / scale)


def _key(
    settings: WarmUpSettings, model: TextClassifier, labels: tuple[str, ...], records: Records
) -> str:
    digest = hashlib.sha256()
    what = {
        "version": _VERSION,
        "warm-up": settings.model_dump(
            mode="json", exclude={"source", "encoding", "quoting", "header"}
        ),
        "base": base_hash(model.base, model.keep_layers),
        "pooling": model.pooling,
        "max_length": model.max_length,
        "seed": model.seed,
        "labels": labels,
    }
    digest.update(json.dumps(what).encode())
    for text, label in zip(records.texts, records.labels, strict=True):
        digest.update(hashlib.sha256(f"{label}\n{text}".encode()).digest())
    return digest.hexdigest()[:32]
