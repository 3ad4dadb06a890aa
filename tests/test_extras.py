"""What `pip install fedaipc` alone must do, and what names the extra that brings the rest."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

import fedaipc
from fedaipc import extras
from fedaipc.errors import MissingExtra
from fedaipc.extras import EXTRAS, need

ROOT = Path(fedaipc.__file__).parent
PROJECT = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OPTIONAL = PROJECT["optional-dependencies"]
MADE_ABSENT = f"""
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = name.partition(".")[0] in ABSENT
        return None if absent else super().find_spec(name, path, target)

# Base has the others of [fleet] too: transformers and Flower cannot be had without them.
ABSENT = {set(EXTRAS) - {"anyio", "h11", "httpx"}!r}
sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


def without_extras(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` in an interpreter where nothing that only an extra brings can be found."""
    return subprocess.run(
        [sys.executable, "-c", MADE_ABSENT + code],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=300,
    )


def brought(requirement: Requirement) -> set[str]:
    """The packages that a requirement names, itself and by the extras that it asks for."""
    found = {requirement.name}
    for extra in requirement.extras:
        for line in requires(requirement.name) or []:
            one = Requirement(line)
            if one.marker is not None and "extra" in str(one.marker):
                found |= {one.name} if one.marker.evaluate({"extra": extra}) else set()
    return found


@pytest.mark.parametrize("package", sorted(EXTRAS))
def test_an_extra_brings_the_package_that_names_it(package: str) -> None:
    lines = [Requirement(line) for line in OPTIONAL[EXTRAS[package]]]
    assert package in set().union(*map(brought, lines))


def test_all_holds_every_extra_but_those_of_developers() -> None:
    (every,) = map(Requirement, OPTIONAL["all"])
    assert every.name == "fedaipc"
    assert every.extras == set(OPTIONAL) - {"all", "dev", "docs"} == set(EXTRAS.values())


def test_the_page_on_installing_lists_the_extras() -> None:
    page = (ROOT.parent / "docs/how-to/install.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert sorted(rows) == sorted(set(OPTIONAL) - {"dev", "docs"})


def test_the_error_is_one_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)  # as where it is not installed
    need("a table", "numpy")
    with pytest.raises(MissingExtra) as caught:
        need("a table", "numpy", "pandas")
    told = "a table needs the extra [lab]: pip install "
    assert str(caught.value) == f"{told}'.[lab]' in your clone"
    # Installed from an index, which notes no other place:
    monkeypatch.setattr(extras, "distribution", lambda _: SimpleNamespace(read_text=lambda _: None))
    with pytest.raises(MissingExtra) as caught:
        need("a table", "pandas")
    assert str(caught.value) == f"{told}'fedaipc[lab]'"


@pytest.mark.slow
def test_every_module_but_the_fleets_loads_without_extras(tmp_path: Path) -> None:
    """Not by a detour either: asked of a fresh interpreter."""
    names = [
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
        for path in sorted(ROOT.rglob("[!_]*.py"))
        if path.parent.name != "fleet"
    ]
    assert len(names) > 100
    done = without_extras(
        f"from importlib import import_module\nfor name in {names!r}: import_module(name)", tmp_path
    )
    assert done.returncode == 0, done.stderr


def remedy(what: str, extra: str) -> str:
    return f"{what} needs the extra [{extra}]: pip install '.[{extra}]' in your clone\n"


PROCESS = remedy("a server or client process", "fleet")


@pytest.mark.slow
def test_commands_name_the_extra_that_they_miss(tmp_path: Path) -> None:
    commands = {
        "data describe hf:imdb": remedy("hf:imdb", "hub"),
        "simulate --engine flower": remedy("the engine flower", "flower"),
        "simulate --set output.trackers=['tensorboard']": remedy(
            "the tracker tensorboard", "tensorboard"
        ),
        "privacy sweep search.toml --out out": remedy("[search]", "lab"),
        "server start acme-server": PROCESS,
        "server status --server acme-server": PROCESS,
        "client start": PROCESS,
    }
    (tmp_path / "search.toml").write_text(
        "name = 'a'\n[search]\ntrials = 2\n[search.space]\n"
        "'training.learning_rate' = { low = 0.1, high = 1.0 }\n"
    )
    done = without_extras(
        "from fedaipc.cli.main import run\n"
        f"for words in {list(commands)!r}:\n"
        "    sys.argv = ['fedaipc', *words.split()]\n"
        "    try: run()\n"
        "    except SystemExit as end: print(end.code)",
        tmp_path,
    )
    told = [f"fedaipc: {line}" for line in commands.values()]
    assert done.stderr.splitlines(keepends=True) == told
    assert done.stdout == "16\n" * len(told)
    assert [path.name for path in tmp_path.iterdir()] == ["search.toml"]


@pytest.mark.slow
def test_python_names_the_extra_that_it_misses(tmp_path: Path) -> None:
    calls = {
        "fa.load_data('hf:imdb').labels": remedy("hf:imdb", "hub"),
        "fa.simulate(engine='flower')": remedy("the engine flower", "flower"),
        "fa.simulate(fa.Job(output={'trackers': ['tensorboard']}))": remedy(
            "the tracker tensorboard", "tensorboard"
        ),
        "run.History(()).to_pandas()": remedy("to_pandas (rows() has the same)", "lab"),
        "run.Comparison([]).to_pandas()": remedy("to_pandas (rows() has the same)", "lab"),
        "federation.Signed(Path()).submit('acme-server')": PROCESS,
    }
    done = without_extras(
        "from pathlib import Path\nimport fedaipc as fa\nfrom fedaipc.api import federation, run\n"
        f"for call in {list(calls)!r}:\n"
        "    try: eval(call)\n"
        "    except fa.errors.MissingExtra as error: print(error)",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines(keepends=True) == list(calls.values())
    assert list(tmp_path.iterdir()) == []
