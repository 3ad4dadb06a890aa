"""A sweep in Python is the sweep of the command: the same cells, folder and words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import fedaipc as fa
from fedaipc.config import load_settings, to_toml, with_values
from fedaipc.errors import ConfigError
from fedaipc.lab.sweep.cells import cells_of, sweep_from
from tests.support.small import ROWS, small

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.commands import Ran

GRID = {"privacy.epsilon": [4, math.inf]}


@pytest.mark.slow
def test_a_sweep_runs_its_cells_and_the_command_finds_them_done(
    fedaipc: Callable[..., Ran], minilm: Path, tmp_path: Path
) -> None:
    del minilm
    job, data = small(), fa.load_data(ROWS).partition(clients=3)
    found = fa.privacy.sweep(job, data, grid=GRID, seeds=[7], out=tmp_path / "s", progress=False)
    assert not found.failed
    assert [point.private for point in found.points] == [True, False]
    private, open_ = found.records()
    assert (private["privacy.epsilon"], private["seed"], private["state"]) == (4, 7, "done")
    assert 0 < private["epsilon"] <= 4
    assert open_["epsilon"] is None
    assert "costs privacy: each run is charged" in found.cost()[0]
    assert "NOT PRIVATE" in found._repr_html_()
    run = fa.load_run(found.folder / "cells" / private["cell"] / "run")
    assert run.job.privacy.model_dump()["epsilon"] == 4
    assert (found.folder / "sweep.html").is_file()

    job.with_data(data).to_toml(tmp_path / "job.toml")
    (tmp_path / "sweep.toml").write_text(
        'config = "job.toml"\nseeds = [7]\n[grid]\n"privacy.epsilon" = [4, inf]\n'
    )
    listed = fedaipc("privacy", "sweep", "sweep.toml", "--out", "s", "--dry")
    assert listed.out.count("done") == 2
    before = {file: file.stat().st_mtime_ns for file in found.folder.glob("cells/*/run/*.json")}
    again = fedaipc("privacy", "sweep", "sweep.toml", "--out", "s")
    assert again.code == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({}, "give one of"),
        ({"grid": {"privacy.epsilon": 3}}, "grid.privacy.epsilon: .* valid list"),
        ({"grid": {"data.seed": [1]}}, "the sweep's own"),
        ({"grid": {"privacy.epsilon": [fa.LoRA()]}}, "cannot be the value of a setting"),
        ({"search": {"trials": 1, "space": {"a.b": {"loww": 1}}}}, "did you mean low"),
        ({"grid": {"privacy.epsilon": [1, 1]}}, "the same job"),
    ],
)
def test_what_is_no_sweep_is_refused_in_one_line(
    words: dict[str, object], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        fa.privacy.sweep(small(), out=tmp_path / "s", progress=False, **words)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "s").exists()


def test_cells_of_a_job_are_those_of_its_config_file(tmp_path: Path) -> None:
    """Also where choices are given as objects, and change."""
    job = small(
        model=fa.TextClassifier("minilm-l6", train=fa.LoRA(rank=2)),
        privacy=fa.DPSGD(epsilon=3, clip_norm=0.5),
        server=fa.FedAvgM(momentum=0.5),
    )
    job.to_toml(tmp_path / "job.toml")
    wanted = sweep_from(
        {"grid": {"privacy.epsilon": [1, math.inf], "server": ["fedavg", "fedavgm"]}}
    )
    by_job, by_file = cells_of(wanted, job), cells_of(wanted, tmp_path / "job.toml")
    assert [cell.name for cell in by_job] == [cell.name for cell in by_file]
    assert all(cell.settings is not None for cell in by_job)


def test_what_nobody_gave_follows_from_the_new_values() -> None:
    job = small()
    assert (job.privacy.sampling_rate, job.server.kind) == (1.0, "fedadam")
    other = with_values(job, {"model.train": "lora"})
    assert (other.privacy.sampling_rate, other.server.kind) == (0.1, "fedavg")
    assert other.speed.threads == 1
    assert to_toml(with_values(job, {})) == to_toml(job)
    given = load_settings(None, ["privacy.sampling_rate=0.3", "server=fedavgm"])
    kept = with_values(given, {"model.train": "lora"})
    assert (kept.privacy.sampling_rate, kept.server.kind) == (0.3, "fedavgm")
