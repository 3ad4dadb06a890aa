"""Which privacy filter keeps a PC's lifetime budget: public, and fixed when its ledger is made.

What each kind costs is in `fedaipc.privacy.filters`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

GAUSSIAN: Literal["gaussian"] = "gaussian"
# An RDP order is bounded, since an accountant takes as many terms.
FilterKind = Literal["gaussian"] | Annotated[float, Field(gt=1, le=1024)]


def filter_name(kind: FilterKind) -> str:
    """In words, for tables and sentences: "Gaussian DP", or "RDP order 4"."""
    return "Gaussian DP" if kind == GAUSSIAN else f"RDP order {kind:g}"


def filter_source(kind: FilterKind) -> str:
    """Why the total of a life holds whatever was chosen on the way: assumption and theorem."""
    if kind == GAUSSIAN:
        return (
            "every step is at least as private as Gaussian noise of its multiplier, and the "
            "squares of 1 / noise_multiplier add up, whatever was chosen on the way (Smith and "
            "Thakurta 2022); sampling counts for nothing"
        )
    return (
        f"Renyi divergences of order {kind:g} add up, whatever was chosen on the way (Feldman and "
        "Zrnic 2021, theorem 4.3); sampling counts"
    )
