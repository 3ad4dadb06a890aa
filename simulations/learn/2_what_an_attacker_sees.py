"""What does the server hold, and what can it read out of it? From the committed audit.

.venv/bin/python simulations/learn/2_what_an_attacker_sees.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from page import Page

from fedaipc.report.formatting import at_least, at_most

HERE = Path(__file__).parent
WORDS = 30


def main() -> None:
    page = Page(__file__)
    path = HERE.parent / "results" / "audit" / "audit.json"
    audit: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    page.say("# What an attacker sees")
    page.say(
        "Three attacks on real runs of the main task, made by "
        "`fedaipc privacy audit simulations/audit.toml`: the strongest first."
    )
    words(page, audit)
    canaries(page, audit)
    membership(page, audit)
    page.write()


def words(page: Page, audit: dict[str, Any]) -> None:
    found = audit["inversion"]
    page.say("## Words out of updates")
    page.say("One PC holds these texts, and trains all layers for one step:")
    page.say("\n".join(f"- {text}" for text in found["texts"]))
    for reading in found["readings"]:
        shown = [
            f"**{word}**" if right else word
            for word, right in zip(reading["words"], reading["right"], strict=True)
        ][:WORDS]
        page.say(
            f"From {reading['source']}: {reading['recall']:.0%} of its words "
            f"(by chance {reading['chance']:.1%})."
        )
        page.say("> " + " ".join(shown).replace("#", "\\#"))
    page.say(
        "An open update without noise lists the words, in the order of how much they moved. "
        "Noise drowns them, sealing hides them, and the sum that a sealed round opens mixes "
        "the words of all PCs: without noise it still says that somebody wrote them. That is "
        "why fedaipc does both."
    )


def canaries(page: Page, audit: dict[str, Any]) -> None:
    page.say("## Canaries")
    page.say(
        f"{audit['pcs'] * audit['canaries']} texts were each in or out of the data by a coin; "
        "a server that knows everything else and gets every single update, unsealed, guessed "
        "the coins."
    )
    page.table(
        ("setting", "promised at most", "reached at least", "right guesses"),
        [
            (
                name(one),
                "nothing" if one["canary"]["promised"] is None
                else at_most(one["canary"]["promised"], 2),
                at_least(one["canary"]["bound"]["lower"], 2),
                f"{one['canary']['bound']['right']} of {one['canary']['bound']['guesses']}",
            )
            for one in audit["settings"]
        ],
    )  # fmt: skip
    page.say(
        "Promise and attack bracket the truth. With 800 coins no attack can show more than "
        "about 5, so the first row means: every coin was read."
    )


def membership(page: Page, audit: dict[str, Any]) -> None:
    rows = []
    for one in audit["settings"]:
        found = one["membership"]
        if found is None:
            continue
        for kind in ("likelihood_ratio", "loss"):
            curve = found[kind]
            rows.append(
                (name(one), kind.replace("_", " "), f"{curve['auc']:.3f}",
                 f"{curve['tpr_at_01_percent']:.2%}", f"{curve['tpr_at_1_percent']:.2%}")
            )  # fmt: skip
    if not rows:
        return
    page.say("## The released model alone")
    page.say(
        "Somebody who sees only the final model asks: was this text trained on? The true positive "
        "rate (TPR) is how many members are found. The false positive rate (FPR) is how many "
        "outsiders are called members."
    )
    page.table(
        ("setting", "attack", "AUC (area under the curve)", "TPR at 0.1 % FPR", "TPR at 1 % FPR"),
        rows,
    )
    page.say(
        "A head of 770 numbers on a frozen base memorises almost nothing, so this attack is weak "
        "even without privacy; the server's view above is what counts."
    )


def name(one: dict[str, Any]) -> str:
    return "not private" if one["epsilon"] is None else f"epsilon {one['epsilon']:g}"


if __name__ == "__main__":
    main()
