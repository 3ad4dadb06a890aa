"""The hash by which PCs and coordinator know that they have the same base."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedaipc.errors import ModelError
from fedaipc.model.base import base_folder, base_hash

FILES = (
    "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
    "special_tokens_map.json", "added_tokens.json", "spiece.model", "merges.txt",
)  # fmt: skip


def made(folder: Path, **changed: str) -> str:
    folder.mkdir()
    for name in FILES:
        (folder / name).write_text(changed.get(name, "{}"))
    return base_hash(str(folder), None)


@pytest.mark.parametrize("name", FILES)
def test_each_file_that_changes_what_a_model_answers_counts(tmp_path: Path, name: str) -> None:
    first = made(tmp_path / "a")
    assert made(tmp_path / "b") == first
    assert made(tmp_path / "c", **{name: '{"do_lower_case": false}'}) != first
    (tmp_path / "d").mkdir()
    for other in FILES:
        if other not in {name, "model.safetensors", "config.json"}:
            (tmp_path / "d" / other).write_text("{}")
    (tmp_path / "d" / "model.safetensors").write_text("{}")
    (tmp_path / "d" / "config.json").write_text("{}")
    if name not in {"model.safetensors", "config.json"}:
        assert base_hash(str(tmp_path / "d"), None) != first


def test_a_note_beside_it_does_not(tmp_path: Path) -> None:
    first = made(tmp_path / "a")
    made(tmp_path / "b")
    base_hash.cache_clear()
    (tmp_path / "b" / "README.md").write_text("a note")
    assert base_hash(str(tmp_path / "b"), None) == first


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nosuch", "and the Hugging Face hub could not be reached"),
        ("no such", "nor can it be the name of a model on the Hugging Face hub"),
    ],
)
def test_a_base_that_is_nowhere_is_said_to_be_so(name: str, said: str) -> None:
    with pytest.raises(ModelError) as caught:
        base_folder(name)
    start = f"model.base = {name}: no such folder or asset (assets: minilm-l6"
    assert str(caught.value).startswith(start)
    assert str(caught.value).endswith(said)


def test_a_base_that_the_hub_does_not_know_is_said_to_be_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    def missing(*_: Any, **__: Any) -> None:
        answer: Any = SimpleNamespace(headers={}, request=None)
        raise RepositoryNotFoundError("404", response=answer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", missing)
    with pytest.raises(ModelError, match="hub has no public model of this name"):
        base_folder("nosuch")
