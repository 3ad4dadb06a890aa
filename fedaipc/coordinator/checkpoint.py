"""One file holds a run between two rounds; it is replaced in one step, or not at all."""

from __future__ import annotations

import json
import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedaipc import strict_json
from fedaipc.errors import OutputError, RunOver, os_errors_as
from fedaipc.files import replace_atomic, write_atomic
from fedaipc.results import RoundResult

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

FILE = "checkpoint.safetensors"
_COUNTERS_FILE, _NONE_YET = "counters.json", {"attempt": 0, "epoch": 0}
_MAX_BYTES = 1 << 27  # of one text: 100,000 rounds


@dataclass(slots=True, kw_only=True)
class Checkpoint:
    """`round` rounds are done. `optimizer` is the server optimizer's state.

    By identity: `banned` are PCs that were proved wrong, or in too many disputes, and `disputes`
    are the run's. `charges` is the largest number of attempts up to `attempt` that a PC was
    charged for. `failures` says in how many void attempts a PC did not do its part, and until
    when (seconds since 1970) it rests.
    """

    layout_hash: str
    vector: npt.NDArray[np.float32]
    round: int = 0
    optimizer: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    rounds: list[RoundResult] = field(default_factory=list)
    banned: set[bytes] = field(default_factory=set)
    disputes: set[tuple[bytes, bytes]] = field(default_factory=set)
    attempt: int = 0
    charges: dict[bytes, int] = field(default_factory=dict)
    failures: dict[bytes, tuple[int, float]] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Raises OutputError; then the previous checkpoint is still intact."""
        meta = {
            "round": str(self.round),
            "layout_hash": self.layout_hash,
            "rounds": json.dumps([r.model_dump(mode="json") for r in self.rounds]),
            "banned": json.dumps(sorted(pc.hex() for pc in self.banned)),
            "disputes": json.dumps(sorted([one.hex(), two.hex()] for one, two in self.disputes)),
            "attempt": str(self.attempt),
            "charges": json.dumps({pc.hex(): count for pc, count in self.charges.items()}),
            "failures": json.dumps({pc.hex(): rest for pc, rest in self.failures.items()}),
        }
        tensors = {
            "vector": self.vector,
            **{f"optimizer.{k}": v for k, v in self.optimizer.items()},
        }
        try:
            replace_atomic(folder / FILE, lambda path: save_file(tensors, path, meta))
        except (OSError, SafetensorError) as error:
            raise OutputError(
                f"{folder}: the checkpoint of round {self.round} cannot be written "
                f"({getattr(error, 'strerror', None) or error}); the one before it is intact, "
                "continue with --resume"
            ) from None

    @classmethod
    def load(cls, folder: Path, layout_hash: str) -> Checkpoint | None:
        """The run's checkpoint, None before the first one. Raises RunOver on a damaged one."""
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                meta = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            checkpoint = cls(
                layout_hash=meta["layout_hash"],
                vector=tensors.pop("vector"),
                round=int(meta["round"]),
                optimizer={k.removeprefix("optimizer."): v for k, v in tensors.items()},
                rounds=[RoundResult.model_validate(r) for r in _parsed(meta["rounds"])],
                banned={bytes.fromhex(pc) for pc in _parsed(meta["banned"])},
                disputes={
                    (bytes.fromhex(one), bytes.fromhex(two))
                    for one, two in _parsed(meta["disputes"])
                },
                attempt=int(meta["attempt"]),
                charges={bytes.fromhex(pc): int(n) for pc, n in _parsed(meta["charges"]).items()},
                failures={
                    bytes.fromhex(pc): (int(count), float(until))
                    for pc, (count, until) in _parsed(meta["failures"]).items()
                },
            )
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            raise RunOver(f"{path}: damaged; start the run again in a new folder") from None
        if checkpoint.layout_hash != layout_hash:
            raise RunOver(f"{path}: belongs to another model; resume with its own config")
        return checkpoint


def _parsed(text: str) -> Any:
    return strict_json.parse(text, max_bytes=_MAX_BYTES)


class Counters:
    """The newest attempt and key epoch of the run in `folder`, each on the disk before it is used.

    A coordinator that was killed continues with larger numbers, so PCs never see one twice.
    """

    def __init__(self, folder: Path) -> None:
        """Raises OutputError where the file cannot be read."""
        self._path = folder / _COUNTERS_FILE
        try:
            found = strict_json.load(self._path) if self._path.is_file() else _NONE_YET
            self.attempt, self.epoch = (operator.index(found[name]) for name in _NONE_YET)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise OutputError(f"{self._path}: cannot be read ({error})") from None

    def advance(self, *, attempt: int | None = None, epoch: int | None = None) -> None:
        """Raises OutputError where that cannot be written."""
        new = {"attempt": attempt or self.attempt, "epoch": epoch or self.epoch}
        with os_errors_as(OutputError, f"{self._path}: cannot be written"):
            write_atomic(self._path, json.dumps(new).encode())
        self.attempt, self.epoch = new["attempt"], new["epoch"]
