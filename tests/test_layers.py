"""The import rule: who may import whom, who may touch Flower, and what --help must not load."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import fedaipc
from fedaipc.extras import EXTRAS

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(fedaipc.__file__).parent

_GROUND = {
    "bounds", "errors", "extras", "config", "files", "parent_watch", "machine", "stopping",
    "streams", "strict_json", "surroundings", "terminal",
}  # fmt: skip
_LEARNING = _GROUND | {"results", "data", "model", "privacy"}
ALLOWED: dict[str, set[str]] = {
    "": {"api", "config", "data", "privacy", "report", "opacus", "errors"},  # names, when asked for
    "bounds": set(),
    "errors": set(),
    "extras": {"errors"},
    "files": set(),
    "parent_watch": set(),
    "machine": set(),
    "stopping": set(),
    "streams": set(),
    "surroundings": set(),
    "strict_json": set(),
    "terminal": set(),
    "config": {"bounds", "errors", "strict_json"},
    "results": _GROUND,
    "data": _GROUND,
    "model": _GROUND | {"results", "data"},
    "privacy": _GROUND | {"results", "data", "model"},
    "secagg": {"errors"},
    "doctor": _LEARNING | {"secagg"},
    "protocol": _LEARNING | {"secagg"},
    "client": _LEARNING | {"secagg", "protocol"},
    "coordinator": _LEARNING | {"secagg", "protocol"},
    "federation": _LEARNING | {"secagg", "protocol"},
    "certificate": _LEARNING | {"secagg", "protocol", "client", "report"},
    "simulation": _LEARNING | {"secagg", "protocol", "client", "coordinator", "federation"},
    "report": _GROUND | {"results"},
    "lab": _LEARNING
    | {"secagg", "protocol", "client", "coordinator", "federation", "simulation", "report"},
    "planning": _LEARNING | {"secagg", "protocol", "report", "doctor"},
    "fleet": _LEARNING | {"secagg", "protocol", "client", "coordinator"},
    "api": _LEARNING
    | {"secagg", "protocol", "federation", "simulation", "fleet", "report", "doctor", "lab"}
    | {"planning"},
    "opacus": {"errors", "privacy"},
    "cli": _LEARNING
    | {"secagg", "protocol", "client", "coordinator", "federation", "simulation", "fleet"}
    | {"report", "doctor", "lab", "certificate", "planning"},
}
LIGHT = {"", *_GROUND, "results", "data", "report", "cli"}
PLAIN = {"bounds", "files", "strict_json", "terminal"}  # the standard library alone
HEAVY = {"torch", "transformers", "opacus", "peft", "flwr", "dp_accounting", *EXTRAS}
FLOWER = {"protocol", "client", "coordinator", "simulation", "fleet"}  # may use its public API
FLOWER_API = {"flwr.app", "flwr.clientapp", "flwr.serverapp"}
# What touches Flower's internals: a change of Flower's version is looked at here.
INSIDE = {
    "fedaipc.simulation.flower_adapter",
    *(
        f"fedaipc.fleet.{m}"
        for m in (
            "answers",
            "clients",
            "grid",
            "guard",
            "node",
            "node_auth",
            "registry",
            "superlink",
            "wire",
        )
    ),
}
ENGINE = "fedaipc.simulation.flower_engine"


@dataclass(frozen=True)
class Import:
    """One imported module; `at_once` if importing the importer runs it."""

    name: str
    at_once: bool


def imports(source: str) -> list[Import]:
    """All imports of a module, with those in functions and under TYPE_CHECKING."""
    return list(_walk(ast.parse(source), at_once=True))


def _walk(node: ast.AST, *, at_once: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, at_once)
    elif isinstance(node, ast.ImportFrom):
        if node.level:
            raise ValueError("relative imports hide where they go")
        if node.module == "fedaipc":  # its names are modules, but for its version
            for alias in node.names:
                whole = "fedaipc" if alias.name == "__version__" else f"fedaipc.{alias.name}"
                yield Import(whole, at_once)
        else:
            yield Import(str(node.module), at_once)
    elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        for child in node.body:
            yield from _walk(child, at_once=False)
        for child in node.orelse:
            yield from _walk(child, at_once=at_once)
    else:
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.iter_child_nodes(node):
            yield from _walk(inner, at_once=at_once and not inside)


def complaints(module: str, source: str) -> list[str]:
    """What a module imports against the rule."""
    layer = _layer(module)
    found = []
    for one in imports(source):
        top = one.name.partition(".")[0]
        if top == "fedaipc":
            other = _layer(one.name)
            if other not in ALLOWED[layer] | {layer, ""}:
                found.append(f"{module} imports {one.name}: {layer} must not know {other}")
            if one.at_once and layer == "cli" and other not in LIGHT:
                found.append(f"{module} imports {one.name} at once: --help would load it")
        elif layer in PLAIN and top not in sys.stdlib_module_names:
            found.append(f"{module} imports {one.name}: {layer} needs the standard library alone")
        elif top == "flwr" and (layer not in FLOWER or module == ENGINE):
            found.append(f"{module} imports {one.name}: Flower belongs to the round's two sides")
        elif top == "flwr" and one.name not in FLOWER_API and module not in INSIDE:
            found.append(f"{module} imports {one.name}: Flower's internals belong to the adapter")
        elif one.at_once and EXTRAS.get(top, layer) != layer:
            found.append(f"{module} imports {one.name} at once: the extra may not be there")
        elif top in HEAVY and one.at_once and layer in LIGHT:
            found.append(f"{module} imports {one.name} at once: import it where it is used")
    return found


def _layer(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def _modules() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


@pytest.mark.parametrize("module", sorted(_modules()))
def test_a_module_imports_only_what_its_layer_may_know(module: str) -> None:
    assert complaints(module, _modules()[module].read_text(encoding="utf-8")) == []


def test_every_folder_and_file_of_the_package_has_its_layer() -> None:
    assert {_layer(module) for module in _modules()} <= set(ALLOWED)


def test_the_arrows_between_layers_make_no_circle() -> None:
    done: set[str] = set()
    while len(done) < len(ALLOWED):
        ready = {layer for layer in ALLOWED if layer not in done and ALLOWED[layer] <= done}
        assert ready, f"a circle among {set(ALLOWED) - done}"
        done |= ready


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fedaipc.errors", "import fedaipc.files"),
        ("fedaipc.files", "from fedaipc.errors import OutputError"),
        ("fedaipc.files", "import numpy"),
        ("fedaipc.strict_json", "import pydantic"),
        ("fedaipc.config", "from fedaipc import results"),
        ("fedaipc.results", "from fedaipc.report import formatting"),
        ("fedaipc.data.sources", "def f():\n    from fedaipc.model.load import resolve"),
        ("fedaipc.model.load", "import fedaipc.privacy.budget"),
        ("fedaipc.privacy.budget", "if TYPE_CHECKING:\n    from fedaipc.protocol.job import Job"),
        ("fedaipc.secagg.shares", "from fedaipc.config import Settings"),
        ("fedaipc.client.client", "from fedaipc.report import tables"),
        ("fedaipc.client.client", "from fedaipc.cli import main"),
        ("fedaipc.report.html", "from fedaipc.data.records import Records"),
        ("fedaipc.privacy.ledger", "import flwr.app"),
        ("fedaipc.coordinator.server_app", "from flwr.common import Context"),
        ("fedaipc.coordinator.server_app", "import flwr"),
        (
            "fedaipc.coordinator.server_app",
            "def f():\n    from flwr.app.message import make_message",
        ),
        (ENGINE, "from flwr.app import Message"),
        ("fedaipc.cli.main", "import flwr"),
        ("fedaipc.cli.main", "from fedaipc.simulation import simulation"),
        ("fedaipc.client.trainer", "from fedaipc.coordinator import aggregation"),
        ("fedaipc.coordinator.aggregation", "from fedaipc.federation.key import Admission"),
        ("fedaipc.cli.main", "try:\n    from fedaipc.model import load\nexcept ImportError: ..."),
        ("fedaipc.config", "import torch"),
        ("fedaipc.data.records", "class A:\n    import transformers.models"),
        ("fedaipc.report.plots", "if True:\n    from peft import PeftModel"),
        ("fedaipc.data.sources", "import datasets"),
        ("fedaipc.coordinator.exchange", "from httpx import Client"),
    ],
)
def test_the_checker_finds_a_forbidden_import(module: str, source: str) -> None:
    assert len(complaints(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fedaipc.cli.simulate", "def f():\n    from fedaipc.simulation import simulation"),
        ("fedaipc.cli.simulate", "if TYPE_CHECKING:\n    from fedaipc.privacy.budget import Plan"),
        ("fedaipc.cli.main", "from fedaipc import __version__"),
        ("fedaipc.data.sources", "def f():\n    import datasets"),
        ("fedaipc.client.client", "from fedaipc.privacy.ledger import Ledger\nimport torch"),
        ("fedaipc.client.client_app", "from flwr.clientapp import ClientApp"),
        ("fedaipc.simulation.flower_adapter", "from flwr.supercore.run import Run"),
        ("fedaipc.fleet.grid", "from flwr.supercore.run import Run"),
        ("fedaipc.fleet.front", "import h11"),
    ],
)
def test_the_checker_lets_an_allowed_import_pass(module: str, source: str) -> None:
    assert complaints(module, source) == []


def test_the_checker_refuses_relative_imports() -> None:
    with pytest.raises(ValueError, match="relative"):
        complaints("fedaipc.data.sources", "from .records import Records")


def test_every_package_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[<>=]", line)[0].replace("-", "_") for line in project["dependencies"]}
    # What comes with one that cannot be had without it: Flower, transformers, pydantic, a notebook.
    declared |= {"google", "huggingface_hub", "pydantic_core", "IPython", *EXTRAS}
    used = {
        one.name.partition(".")[0]
        for path in _modules().values()
        for one in imports(path.read_text(encoding="utf-8"))
    }
    assert used - sys.stdlib_module_names - {"fedaipc"} <= declared
    assert set(EXTRAS) - {"ray", "tensorboard"} <= used  # those two: by Flower, by torch


def test_help_loads_no_heavy_library() -> None:
    """Not by any detour either: asked of a fresh interpreter."""
    code = (
        "import sys, fedaipc.cli.main\n"
        f"print(sorted({HEAVY | {'matplotlib', 'scipy', 'pyarrow'}!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    assert done.stdout.strip() == "[]"
