"""Every rule of SPEC.md is named by a test that checks it, and tests name no other rule.

A test names rules in its docstring: "M4", "M1, M2" or "M18 to M22".
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from fedaipc import secagg

TESTS = Path(__file__).parents[1]
SPEC = Path(secagg.__file__).with_name("SPEC.md").read_text(encoding="utf-8")
DEFINED = re.compile(r"\*\*M(\d+)\*\*")
NAMED = re.compile(r"\bM(\d+)(?:\s*(?:\bto\b|-)\s*M(\d+))?\b")


def rules() -> list[int]:
    """Those that SPEC.md defines, in its order."""
    return [int(number) for number in DEFINED.findall(SPEC)]


def named(text: str) -> set[int]:
    """The rules that a text names, with all between the ends of a range."""
    found: set[int] = set()
    for first, last in NAMED.findall(text):
        found.update(range(int(first), int(last or first) + 1))
    return found


def docstrings(source: str) -> Iterator[tuple[str, str]]:
    """Name and docstring of each test function, in classes too."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("test_"):
            yield node.name, ast.get_docstring(node) or ""


@cache
def found() -> dict[str, set[int]]:
    """By test, the rules that it names."""
    return {
        f"{path.relative_to(TESTS)}::{name}": named(docstring)
        for path in sorted(TESTS.rglob("test_*.py"))
        for name, docstring in docstrings(path.read_text(encoding="utf-8"))
    }


def test_the_rules_are_numbered_without_a_gap_and_each_stands_once() -> None:
    assert sorted(rules()) == list(range(1, len(rules()) + 1))
    assert len(rules()) >= 30


def test_what_the_specification_refers_to_is_there() -> None:
    assert named(SPEC.replace("**", "")) == set(rules())


@pytest.mark.parametrize("number", sorted(rules()), ids="M{}".format)
def test_every_rule_is_named_by_a_test(number: int) -> None:
    assert [name for name, numbers in found().items() if number in numbers]


def test_no_test_names_a_rule_that_is_none() -> None:
    unknown = {name: numbers - set(rules()) for name, numbers in found().items()}
    assert {name: numbers for name, numbers in unknown.items() if numbers} == {}


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("M4.", {4}),
        ("M40 and what follows", {40}),
        ("M1, M2: by counting", {1, 2}),
        ("M18 to M22", {18, 19, 20, 21, 22}),
        ("M1 to M4, M8, M9.", {1, 2, 3, 4, 8, 9}),
        ("M21-M23, and M9", {9, 21, 22, 23}),
        ("M3 to\n    M5", {3, 4, 5}),
        ("M3 to come", {3}),
        ("XM4, M4x and m4", set()),
        ("", set()),
    ],
)
def test_a_docstring_names_these_rules(text: str, numbers: set[int]) -> None:
    assert named(text) == numbers


def test_only_docstrings_of_tests_count() -> None:
    source = (
        '"""M1."""\n'
        "def test_one():\n"
        '    """M2."""\n'
        '    said = "M3"  # M4\n'
        "class TestAll:\n"
        '    """M5."""\n'
        "    def test_two(self):\n"
        '        """M6."""\n'
        "def helper():\n"
        '    """M7."""\n'
        "def test_three():\n"
        "    pass\n"
    )
    assert list(docstrings(source)) == [
        ("test_one", "M2."),
        ("test_three", ""),
        ("test_two", "M6."),
    ]
