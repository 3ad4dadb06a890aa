"""Settings of the model, and the training methods: which of its parameters are trained."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny

from fedaipc.config.family import FAMILIES
from fedaipc.config.section import Choice, Positive, Section, Seed, register

Part = Literal["head", "upper", "lower"]
Layers = Field(1, ge=1, le=96, description="upper layers that are trained")


class TrainingMethod(Choice):
    """Which parameters of a model are trained. Public; part of the job.

    A method of your own says how many of the lowest layers stay frozen, and which parameters
    above them are trained. Or it overrides `prepare`, as LoRA does, to put layers of its own in
    place. Every trained parameter must lie in a layer whose per-sample gradients are known
    (`privacy.layer_gradients`), otherwise the job is refused.
    """

    usual: ClassVar[str] = "head"

    def frozen_layers(self, depth: int) -> int:
        """How many of the lowest of `depth` layers are never changed, with the embeddings.

        Their outputs are computed once for each text. 0 trains the embeddings, too, where
        `trains` says so.
        """
        raise NotImplementedError

    def trained_layers(self) -> int:
        """How many layers the model must have at least."""
        return 0

    def trains(self, name: str, part: Part) -> bool:
        """Whether the parameter called `name` is trained; `part` says where it lies."""
        raise NotImplementedError

    def prepare(self, model: Any, pooling: str, seed: int) -> Any:
        """Mark what is trained in a model of transformers; returns it, or what wraps it."""
        del pooling, seed
        depth = model.config.num_hidden_layers
        upper = [f".layer.{n}." for n in range(self.frozen_layers(depth), depth)]
        for name, parameter in model.named_parameters():
            part: Part = "lower"
            if not name.startswith(model.base_model_prefix + ".") or ".pooler." in name:
                part = "head"
            elif any(layer in name for layer in upper):
                part = "upper"
            parameter.requires_grad = self.trains(name, part)
        return model


@register
class Head(TrainingMethod):
    """The classifier alone, on states of the frozen base: the cheapest, and often the best."""

    kind: Literal["head"] = "head"

    def frozen_layers(self, depth: int) -> int:
        return depth

    def trains(self, name: str, part: Part) -> bool:
        del name
        return part == "head"


class _UpperLayers(TrainingMethod):
    layers: int = Layers

    def frozen_layers(self, depth: int) -> int:
        return depth - self.layers

    def trained_layers(self) -> int:
        return self.layers


@register
class BiTFiT(_UpperLayers):
    """Biases and layer norms of the upper layers, and the head (Ben Zaken et al., ACL 2022)."""

    kind: Literal["bitfit"] = "bitfit"

    def trains(self, name: str, part: Part) -> bool:
        light = name.endswith(".bias") or "LayerNorm" in name or "_layer_norm" in name
        return part == "head" or (part == "upper" and light)


@register
class LastLayers(_UpperLayers):
    """The upper layers as they are, and the head."""

    kind: Literal["last-layers"] = "last-layers"

    def trains(self, name: str, part: Part) -> bool:
        del name
        return part != "lower"


@register
class Full(TrainingMethod):
    """Every parameter, embeddings included."""

    kind: Literal["full"] = "full"

    def frozen_layers(self, depth: int) -> int:
        del depth
        return 0

    def trains(self, name: str, part: Part) -> bool:
        del name, part
        return True


@register
class LoRA(_UpperLayers):
    """Low-rank adapters beside the upper layers' matrices, and the head (Hu et al., ICLR 2022).

    With `freeze_a` as FFA-LoRA: the product of two noisy factors holds noise times noise (Sun et
    al., "Improving LoRA in privacy-preserving federated learning", ICLR 2024).
    """

    kind: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1, le=1024, description="of the adapters' matrices")
    alpha: Positive = Field(16.0, description="the adapters' scale is alpha by rank")
    targets: Literal["attention", "all-linear"] = Field(
        "attention", description="which layers get adapters"
    )
    freeze_a: bool = Field(
        False,
        description="leave the adapters' first factor as it was drawn, so that noise enters once",
    )

    def prepare(self, model: Any, pooling: str, seed: int) -> Any:
        import torch
        from peft import LoraConfig, TaskType, get_peft_model

        depth = model.config.num_hidden_layers
        family = FAMILIES[model.config.model_type]
        dense = family.dense if self.targets == "all-linear" else ()
        head = [
            name
            for name, _ in model.named_children()
            if name not in (model.base_model_prefix, "dropout")
        ]
        if getattr(model.base_model, "pooler", None) is not None:
            head.append("pooler")  # fresh where the base has none: the saved adapter must hold it
        config = LoraConfig(
            task_type=TaskType.TOKEN_CLS if pooling == "mean" else TaskType.SEQ_CLS,
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=0.0,
            target_modules=[*family.attention, *dense],
            layers_to_transform=list(range(self.frozen_layers(depth), depth)),
            layers_pattern="layer",
            modules_to_save=head,
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft's, on names of transformers
            torch.random.manual_seed(seed)  # public start values, no secret
            adapted: Any = get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if self.freeze_a and ".lora_A." in name:
                parameter.requires_grad = False
        return adapted


class TextClassifier(Section):
    """Which model is trained, and which part of it. Public.

    TextClassifier("minilm-l6", train=LoRA(rank=4)): the base may come without its name.
    """

    positional: ClassVar[tuple[str, ...]] = ("base",)

    base: str = Field(
        "minilm-l6", min_length=1, description="asset, folder (from where you are) or hub id"
    )
    train: SerializeAsAny[TrainingMethod] = Head()
    pooling: Literal["mean", "cls"] = Field("mean", description="what of the last layer is used")
    keep_layers: int | None = Field(None, ge=1, le=96, description="use only the lowest layers")
    max_length: int = Field(64, ge=4, le=8192, description="tokens; longer texts are cut")
    seed: Seed = Field(0, description="public; initial values of head and adapters")

    if TYPE_CHECKING:

        def __init__(
            self,
            base: str = "minilm-l6",
            *,
            train: TrainingMethod | str = Head(),  # noqa: B008 - it is frozen
            pooling: Literal["mean", "cls"] = "mean",
            keep_layers: int | None = None,
            max_length: int = 64,
            seed: int = 0,
        ) -> None: ...
