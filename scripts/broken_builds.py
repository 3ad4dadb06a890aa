#!/usr/bin/env python3
"""Break fedaipc on purpose in every known way, and write down what notices.

    .venv/bin/python scripts/broken_builds.py

Runs every check of tests/support/broken_builds on every fault, and the canary audit of a real run
on those that it could see. Writes scripts/bench/results/broken_builds.json, from which
scripts/readme_table.py makes the table of docs/how-to/lab.md. A few minutes.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.broken_builds import faults  # noqa: E402
from tests.support.broken_builds.audited import audited  # noqa: E402
from tests.support.broken_builds.table import ALL_CHECKS, ALL_FAULTS, CATCHES  # noqa: E402

OUT = ROOT / "scripts" / "bench" / "results" / "broken_builds.json"
AUDITED = (
    faults.no_noise, faults.a_tenth_of_the_noise, faults.noise_in_round_0_only, faults.no_clip,
    faults.clip_of_the_batch_mean, faults.noise_from_a_fixed_seed,
)  # fmt: skip


def main() -> None:
    logging.disable(logging.WARNING)
    for check in ALL_CHECKS:
        check()
    right = audited()
    rows = []
    for fault in ALL_FAULTS:
        row: dict[str, Any] = {
            "fault": fault.__name__,
            "named": CATCHES[fault].__name__,
            "caught_by": caught(fault),
            "audit": audit_of(fault) if fault in AUDITED else None,
        }
        print(row["fault"], ", ".join(row["caught_by"]), flush=True)
        rows.append(row)
    found = {
        "right_build": {"lower": right.bound.lower, "promised": right.promised},
        "confidence": right.bound.confidence,
        "faults": rows,
    }
    OUT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def caught(fault: Any) -> list[str]:
    found = []
    for check in ALL_CHECKS:
        with pytest.MonkeyPatch.context() as patch:
            fault(patch)
            try:
                check()
            except AssertionError:
                found.append(check.__name__)
    return found


def audit_of(fault: Any) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        fault(patch)
        found = audited()
    return {"lower": found.bound.lower, "promised": found.promised, "refuted": not found.holds}


if __name__ == "__main__":
    main()
