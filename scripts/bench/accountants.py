"""Whether three accountants agree, on 200 schedules drawn at random.

    python scripts/bench/accountants.py       writes results/accountants.json beside this

Noise from 0.5 to 20, sampling rates from 0.001 to 1, up to 5,000 steps, delta from 1e-8 to 1e-4; of
these, schedules whose epsilon lies between 0.05 and 20, where budgets are chosen. Required: PRV and
PLD within 1 % or 0.005 of each other, and RDP, which a ledger charges, not below either.
"""

from __future__ import annotations

import json
import math
import random
import statistics
import sys
from pathlib import Path
from typing import Any

from fedaipc.config import DPSGD, Schedule
from fedaipc.machine import facts
from fedaipc.privacy.accountant import epsilon_pld, epsilon_prv, epsilon_rdp

RESULT = Path(__file__).resolve().parent / "results" / "accountants.json"
COUNT, SEED = 200, 20_261_126
RELATIVE, ABSOLUTE = 0.01, 0.005


def main() -> None:
    draw = random.Random(SEED)  # noqa: S311 - a grid that can be drawn again
    rows: list[dict[str, Any]] = []
    while len(rows) < COUNT:
        mechanism = DPSGD(
            noise_multiplier=log_uniform(draw, 0.5, 20),
            sampling_rate=log_uniform(draw, 0.001, 1),
        )
        step = Schedule(mechanism=mechanism, steps=round(log_uniform(draw, 1, 5000)))
        delta = log_uniform(draw, 1e-8, 1e-4)
        rdp = epsilon_rdp([step], delta)
        if not 0.05 <= rdp <= 20:
            continue
        prv, pld = epsilon_prv([step], delta), epsilon_pld([step], delta)
        rows.append(
            {
                "noise_multiplier": mechanism.multiplier, "sampling_rate": mechanism.sampling_rate,
                "steps": step.steps, "delta": delta, "rdp": rdp, "prv": prv, "pld": pld,
            }
        )  # fmt: skip
        print(len(rows), json.dumps(rows[-1]), flush=True)
    apart = [abs(row["prv"] - row["pld"]) for row in rows]
    beyond = [
        row
        for row, gap in zip(rows, apart, strict=True)
        if gap > max(ABSOLUTE, RELATIVE * row["pld"])
    ]
    below = [row for row in rows if row["rdp"] < max(row["prv"], row["pld"]) - ABSOLUTE]
    report = {
        "schedules": len(rows),
        "prv_and_pld_apart_at_most": max(apart),
        "prv_and_pld_apart_relative_median": statistics.median(
            gap / row["pld"] for row, gap in zip(rows, apart, strict=True) if row["pld"] > 0
        ),
        "rdp_over_pld_median": statistics.median(
            row["rdp"] / row["pld"] for row in rows if row["pld"] > 0
        ),
        "beyond_tolerance": beyond,
        "rdp_below": below,
        "tolerance": {"relative": RELATIVE, "absolute": ABSOLUTE},
        "machine": facts(),
        "rows": rows,
    }
    RESULT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if beyond or below else 0)


def log_uniform(draw: random.Random, low: float, high: float) -> float:
    return math.exp(draw.uniform(math.log(low), math.log(high)))


if __name__ == "__main__":
    main()
