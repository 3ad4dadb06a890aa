"""Sweeps of real runs: failures stop nothing, a kill loses nothing, and nothing runs twice."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from filelock import FileLock, Timeout
from rich.console import Console

from fedaipc.cli.sweep import show
from fedaipc.config import load_settings
from fedaipc.lab.sweep.cells import cells_of, read_sweep
from fedaipc.lab.sweep.progress import Progress
from fedaipc.lab.sweep.run import SweepResult, sweep_page
from fedaipc.lab.sweep.runner import Runner, error_of, state_of
from fedaipc.lab.sweep.table import Row, points_of
from fedaipc.protocol.job_folder import CONFIG_FILE
from fedaipc.results import Results
from tests.support.commands import refused
from tests.support.reviews import write_reviews

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedaipc.lab.sweep.cells import Cell
    from tests.support.commands import Ran

SMALL = """
name = "small"
seeds = [1]
[set]
model.keep_layers = 1
model.train.kind = "head"
model.max_length = 16
data.limit = 300
federation.clients = 3
rounds = 2
speed.threads = 1
output.plots = false
"""
GRID = SMALL + '[grid]\n"privacy.epsilon" = [2, 8, inf]\n'


def written(text: str) -> Path:
    Path("sweep.toml").write_text(text)
    return Path("sweep.toml")


def finished(folder: Path) -> dict[str, int]:
    """When each cell that has finished did."""
    found = {}
    for path in folder.glob("cells/*/run/results.json"):
        if json.loads(path.read_text())["status"] == "finished":
            found[path.parent.parent.name] = path.stat().st_mtime_ns
    return found


@pytest.mark.slow
def test_a_sweep_compares_its_cells_and_says_what_choosing_costs(
    fedaipc: Callable[..., Ran], minilm: Path
) -> None:
    ran = fedaipc("privacy", "sweep", written(GRID), "--out", "out", "--parallel", "2")
    assert ran.code == 0, ran.err
    said = " ".join(ran.out.split())
    for words in ("epsilon 2", "epsilon inf", "NOT PRIVATE", "on the same PCs, would cost", "3/3"):
        assert words in said
    with Path("out/sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["privacy.epsilon"] for row in rows] == ["2", "8", "inf"]
    assert all(0 <= float(row["test_accuracy"]) <= 1 for row in rows)
    assert [float(row["epsilon"]) <= 8 for row in rows[:2]] == [True, True]
    told = json.loads(Path("out/sweep.json").read_text())
    assert [point["values"]["privacy.epsilon"] for point in told["points"]] == [2, 8, "inf"]
    assert [point["private"] for point in told["points"]] == [True, True, False]
    page = Path("out/sweep.html").read_text()
    assert "<svg" in page
    assert "Papernot" in page
    assert {p.name for p in Path("out/plots").iterdir()} == {"utility.png", "utility.svg"}
    for row, target in zip(rows[:2], (2, 8), strict=True):
        cell = Path("out/cells", row["cell"], "run")
        results = Results.load(cell)
        assert results.privacy.target_epsilon == target
        assert load_settings(cell / CONFIG_FILE).speed.workers == 1  # the cells have the cores
        assert fedaipc("report", cell).code == 0  # a normal run folder
    before = finished(Path("out"))
    assert len(before) == 3
    longer = written(GRID.replace("[2, 8, inf]", "[2, 4, 8, inf]"))
    assert fedaipc("privacy", "sweep", longer, "--out", "out").code == 0
    assert finished(Path("out")).items() > before.items()
    listed = fedaipc("privacy", "sweep", longer, "--out", "out", "--dry").out
    assert listed.count("done") == 4


@pytest.mark.slow
def test_a_cell_that_fails_is_told_and_stops_no_other(
    fedaipc: Callable[..., Ran], minilm: Path
) -> None:
    text = SMALL + "[[cells]]\nprivacy.epsilon = 2\n[[cells]]\ndata.source = 'gone.csv'\n"
    text += "[[cells]]\nprivacy.clip_norm = -1.0\n"
    ran = fedaipc("privacy", "sweep", written(text), "--out", "out")
    assert ran.code == 10
    assert "2 of 3 cells failed" in ran.err
    assert ran.err.count("\n") == 1
    assert len(finished(Path("out"))) == 1
    page = Path("out/sweep.html").read_text()
    assert "Failed cells" in page
    assert "gone.csv" in page
    assert "privacy.clip_norm" in page
    failed = [
        row for row in json.loads(Path("out/sweep.json").read_text())["cells"] if row["error"]
    ]
    assert ["gone.csv" in row["error"] for row in failed] == [True, False]


@pytest.mark.slow
def test_a_failed_cell_is_tried_again_and_a_finished_one_is_not(
    tmp_path: Path, minilm: Path
) -> None:
    source = tmp_path / "later.csv"
    (tmp_path / "s.toml").write_text(
        SMALL + f"data.source = '{source}'\ndata.text_column = 'body'\n"
        "data.label_column = 'stars'\n[grid]\n'privacy.clip_norm' = [1.0]\n"
    )
    cells = cells_of(read_sweep(tmp_path / "s.toml"), None)
    out, seen = tmp_path / "out", list[tuple[int, int]]()
    runner = Runner(out, 1, lambda p, _: seen.append((p.done, p.failed)))
    runner.run(cells, Progress(1))
    assert state_of(out, cells[0]) == "failed"
    assert "later.csv" in error_of(out, cells[0])
    write_reviews(source)
    runner.run(cells, Progress(1))
    assert seen[-1] == (1, 0)
    assert error_of(out, cells[0]) == ""
    when = finished(out)
    runner.run(cells, Progress(1))
    assert seen[-1] == (1, 0)
    assert finished(out) == when


def test_a_process_that_dies_is_a_failed_cell(
    tmp_path: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s.toml").write_text(SMALL + "[grid]\n'privacy.clip_norm' = [1.0]\n")
    cells, out = cells_of(read_sweep(tmp_path / "s.toml"), None), tmp_path / "out"
    real = subprocess.Popen

    def killed(*words: Any, **more: Any) -> subprocess.Popen[bytes]:
        process = real(*words, **more)
        process.kill()
        return process

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", killed)
        Runner(out, 1, lambda *_: None).run(cells, Progress(1))
    assert state_of(out, cells[0]) == "failed"
    assert "killed by signal 9" in error_of(out, cells[0])


def test_one_sweep_folder_is_for_one_process(fedaipc: Callable[..., Ran], tmp_path: Path) -> None:
    holder = (
        "import sys, time; from filelock import FileLock\n"
        "with FileLock(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    )
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", holder, str(tmp_path / "out" / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            ran = fedaipc("privacy", "sweep", written(GRID), "--out", tmp_path / "out")
        finally:
            process.kill()
    assert "another process runs this sweep" in refused(ran, 12)


def test_a_search_in_the_open_must_be_asked_for(fedaipc: Callable[..., Ran]) -> None:
    pytest.importorskip("optuna")
    text = SMALL + "aggregation.kind = 'plain'\n" + SEARCH
    ran = fedaipc("privacy", "sweep", written(text), "--out", "out")
    assert "--insecure-plain-updates" in refused(ran, 2)
    assert not list(Path("out").glob("cells/*"))


@pytest.mark.parametrize("search", [True, False])
def test_a_grid_does_not_replace_the_results_of_a_search(
    fedaipc: Callable[..., Ran], search: bool
) -> None:
    Path("out").mkdir()
    Path("out/sweep.json").write_text("a result")
    if search:
        Path("out/search.log").write_text("")
    text = SMALL + ("[grid]\n'privacy.clip_norm' = [1.0]\n" if search else SEARCH)
    ran = fedaipc("privacy", "sweep", written(text), "--out", "out")
    held = "a search" if search else "a grid or list"
    assert f"out: holds {held}; give another --out" in refused(ran, 2)
    assert Path("out/sweep.json").read_text() == "a result"


def test_a_run_that_lost_a_round_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Else its accuracy is compared with that of runs that had all rounds."""
    whole = Row(cell="a", values={"privacy.epsilon": 2.0}, seed=1, state="done", status="finished",
                private=True, test_accuracy=0.7, validation_accuracy=0.7, epsilon=2.0)  # fmt: skip
    rows = [whole, replace(whole, cell="b", seed=2, status="stopped"),
            Row(cell="c", values={"privacy.epsilon": 4.0}, seed=1, state="failed",
                error="no noise reaches it")]  # fmt: skip
    assert [point.cut_short for point in points_of(rows)] == [1]
    found = SweepResult("s", Path("s"), rows)
    show(Console(width=100), found)
    said = " ".join(capsys.readouterr().out.split())
    assert "2, 1 cut short" in said
    assert "1 run ended before the last round" in said
    assert "failed: epsilon 4, seed 1: no noise reaches it" in said
    page = sweep_page(found)
    assert "1 run ended before the last round" in page
    assert "stopped" in page


