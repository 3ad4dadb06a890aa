"""The sweep file: which cells follow from it, and one line where it is wrong."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedaipc.config import DPSGD
from fedaipc.errors import ConfigError
from fedaipc.lab.sweep.cells import Cell, Space, cells_of, read_sweep, shown

GRID = """
name = "s"
seeds = [1, 2]
[grid]
"privacy.epsilon" = [1, 4, inf]
"data.partition" = ["iid", "skewed"]
"""


def cells(folder: Path, text: str) -> list[Cell]:
    (folder / "sweep.toml").write_text(text)
    return cells_of(read_sweep(folder / "sweep.toml"), None)


def test_a_grid_has_every_point_with_every_seed(tmp_path: Path) -> None:
    found = cells(tmp_path, GRID)
    assert len(found) == len({cell.name for cell in found}) == 12
    assert {cell.seed for cell in found} == {1, 2}
    for cell in found:
        assert cell.settings is not None
        epsilon = cell.values["privacy.epsilon"]
        privacy, data = cell.settings.privacy, cell.settings.data
        assert (data.seed, data.partition.kind) == (cell.seed, cell.values["data.partition"])
        assert privacy.private != math.isinf(epsilon)
        if privacy.private:  # as `simulate --epsilon`
            lifetime = cell.settings.federation.lifetime_epsilon
            assert isinstance(privacy, DPSGD)
            assert (privacy.epsilon, lifetime) == (epsilon, epsilon)


def test_rules_add_to_the_cells_that_they_fit(tmp_path: Path) -> None:
    found = cells(
        tmp_path,
        GRID + '[[rules]]\nwhen = { "privacy.epsilon" = 4, "data.partition" = "iid" }\n'
        "[rules.set]\ntraining.learning_rate = 0.7\n"
        '[[rules]]\nwhen = { "privacy.epsilon" = inf }\nset = { "training.local_steps" = 9 }\n',
    )
    for cell in found:
        assert cell.settings is not None
        training = cell.settings.training
        first = (cell.values["privacy.epsilon"], cell.values["data.partition"]) == (4, "iid")
        assert (training.learning_rate == 0.7) == first
        assert (training.local_steps == 9) == math.isinf(cell.values["privacy.epsilon"])


def test_a_list_has_its_own_points_and_the_config_counts(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("[federation]\nclients = 7\n[privacy]\nepsilon = 3.0\n")
    (tmp_path / "sweep.toml").write_text(
        'config = "base.toml"\nseeds = [5]\n[set.model]\ntrain = "head"\n'
        '[[cells]]\n"privacy.clip_norm" = 0.5\n'
        "[[cells]]\nprivacy.clip_norm = 2.0\nrounds = 3\n"
    )
    sweep = read_sweep(tmp_path / "sweep.toml")
    found = cells_of(sweep, tmp_path / "base.toml")
    assert [cell.values for cell in found] == [
        {"privacy.clip_norm": 0.5}, {"privacy.clip_norm": 2.0, "rounds": 3},
    ]  # fmt: skip
    for cell in found:
        assert cell.settings is not None
        assert cell.settings.federation.clients == 7
        assert isinstance(cell.settings.privacy, DPSGD)
        assert cell.settings.privacy.epsilon == 3.0
        assert cell.settings.model.train.kind == "head"


def test_a_name_follows_from_the_settings_alone(tmp_path: Path) -> None:
    """So that a longer grid finds the cells that have finished."""
    before = {cell.name for cell in cells(tmp_path, GRID)}
    longer = GRID.replace("[1, 4, inf]", "[8, 4, 1, inf]")
    assert before < {cell.name for cell in cells(tmp_path, longer)}
    other = GRID + '[[rules]]\nwhen = {}\nset = { "privacy.clip_norm" = 3.0 }\n'
    same = before & {cell.name for cell in cells(tmp_path, other)}
    assert {name.partition("_")[0] for name in same} == {"epsilon=inf"}  # it has no clip bound


def test_a_point_that_does_not_fit_is_a_cell_with_an_error(tmp_path: Path) -> None:
    found = cells(tmp_path, '[grid]\n"privacy.clip_norm" = [1.0, -1.0]\n')
    assert [cell.settings is None for cell in found] == [False] * 3 + [True] * 3
    assert "privacy.clip_norm" in found[-1].error
    assert len({cell.name for cell in found}) == 6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "give one of"),
        ("[grid]\n", "give one of"),
        ('[grid]\n"privacy.clip_norm" = []\n', "has no values"),
        ('[grid]\n"privacy.clip_norm" = 1.0\n', "valid list"),
        (GRID + "[[cells]]\nprivacy.clip_norm = 1.0\n", "give one of"),
        (GRID.replace("[1, 2]", "[1, 1]"), "seeds must differ"),
        (GRID.replace("[1, 2]", "[]"), "seeds"),
        (GRID.replace("data.partition", "data.seed"), "grid.data.seed: .* the sweep's own"),
        (GRID + "[set]\noutput.name = 'x'\n", "the sweep's own"),
        (GRID.replace('"s"', '"../s"'), "name"),
        (GRID + "typo = 1\n", "typo"),
        ("typo = 1\n" + GRID, "typo: unknown key; known keys: config, name, seeds, set, grid, "),
        ("[grids]\n", r"grids: unknown key; did you mean grid\?"),
        (GRID + "[[rules]]\nwhen = {}\nsets = {}\n", "rules.0.sets: .* did you mean set"),
        ("[search]\ntrails = 1\n[search.space]\n", r"search.trails: unknown key; .* trials\?"),
        ('[search]\ntrials = 1\n[search.space]\n"a.b" = { loww = 1 }\n', r"a.b.loww: .* low\?"),
        (GRID + "typo = 1\n[", "not valid TOML"),
        ('[grid]\n"privacy.clip_norm" = [1.0, 1.0]\n', "the same job"),
        ('[grid]\n"a.b" = [' + "1," * 5000 + "]\n", "more than 10,000"),
        ("[search]\ntrials = 1\n[search.space]\n", "space"),
        ('[search]\ntrials = 1\n[search.space]\n"a.b" = { low = 1 }\n', "low and high, or"),
        ('[search]\ntrials = 1\n[search.space]\n"a.b" = { low = 2, high = 1 }\n', "less than"),
        ('[search]\ntrials = 1\n[search.space]\n"a.b" = { low = 0, high = 1, log = true }\n',
         "above 0"),
        ('[search]\ntrials = 1\n[search.space]\n"a.b" = { low = 0, high = inf }\n', "finite"),
        ("rules = 3\n" + GRID, "rules"),
        ("grid = 3\n", "grid"),
    ],
)  # fmt: skip
def test_what_is_no_sweep_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        cells(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_missing_file_or_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: no such file"):
        read_sweep(tmp_path / "nowhere.toml")
    (tmp_path / "sweep.toml").write_text('config = "gone.toml"\n' + GRID)
    with pytest.raises(ConfigError, match=r"gone\.toml: no such file"):
        cells_of(read_sweep(tmp_path / "sweep.toml"), tmp_path / "gone.toml")


def test_spaces_may_be_written_as_tables(tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(
        "[search]\ntrials = 3\n[search.space]\n"
        '"privacy.clip_norm" = { low = 0.1, high = 3, log = true }\n'
        '[search.space.model]\ntrain = { choices = ["head", "lora"] }\n'
    )
    wanted = read_sweep(tmp_path / "sweep.toml").search
    assert wanted is not None
    assert wanted.space == {
        "privacy.clip_norm": Space(low=0.1, high=3, log=True),
        "model.train": Space(choices=("head", "lora")),
    }


@settings(max_examples=20)  # up to 54 jobs each, and each of them is checked
@given(
    st.dictionaries(
        st.sampled_from(["privacy.clip_norm", "rounds", "training.learning_rate"]),
        st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True),
        min_size=1,
    ),
    st.lists(st.integers(0, 9), min_size=1, max_size=2, unique=True),
)
def test_a_grid_is_as_large_as_its_factors(grid: dict[str, list[int]], seeds: list[int]) -> None:
    lines = [f'"{key}" = {values}' for key, values in grid.items()]
    with tempfile.TemporaryDirectory() as folder:
        found = cells(Path(folder), f"seeds = {seeds}\n[grid]\n" + "\n".join(lines))
    assert len({c.name for c in found}) == math.prod(map(len, grid.values())) * len(seeds)


def test_values_are_shown_short() -> None:
    assert shown({"privacy.epsilon": 0.5, "data.partition": "iid"}) == "epsilon 0.5, partition iid"
    assert shown(math.inf) == "inf"
    assert shown(True) == "true"
