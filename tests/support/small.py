"""A job and texts that train in a second or two."""

from __future__ import annotations

from typing import Any

import fedaipc as fa

ROWS = [
    (f"{'good' if n % 2 else 'bad'} thing number {n} of shop {n % 4}", ["no", "yes"][n % 2])
    for n in range(240)
]
FAST = {"device": "cpu", "threads": 1}


def small(**changes: Any) -> fa.Job:
    model = fa.TextClassifier("minilm-l6", keep_layers=1, max_length=16)
    return fa.Job(**{"model": model, "rounds": 2, "speed": FAST, **changes})
