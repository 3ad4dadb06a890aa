"""The sweep file, and the cells that follow from it.

A cell is a whole job: the base config, what the sweep sets, one point of the grid (or one entry of
the list), what the rules add to it, and a seed. Its name holds a hash of all its settings, so that
a cell that has finished is never run again, whatever else of the sweep file changes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from fedaipc.config import (
    NAME,
    Frozen,
    NoPrivacy,
    OutputSettings,
    Settings,
    load_settings,
    read_toml,
    to_toml,
    unknown_key,
    with_values,
)
from fedaipc.errors import ConfigError

EPSILON, LIFETIME, KIND = "privacy.epsilon", "federation.lifetime_epsilon", "privacy.kind"
SEED = "data.seed"
MAX_CELLS = 10_000
Values = dict[str, Any]
RUN_FOLDER, CELL_FILE, ERROR_FILE = "run", "cell.toml", "error.txt"  # in a cell's folder
_OWN = ("output.folder", "output.name", SEED)


def _flat(tree: Any, *, spaces: bool = False) -> Any:
    """`privacy.epsilon` and `[grid.privacy] epsilon` are the same.

    With `spaces` a table that holds no other is a value. What is not a table is left to the check.
    """
    if not isinstance(tree, dict):
        return tree
    found: Values = {}
    for key, value in tree.items():
        if isinstance(value, dict) and (not spaces or _holds_table(value)):
            found |= {f"{key}.{name}": v for name, v in _flat(value, spaces=spaces).items()}
        else:
            found[key] = value
    return found


def _holds_table(tree: Values) -> bool:
    return any(isinstance(value, dict) for value in tree.values())


def _not_own(key: str) -> str:
    """A setting that a sweep may set."""
    if key in _OWN:
        raise ValueError(f"{key} is the sweep's own; seeds = [...] sets the seeds")
    return key


def _plain(value: Any) -> Any:
    """What a config file can hold: text, a whole number of 64 bits, a number, a list of these."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    whole = isinstance(value, int) and abs(value) < 2**63
    if whole or isinstance(value, str) or (isinstance(value, float) and not math.isnan(value)):
        return value
    raise ValueError(f"{value!r} cannot be the value of a setting")


_Key = Annotated[str, AfterValidator(_not_own)]
_Value = Annotated[Any, AfterValidator(_plain)]
_When = Annotated[Values, BeforeValidator(_flat)]
_Set = Annotated[dict[_Key, _Value], BeforeValidator(_flat)]
_Grid = Annotated[dict[_Key, list[_Value]], BeforeValidator(_flat)]


class Rule(Frozen):
    """Where a cell has all the values of `when`, it gets those of `set` as well."""

    when: _When = Field(description="settings that a cell must have")
    set: _Set = Field(description="settings that it then gets")


