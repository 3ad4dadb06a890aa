"""Run notebooks from top to bottom in a Jupyter kernel, and keep in them what they show.

    .venv/bin/python simulations/learn/run.py                        # all of this folder
    .venv/bin/python simulations/learn/run.py 3_choose_a_budget
    .venv/bin/python simulations/learn/run.py --check                # write nothing

`--check` ends with an error where a notebook was edited since it was run, or no longer shows the
same kinds of output. The kernel is this Python's own: nothing is installed or left in your home.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

HERE = Path(__file__).parent
SECONDS = 3600  # for one cell, also on a machine that is busy
_SURROUNDINGS = {
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # as Jupyter sets it
    "PYTHONWARNINGS": "ignore:IProgress not found",  # of tqdm, where ipywidgets are not installed
}
_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# A plot in a notebook is read on a screen, and every version of it stays in the repository.
_PLOTS = 'c.InlineBackend.print_figure_kwargs = {"bbox_inches": "tight", "dpi": 60}\n'


def run(path: Path) -> Any:
    """The notebook with what its cells show, run in an empty folder. Raises what a cell raises."""
    notebook: Any = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory(prefix="fedaipc-") as folder:
        profile = Path(folder) / "ipython" / "profile_default"
        work = Path(folder) / "work"
        profile.mkdir(parents=True)
        work.mkdir()
        (Path(folder) / "results").symlink_to(HERE.parent / "results")  # as beside this folder
        (profile / "ipython_kernel_config.py").write_text("c = get_config()\n" + _PLOTS)
        # Without folders to look for installed kernels in, there is only the running Python's.
        manager = AsyncKernelManager(
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
            connection_file=str(Path(folder) / "kernel.json"),
        )
        client = NotebookClient(
            notebook,
            km=manager,
            timeout=SECONDS,
            extra_arguments=["--log-level=ERROR"],  # it warns that it listens on this machine
            coalesce_streams=True,
            record_timing=False,
            resources={"metadata": {"path": str(work)}},
        )
        client.execute(
            cleanup_kc=True, env=os.environ | _SURROUNDINGS | {"IPYTHONDIR": str(profile.parent)}
        )
    return tidy(notebook)


def tidy(notebook: Any) -> Any:
    """Without what each run would change for no reason, and with the hash of what was run."""
    notebook.metadata = nbformat.from_dict({**_METADATA, "code_sha256": code_hash(notebook)})
    for number, cell in enumerate(notebook.cells):
        cell.metadata = nbformat.from_dict({})
        cell.id = f"cell-{number}"
    return notebook


def code_hash(notebook: Any) -> str:
    """Of the code of all cells, to tell whether outputs are of this code."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()


def kinds(notebook: Any) -> list[list[str]]:
    """What kinds of output each code cell has, as "stream stdout" and "image/png text/plain"."""
    return [
        [
            f"stream {output.name}"
            if output.output_type == "stream"
            else " ".join(sorted(output.get("data", {output.output_type: ""})))
            for output in cell.outputs
        ]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def changed(path: Path, found: Any) -> list[str]:
    """What differs in the notebook at `path` from `found`, its run of just now; a line each."""
    kept = nbformat.read(path, as_version=4)
    if kept.metadata.get("code_sha256") != code_hash(found):
        return [f"{path.name}: its code is not what was run; run it again"]
    pairs = zip(kinds(kept), kinds(found), strict=True)
    return [
        f"{path.name}: code cell {number} shows {now or 'nothing'}; kept is {before or 'nothing'}"
        for number, (before, now) in enumerate(pairs, start=1)
        if before != now
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("names", nargs="*", help="notebooks, else all of this folder")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    asked = parser.parse_args()
    wrong: list[str] = []
    for path in sorted(HERE.glob("*.ipynb")):
        if asked.names and path.stem not in {Path(name).stem for name in asked.names}:
            continue
        print(path.name, flush=True)
        found = run(path)
        if asked.check:
            wrong += changed(path, found)
        else:
            nbformat.write(found, path)
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
