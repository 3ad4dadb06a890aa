"""The documentation is true: links lead somewhere, code runs, and the reference is whole.

All Python blocks of a page are run in order, in a folder that holds nothing but a small
`reviews.csv` (body, stars, customer); `<!-- not run: why -->` on the line above a block leaves it
out. Its names are checked in any case. `<!-- prints -->` above the
block behind it holds that block to what was printed.
"""

from __future__ import annotations

import ast
import csv
import dataclasses
import importlib
import inspect
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

import fedaipc as fa
from fedaipc import errors
from fedaipc.cli.main import app
from fedaipc.client.disclosure_log import Disclosure
from fedaipc.config import OwnerSettings, Settings, describe_fields
from fedaipc.lab.audit.bound import Bound
from fedaipc.lab.audit.canary import CanaryAudit
from fedaipc.lab.audit.inversion import Inversion, Reading
from fedaipc.lab.audit.membership import Curve, Membership
from fedaipc.lab.audit.report import AuditReport, Setting
from fedaipc.lab.sweep.cells import Rule, Search, Space, Sweep, sweep_from
from fedaipc.lab.sweep.table import Point, Row
from fedaipc.planning.fleet import fleet_from
from tests.support.commands import all_commands
from tests.support.pages import DOCS, ROOT, Block, anchors_of, blocks_of, links_of, pages, prose_of
from tests.support.small import ROWS

REFERENCE = DOCS / "reference"
PUBLIC = ("fedaipc", "fedaipc.privacy", "fedaipc.opacus", "fedaipc.errors")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def script(place: str) -> ModuleType:
    spec = spec_from_file_location(Path(place).stem, ROOT / place)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def python_blocks() -> list[Any]:
    return [
        pytest.param(block, id=f"{name(page)}:{block.line}")
        for page in pages()
        for block in blocks_of(page)
        if block.language in ("python", "py")
    ]


# Links.


@pytest.mark.parametrize("page", pages(), ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    wrong = []
    for link in links_of(page):
        if re.match(r"[a-z][a-z+.-]*:", link):
            continue
        place, _, anchor = link.partition("#")
        target = Path(os.path.normpath(page.parent / place)) if place else page
        if not target.exists():
            wrong.append(f"{link}: no such file")
        elif ROOT not in (target, *target.parents):
            wrong.append(f"{link}: leads out of the repository")
        elif anchor and anchor not in anchors_of(target):
            wrong.append(f"{link}: no such heading")
    assert not wrong


# Commands.


@cache
def commands() -> Any:
    return typer.main.get_command(app)


SOURCES = [p for p in (ROOT / "fedaipc").rglob("*.py") if "`fedaipc " in p.read_text("utf-8")]


@pytest.mark.parametrize("page", [*pages(), *sorted(SOURCES)], ids=name)
def test_every_command_and_option_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    code = "" if page.suffix == ".py" else "\n".join(block.code for block in blocks_of(page))
    typed = r"(?m)^ *(?:\$ )?(?:\.venv/bin/)?fedaipc ([a-z-].*)$"
    lines = re.findall(typed, code.replace("\\\n", " "))
    lines += re.findall(r"`fedaipc ([a-z-][^`{}]*)`", text)
    for line in lines:
        command: Any = commands()
        words = line.partition("#")[0].split()
        while hasattr(command, "commands") and words and not words[0].startswith("-"):
            assert words[0] in command.commands, line
            command = command.commands[words.pop(0)]
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        named = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert named <= known, line


# Code.


@pytest.mark.parametrize("block", python_blocks())
def test_python_uses_public_names_that_exist(block: Block) -> None:
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fedaipc"):
            assert node.module in PUBLIC
            module = importlib.import_module(node.module)
            assert not [one.name for one in node.names if not hasattr(module, one.name)]
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("fa."):
            _is_public(ast.unparse(node))


@pytest.mark.parametrize("page", pages(), ids=name)
def test_prose_names_what_is_public(page: Path) -> None:
    for found in re.findall(r"`(fa\.\w+(?:\.\w+)?)", prose_of(page)):
        _is_public(found)


def _is_public(chain: str) -> None:
    first, *rest = re.split(r"\W", chain.removeprefix("fa."))
    assert first in fa.__all__ or first == "__version__", chain
    found = getattr(fa, first)
    if rest and isinstance(found, ModuleType):
        assert rest[0] in getattr(found, "__all__", vars(found)), chain
    elif rest and isinstance(found, type):
        assert hasattr(found, rest[0]), chain


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [p for p in pages() if any(one.is_run for one in blocks_of(p))], ids=name
)
def test_python_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minilm: Path, sentiment: Path
) -> None:
    del minilm, sentiment
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "reviews.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("body", "stars", "customer"))
        table.writerows((text, label, number // 12) for number, (text, label) in enumerate(ROWS))
    code = ["import warnings; warnings.simplefilter('ignore')"]
    wanted = []
    blocks = [one for one in blocks_of(page) if one.is_run or one.mark == "<!-- prints -->"]
    for block in blocks:
        if block.is_run:
            code.append(block.code)
        else:
            wanted.append(block.code.strip())
    (tmp_path / "page.py").write_text("\n".join(code), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "page.py"], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert not [text for text in wanted if text not in done.stdout], done.stdout


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=f"{name(page)}:{block.line}")
        for page in pages()
        for block in blocks_of(page)
        if block.language == "toml"
    ],
)
def test_toml_has_keys_that_are_known(block: Block) -> None:
    tree = tomllib.loads(block.code)
    if {"grid", "cells", "search"} & set(tree):
        sweep_from(tree)
        return
    if "classes" in tree:
        fleet_from(tree)
        return
    paths = {path for model in (Settings, OwnerSettings) for path, _, _ in describe_fields(model)}
    paths |= {path.removesuffix(".kind") for path in paths}
    if "project" not in tree:  # of a package that registers something
        assert not set(_leaves(tree)) - paths


