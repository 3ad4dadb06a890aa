"""One file holds a run between two rounds; it is replaced in one step, or not at all."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedaipc.errors import OutputError, RunOver
from fedaipc.files import replace_atomic, write_atomic
from fedaipc.results import RoundResult

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

FILE = "checkpoint.safetensors"
_ATTEMPT_FILE = "attempt.json"


@dataclass(slots=True, kw_only=True)
class Checkpoint:
    """`round` rounds are done. `optimizer` is the server optimizer's state.

    `banned` are PCs that were proved wrong or quarrel too much, `quarrels` the run's: by identity.
    """

    layout_hash: str
    vector: npt.NDArray[np.float32]
    round: int = 0
    optimizer: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    rounds: list[RoundResult] = field(default_factory=list)
    banned: set[bytes] = field(default_factory=set)
    quarrels: set[tuple[bytes, bytes]] = field(default_factory=set)

    def save(self, folder: Path) -> None:
        """Raises OutputError; then the previous checkpoint is still whole."""
        meta = {
            "round": str(self.round),
            "layout_hash": self.layout_hash,
            "rounds": json.dumps([r.model_dump(mode="json") for r in self.rounds]),
            "banned": json.dumps(sorted(pc.hex() for pc in self.banned)),
            "quarrels": json.dumps(sorted([one.hex(), two.hex()] for one, two in self.quarrels)),
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
                f"({getattr(error, 'strerror', None) or error}); the one before it is whole, go on "
                "with --resume"
            ) from None

    @classmethod
    def load(cls, folder: Path, layout_hash: str) -> Checkpoint | None:
        """The run's checkpoint, None if there is none yet. Raises RunOver on a damaged one."""
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
                rounds=[RoundResult.model_validate(r) for r in json.loads(meta["rounds"])],
                banned={bytes.fromhex(pc) for pc in json.loads(meta.get("banned", "[]"))},
                quarrels={
                    (bytes.fromhex(one), bytes.fromhex(two))
                    for one, two in json.loads(meta.get("quarrels", "[]"))
                },
            )
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            raise RunOver(f"{path}: damaged; start the run again in a new folder") from None
        if checkpoint.layout_hash != layout_hash:
            raise RunOver(f"{path}: belongs to another model; resume with its own config")
        return checkpoint


def next_attempt(folder: Path) -> int:
    """A number that no attempt of this run has had; on the disk before this returns.

    It is written before anything is sent, so a coordinator killed in a round comes back with a
    larger number and PCs never see one twice. Raises OutputError.
    """
    path = folder / _ATTEMPT_FILE
    try:
        last = int(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else 0
        write_atomic(path, json.dumps(last + 1).encode())
    except (OSError, TypeError, ValueError) as error:
        raise OutputError(f"{path}: cannot be kept ({error})") from None
    return last + 1
