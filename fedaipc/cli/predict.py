"""`fedaipc predict`: use a trained model."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedaipc.cli.output import say, say_json, say_row
from fedaipc.errors import DataError, OutputError
from fedaipc.results import RESULTS_FILE

_BATCH = 64  # texts in memory at once


def predict(
    run: Annotated[Path, typer.Argument(help="run folder, or its model/", show_default=False)],
    texts: Annotated[
        list[str] | None, typer.Argument(help="texts; without any, the lines of stdin")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="print all probabilities, a JSON object per line")
    ] = False,
) -> None:
    """Classify texts with the model of a run, on this machine.

    Example: fedaipc predict runs/demo "what a lovely film"
    """
    from fedaipc.model.export import Exported

    (name,) = texts if texts is not None and len(texts) == 1 else [""]
    if os.path.isfile(name):  # noqa: PTH113 - which never raises
        command = f"fedaipc predict {shlex.quote(str(run))} < {shlex.quote(name)}"
        raise DataError(f"{name}: is a file; `{command}` classifies its lines")
    folder = run / "model"
    if not folder.is_dir():
        if (run / RESULTS_FILE).is_file():
            raise OutputError(
                f"{run}: has no model yet; `fedaipc simulate --resume {run}` finishes the run"
            )
        folder = run
    model = Exported.load(folder)
    for reason in model.not_private:
        say(f"NOT PRIVATE: {reason}", err=True)
    given = texts or _lines()
    if not all(text.strip() for text in given):
        raise DataError("a text to classify is empty; leave it out")
    for start in range(0, len(given), _BATCH):
        batch = given[start : start + _BATCH]
        for text, row in zip(batch, model.probabilities(batch), strict=True):
            _show(text, sorted(zip(row.tolist(), model.labels, strict=True), reverse=True), as_json)


def _lines() -> list[str]:
    try:
        lines = [line.strip() for line in sys.stdin]
    except UnicodeDecodeError:
        raise DataError("stdin: not UTF-8; give texts as UTF-8") from None
    given = [line for line in lines if line]
    if not given:
        raise DataError("no text to classify: give one, or lines on stdin")
    return given


def _show(text: str, ranked: list[tuple[float, str]], as_json: bool) -> None:
    chance, label = ranked[0]
    if as_json:
        chances = {name: round(value, 6) for value, name in ranked}
        say_json({"text": text, "label": label, "probability": chances}, indent=None)
    else:
        say_row(label, f"{chance:.3f}", text)
