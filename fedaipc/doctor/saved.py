"""What `doctor --save` found out, for jobs that leave threads and micro-batch open."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from fedaipc import strict_json
from fedaipc.config import load_owner, to_toml
from fedaipc.data.assets import cache_folder
from fedaipc.errors import AssetError
from fedaipc.files import write_atomic, write_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedaipc.config import Settings
    from fedaipc.doctor.probe import Speed

_FILE, _OWNER_FILE = "doctor.json", "owner.toml"


def save(settings: Settings, processor: str, speed: Speed) -> Path:
    """Keep threads and micro-batch for jobs with this model on this processor.

    Not the precision: what a simulation computes would depend on a hidden file.
    """
    path = cache_folder() / _FILE
    found = _read(path)
    found[_key(settings, processor)] = {
        "threads": speed.threads, "micro_batch": speed.micro_batch,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(found, indent=2) + "\n")
    return path


def save_for_pc(folder: Path, speeds: Sequence[Speed], own: Speed) -> Path:
    """Keep what is fastest on `own`'s device in the owner.toml of the PC in `folder`.

    The precision as well, which is the owner's to choose. `speeds` are from the fastest on.
    """
    speed = next(speed for speed in speeds if speed.device == own.device)
    path = folder / _OWNER_FILE
    owner = load_owner(path)
    found = {
        "precision": speed.precision, "threads": speed.threads, "micro_batch": speed.micro_batch,
    }  # fmt: skip
    changed = owner.model_copy(update={"speed": owner.speed.model_copy(update=found)})
    write_atomic(path, to_toml(changed).encode())
    return path


def with_saved(settings: Settings, processor: str) -> Settings:
    """`settings` with what was saved, where they leave threads or micro-batch at 0."""
    try:
        found = _read(cache_folder() / _FILE).get(_key(settings, processor))
    except AssetError:  # no place for a cache: it only saves time
        return settings
    if not isinstance(found, dict):
        return settings
    speed = settings.speed
    update = {
        name: found[name]
        for name in ("threads", "micro_batch")
        if isinstance(found.get(name), int) and getattr(speed, name) == 0
    }
    return settings.model_copy(update={"speed": speed.model_copy(update=update)})


def _read(path: Path) -> dict[str, object]:
    """Nothing where the file is missing or damaged: it only ever saves time."""
    try:
        found = strict_json.load(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _key(settings: Settings, processor: str) -> str:
    what = {
        "processor": processor,
        "torch": version("torch"),
        "model": settings.model.model_dump(mode="json", exclude={"seed"}),
        "device": settings.speed.device,
        "precision": settings.speed.precision,
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
