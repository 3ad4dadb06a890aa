"""An older copy of a ledger is found: by the PC itself, and by the peers where all was restored."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from fedaipc.client.key_store import FOLDER as KEYS
from fedaipc.client.key_store import KeyStore
from fedaipc.privacy.ledger import LEDGER_FILE, Ledger
from fedaipc.simulation.simulation import prepare, simulate
from tests.support.jobs import tiny
from tests.support.runs import quiet

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fedaipc.results import Results
    from tests.support.commands import Ran

PC = "pc-0003"


def ran(folder: Path, *changes: str) -> Results:
    settings = tiny(f"output.folder='{folder / 'runs'}'", "federation.clients=5", *changes)
    return simulate(prepare(settings, pc_state=folder / "pcs"), "in-process", quiet)


def spent(folder: Path) -> dict[str, int]:
    return {
        path.parent.name: len(Ledger(path).charges)
        for path in sorted((folder / "pcs").glob(f"*/{LEDGER_FILE}"))
    }


@pytest.fixture
def restored(tmp_path: Path, minilm: Path) -> Path:
    """After two runs, of which one PC's backup knows the first alone."""
    ran(tmp_path)
    shutil.copytree(tmp_path / "pcs" / PC, tmp_path / "backup")
    ran(tmp_path)
    return tmp_path


def test_peers_leave_a_pc_out_whose_whole_folder_is_an_older_copy(restored: Path) -> None:
    shutil.rmtree(restored / "pcs" / PC)
    shutil.copytree(restored / "backup", restored / "pcs" / PC)
    before = spent(restored)
    results = ran(restored)
    assert results.rounds[0].blamed == (PC,)
    # The round in which it is found may be void: some members had signed the set with it.
    assert {r.asked for r in results.rounds[1:]} == {4}
    assert [r.round for r in results.rounds if not r.void] == [1, 2]
    assert not any(r.void for r in results.rounds[1:])
    assert spent(restored)[PC] == before[PC] + 1  # it was charged for what it sent


def test_a_pc_whose_ledger_alone_is_older_trains_no_more(restored: Path) -> None:
    shutil.copy(restored / "backup" / LEDGER_FILE, restored / "pcs" / PC / LEDGER_FILE)
    results = ran(restored)
    assert [r.declined for r in results.rounds] == [1, 1]
    assert not any(r.blamed for r in results.rounds)
    assert spent(restored)[PC] == 2


def test_the_command_finds_what_peers_remember(restored: Path, fedaipc: Callable[..., Ran]) -> None:
    pcs = restored / "pcs"
    assert fedaipc("privacy", "ledger", "verify", pcs).code == 0
    exported = restored / "ledgers.json"
    assert fedaipc("privacy", "ledger", "export", pcs, exported).code == 0
    assert fedaipc("privacy", "ledger", "verify", exported, "--seen-by", pcs).code == 0

    # Who tears a line that was granted is not taken for a crash.
    whole = (pcs / PC / LEDGER_FILE).read_bytes()
    (pcs / PC / LEDGER_FILE).write_bytes(whole[:-9])
    torn = fedaipc("privacy", "ledger", "verify", pcs / PC)
    assert torn.code == 8
    assert "has 4 lines, and had 5 when it was last seen" in torn.err
    (pcs / PC / LEDGER_FILE).write_bytes(whole)

    shutil.rmtree(pcs / PC)
    shutil.copytree(restored / "backup", pcs / PC)
    ran = fedaipc("privacy", "ledger", "verify", pcs, "--json")
    assert ran.code == 8
    rows = {row["pc"]: row for row in json.loads(ran.out)}
    assert [name for name, row in rows.items() if row["problem"]] == [PC]
    assert "has 3 lines, and had 5 when it was last seen" in ran.err
    assert rows[PC]["peers"] >= 3
    alone = fedaipc("privacy", "ledger", "verify", pcs / PC, "--json")  # nobody remembers more
    assert alone.code == 0
    who = next(p for p in pcs.iterdir() if p.name != PC and len(KeyStore(p).heads()) > 1)
    peer = fedaipc("privacy", "ledger", "verify", pcs / PC, "--seen-by", who)
    assert peer.code == 8
    # The export from before is still whole, and the older copy is not what it holds.
    assert fedaipc("privacy", "ledger", "verify", exported, "--seen-by", pcs).code == 0


def test_pcs_that_agreed_remember_the_heads_of_all(restored: Path) -> None:
    ledgers = {p.parent.name: Ledger(p) for p in (restored / "pcs").glob(f"*/{LEDGER_FILE}")}
    kept = {name: KeyStore(restored / "pcs" / name).heads() for name in ledgers}
    whole = [heads for heads in kept.values() if len(heads) > 1]
    assert len(whole) >= 4  # no more members are asked than it takes
    for heads in whole:
        assert len(heads) == 5
        for ledger in ledgers.values():
            assert ledger.key is not None
            seen = heads[bytes.fromhex(ledger.key)]
            assert (seen.count, seen.digest) == ledger.head
    for name, heads in kept.items():  # who was not asked knows its own
        assert bytes.fromhex(str(ledgers[name].key)) in heads
        assert (restored / "pcs" / name / KEYS / "head").stat().st_mode & 0o77 == 0