def _leaves(tree: dict[str, Any], before: str = "") -> list[str]:
    found = []
    for key, value in tree.items():
        path = f"{before}{key}"
        found += _leaves(value, f"{path}.") if isinstance(value, dict) else [path]
    return found


# The reference.


def test_the_reference_is_what_the_code_says() -> None:
    reference = script("scripts/reference.py")
    stale = [p.name for p, text in reference.written().items() if p.read_text("utf-8") != text]
    assert not stale, "run python scripts/reference.py"


def test_every_public_name_stands_in_the_reference() -> None:
    page = (REFERENCE / "python.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"auto(?:class|function|module):: (\S+)", page))
    names = {f"fedaipc.{name}" for name in fa.__all__} - {"fedaipc.privacy", "fedaipc.errors"}
    names |= {f"fedaipc.privacy.{name}" for name in fa.privacy.__all__}
    assert names <= listed
    assert all(name in page for name in fa.opacus.__all__)
    for listed_name in listed:
        module, _, own = listed_name.rpartition(".")
        assert hasattr(importlib.import_module(module), own), listed_name


def test_every_error_stands_in_the_reference_with_what_to_do() -> None:
    page = (REFERENCE / "exit-codes.md").read_text(encoding="utf-8")
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.FedaipcError):
            assert f"## {kind.__name__}\n\n**Exit code {kind.exit_code}.** " in page
            assert len(inspect.cleandoc(kind.__doc__ or "").split("\n\n")) == 2, kind


def test_every_command_and_option_stands_in_the_reference() -> None:
    page = (REFERENCE / "cli.md").read_text(encoding="utf-8")
    for words, command in all_commands().items():
        if not words or hasattr(command, "commands"):
            continue
        title = f"fedaipc {' '.join(words)}"
        part = re.search(rf"(?ms)^#+ {title}\n(.*?)(?=^#|\Z)", page)
        assert part is not None, words
        for one in command.params:
            assert one.help, (words, one.name)
            assert all(f"`{option}`" in part[1] for option in one.opts if option[0] == "-")


