"""Real training, sealed and in the open: the same model, and outputs that say which it was."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from fedaipc.errors import ConfigError
from fedaipc.results import Results
from fedaipc.simulation.simulation import prepare, simulate
from tests.support.jobs import tiny
from tests.support.runs import quiet

if TYPE_CHECKING:
    from pathlib import Path

SEALED = ("federation.clients=5", "federation.weighting=size-class", "speed.threads=1")


def trained(folder: Path, *changes: str) -> Results:
    run = prepare(tiny(f"output.folder='{folder}'", *SEALED, *changes), test_seed=5)
    return simulate(run, "in-process", quiet)


@pytest.mark.parametrize("bits", [32, *(pytest.param(n, marks=pytest.mark.slow) for n in (24, 16))])
@pytest.mark.parametrize("weighting", ["size-class", "equal"])
def test_training_with_sealing_gives_the_same_model_as_without_bit_for_bit(
    tmp_path: Path, minilm: Path, bits: int, weighting: str
) -> None:
    same = (f"aggregation.bits={bits}", f"federation.weighting={weighting}")
    sealed = trained(tmp_path, *same)
    in_the_open = trained(tmp_path, *same, "aggregation.kind=plain")
    assert sealed.model.vector_hash == in_the_open.model.vector_hash
    assert sealed.test == in_the_open.test
    assert (sealed.aggregation.kind, in_the_open.aggregation.kind) == ("secagg", "plain")
    assert (sealed.aggregation.bits, sealed.aggregation.least, sealed.aggregation.colluding) == (
        bits,
        4,
        1,
    )
    assert set(sealed.rounds[0].traffic) == {"setup", "ready", "mask", "agree", "unmask"}
    assert set(in_the_open.rounds[0].traffic) == {"setup", "ready", "mask"}


@pytest.mark.slow
def test_rings_differ_in_their_rounding(tmp_path: Path, minilm: Path) -> None:
    hashes = {
        trained(tmp_path, f"aggregation.bits={bits}").model.vector_hash for bits in (32, 24, 16)
    }
    assert len(hashes) == 3


@pytest.mark.parametrize("stage", ["mask", "agree", "unmask"])
def test_pcs_that_vanish_in_a_stage_do_not_stop_a_run(
    tmp_path: Path, minilm: Path, stage: str
) -> None:
    results = trained(
        tmp_path,
        f"federation.dropout_stage={stage}",
        "federation.dropout_rate=0.15",
        "federation.clients=6",
        "rounds=4",
    )
    assert results.status == "finished"
    assert sum(not one.void for one in results.rounds) == 4
    assert all(one.why_void for one in results.rounds if one.void)


@pytest.mark.parametrize(
    "changes",
    [
        ("federation.clients=2",),
        ("federation.clients=10", "federation.only=[0, 1, 2]"),
        ("federation.clients=10", "federation.fraction=0.2"),
        ("federation.clients=10", "aggregation.colluding=9"),
    ],
    ids=str,
)
def test_too_few_pcs_to_hide_in_are_refused_before_anything_runs(
    tmp_path: Path, minilm: Path, changes: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError, match="--insecure-plain-updates"):
        prepare(tiny(f"output.folder='{tmp_path}'", *changes))
    assert not list(tmp_path.glob("run*"))


def test_keys_are_the_owners_alone_and_gone_when_the_run_is_over(
    tmp_path: Path, minilm: Path
) -> None:
    """M10."""
    run = prepare(tiny(f"output.folder='{tmp_path}'"))
    simulate(run, "in-process", quiet)
    for pc in sorted(run.pc_state.glob("pc-*")):
        key_store = pc / "keys"
        assert not (key_store / "epoch.json").exists()
        for file in (pc / "keys").iterdir():
            if file.name != ".lock":
                assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        assert stat.S_IMODE(key_store.stat().st_mode) == 0o700
    key = run.pc_state / "federation" / "admission.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    secret = key.read_bytes()
    for file in run.folder.rglob("*"):
        if file.is_file() and file != key:
            assert secret not in file.read_bytes()