class Space(Frozen):
    """Where a tuner may look for one setting: between two numbers, or among choices."""

    low: float | None = Field(None, description="least value")
    high: float | None = Field(None, description="largest value")
    log: bool = Field(False, description="look on a logarithmic scale")
    integer: bool = Field(False, description="whole numbers only")
    choices: tuple[Any, ...] = Field(
        (), description="values to choose from, in place of low and high"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if bool(self.choices) == (self.low is not None and self.high is not None):
            raise ValueError("give low and high, or choices")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError("low must be less than high")
        if self.log and (self.low is None or self.low <= 0):
            raise ValueError("log needs a low above 0")
        return self


class Search(Frozen):
    """So many trials of a tuner, which maximises the mean validation accuracy over the seeds."""

    trials: int = Field(ge=1, le=MAX_CELLS, description="how many points the tuner tries")
    seed: int = Field(0, ge=0, description="of the tuner")
    space: Annotated[
        dict[_Key, Space],
        BeforeValidator(lambda tree: _flat(tree, spaces=True)),
        Field(min_length=1, description="which settings the tuner chooses, and among what"),
    ]


class Sweep(Frozen):
    """One sweep file. `config` is relative to it; the default job without one."""

    config: str | None = Field(
        None,
        description="config file to start from, relative to this file; without it, the defaults",
    )
    name: str = Field("sweep", pattern=NAME, description="of the folder below runs/")
    seeds: tuple[int, ...] = Field(
        (1, 2, 3), min_length=1, description="each point runs once with each, as data.seed"
    )
    set: _Set = Field(
        default_factory=dict, description='settings of all cells, as "privacy.epsilon" = 8'
    )
    grid: _Grid = Field(
        default_factory=dict, description="settings with lists of values; all combinations are run"
    )
    cells: tuple[_Set, ...] = Field((), description="points one by one, in place of a grid")
    rules: tuple[Rule, ...] = Field((), description="settings that follow from others")
    search: Search | None = Field(
        None, description="a tuner chooses the points, in place of a grid"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if sum(map(bool, (self.grid, self.cells, self.search))) != 1:
            raise ValueError("give one of [grid], [[cells]] and [search]")
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError("seeds must differ, and be 0 or more")
        if any(not values for values in self.grid.values()):
            raise ValueError("a setting of the grid has no values")
        points = len(self.cells) or math.prod(map(len, self.grid.values()))
        if points * len(self.seeds) > MAX_CELLS:
            raise ValueError(f"more than {MAX_CELLS:,} cells")
        return self

    @property
    def points(self) -> list[Values]:
        """What varies, without seeds; empty where a tuner chooses."""
        if self.search is not None:
            return []
        combinations = itertools.product(*self.grid.values())
        return list(self.cells) or [dict(zip(self.grid, c, strict=True)) for c in combinations]


_PARTS: dict[Any, type[Frozen]] = {"rules": Rule, "search": Search, "space": Space}


@dataclass(frozen=True, slots=True)
class Cell:
    """One job. `settings` is None where its values do not fit, and `error` says why."""

    values: Values
    seed: int
    settings: Settings | None
    error: str = ""

    @property
    def name(self) -> str:
        """The name of its folder: readable, and different from every other cell's."""
        if self.settings is not None:
            text = to_toml(self.settings.model_copy(update={"output": OutputSettings()}))
        else:
            text = json.dumps([shown(self.values), self.seed])
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        words = [f"{key.partition('.')[2]}={shown(value)}" for key, value in self.values.items()]
        slug = "_".join([*words, f"seed={self.seed}"])
        return re.sub(r"[^A-Za-z0-9=._-]", "-", slug)[:80] + f"_{digest}"


def read_sweep(path: Path) -> Sweep:
    """Raises ConfigError."""
    return sweep_from(read_toml(path), f"{path}: ")


def sweep_from(tree: Mapping[str, object], place: str = "") -> Sweep:
    """Raises ConfigError, which `place` leads."""
    try:
        return Sweep.model_validate(tree)
    except ValidationError as error:
        found = error.errors(include_url=False)
        # Before a key that is missing: it may be the one that was misspelt.
        first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
        loc = [part for part in first["loc"] if part != "[key]"]  # the key itself stands before
        where, said = ".".join(map(str, loc)), first["msg"].removeprefix("Value error, ")
        said = f"{where}: {said}" if where else said
        if first["type"] == "extra_forbidden":
            part = [_PARTS[key] for key in loc[:-1] if key in _PARTS][-1:] or [Sweep]
            said = unknown_key(where, str(loc[-1]), list(part[0].model_fields))
        raise ConfigError(place + said) from None


def cells_of(
    sweep: Sweep, base: Path | Settings | None, points: list[Values] | None = None
) -> list[Cell]:
    """All cells: each point with each seed, on top of a job or its config file.

    A point whose settings do not fit is a cell with an error, and does not stop the others. Raises
    ConfigError for the base.
    """
    _on_top(base, {})
    points = sweep.points if points is None else points
    found = [_cell(sweep, base, values, seed) for values in points for seed in sweep.seeds]
    names = [cell.name for cell in found]
    if len(set(names)) < len(names):
        twice = next(cell for cell in found if names.count(cell.name) > 1)
        raise ConfigError(f"two cells of the sweep are the same job: {shown(twice.values)}")
    return found


def shown(value: object) -> str:
    """A value, or values by name, for people."""
    if isinstance(value, dict):
        return ", ".join(f"{key.partition('.')[2] or key} {shown(v)}" for key, v in value.items())
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _on_top(base: Path | Settings | None, values: Values) -> Settings:
    if isinstance(base, Settings):
        return with_values(base, values)
    return load_settings(base, flags=values)


def _cell(sweep: Sweep, base: Path | Settings | None, values: Values, seed: int) -> Cell:
    whole = {**sweep.set, **values}
    for rule in sweep.rules:
        if rule.when.items() <= whole.items():
            whole |= rule.set
    if whole.get(EPSILON) == math.inf:
        whole = {k: v for k, v in whole.items() if k != LIFETIME and not _is_of_noise(k)}
        whole[KIND] = "none"
    elif EPSILON in whole:
        whole.setdefault(LIFETIME, whole[EPSILON])  # as `simulate --epsilon` does
    try:
        return Cell(values, seed, _on_top(base, {**whole, SEED: seed}))
    except ConfigError as error:
        return Cell(values, seed, None, str(error))


def _is_of_noise(key: str) -> bool:
    section, _, name = key.partition(".")
    return section == "privacy" and name not in NoPrivacy.model_fields
