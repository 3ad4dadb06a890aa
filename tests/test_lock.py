"""The lists that scripts/setup installs from: the tested versions, and no file without its hash."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"
LISTS = sorted(SCRIPTS.glob("*.lock"))


def entries(path: Path) -> dict[str, str]:
    text = "\n".join(line for line in path.read_text().splitlines() if line[:1] != "#")
    found = re.split(r"\n(?=\S)", text.strip())
    return {re.sub(r"[-_.]+", "-", entry.partition("==")[0]).lower(): entry for entry in found}


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.name)
def test_each_package_has_one_version_and_hashes(path: Path) -> None:
    for name, entry in entries(path).items():
        assert re.match(r"[A-Za-z0-9._-]+==[0-9][^ ;]*( ; .*)? \\\n", entry), name
        hashes = entry.split("\\\n")[1:]
        assert hashes, name
        assert all(re.fullmatch(r"\s+--hash=sha256:[0-9a-f]{64}\s*", one) for one in hashes), name


def test_the_versions_are_those_that_are_tested() -> None:
    constraints = entries(SCRIPTS / "constraints.txt")
    locked = {name: entry for path in LISTS for name, entry in entries(path).items()}
    found = {name: locked[name].split()[0] for name in constraints.keys() & locked.keys()}
    wanted = {name: constraints[name] for name in found}
    assert {k: v.lower().partition("==")[2] for k, v in found.items()} == {
        k: v.lower().partition("==")[2] for k, v in wanted.items()
    }
    assert len(found) > 100


def test_setup_installs_nothing_else() -> None:
    text = (SCRIPTS / "setup").read_text()
    used = set(re.findall(r"requirements[a-z-]*\.lock", text))
    assert used == {path.name for path in LISTS}
    assert "--require-hashes" in text
    assert "--no-deps" in text