def test_updates_in_the_open_must_be_asked_for(fedaipc: Callable[..., Ran]) -> None:
    text = SMALL + "aggregation.kind = 'plain'\n[grid]\n'privacy.clip_norm' = [1.0]\n"
    ran = fedaipc("privacy", "sweep", written(text), "--out", "out")
    assert "--insecure-plain-updates" in refused(ran, 2)
    assert not Path("out").exists()


def test_the_time_that_is_left_follows_from_the_pace() -> None:
    progress = Progress(total=12, done=4, failed=2, seconds=[10.0, 20.0])
    assert progress.ended == 6
    assert progress.remaining(parallel=2) == 45.0
    assert Progress(12, 4, 2).remaining(2) is None


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9")
def test_a_sweep_of_12_cells_killed_halfway_goes_on_and_repeats_nothing(
    tmp_path: Path, minilm: Path
) -> None:
    text = SMALL.replace("[1]", "[1, 2]") + '[grid]\n"privacy.epsilon" = [1, 2, 4]\n'
    text += '"data.partition" = ["iid", "skewed"]\n'
    file, out = tmp_path / "s.toml", tmp_path / "out"
    file.write_text(text)
    command = [sys.executable, "-m", "fedaipc.cli.main", "privacy", "sweep", str(file),
               "--out", str(out), "--parallel", "2"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(finished(out)) < 6:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert children
    assert not alive  # a killed sweep leaves no process behind
    before = finished(out)
    assert 6 <= len(before) < 12
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    after = finished(out)
    assert len(after) == 12
    assert after.items() >= before.items()
    rows = json.loads((out / "sweep.json").read_text())["cells"]
    assert {row["state"] for row in rows} == {"done"}
    assert len(rows) == 12


SEARCH = """
[search]
trials = 3
[search.space]
"training.learning_rate" = { low = 0.05, high = 2.0, log = true }
"model.pooling" = { choices = ["mean", "cls"] }
"training.local_steps" = { low = 1, high = 3, integer = true }
"""


@pytest.mark.slow
def test_a_search_tries_settings_and_goes_on_where_it_was_cut_off(
    fedaipc: Callable[..., Ran], minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    real, calls = Runner.run, []

    def cut_off(self: Runner, cells: list[Cell], progress: Progress) -> None:
        calls.append([cell.values for cell in cells])
        with pytest.raises(Timeout):  # over all trials: no other process may have one of its own
            FileLock("out/.lock", timeout=0).acquire()
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(self, cells, progress)

    monkeypatch.setattr(Runner, "run", cut_off)
    words = ("privacy", "sweep", written(SMALL + SEARCH), "--out", "out")
    assert fedaipc(*words).code == 130
    first = finished(Path("out"))
    assert len(first) == 1
    ran = fedaipc(*words)
    assert ran.code == 0, ran.err
    assert "best by validation accuracy: learning_rate" in ran.out
    counts = [line.split()[0] for line in ran.out.splitlines() if line[1:3] == "/3"]
    assert counts == ["1/3", "2/3", "3/3"]
    assert len(calls) == 4
    assert calls[1] == calls[2]  # the trial that was cut off
    assert finished(Path("out")).items() > first.items()
    rows = json.loads(Path("out/sweep.json").read_text())["cells"]
    assert len(rows) == 3
    for row in rows:
        assert 0.05 <= row["values"]["training.learning_rate"] <= 2.0
        assert row["values"]["training.local_steps"] in (1, 2, 3)
    assert fedaipc(*words).code == 0  # nothing is left to try
    assert len(calls) == 4
