"""Uploads on the coordinator's disk: what comes back is what was kept."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedaipc.coordinator.upload_store import UploadStore
from fedaipc.errors import OutputError
from fedaipc.secagg.aggregator import Aggregator
from fedaipc.secagg.committee import Agreement, Unmask, agree, release
from tests.support.secagg import federation, shared_out

FOUR = shared_out(*federation(4))
TERMS, PCS = FOUR.group.terms, FOUR.group.members
WORDS = {
    pc: TERMS.encoding.encode(
        np.random.default_rng(place).uniform(-1, 1, TERMS.size).astype("f4"), 1, pc
    )
    for place, pc in enumerate(PCS)
}
FRAMES = {pc: FOUR.upload(pc, words.copy()).encode() for pc, words in WORDS.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "uploads"


@pytest.fixture
def store(folder: Path) -> UploadStore:
    """With everybody's key_shares and upload."""
    made = UploadStore(folder)
    for pc, frame in FRAMES.items():
        made.keep_shares(pc, FOUR.key_shares[pc].encode())
        made.keep(pc, frame)
    return made


def test_what_is_kept_comes_back(store: UploadStore) -> None:
    for pc in PCS[::-1]:
        assert store.upload(pc).encode() == FRAMES[pc]
        store.upload(pc).check(FOUR.group)
        assert store.shares(pc) == FOUR.key_shares[pc]


def test_a_later_key_shares_by_the_same_pc_replaces_the_first(store: UploadStore) -> None:
    again = shared_out(TERMS, FOUR.keys).key_shares[PCS[0]]
    store.keep_shares(PCS[0], again.encode())
    assert store.shares(PCS[0]) == again


def test_a_sum_is_unmasked_from_the_disk_alone(store: UploadStore) -> None:
    total = np.zeros(TERMS.size, TERMS.encoding.dtype)
    aggregator = Aggregator(FOUR.group, total)
    for pc in PCS:
        aggregator.accept(store.upload(pc))
    aggregator.recall(store.shares(pc) for pc in PCS)
    agreements = []
    for keys in FOUR.keys.values():
        answer = agree(FOUR.group, keys, aggregator.proposal(), None, {})
        assert isinstance(answer, Agreement)
        agreements.append(answer)
    for member, keys in FOUR.keys.items():
        request = Unmask(aggregator.proposal(), tuple(agreements), aggregator.blobs(member))
        assert aggregator.take(release(FOUR.group, keys, request, None)[1]) == ()
    aggregator.unmask()
    assert np.array_equal(total, sum(WORDS.values()))


def test_a_new_store_is_empty_and_a_removed_one_is_gone(store: UploadStore, folder: Path) -> None:
    assert len(list(folder.iterdir())) == 8
    again = UploadStore(folder)
    assert list(folder.iterdir()) == []
    with pytest.raises(OutputError, match="is missing"):
        again.upload(PCS[0])
    again.keep(PCS[0], FRAMES[PCS[0]])
    again.upload(PCS[0])
    again.remove()
    assert not folder.exists()
    again.remove()


READS = {"upload": lambda s: s.upload(PCS[0]), "shares": lambda s: s.shares(PCS[0])}


@pytest.mark.parametrize("kind", READS)
def test_what_is_gone_is_told_in_one_line(folder: Path, kind: str) -> None:
    with pytest.raises(OutputError) as caught:
        READS[kind](UploadStore(folder))
    path = folder / f"{PCS[0].hex()}.{kind}"
    assert str(caught.value) == f"{path}: an upload is missing (No such file or directory)"


@pytest.mark.parametrize("kind", READS)
def test_what_was_cut_off_is_refused(store: UploadStore, folder: Path, kind: str) -> None:
    path = folder / f"{PCS[0].hex()}.{kind}"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(OutputError, match="damaged"):
        READS[kind](store)


def test_a_full_disk_is_told_in_one_line(
    store: UploadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError) as caught:
        store.keep(PCS[0], FRAMES[PCS[0]])
    assert str(caught.value).endswith(
        f"{PCS[0].hex()}.upload: the upload cannot be kept (No space left on device); free some "
        "space and continue with --resume"
    )
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"uploads: cannot be made \([\w ]+\)$"):
        UploadStore(tmp_path / "file" / "uploads")


def test_shares_that_the_disk_has_changed_are_not_blamed_on_their_pc(
    store: UploadStore, folder: Path
) -> None:
    path = folder / f"{PCS[0].hex()}.shares"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(OutputError, match="damaged"):
        store.shares(PCS[0])
