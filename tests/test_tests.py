"""How the tests are arranged: helpers in tests/support, and no file too long to read."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parent
MAX_LINES = 700
FILES = sorted(TESTS.rglob("*.py"))


def imported(source: str) -> set[str]:
    """Modules of the tests that this one imports; `from tests.a import b` may mean two."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            inner = {f"{base}.{alias.name}" for alias in node.names}
            found |= inner if base == "tests" else {base}
    return {name for name in found if name == "tests" or name.startswith(("tests.", "."))}


def other_tests(modules: set[str]) -> set[str]:
    """Those that are neither helpers nor a conftest."""
    return {
        name
        for name in modules
        if not f"{name}.".startswith("tests.support.") and not name.endswith(".conftest")
    }


def test_no_test_imports_another_test() -> None:
    offenders = {
        str(path.relative_to(TESTS)): others
        for path in FILES
        if (others := other_tests(imported(path.read_text(encoding="utf-8"))))
    }
    assert offenders == {}


def test_the_rule_sees_every_way_to_import() -> None:
    source = """
import os, tests.a.test_one
from tests import test_two
from tests.b.test_three import helper
from .test_four import helper
from tests.support.jobs import tiny
if True:
    from fedaipc.tests import nothing
"""
    assert other_tests(imported(source)) == {
        "tests.a.test_one", "tests.test_two", "tests.b.test_three", ".test_four"
    }  # fmt: skip


def test_no_file_is_too_long_to_read() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    too_long = {str(path.relative_to(TESTS)): n for path, n in lines.items() if n > MAX_LINES}
    assert too_long == {}
