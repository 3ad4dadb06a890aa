"""Uploads on the coordinator's disk: what comes back is what was kept, whole or in parts."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fedaipc.coordinator.upload_store import UploadStore
from fedaipc.errors import OutputError
from fedaipc.secagg.aggregator import Aggregator
from fedaipc.secagg.committee import Agreement, Unmask, agree, release
from fedaipc.secagg.uploads import Upload, mask_and_share, open_shares
from tests.support.secagg import HEAD, blob_of, federation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOUR, KEYS = federation(4)
PCS = FOUR.participants
UPDATES = {
    pc: np.random.default_rng(place).uniform(-1, 1, FOUR.size).astype("f4")
    for place, pc in enumerate(PCS)
}
UPLOADS = {
    pc: mask_and_share(FOUR, KEYS[pc], FOUR.encoding.encode(update, 1, pc), HEAD)
    for pc, update in UPDATES.items()
}
FRAMES = {pc: upload.encode() for pc, upload in UPLOADS.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "uploads"


@pytest.fixture
def empty(folder: Path) -> Iterator[UploadStore]:
    made = UploadStore(folder)
    yield made
    made.close()


@pytest.fixture
def store(empty: UploadStore) -> UploadStore:
    """With everybody's upload."""
    for pc, frame in FRAMES.items():
        empty.keep(pc, frame)
    return empty


def test_what_is_kept_comes_back(store: UploadStore) -> None:
    for pc in PCS[::-1]:
        assert store.upload(pc).encode() == FRAMES[pc]
        store.upload(pc).check(FOUR)


def test_the_lists_are_those_of_the_whole_upload_without_its_vector(store: UploadStore) -> None:
    for pc in PCS:
        lists, whole = store.lists(pc, 4), UPLOADS[pc]
        assert lists.header == whole.header
        assert lists.signature == whole.signature
        assert lists.checks == whole.checks
        assert lists.leaves == whole.leaves
        assert bytes(lists.blobs) == whole.blobs
        assert bytes(lists.vector) == b""


def test_a_blob_is_the_one_of_its_member(store: UploadStore) -> None:
    for pc in PCS:
        for place, member in enumerate(PCS):
            blob = store.blob(pc, place, 4)
            assert blob == blob_of(UPLOADS[pc], place)
            upload = store.lists(pc, 4)
            shares = open_shares(FOUR, KEYS[member], upload.header, upload.leaves[place], blob)
            assert len(shares) == 4


@pytest.mark.parametrize(("count", "bits"), [(3, 16), (5, 24), (12, 32)])
def test_parts_are_found_for_other_numbers_of_pcs_and_rings(
    empty: UploadStore, count: int, bits: int
) -> None:
    terms, keys = federation(count, bits=bits, size=1 + 7 * count)
    uploader = terms.participants[1]
    words = terms.encoding.encode(np.zeros(terms.size, np.float32), 1, uploader)
    upload = mask_and_share(terms, keys[uploader], words, HEAD)
    empty.keep(uploader, upload.encode())
    assert empty.upload(uploader).encode() == upload.encode()
    assert bytes(empty.lists(uploader, count).blobs) == upload.blobs
    blobs = [empty.blob(uploader, place, count) for place in range(count)]
    assert b"".join(blobs) == upload.blobs


def test_a_sum_is_opened_from_the_disk_alone(store: UploadStore) -> None:
    total = np.zeros(FOUR.size, FOUR.encoding.dtype)
    aggregator = Aggregator(FOUR, total)
    for pc in PCS:
        aggregator.accept(store.upload(pc))
    aggregator.recall(store.lists(pc, 4) for pc in PCS)
    proposals = {
        member: aggregator.proposal(member, {pc: store.blob(pc, place, 4) for pc in PCS})
        for place, member in enumerate(PCS)
    }
    agreements = []
    for member, proposal in proposals.items():
        answer = agree(FOUR, KEYS[member], proposal, None, {})
        assert isinstance(answer, Agreement)
        agreements.append(answer)
    for member, proposal in proposals.items():
        request = Unmask(proposal, tuple(agreements))
        aggregator.take(release(FOUR, KEYS[member], request, None)[1])
    aggregator.unmask()
    expected = sum(FOUR.encoding.encode(update, 1, pc) for pc, update in UPDATES.items())
    assert np.array_equal(total, np.asarray(expected, FOUR.encoding.dtype))


def test_a_new_spool_is_empty_and_a_removed_one_is_gone(store: UploadStore, folder: Path) -> None:
    assert len(list(folder.iterdir())) == 4
    again = UploadStore(folder)
    assert list(folder.iterdir()) == []
    with pytest.raises(OutputError, match="is missing"):
        again.upload(PCS[0])
    again.keep(PCS[0], FRAMES[PCS[0]])
    again.upload(PCS[0])
    again.remove()
    assert not folder.exists()
    again.remove()


def test_files_are_closed_between_groups_and_can_be_read_again(store: UploadStore) -> None:
    for _ in range(2):
        handles = []
        for pc in PCS:
            store.upload(pc)
            handles.append(store._open[pc])
        store.close()
        assert all(handle.closed for handle in handles)
    assert store.upload(PCS[0]).encode() == FRAMES[PCS[0]]
    store.close()


@pytest.mark.parametrize(
    "read",
    [lambda s: s.upload(PCS[0]), lambda s: s.lists(PCS[0], 4), lambda s: s.blob(PCS[0], 1, 4)],
    ids=["upload", "lists", "blob"],
)
def test_an_upload_that_is_gone_is_told_in_one_line(
    empty: UploadStore, folder: Path, read: Callable[[UploadStore], object]
) -> None:
    with pytest.raises(OutputError) as caught:
        read(empty)
    assert str(caught.value) == (
        f"{folder / PCS[0].hex()}: an upload is missing (No such file or directory)"
    )


def test_an_upload_that_was_cut_off_is_refused(store: UploadStore, folder: Path) -> None:
    path, frame = folder / PCS[0].hex(), FRAMES[PCS[0]]
    path.write_bytes(frame[:-1])
    with pytest.raises(OutputError, match="damaged"):
        store.upload(PCS[0])
    path.write_bytes(frame[: Upload.blobs_start(4) + 10])
    with pytest.raises(OutputError, match="damaged"):
        store.lists(PCS[0], 4)


def test_a_full_disk_is_told_in_one_line(
    store: UploadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError) as caught:
        store.keep(PCS[0], FRAMES[PCS[0]])
    assert str(caught.value).endswith(
        f"{PCS[0].hex()}: the upload cannot be kept (No space left on device); free some space and "
        "continue with --resume"
    )
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"uploads: cannot be made \([\w ]+\)$"):
        UploadStore(tmp_path / "file" / "uploads")
