"""The picture of the packages in CONTRIBUTING.md is the one that the import rule gives."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("house", ROOT / "scripts" / "house.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


house = _load()


def test_the_picture_is_up_to_date() -> None:
    """Else run scripts/house.py."""
    assert house.PICTURE.read_text(encoding="utf-8") == house.draw()


def test_every_package_is_in_the_picture_and_above_what_it_imports() -> None:
    rule = house.allowed()
    assert set(rule) == set(house.ABOUT)
    row = {name: number for number, names in enumerate(house.rows(rule)) for name in names}
    assert all(row[upper] > row[lower] for upper, uses in rule.items() for lower in uses)
