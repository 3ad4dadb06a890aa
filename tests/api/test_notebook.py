"""The notebook runs as it stands, and what it shows is what it showed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

LEARN = Path(__file__).parents[2] / "simulations" / "learn"
NOTEBOOK = LEARN / "0_hello.ipynb"


def shown(notebook: dict[str, Any]) -> list[list[str]]:
    """What kinds of output each cell has."""
    return [
        [kind for output in cell["outputs"] for kind in sorted(output.get("data", {"text": 0}))]
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ]


@pytest.mark.slow
def test_the_notebook_runs_as_it_stands(minilm: Path, sentiment: Path) -> None:
    del minilm, sentiment
    spec = importlib.util.spec_from_file_location("notebook", LEARN / "notebook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kept = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert shown(module.run(NOTEBOOK)) == shown(kept)


def test_it_uses_public_names_and_has_its_output() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert "import fedaipc as fa" in code[0]
    assert not [cell for cell in code if "from fedaipc" in cell]
    assert all(cell["outputs"] for cell in notebook["cells"][4:] if cell["cell_type"] == "code")
