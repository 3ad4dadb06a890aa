"""The notebooks run as they stand in a Jupyter kernel, and what they show is what they showed."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from rich.console import Console

import fedaipc as fa
from fedaipc.report.progress import Display, WarmUpBar

SIMULATIONS = Path(__file__).parents[2] / "simulations"
NOTEBOOKS = sorted((SIMULATIONS / "learn").glob("*.ipynb"))
SCRIPTS = [path for folder in ("learn", "extend") for path in (SIMULATIONS / folder).glob("*.py")]
PUBLIC = {"fedaipc", "fedaipc.opacus", "fedaipc.privacy", "fedaipc.errors"}
SHOWS = {"print", "show", "shell"}  # functions after which there is something to see


def runner() -> Any:
    spec = importlib.util.spec_from_file_location("run", SIMULATIONS / "learn" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_of(path: Path) -> list[str]:
    """The code of each cell, or of a script."""
    if path.suffix == ".py":
        return [path.read_text(encoding="utf-8")]
    cells = nbformat.read(path, as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "code"]


def names_of_fedaipc(code: str) -> set[str]:
    """Modules of fedaipc that are imported, and names that are taken from `fa`, as fa.NAME."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            if node.module == "fedaipc":
                found |= {f"fa.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found |= {f"fa.{node.attr}"} if node.value.id == "fa" else set()
    return {name for name in found if name.startswith("fa.") or name.split(".")[0] == "fedaipc"}


def texts_of(output: Any) -> str:
    if output.output_type == "stream":
        return str(output.text)
    return "\n".join(str(text) for kind, text in output.data.items() if kind.startswith("text/"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_as_it_stands(
    path: Path, minilm: Path, sentiment: Path, spam: Path
) -> None:
    del minilm, sentiment, spam
    run = runner()
    assert run.changed(path, run.run(path)) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_what_its_code_shows(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    run = runner()
    assert notebook.metadata.code_sha256 == run.code_hash(notebook), "run it again"
    assert run.tidy(notebook) == nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        tree = ast.parse(cell.source)
        calls = {
            ast.unparse(node.func).rpartition(".")[2]
            for statement in tree.body
            if not isinstance(statement, ast.FunctionDef | ast.ClassDef)
            for node in ast.walk(statement)
            if isinstance(node, ast.Call)
        }
        if isinstance(tree.body[-1], ast.Expr) or calls & SHOWS:
            assert cell.outputs, cell.source
        for output in cell.outputs:
            assert output.get("name") != "stderr", output.text
            shown = texts_of(output)
            assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", shown), "control characters"
            assert not re.search(r"/tmp/|/home/|/root/", shown), "a path of somebody's machine"


@pytest.mark.parametrize("path", [*NOTEBOOKS, *SCRIPTS], ids=lambda path: path.stem)
def test_only_public_names_are_used(path: Path) -> None:
    used = set().union(*map(names_of_fedaipc, code_of(path)))
    allowed = PUBLIC | {f"fa.{name}" for name in fa.__all__}
    assert used <= allowed, used - allowed
    assert path.name == "run.py" or "fedaipc" in used


def test_inner_names_would_be_found() -> None:
    code = "import fedaipc as fa\nfrom fedaipc.lab.planner import solve\nfa.bounds"
    assert names_of_fedaipc(code) == {"fedaipc", "fedaipc.lab.planner", "fa.bounds"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_listed_and_says_where_to_go_next(path: Path) -> None:
    assert f"({path.name})" in (path.parent / "README.md").read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].source.startswith("# ")
    assert "## Where to go next" in cells[-1].source
    words = " ".join(cell.source for cell in cells if cell.cell_type == "markdown")
    for link in re.findall(r"\]\(([^):#]+)\)", words):
        assert (path.parent / link).exists(), link
    for name in re.findall(r"`((?:docs|simulations)/[\w./-]+)`", words):
        assert (SIMULATIONS.parent / name).exists(), name


# Runs in a notebook


@pytest.mark.slow
def test_a_run_shows_one_line_of_progress_and_its_plots(minilm: Path, tmp_path: Path) -> None:
    del minilm
    prepare = """\
import fedaipc as fa
rows = [(f"{word} thing {n}", word) for n in range(60) for word in ("good", "bad")]
data = fa.load_data(rows).partition(clients=3)
job = fa.Job(model=fa.TextClassifier("minilm-l6", keep_layers=1, max_length=8), rounds=3)
run = fa.simulate(job, data)"""
    cells = [prepare, "run.plot('accuracy')", "_ = fa.simulate(job, data, progress=False)"]
    notebook = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    nbformat.write(notebook, tmp_path / "run.ipynb")
    run = runner()
    found = run.run(tmp_path / "run.ipynb")
    assert run.kinds(found) == [["text/html text/plain"], ["image/png text/plain"], []]
    (line,) = found.cells[0].outputs
    assert line.data["text/plain"].startswith("round 3/3: 3 of 3 PCs, validation accuracy ")
    assert '<progress value="3" max="3">' in line.data["text/html"]
    assert "\x1b" not in str(line.data)


def test_the_line_changes_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[list[str]] = []

    class Shown:
        def update(self, content: dict[str, str], *, raw: bool) -> None:
            assert raw
            shown[-1].append(content["text/plain"])

    def display(content: dict[str, str], *, raw: bool, display_id: bool) -> Shown:
        assert (raw, display_id) == (True, True)
        shown.append([content["text/plain"]])
        return Shown()

    monkeypatch.setattr("IPython.display.display", display)
    console = Console(force_jupyter=True)
    result: Any = SimpleNamespace(
        round=1, void=False, validation=None, epsilon=1.25, asked=3, arrived=2, seconds=1.0
    )
    second: Any = SimpleNamespace(
        **{**vars(result), "round": 2, "validation": SimpleNamespace(accuracy=0.5)}
    )
    third: Any = SimpleNamespace(**{**vars(result), "round": 3})
    settings: Any = SimpleNamespace(rounds=4)
    with Display(console, settings) as progress:
        for one in (result, second, third):
            progress.on_round(one)
    with WarmUpBar(console) as warm_up:
        for step in (1, 2):
            warm_up.on_step(step, 2)
    assert shown == [
        [
            "first the frozen layers see every text once, which takes longest",
            "round 1/4: 2 of 3 PCs, epsilon 1.25",
            "round 2/4: 2 of 3 PCs, validation accuracy 0.500, epsilon 1.25, about 2.0 s left",
            "round 3/4: 2 of 3 PCs, epsilon 1.25, about 1.0 s left",
        ],
        ["warm-up on public texts: step 1/2", "warm-up on public texts: step 2/2"],
    ]
    with Display(Console(force_jupyter=True, quiet=True), settings) as progress:
        progress.on_round(result)
    assert len(shown) == 2