@pytest.mark.parametrize("model", [Settings, OwnerSettings])
def test_every_key_stands_in_the_reference_with_its_meaning(model: Any) -> None:
    page = (REFERENCE / "configuration.md").read_text(encoding="utf-8")
    for path, _, meaning in describe_fields(model):
        assert f"| `{path}` |" in page, path
        assert meaning, path


@pytest.mark.parametrize("model", [Sweep, Rule, Search, Space])
def test_every_key_of_a_sweep_has_its_meaning(model: Any) -> None:
    assert all(field.description for field in model.model_fields.values())


def test_every_field_of_a_result_has_its_meaning() -> None:
    reference = script("scripts/reference.py")
    for model in reference.SCHEMAS.values():
        schema = reference.schema_of(model)
        for part in (schema, *schema["$defs"].values()):
            for field, facts in part["properties"].items():
                assert facts.get("description"), (part["title"], field)


@pytest.mark.parametrize(
    "model",
    [AuditReport, Setting, CanaryAudit, Bound, Membership, Curve, Inversion, Reading, Row, Point],
)
def test_fields_of_audits_and_sweeps_stand_in_the_reference(model: Any) -> None:
    page = (REFERENCE / "results.md").read_text(encoding="utf-8")
    names = {field.name for field in dataclasses.fields(model)} | set(Disclosure.model_fields)
    assert not [name for name in names if f"`{name}`" not in page]


def public_objects() -> list[Any]:
    found: dict[str, Any] = {}
    for module in PUBLIC:
        holder = importlib.import_module(module)
        names = getattr(holder, "__all__", [])
        found |= {f"{module}.{one}": getattr(holder, one) for one in names}
    return [pytest.param(one, id=path) for path, one in found.items()]


@pytest.mark.parametrize("public", public_objects())
def test_every_public_name_says_what_it_is(public: Any) -> None:
    assert inspect.getdoc(public)
    if not isinstance(public, type):
        return
    for base in public.__mro__:
        if not base.__module__.startswith("fedaipc."):
            continue
        for own, value in vars(base).items():
            inner = value.fget if isinstance(value, property) else value
            if not own.startswith("_") and (
                inspect.isfunction(inner) or isinstance(value, property)
            ):
                assert inspect.getdoc(getattr(public, own)), f"{base.__name__}.{own}"


# The site.


@pytest.mark.parametrize("part", ["tutorials", "how-to", "reference", "explanation"])
def test_every_page_is_listed_in_its_part(part: str) -> None:
    index = DOCS / part / "index.md"
    listed = {link.partition("#")[0] for link in links_of(index)}
    tables = "\n".join(b.code for b in blocks_of(index) if b.language == "{toctree}").split("\n")
    for page in (DOCS / part).glob("*.md"):
        assert page == index or (page.name in listed and page.stem in tables), page


def test_links_are_turned_for_the_site(tmp_path: Path) -> None:
    source = script("scripts/docs_source.py")
    places = source.layout()
    page = DOCS / "index.md"
    turned = source.turned(
        page,
        "[a](../README.md#b) [c\nd](../scripts) [e](how-to/index.md)\n```\n[f](../x.md)\n```\n",
        tmp_path,
        places,
    )
    assert turned == (
        "[a](repository/README.md#b) c\nd [e](how-to/index.md)\n```\n[f](../x.md)\n```\n"
    )


def test_a_site_that_loads_something_is_found(tmp_path: Path) -> None:
    source = script("scripts/docs_source.py")
    (tmp_path / "a.html").write_text('<a href="https://flower.ai">x</a><img src="b.png">')
    assert not source.loaded_from_elsewhere(tmp_path)
    (tmp_path / "b.html").write_text('<script src="https://cdn.example/x.js"></script>')
    assert len(source.loaded_from_elsewhere(tmp_path)) == 1
