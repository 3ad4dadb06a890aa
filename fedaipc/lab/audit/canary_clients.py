"""A real run whose PCs hold canaries, each in or out by a coin, and what the server saw.

The run is an ordinary one: the same coordinator, PCs, ledgers and messages. Updates are plain,
because the promise does not rest on secure aggregation. Where it does (distributed noise) they are
masked, all PCs must answer, and one may collude: then a sum has hardly more noise than the promise
needs. Everything is recorded on the wire, as a curious server would.
"""

from __future__ import annotations

import csv
import secrets
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedaipc.config import DPSGD, PlainAggregation, Settings
from fedaipc.data.prepare import SimulatedData, prepare_simulation
from fedaipc.data.records import Records
from fedaipc.errors import DataError
from fedaipc.model.warm_up import warm_base
from fedaipc.privacy.budget import size_class
from fedaipc.results import Results
from fedaipc.simulation.recorder import ObservedUpdate, Recorder
from fedaipc.simulation.simulation import prepare, simulate

_COLUMN, _PART = "pc", "part-"


@dataclass(frozen=True, slots=True)
class CanaryClient:
    """One PC's texts: those that it certainly holds, and canaries with their coins."""

    real: Records
    canaries: Records
    included: npt.NDArray[np.bool_]

    @property
    def held(self) -> Records:
        """What the PC gets."""
        chosen = self.canaries.take(np.flatnonzero(self.included))
        return Records(self.real.texts + chosen.texts, self.real.labels + chosen.labels)


@dataclass(frozen=True, slots=True, repr=False)
class Audited:
    """A finished run, its settings and PCs, and every update in the order of its arrival."""

    settings: Settings
    labels: tuple[str, ...]
    pcs: tuple[CanaryClient, ...]
    updates: tuple[ObservedUpdate, ...]
    results: Results
    folder: Path


def plant(data: SimulatedData, canaries: int, seed: int | None = None) -> tuple[CanaryClient, ...]:
    """Split each PC's texts into real ones and `canaries` with wrong labels; flip the coins.

    The counts are such that a PC's public size class is the same however the coins fall: it is
    what neighbouring data sets share. Coins come from the operating system, or from `seed`. Raises
    DataError where a PC has too few texts.
    """
    random = np.random.default_rng(secrets.randbits(128) if seed is None else seed)
    clients = []
    for number, part in enumerate(data.parts):
        records = data.train.take(part)
        real = _real_count(number, len(records), canaries)
        order = random.permutation(len(records))
        chosen = records.take(order[real : real + canaries])
        wrong = tuple(
            str(random.choice([other for other in data.labels if other != label]))
            for label in chosen.labels
        )
        clients.append(
            CanaryClient(
                real=records.take(order[:real]),
                canaries=Records(chosen.texts, wrong),
                included=random.random(canaries) < 0.5,
            )
        )
    return tuple(clients)


def _real_count(number: int, records: int, canaries: int) -> int:
    """The largest size class that such a PC can fill; one record more than half of it."""
    public = size_class(records)
    while public > 2 * canaries:
        real = public // 2 + 1
        if real + canaries <= min(records, public):
            return real
        public //= 2
    raise DataError(
        f"PC {number} holds {records:,} texts, too few for {canaries:,} canaries of its "
        "own: give fewer canaries over all PCs, or fewer PCs"
    )


def run_canaries(
    settings: Settings,
    data: SimulatedData,
    pcs: tuple[CanaryClient, ...],
    folder: Path,
    *,
    sealed: bool = False,
    listen: int | None = None,
) -> Audited:
    """Train `pcs` in an ordinary run below the new `folder`, and listen. Raises FedaipcError.

    `listen` is to how many PCs, from the first of the run on; None for all.
    """
    folder.mkdir(parents=True)
    settings, _ = warm_base(settings, data, lambda *_: None)
    wanted = _with_sources(settings, data, pcs, folder)
    aggregation = wanted.aggregation
    if is_distributed(settings):
        all_answer = {"threshold": 1.0, "colluding": 1}
        aggregation = aggregation.model_copy(update=all_answer)
    elif not sealed:
        aggregation = PlainAggregation(bound=aggregation.bound)
    wanted = wanted.model_copy(update={"aggregation": aggregation})
    recorder = Recorder(listen)
    run = prepare(wanted)
    results = simulate(run, "in-process", lambda _: None, app=recorder)
    # Which simulated PC got which part is the partition's choice: by size.
    part = [int(pc.groups[0].removeprefix(_PART)) for pc in results.pcs]
    updates = tuple(replace(one, pc=part[one.pc]) for one in recorder.updates)
    return Audited(wanted, data.labels, pcs, updates, results, run.folder)


def is_distributed(settings: Settings) -> bool:
    """Whether PCs share the noise, so that sums are protected and single updates are not."""
    return isinstance(settings.privacy, DPSGD) and settings.privacy.distributed


def read_data(settings: Settings) -> SimulatedData:
    """What `simulate` would give to the PCs. Raises DataError."""
    return prepare_simulation(settings.data, settings.federation.clients)


def _with_sources(
    settings: Settings, data: SimulatedData, pcs: tuple[CanaryClient, ...], folder: Path
) -> Settings:
    """The same job on files in `folder`: one value of a column for each PC."""
    held = [(pc.held, f"{_PART}{number:04d}") for number, pc in enumerate(pcs)]
    files = {"source": held, "validation": [(data.validation, "")], "test": [(data.test, "")]}
    sources = {name: _write(folder / f"{name}.csv", parts) for name, parts in files.items()}
    update = {
        **sources, "text_column": "text", "label_column": "label", "labels": data.labels,
        "partition": "column", "client_column": _COLUMN, "limit": None,
        "validation_size": None, "test_size": None,
    }  # fmt: skip
    # All PCs in every round: who is asked must not depend on how much a PC holds. Distributed noise
    # weighs by size class.
    weighting = "size-class" if is_distributed(settings) else "equal"
    all_pcs = {"weighting": weighting, "fraction": 1.0, "only": None}
    output = {"folder": str(folder), "name": "run", "plots": False}
    return settings.model_copy(
        update={
            "data": settings.data.model_copy(update=update),
            "federation": settings.federation.model_copy(update=all_pcs),
            "output": settings.output.model_copy(update=output),
        }
    )


def _write(path: Path, parts: list[tuple[Records, str]]) -> str:
    """Write texts, each with the name of its part; the whole path."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["text", "label", _COLUMN])
        for records, part in parts:
            rows = zip(records.texts, records.labels, strict=True)
            table.writerows((text, label, part) for text, label in rows)
    return str(path.resolve())
