"""Texts of somebody's own."""

from __future__ import annotations

import csv
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write_reviews(path: Path, rows: int = 90, customers: int = 3) -> Path:
    """Someone's own CSV with other column names: id, body, stars (1 or 5), customer."""
    draw = random.Random(rows)
    words = {"1": ("awful", "dull", "broken", "sad"), "5": ("great", "lovely", "superb", "kind")}
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["id", "body", "stars", "customer"])
        for number in range(rows):
            stars = draw.choice("15")
            thing = draw.choice(("film", "meal", "book", "trip"))
            body = f"number {number}: the {thing} was {draw.choice(words[stars])}"
            out.writerow([number, body, stars, f"customer {number % customers}"])
    return path
