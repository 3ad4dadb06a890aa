"""Where a base model lies, and its hash; nothing here loads it, or torch."""

from __future__ import annotations

import difflib
import hashlib
import logging
import shutil
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from fedaipc.data.assets import cache_folder, fetch_asset, is_asset, list_assets
from fedaipc.errors import ModelError
from fedaipc.files import expanded

if TYPE_CHECKING:
    from fedaipc.config import TextClassifier

# What changes tokens or outputs, in addition to the weights.
_HASHED = (
    "added_tokens.json", "config.json", "merges.txt", "sentencepiece.bpe.model",
    "special_tokens_map.json", "spiece.model", "spm.model", "tokenizer.json", "tokenizer.model",
    "tokenizer_config.json", "vocab.json", "vocab.txt",
)  # fmt: skip
WARM_UP = "warm-up:"  # a base that this machine warmed up; what follows is its key


def resolve(base: str) -> str:
    """Folder of an asset or the folder itself; a hub id stays as it is. Raises ModelError."""
    if is_asset(base):
        folder = fetch_asset(base)
        if not folder.is_dir():
            raise ModelError(f"model.base = {base}: this asset is text, not a model")
        return str(folder)
    folder = warm_folder(base) if base.startswith(WARM_UP) else expanded(base)
    if folder.is_dir():
        if not any(folder.glob("*.safetensors")):
            raise ModelError(f"model.base = {base}: the folder holds no .safetensors weights")
        if not (folder / "config.json").is_file():
            raise ModelError(f"model.base = {base}: the folder holds no config.json")
        return str(folder)
    if base.startswith(WARM_UP):
        raise ModelError(
            f"model.base = {base}: not in {folder.parent}; run simulate here, or copy its folder "
            "from the machine that warmed it up"
        )
    if base.startswith((".", "/", "~")) or base.count("/") > 1:
        raise ModelError(f"model.base = {base}: no such folder")
    if close := difflib.get_close_matches(base, _models(), n=1, cutoff=0.8):
        raise ModelError(f"model.base = {base}: no such asset; did you mean {close[0]}?")
    return base


def warm_folder(base: str) -> Path:
    """Where a base named "warm-up:KEY" lies, whether it is there or not."""
    return cache_folder() / "warm-up" / base.removeprefix(WARM_UP)


def is_local(base: str) -> bool:
    """Whether `base` is a folder of this machine, and not an asset or a hub id."""
    return not is_asset(base) and expanded(base).is_dir()


def with_whole_base(model: TextClassifier) -> TextClassifier:
    """A base that is a folder by its whole path, which holds from any working directory."""
    if not is_local(model.base):
        return model
    return model.model_copy(update={"base": str(expanded(model.base).resolve())})


@lru_cache(maxsize=8)
def base_hash(base: str, keep_layers: int | None) -> str:
    """SHA-256 over the names and contents of all files that change what the model answers.

    PCs and coordinator compare it.
    """
    digest = hashlib.sha256(f"layers {keep_layers}".encode())
    source = base_folder(base)
    present = (source / name for name in _HASHED if (source / name).is_file())
    for path in (*sorted(source.glob("*.safetensors")), *present):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def copy_base(base: str, target: Path) -> None:
    """Weights, configuration and vocabulary. Raises OSError, or ModelError as `resolve`."""
    shutil.copytree(base_folder(base), target, ignore=shutil.ignore_patterns(".*"))


def weights_bytes(base: str) -> int:
    """Size of the weights' files. Raises ModelError where they are not here and cannot be had."""
    return sum(path.stat().st_size for path in base_folder(base).glob("*.safetensors"))


def base_folder(base: str) -> Path:
    """The folder with the files of `base`, fetched from the hub if need be. Raises ModelError."""
    source = Path(resolve(base))
    if source.is_dir():
        return source
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.CRITICAL)  # retries, line by line
    try:
        return Path(
            snapshot_download(base, allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model"])
        )
    except Exception as error:  # noqa: BLE001 - it raises many kinds; each means this
        raise ModelError(f"model.base = {base}: {_not_fetched(error)}") from None
    finally:
        hub.setLevel(level)


def _not_fetched(error: Exception) -> str:
    """Why the hub has nothing under a name that is neither a folder nor an asset."""
    from huggingface_hub import errors

    unknown = f"no such folder or asset (assets: {', '.join(_models())})"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return f"{unknown}, and the Hugging Face hub could not be reached"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{unknown}, and the Hugging Face hub has no public model of this name"
    if isinstance(error, errors.HFValidationError):
        return f"{unknown}, nor can it be the name of a model on the Hugging Face hub"
    reason = str(error).strip().split("\n")[0][:160] or type(error).__name__
    return f"cannot be loaded: {reason}"


def _models() -> list[str]:
    return [asset.name for asset in list_assets() if asset.kind == "model"]
