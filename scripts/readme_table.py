#!/usr/bin/env python3
"""Write the README's figures from simulations/results/*.json; --check only compares.

Run it with .venv/bin/python.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

from rich.console import Console

from fedaipc.report.tables import summary
from fedaipc.results import Results

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "simulations" / "results"
ORDER = ("alone-by-domain", "alone-iid", "central", "federated", "private-8")


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    wanted = between(between(text, "results", table()), "demo", f"```\n{demo()}\n```")
    if "--check" not in sys.argv:
        readme.write_text(wanted, encoding="utf-8")
    elif wanted != text:
        sys.exit("README.md differs from simulations/results; run scripts/readme_table.py")


def between(text: str, name: str, content: str) -> str:
    """`text` with what stands between the two marks of `name` replaced."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{content}\n{end}{after}"


def table() -> str:
    """A row per claim: mean and standard deviation over the seeds."""
    rows = ["| what | privacy | test accuracy | macro-F1 |", "|---|---|---|---|"]
    for claim in ORDER:
        result = json.loads((RESULTS / f"{claim}.json").read_text(encoding="utf-8"))
        privacy = result["runs"][0].get("privacy", {"mode": "none"})
        promise = "none"
        if privacy["mode"] != "none":
            spent = max(run["epsilon_charged"] for run in result["runs"])
            promise = f"epsilon {spent:.2f}, delta {privacy['delta']:g}"
        rows.append(
            f"| {result['what']} | {promise} | {result['test_accuracy_mean']:.3f} "
            f"± {result['test_accuracy_deviation']:.3f} | {result['test_macro_f1_mean']:.3f} |"
        )
    return "\n".join(rows)


def demo() -> str:
    """What the demo printed, drawn again from its results."""
    results = Results.model_validate_json((RESULTS / "demo.json").read_text(encoding="utf-8"))
    out = io.StringIO()
    Console(file=out, width=80, color_system=None, force_terminal=False).print(summary(results))
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


if __name__ == "__main__":
    main()
