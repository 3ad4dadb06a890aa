"""Which epsilon, for which job, for how long? Arithmetic first, then the committed sweep.

.venv/bin/python simulations/learn/3_how_to_choose_a_budget.py
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from page import Page

from fedaipc.config import DPSGD
from fedaipc.lab.planner import Plan, solve

HERE = Path(__file__).parent
JOB = Plan(epsilon=2.0, mechanism=DPSGD(noise_multiplier=1.0), steps=1, rounds=30, records=1024)


def main() -> None:
    page = Page(__file__)
    page.say("# How to choose a budget")
    page.say(
        "1. **Unit.** Epsilon is per text. Whoever wrote ten of a PC's texts has less; see below.\n"
        "2. **delta** is how likely the promise may fail outright: at most a tenth of one over the "
        "number of texts; fedaipc refuses more.\n"
        "3. **How long.** The ledger counts over the PC's life, so plan for all jobs to come.\n"
        "4. **Noise against accuracy.** More texts on a PC and fewer rounds buy more than "
        "anything else. Then take the smallest epsilon whose accuracy you can live with."
    )
    page.say("## The main task: 30 rounds, every text in every step, up to 1,024 texts on a PC")
    rows = [
        (f"{one.epsilon:.2f}", f"{one.noise:.2f}", f"{one.relative_noise:.4f}",
         f"{one.by_accountant()['pld']:.2f}")
        for one in JOB.trade_offs((0.5, 1.0, 2.0, 4.0, 8.0))
    ]  # fmt: skip
    page.table(
        (
            "epsilon (RDP, charged)",
            "noise multiplier",
            "noise on the mean gradient, in clips",
            "epsilon by privacy loss distributions (PLD)",
        ),
        rows,
    )
    page.say("Twice the texts halve the noise on the mean gradient at the same epsilon:")
    lines = []
    for records in (128, 256, 512, 1024, 4096):
        found = solve(
            "noise",
            replace(JOB, records=records, mechanism=DPSGD(noise_multiplier=1.0, delta=1e-6)),
        )
        lines.append((f"{records:,}", f"{found.noise:.2f}", f"{found.relative_noise:.4f}"))
    page.table(("texts up to", "noise multiplier", "noise on the mean, in clips"), lines)
    people(page)
    knee(page)
    page.say("## Then")
    page.say(
        "```\n"
        "fedaipc privacy plan --epsilon 2 --records 1000 --rounds 30 --rate 1 --delta 1e-5\n"
        "fedaipc privacy sweep simulations/sweeps/budget.toml   # what it costs on public texts\n"
        "fedaipc simulate simulations/demo.toml --epsilon 2\n"
        "fedaipc privacy certificate issue runs/demo     # what was spent, to be checked\n"
        "```"
    )
    page.say(
        "Sweep on public texts: to choose by results on private ones costs privacy, and "
        "`sweep.html` says how much."
    )
    page.write()


def people(page: Page) -> None:
    page.say("## Several texts of one person on one PC, epsilon 2 for each text")
    found = solve("noise", JOB)
    rows = []
    for count in (1, 2, 5, 10):
        value = found.group_epsilon(count)
        rows.append((count, "nothing is promised" if value is None else f"{value:.2f}"))
    page.table(("texts", "epsilon"), rows)


def knee(page: Page) -> None:
    """The smallest epsilon within a point of the best private one, by validation accuracy."""
    page.say("## What the committed sweep says")
    sweep = json.loads(
        (HERE.parent / "results" / "budget" / "sweep.json").read_text(encoding="utf-8")
    )
    for partition in ("column", "iid"):
        points = [
            point for point in sweep["points"]
            if point["private"] and point["values"]["data.partition"] == partition
        ]  # fmt: skip
        best = max(point["validation_mean"] for point in points)
        enough = [p for p in points if p["validation_mean"] >= best - 0.01]
        chosen = min(enough, key=lambda p: p["values"]["privacy.epsilon"])
        page.say(
            f"Partition {partition}: the smallest epsilon within a point of the best validation "
            f"accuracy ({best:.3f}) is {chosen['values']['privacy.epsilon']:g} "
            f"({chosen['validation_mean']:.3f}; test {chosen['test_mean']:.3f})."
        )


if __name__ == "__main__":
    main()
