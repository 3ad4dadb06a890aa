"""Whether this PC can train privately at all: tested before any round is charged."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from fedaipc.config import DPSGD, Head, LoRA, TextClassifier, TrainingSettings
from fedaipc.data.assets import is_asset, is_cached
from fedaipc.model.classifier import Classifier, read_vector
from fedaipc.model.device import choose_device
from fedaipc.model.inputs import longest_input
from fedaipc.privacy.training import rehearse

if TYPE_CHECKING:
    from fedaipc.config import SpeedSettings

_METHODS = (Head(), LoRA())  # between them all shapes of products that jobs have
_LENGTH = 16  # tokens; every base takes so many, and a round rehearses its own number again
_MECHANISM = DPSGD(noise_multiplier=1.0)


@lru_cache(maxsize=4)
def rehearse_base(base: str, labels: tuple[str, ...], speed: SpeedSettings) -> bool:
    """Rehearse a round with the base model; False where it is not on this PC yet.

    Touches no data. Raises ModelError where the machine or the base cannot do it.
    """
    if not (is_cached(base) if is_asset(base) else Path(base).is_dir()):
        return False
    device = choose_device(speed)
    for method in _METHODS:
        settings = TextClassifier(base=base, train=method, max_length=_LENGTH)
        classifier = Classifier(settings, labels or ("no", "yes"))
        classifier.use(device)
        rehearse(
            classifier,
            longest_input(classifier, cached=speed.cache_frozen),
            read_vector(classifier),
            mechanism=_MECHANISM,
            training=TrainingSettings(),
            micro_batch=speed.micro_batch,
        )
    return True
