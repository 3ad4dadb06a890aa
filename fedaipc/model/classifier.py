"""The classifier: a frozen lower part, a trained upper part, and the flat vector between PCs.

transformers' own model is kept whole. Where its lowest layers are frozen, they and the embeddings
move into `lower`, and pass-through modules take their places. So transformers' own forward
serves both parts, and every parameter keeps the name it has in a saved file.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from fedaipc.config.family import FAMILIES
from fedaipc.errors import EncodingError, ModelError
from fedaipc.model.base import base_hash
from fedaipc.model.load import (
    check_vocabulary,
    load_base,
    load_tokenizer,
    quiet,
)
from fedaipc.model.products import NARROW, ByRecord

if TYPE_CHECKING:
    import numpy.typing as npt

    from fedaipc.config import TextClassifier
    from fedaipc.model.device import Device


@dataclass(frozen=True, slots=True)
class Batch:
    """Model inputs: `values` is token ids (B, T), states (B, T, H) or pooled states (B, H).

    `mask` (B, T) is 1 on tokens and 0 on padding, at least one 1 a row; None for pooled states.
    """

    values: torch.Tensor
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Layout:
    """Names and shapes behind the flat vector, in its order. Both sides compare `hash`."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    hash: str

    @property
    def size(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.shapes)


class Classifier(nn.Module):
    """Texts in, logits out. `cut` layers are frozen and live in `lower`."""

    def __init__(self, settings: TextClassifier, labels: tuple[str, ...]) -> None:
        """Raises ModelError: weights cannot be loaded, or the method does not fit the model."""
        super().__init__()
        self.settings = settings
        self.labels = labels
        self.half_precision = False
        self.by_record = NARROW  # see products.py; `settle_rows` finds what this machine needs
        self.tokenizer = load_tokenizer(settings)
        whole, self.notes = load_base(settings, labels)
        check_vocabulary(self.tokenizer, whole.get_input_embeddings().num_embeddings)
        depth = whole.config.num_hidden_layers
        self.cut = settings.train.frozen_layers(depth)
        with quiet():
            self.hf = settings.train.prepare(whole, settings.pooling, settings.seed)
        # Held in a tuple: frozen weights are not a sub-module, so nothing trains or saves them.
        self._lower = (self._split(depth),)
        self.pooled = settings.pooling == "mean" and self.cut == depth
        self.layout = _layout(self, settings, labels)
        self.total_parameters = sum(p.numel() for p in self.hf.parameters()) + (
            sum(p.numel() for p in self._lower[0].parameters()) if self._lower[0] else 0
        )

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """Trained parameters by name, in the order of the flat vector."""
        return sorted((n, p) for n, p in self.hf.named_parameters() if p.requires_grad)

    def use(self, device: Device) -> None:
        """Compute there, and in its precision, from now on."""
        if self.device != device.torch:  # else it would go through all weights, for each PC
            self.to(device.torch)
        self.half_precision = device.dtype == "bfloat16"
        lower = self._lower[0]
        if lower is not None and next(lower.parameters()).device != device.torch:
            lower.to(device.torch)

    @property
    def device(self) -> torch.device:
        return next(self.hf.parameters()).device

    @property
    def has_frozen_part(self) -> bool:
        return self._lower[0] is not None

    @torch.no_grad()
    def freeze_through(self, tokens: Batch) -> Batch:
        """Token ids through the frozen part: states (B, T, H), or pooled (B, H) for a head alone.

        Without a frozen part the tokens come back as they are.
        """
        lower = self._lower[0]
        if lower is None:
            return tokens
        with ByRecord(self.by_record), self._precision():
            states = lower(**self._token_arguments(tokens)).last_hidden_state.float()
        if self.pooled:
            return Batch(_mean(states, tokens.mask), None)
        return Batch(states, tokens.mask)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits (B, labels) in float32 from what `freeze_through` gives."""
        with ByRecord(self.by_record):
            return self._logits(batch)

    def _logits(self, batch: Batch) -> torch.Tensor:
        body = _body(self.hf)
        if batch.mask is None:
            return body.classifier(batch.values)
        if self._lower[0] is None:
            arguments = self._token_arguments(batch)
        else:
            arguments = {"inputs_embeds": batch.values, "attention_mask": batch.mask}
        if self.settings.pooling == "cls":
            with self._precision():
                return self.hf(**arguments).logits.float()
        with self._precision():
            states = body.base_model(**arguments).last_hidden_state
        return body.classifier(_mean(states.float(), batch.mask))

    def _precision(self) -> Any:
        if not self.half_precision:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _token_arguments(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Explicit positions and types of full batch size: per-example gradients need them."""
        ids, mask = batch.values, batch.mask
        assert mask is not None  # noqa: S101 - tokens always come with a mask
        arguments = {"input_ids": ids, "attention_mask": mask}
        family = FAMILIES[self.hf.config.model_type]
        if family.positions_behind_padding:
            padding = self.hf.config.pad_token_id
            arguments["position_ids"] = mask.long().cumsum(1) * mask.long() + padding
        else:
            positions = torch.arange(ids.shape[1], device=ids.device)
            arguments["position_ids"] = positions.expand(ids.shape).contiguous()
        if family.token_types:
            arguments["token_type_ids"] = torch.zeros_like(ids)
        return arguments

    def _trains_embeddings(self) -> bool:
        """Then nothing is frozen below, and texts go through the whole model each time."""
        return any(p.requires_grad for p in _body(self.hf).base_model.embeddings.parameters())

    def _split(self, depth: int) -> nn.Module | None:
        if not self.cut and self._trains_embeddings():
            return None
        base = _body(self.hf).base_model
        stack = _layer_stack(base)
        if any(p.requires_grad for p in stack.layer[: self.cut].parameters()):
            raise ModelError("model.train trains a parameter of a layer that it calls frozen")
        config = type(base.config)(**{**base.config.to_dict(), "num_hidden_layers": self.cut})
        config._attn_implementation = base.config._attn_implementation  # noqa: SLF001
        with torch.device("meta"):
            lower: Any = type(base)(config)
        lower.embeddings = base.embeddings
        if hasattr(lower, "pooler"):
            lower.pooler = None
        _layer_stack(lower).layer = nn.ModuleList(stack.layer[: self.cut])
        base.embeddings = _PassEmbeddings()
        for number in range(min(self.cut, depth)):
            stack.layer[number] = _PassLayer()
        return lower.requires_grad_(False).eval()


