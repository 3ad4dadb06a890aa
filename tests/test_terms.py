"""The field's own words in names and messages: the private ones that they replaced are gone."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import fedaipc

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(fedaipc.__file__).parent
PAGES = [PACKAGE.parent / "README.md", *sorted((PACKAGE.parent / "docs").rglob("*.md"))]
# What was replaced, as a name or a part of one between underscores.
WORDS = {
    "sealing": "secagg, aggregation",
    "admission_letters": "enrollment",
    "letter": "enrollment token, request",
    "quarrel": "dispute",
    "quarrels": "disputes",
    "opensum": "PlainSum",
    "dealer": "uploader",
    "dealt": "masked and shared",
    "spool": "upload store",
    "vault": "key store",
    "witness": "peer heads",
    "witnesses": "peer heads",
    "lifeline": "parent watch",
    "canvas": "plot style",
    "tally": "outcome",
    "heard": "observed update",
    "planted": "canary client",
    "room": "buffer",
    "most": "max",
    "least": "min",
    "plan": "schedule",
}
# Ordinary words that stay where they are no name of such a thing.
ALLOWED = {
    "most", "least",  # local variables and fields of a sum's threshold
    "plan",  # the planner's own
    "room",  # what rounding leaves of the clip bound
}  # fmt: skip
PHRASES = (
    "must not hang on", "over another way", "are gone on with", "a public key is none", "void once",
    "a name that is none", "nothing to be said", "what an attack reaches", "mode `local`",
    "mode local", "sealing.mode", "drop_out", "exact_sums", "lora_rank", "partition_column",
)  # fmt: skip


def names(source: str) -> Iterator[str]:
    """Of modules, classes, functions and settings: what somebody else would have to type."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                    yield line.target.id


def parts(name: str) -> set[str]:
    return {part.lower() for part in re.split(r"_|(?<=[a-z])(?=[A-Z])", name) if part}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_no_name_is_of_the_private_language(path: Path) -> None:
    found = {*names(path.read_text(encoding="utf-8")), path.stem, path.parent.name}
    wrong = {n: WORDS[p] for n in found for p in parts(n) & (set(WORDS) - ALLOWED)}
    assert not wrong, f"say instead: {wrong}"
    assert not {n for n in found if n.startswith(("most_", "least_"))}, "max_ and min_"


@pytest.mark.parametrize(
    "path", [*sorted(PACKAGE.rglob("*.py")), *PAGES], ids=lambda path: path.name
)
def test_no_message_and_no_page_has_a_translated_phrase(path: Path) -> None:
    text = " ".join(path.read_text(encoding="utf-8").lower().split())
    assert not [phrase for phrase in PHRASES if phrase in text]


def test_the_words_of_the_field_are_in_the_first_pages() -> None:
    text = " ".join(page.read_text(encoding="utf-8") for page in PAGES)
    for word in (
        "DP-SGD", "per-sample gradient", "Poisson", "secure aggregation", "dropout", "Byzantine",
        "accountant", "membership inference", "canar", "book-keeping", "ghost",
    ):  # fmt: skip
        assert word.lower() in text.lower(), word
