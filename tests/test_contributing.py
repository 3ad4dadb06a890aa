"""What CONTRIBUTING.md, SECURITY.md and the forms name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = ("CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "CHANGELOG.md")
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


@pytest.mark.parametrize("page", PAGES)
def test_links_and_scripts_of_a_page_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    named = re.findall(
        r"`(?:\.venv/bin/python )?((?:scripts|tests|docs|simulations|fedaipc)/[\w./-]+)", text
    )
    assert [one for one in [*links, *named] if not (ROOT / one).exists()] == []


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_a_form_has_what_github_asks_for(form: Path) -> None:
    tree = yaml.safe_load(form.read_text(encoding="utf-8"))
    if form.stem == "config":
        return
    assert {"name", "description", "body"} <= set(tree)
    fields = [part for part in tree["body"] if part["type"] != "markdown"]
    assert len({part["id"] for part in fields}) == len(fields) > 0
    assert all(part["attributes"]["label"] for part in fields)


def test_hooks_call_the_tools_of_the_environment_and_fetch_nothing() -> None:
    tree = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repo in tree["repos"] for hook in repo["hooks"]]
    assert {repo["repo"] for repo in tree["repos"]} == {"local"}
    assert all(hook["entry"].startswith(".venv/bin/") for hook in hooks)
    assert {hook["language"] for hook in hooks} == {"system"}


def test_the_marks_of_tests_are_explained() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    config = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    marks = re.findall(r'^  "(\w+): ', config, re.MULTILINE)
    assert marks
    assert [mark for mark in marks if f"`{mark}`" not in text] == []


def test_the_report_channel_is_a_marked_placeholder_or_filled_in() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert ("Maintainers: fill this in" in text) == ("SECURITY-CONTACT-TO-BE-NAMED" in text)
