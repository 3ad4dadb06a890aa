from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.fleets import CONFIG, ROUNDS, Fleet, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def enrolled(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Fleet:
    """A fleet that no test may start; each starts a copy."""
    del minilm
    folder = tmp_path_factory.mktemp("enrolled")
    config = folder / "config.toml"
    config.write_text(CONFIG)
    return Fleet.enrolled(folder / "fleet", config, ROUNDS)


@pytest.fixture
def fleet(tmp_path: Path, enrolled: Fleet) -> Iterator[Fleet]:
    with running(enrolled.copied(tmp_path / "fleet")) as made:
        yield made
