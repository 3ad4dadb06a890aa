"""How linear layers multiply: all records of a batch at once, or each record by itself.

One product of the whole batch lets the library choose where it cuts the rows, and some cuts give a
row other last bits than its neighbour. A batch of products of one record each has one shape for
all. It costs nothing where a layer has few inputs or outputs, and up to 50 % more elsewhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

NARROW, ALL, NONE = 64, 1 << 62, 0
_WORDS = {NARROW: "in narrow layers", ALL: "in all layers", NONE: "in no layer"}


class ByRecord(TorchFunctionMode):
    """Inside, layers of fewer than `below` inputs or outputs multiply each record by itself.

    Not where the gradient of their weight is asked for: autograd would form one for each record.
    """

    def __init__(self, below: int) -> None:
        super().__init__()
        self._below = below

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        if function is linear:
            return self._linear(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def _linear(
        self, values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        asked = torch.is_grad_enabled() and weight.requires_grad
        if asked or values.dim() < 2 or min(weight.shape) >= self._below:
            return linear(values, weight, bias)
        records = values.flatten(1, -2) if values.dim() > 2 else values.unsqueeze(1)
        each = weight.t().expand(len(records), -1, -1)
        product = torch.bmm(records, each) if bias is None else torch.baddbmm(bias, records, each)
        return product.view(*values.shape[:-1], len(weight))


def in_words(below: int) -> str:
    """For a message: in which layers each record is multiplied by itself."""
    return _WORDS[below]