class _PassEmbeddings(nn.Module):
    def forward(self, *ids: object, **named: object) -> object:
        """The states as they come; some families pass them by name, some second in place."""
        return named["inputs_embeds"] if "inputs_embeds" in named else ids[1]


class _PassLayer(nn.Module):
    def forward(self, states: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return states


def read_vector(classifier: Classifier) -> npt.NDArray[np.float32]:
    """The trained parameters as one float32 vector of shape (layout.size,); a copy."""
    flat = [p.detach().reshape(-1).float().cpu() for _, p in classifier.trainable()]
    return torch.cat(flat).numpy()


@torch.no_grad()
def write_vector(classifier: Classifier, vector: npt.NDArray[np.float32]) -> None:
    """Set the trained parameters. Raises EncodingError on a wrong size or a value not finite."""
    if vector.shape != (classifier.layout.size,):
        raise EncodingError(
            f"the model vector has {vector.size} values, this model trains "
            f"{classifier.layout.size}: the two sides run different jobs"
        )
    if not np.isfinite(vector).all():
        raise EncodingError("the model vector holds values that are not finite")
    start = 0
    for _, parameter in classifier.trainable():
        values = torch.from_numpy(vector[start : start + parameter.numel()].copy())
        parameter.copy_(values.view_as(parameter))
        start += parameter.numel()


def _body(hf: Any) -> Any:
    """The model as transformers knows it, whether peft wraps it or not."""
    return hf.get_base_model() if hasattr(hf, "peft_config") else hf


def _layer_stack(base: Any) -> Any:
    """The module whose `.layer` is the list of transformer layers."""
    stack = getattr(base, "encoder", None) or getattr(base, "transformer", None)
    if stack is None or not hasattr(stack, "layer"):
        raise ModelError(f"{type(base).__name__} has no list of layers that fedaipc knows")
    return stack


def _mean(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean over tokens, (B, T, H) -> (B, H)."""
    assert mask is not None  # noqa: S101 - states always come with a mask
    present = mask.unsqueeze(-1)
    # Filled in and not multiplied by 0, which would let a NaN of the padding through.
    return states.masked_fill(present == 0, 0.0).sum(1) / present.sum(1)


def _layout(classifier: Classifier, settings: TextClassifier, labels: tuple[str, ...]) -> Layout:
    named = [(name, tuple(p.shape)) for name, p in classifier.trainable()]
    if not named:
        raise ModelError("model.train trains no parameter of this model")
    what = json.dumps(
        {
            "base": base_hash(settings.base, settings.keep_layers),
            "labels": labels,
            "pooling": settings.pooling,
            "max_length": settings.max_length,
            "train": settings.train.model_dump(mode="json"),
            "parameters": named,
            "drawn": _drawn(classifier),
        }
    )
    return Layout(
        names=tuple(name for name, _ in named),
        shapes=tuple(shape for _, shape in named),
        hash=hashlib.sha256(what.encode()).hexdigest(),
    )


def _drawn(classifier: Classifier) -> str:
    """A hash of what each side draws from the public seed and does not train."""
    digest = hashlib.sha256()
    for name, parameter in sorted(classifier.hf.named_parameters()):
        if ".lora_" in name and not parameter.requires_grad:
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()
