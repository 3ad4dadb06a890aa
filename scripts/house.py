"""Draw docs/images/house.svg: the packages, and who may import whom, from tests/test_layers.py.

    .venv/bin/python scripts/house.py

A package stands above everything that it may import. tests/test_house.py compares the file with
what this script draws.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "images" / "house.svg"
GROUND = "basics"
# What each package is for, in the words of its own first line.
ABOUT = {
    "cli": "the command line",
    "api": "import fedaipc as fa",
    "opacus": "clipping for Opacus",
    "lab": "plan, sweep, audit",
    "planning": "a fleet, predicted",
    "certificate": "signed costs, checked",
    "doctor": "what a PC can do",
    "simulation": "many PCs, one machine",
    "fleet": "real processes",
    "federation": "members, signed jobs",
    "coordinator": "the server's side",
    "client": "the PC's side",
    "protocol": "what both sides agree on",
    "secagg": "secure aggregation",
    "privacy": "DP-SGD, accounting, ledger",
    "model": "the text classifier",
    "data": "texts and labels",
    "report": "tables, plots, pages",
    "results": "what a run writes",
    GROUND: "config, errors, files, machine and other modules that know nothing of the rest",
}
_PAGE, _LEFT, _HEIGHT, _GAP = 760, 60, 48, 8


def allowed() -> dict[str, set[str]]:
    """The import rule between packages; the basic modules are one."""
    spec = importlib.util.spec_from_file_location("layers", ROOT / "tests" / "test_layers.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError("tests/test_layers.py")
    layers = importlib.util.module_from_spec(spec)
    sys.modules["layers"] = layers  # its dataclass looks the module up
    spec.loader.exec_module(layers)
    ground: set[str] = layers._GROUND  # noqa: SLF001 - the rule's own list
    rule = {name: uses for name, uses in layers.ALLOWED.items() if name and name not in ground}
    return {
        name: {GROUND if one in ground else one for one in uses} for name, uses in rule.items()
    } | {GROUND: set()}


def rows(rule: dict[str, set[str]]) -> list[list[str]]:
    """From the bottom up: each package in the lowest row above all that it may import."""
    level: dict[str, int] = {}
    while len(level) < len(rule):
        for name, uses in rule.items():
            if name not in level and uses <= set(level):
                level[name] = 1 + max((level[one] for one in uses), default=-1)
    order = list(ABOUT)
    return [
        sorted((name for name in level if level[name] == row), key=order.index)
        for row in range(max(level.values()) + 1)
    ]


def draw() -> str:
    floors = rows(allowed())
    height = len(floors) * (_HEIGHT + _GAP) + _GAP
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_PAGE} {height}" role="img" '
            'font-family="system-ui, sans-serif" text-anchor="middle">'
        ),
        "<title>The packages of fedaipc: each may import only what stands below it</title>",
        f'<rect width="{_PAGE}" height="{height}" fill="#fff"/>',
        (
            f'<path d="M26 {_GAP}V{height - _GAP - 10}M19 {height - _GAP - 14}l7 14 7 -14z" '
            'fill="#0072b2" stroke="#0072b2" stroke-width="2"/>'
        ),
        (
            f'<text transform="translate(48 {height / 2:g}) rotate(-90)" font-size="13" '
            'fill="#444">may import</text>'
        ),
    ]
    for row, names in enumerate(floors):
        y = height - (row + 1) * (_HEIGHT + _GAP)
        width = (_PAGE - _LEFT - _GAP - (len(names) - 1) * _GAP) / len(names)
        for number, name in enumerate(names):
            x = _LEFT + number * (width + _GAP)
            parts += [
                (
                    f'<rect x="{x:g}" y="{y}" width="{width:g}" height="{_HEIGHT}" rx="4" '
                    'fill="#eef4fa" stroke="#0072b2"/>'
                ),
                (
                    f'<text x="{x + width / 2:g}" y="{y + 20}" font-size="14" font-weight="600" '
                    f'fill="#1a1a1a">{escape(name)}</text>'
                ),
                (
                    f'<text x="{x + width / 2:g}" y="{y + 37}" font-size="12" '
                    f'fill="#444">{escape(ABOUT[name])}</text>'
                ),
            ]
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
