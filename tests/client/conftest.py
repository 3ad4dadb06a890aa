"""PCs and key stores that each test gets afresh, with what asks them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedaipc.client import examples, trainer
from fedaipc.client.key_store import KeyStore
from fedaipc.protocol.job import Job
from fedaipc.secagg.round_keys import share_secrets
from fedaipc.secagg.terms import Terms
from tests.support.clients import Answer, Federation, asker, copies, enroll, spy
from tests.support.jobs import ADMISSION
from tests.support.key_stores import FIRST, RUN, bind, group_of, roster


@pytest.fixture(scope="session")
def enrolled(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Federation:
    """One PC with 40 records (size class 64), in a run whose updates travel open."""
    folder = tmp_path_factory.mktemp("enrolled")
    return enroll(folder, 52, "federation.clients=1", "aggregation.kind=plain")


@pytest.fixture(scope="session")
def five(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Federation:
    """PCs of several size classes, in a run whose updates are sealed."""
    folder = tmp_path_factory.mktemp("five")
    return enroll(folder, 260, "federation.clients=5", "data.partition.kind=skewed")


@pytest.fixture
def folder(enrolled: Federation, tmp_path: Path) -> Path:
    """The one PC, fresh."""
    (folder,) = enrolled.folders.values()
    return Path(shutil.copytree(folder, tmp_path / "pc"))


@pytest.fixture
def member(five: Federation, tmp_path: Path) -> Path:
    """The first of the five PCs, fresh."""
    return copies(five, tmp_path)[five.bundles[0].identity]


@pytest.fixture
def job(enrolled: Federation) -> Job:
    return enrolled.job


@pytest.fixture
def vector(enrolled: Federation) -> np.ndarray:
    return enrolled.vector


@pytest.fixture
def ask(enrolled: Federation, folder: Path) -> Callable[..., Answer]:
    """Ask the one PC for an open update."""
    return asker(enrolled, folder)


@pytest.fixture
def ask_member(five: Federation, member: Path) -> Callable[..., Answer]:
    """Ask the first of the five PCs for a sealed update."""
    return asker(five, member)


@pytest.fixture
def touched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the steps that see the PC's data, as they are taken."""
    steps: list[str] = []
    for where, name in (
        (examples, "read_records"), (examples, "make_inputs"),
        (trainer, "train_round"), (trainer, "mask_update"),
    ):  # fmt: skip
        spy(monkeypatch, where, name, steps)
    return steps


@pytest.fixture
def key_store(tmp_path: Path) -> KeyStore:
    return KeyStore.create(tmp_path)


@pytest.fixture
def ready(key_store: KeyStore) -> KeyStore:
    """With a list of members and keys of epoch 5."""
    key_store.pin(roster(key_store).encode(), ADMISSION.public)
    key_store.bundle(RUN, 5, 64)
    return key_store


@pytest.fixture
def full(ready: KeyStore) -> tuple[KeyStore, Terms]:
    """With every file, and a round."""
    group = group_of(ready)
    own, _ = share_secrets(group.terms, ready.keys(group.terms))
    ready.keep_secrets(own)
    ready.keep(group)
    bind(ready, group.terms, FIRST)
    return ready, group.terms
