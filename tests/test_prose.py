"""The check of the project's English finds bad sentences, and lets good ones pass."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prose", ROOT / "scripts" / "prose.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["prose"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


prose = _load()


def rules(page: str) -> list[str]:
    texts = prose.markdown(page, "page.md")
    return sorted({one.rule for one in prose.findings(texts) + prose.undefined(texts)})


@pytest.mark.parametrize(
    ("sentence", "rule"),
    [
        ("The owner sends the enrollment letter back.", "private"),
        ("Its keys lie in the vault.", "private"),
        ("Drop-outs cost their own part.", "private"),
        ("A sum must not hang on one record.", "idiom"),
        ("The older copy was gone on with.", "idiom"),
        ("Enroll this PC anew.", "idiom"),
        ("Nobody but the PC can read it.", "idiom"),
        ("This is no key for Flower.", "riddle"),
        ("A public key is none.", "riddle"),
        ("There is no message that could tell a count.", "riddle"),
        ("It is not unlikely to fail.", "riddle"),
        ("Simply run the demo.", "filler"),
        ("It is easy to add a model.", "filler"),
        ("The MIA finds members.", "acronym"),
        (f"The server {'sends a message and ' * 10}waits.", "long"),
    ],
)
def test_a_bad_sentence_is_found(sentence: str, rule: str) -> None:
    assert rule in rules(sentence)


@pytest.mark.parametrize(
    "page",
    [
        "The server sees the sum of the updates. It cannot read a single one.",
        "Run `just` and `simply` as they are.",
        "```\nsimply the vault is none\n```",
        "Membership inference (MIA) asks who was in the data. The MIA finds members.",
        "See [the page](vault/simply.md) and <https://vault.example>.",
        "<!-- prose: off -->\nSimply the vault.\n<!-- prose: on -->",
        "<!-- a vault -->",
        "The value is None where no budget is set. This is no longer true.",
        f"| {'a cell of words ' * 20} | b |",
        "- one thing of a few words\n" * 20,
        "There is no server yet. That costs nothing.",
    ],
)
def test_a_good_page_passes(page: str) -> None:
    assert rules(page) == []


def test_an_acronym_may_be_explained_in_the_glossary() -> None:
    texts = prose.markdown("The MIA finds members.", "page.md")
    assert prose.undefined(texts)
    assert not prose.undefined(texts, elsewhere="Membership inference (MIA): who was in the data.")


def test_a_finding_says_where_it_is() -> None:
    texts = prose.markdown("# Title\n\nGood.\n\n- a\n- the vault\n", "page.md")
    assert [str(one) for one in prose.findings(texts)] == ["page.md:6: private: 'vault': key store"]


def test_a_boxed_note_is_read_and_a_fenced_block_is_not() -> None:
    page = "```{note}\nsimply\n```\n\n:::{tip}\neasily\n:::\n\n```bash\nobviously\n```\n"
    assert [one.what for one in prose.findings(prose.markdown(page, "p"))] == [
        "'simply': leave it out",
        "'easily': leave it out",
    ]


def test_code_is_read_where_people_read_it() -> None:
    source = '''
"""A module of the vault.

    row one    simply
    $ simply
"""

def f():
    # a comment about
    # witnesses
    vault = "vault"  # a name and a key are not read
    raise ConfigError(f"{vault}: simply give "
                      f"another {name}")
'''
    found = prose.findings(prose.python(source, "f.py"))
    assert [(one.line, one.rule) for one in found] == [
        (2, "private"),
        (4, "filler"),
        (12, "filler"),
        (9, "private"),
    ]


def test_a_notebook_is_read_by_cells() -> None:
    cells = [
        {"cell_type": "code", "source": ["simply = 1"]},
        {"cell_type": "markdown", "source": ["# A\n", "simply\n"]},
    ]
    texts = prose.notebook(json.dumps({"cells": cells}), "n.ipynb")
    assert [one.place for one in prose.findings(texts)] == ["n.ipynb, cell 2"]


def test_a_template_is_read_between_its_tags() -> None:
    page = "<style>simply {}</style>{% if easy %}<p class='easy'>This is <b>simply</b> {{ x }}</p>"
    assert len(prose.findings(prose.template(page, "p.html"))) == 1


def test_help_texts_of_all_commands_are_read() -> None:
    places = {text.place for text in prose.command_help()}
    assert {"fedaipc privacy plan --help", "fedaipc privacy plan --epsilon"} <= places


def test_the_waiting_list_names_pages_that_exist_and_never_grows() -> None:
    waiting = prose.vocabulary().waiting
    assert [name for name in waiting if not (ROOT / name).is_file()] == []
    assert len(waiting) == 0  # every page is clean: keep it so
    assert not [name for name in waiting if name.endswith(".py")]
