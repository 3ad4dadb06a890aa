"""`fedaipc privacy ledger`: what is verified and handed out, and one line where it cannot."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fedaipc.client.key_store import KeyStore
from fedaipc.client.peer_heads import read_copy, write_export
from fedaipc.config import NoPrivacy, OwnerSettings, Schedule, to_toml
from fedaipc.privacy.chain import key_line, signed_line
from fedaipc.privacy.ledger import Charge, Ledger
from fedaipc.secagg.keys import SigningKey, fingerprint
from tests.support.commands import refused
from tests.support.schedules import dp_sgd

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.commands import Ran

STEP = dp_sgd(1.0, 0.1, 5)
PLAIN = Schedule(mechanism=NoPrivacy(), steps=5)


@pytest.fixture
def two() -> Path:
    """A folder with two PCs; the second has trained once without privacy."""
    for name in ("a", "b"):
        folder = Path("pcs", name)
        folder.mkdir(parents=True)
        identity = KeyStore.create(folder).identity
        ledger = Ledger.create(
            folder / "ledger.jsonl", identity, lifetime_epsilon=8.0, delta=1e-6, filter_kind=4.0
        )
        for attempt in (1, 2):
            step = PLAIN if (name, attempt) == ("b", 2) else STEP
            ledger.charge(Charge(run="r", round=attempt, attempt=attempt, schedule=step))
    return Path("pcs")


def test_a_whole_ledger_is_verified_and_says_who_signed_it(
    fedaipc: Callable[..., Ran], two: Path
) -> None:
    ran = fedaipc("privacy", "ledger", "verify", two, "--json")
    assert ran.code == 0
    rows = json.loads(ran.out)
    assert [(r["pc"], r["lines"], r["charges"], r["problem"]) for r in rows] == [
        ("a", 3, 2, None), ("b", 3, 2, None),
    ]  # fmt: skip
    key = fingerprint(KeyStore(two / "a").identity.public)
    assert rows[0]["key"] == key
    assert fedaipc("privacy", "ledger", "verify", two / "a", "--key", key).code == 0
    wrong = fedaipc("privacy", "ledger", "verify", two / "b", "--key", key)
    assert wrong.code == 8
    assert "was not signed by" in wrong.err


def test_a_pc_is_called_by_its_public_name(fedaipc: Callable[..., Ran], two: Path) -> None:
    owner = OwnerSettings(
        name="office-1", source="a.csv", size_class=64, base="minilm-l6", admission="a" * 64
    )
    (two / "a" / "owner.toml").write_text(to_toml(owner))
    (two / "b" / "owner.toml").write_text("damaged")
    for verb in ("show", "verify"):
        rows = json.loads(fedaipc("privacy", "ledger", verb, two, "--json").out)
        assert [row["pc"] for row in rows] == ["office-1", "b"]
    head = fedaipc("privacy", "ledger", "verify", two).out.splitlines()[0]
    assert head.split()[-3:] == ["remembered", "by", "verdict"]


@pytest.mark.parametrize("what", ["file", "export"])
def test_a_changed_line_is_found_wherever_it_lies(
    fedaipc: Callable[..., Ran], two: Path, what: str
) -> None:
    path, place = two / "a" / "ledger.jsonl", two
    if what == "export":
        assert fedaipc("privacy", "ledger", "export", two, "out.json").code == 0
        path = place = Path("out.json")
    path.write_text(path.read_text().replace("0.1", "0.2", 1))
    ran = fedaipc("privacy", "ledger", "verify", place)
    assert ran.code == 8
    assert "line 2 is damaged or was changed" in ran.err
    assert ran.err.count("\n") == 1
    assert "NOT GOOD" in ran.out
    assert ("good" if what == "file" else "consistent") in ran.out


def test_an_export_can_be_read_and_verified(fedaipc: Callable[..., Ran], two: Path) -> None:
    assert "2 ledgers, 6 lines" in fedaipc("privacy", "ledger", "export", two, "out.json").out
    rows = json.loads(fedaipc("privacy", "ledger", "verify", "out.json", "--json").out)
    assert [row["pc"] for row in rows] == ["a", "b"]
    assert fedaipc("privacy", "ledger", "export", two, "out.csv").code == 0
    with Path("out.csv").open(newline="") as file:
        charges = list(csv.DictReader(file))
    assert [(c["pc"], c["line"], c["noise_multiplier"]) for c in charges] == [
        ("a", "2", "1.0"), ("a", "3", "1.0"), ("b", "2", "1.0"), ("b", "3", ""),
    ]  # fmt: skip


def test_a_torn_line_is_not_mended_by_looking_at_it(fedaipc: Callable[..., Ran], two: Path) -> None:
    path = two / "a" / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    torn = path.read_bytes()
    checked = fedaipc("privacy", "ledger", "verify", two, "--json")
    assert checked.code == 0, checked.err
    found = {row["pc"]: (row["lines"], row["torn"]) for row in json.loads(checked.out)}
    assert found == {"a": (2, True), "b": (3, False)}
    assert "the last line is incomplete" in " ".join(
        fedaipc("privacy", "ledger", "verify", two).out.split()
    )
    shown = json.loads(fedaipc("privacy", "ledger", "show", two, "--json").out)
    assert [row["charges"] for row in shown] == [1, 2]
    assert fedaipc("privacy", "ledger", "export", two, "copy.json").code == 0
    assert fedaipc("privacy", "ledger", "verify", "copy.json").code == 0
    assert path.read_bytes() == torn
    path.write_bytes(torn + b'"}\n')  # complete, and not a ledger line
    assert "line 3 is damaged" in fedaipc("privacy", "ledger", "verify", two).err


def test_an_export_replaces_none(fedaipc: Callable[..., Ran], two: Path) -> None:
    Path("copy.json").write_text("evidence")
    ran = fedaipc("privacy", "ledger", "export", two, "copy.json")
    assert "copy.json: is there already" in refused(ran, 12)
    assert Path("copy.json").read_text() == "evidence"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("verify", "nowhere"), 8, "nowhere: no such file or folder"),
        (("show", "nowhere"), 8, "nowhere: no such folder"),
        (("show", "pcs/a/ledger.jsonl"), 8, "ledger.jsonl: is a file, which `verify` alone takes"),
        (("verify", "pcs/a/ledger.jsonl"), 8, "is not what `fedaipc privacy ledger export` writes"),
        (("verify", "pcs", "--seen-by", "."), 8, "holds no PC"),
        (("export", "pcs", "out.txt"), 8, "ends in .json or .csv"),
        (("export", "pcs", "nowhere/out.csv"), 12, "nowhere/out.csv: cannot be written"),
        (("export", ".", "out.csv"), 8, "holds no ledger"),
    ],
)
def test_what_cannot_be_done_ends_in_one_line(
    fedaipc: Callable[..., Ran], two: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    assert said in refused(fedaipc("privacy", "ledger", *words), code)
    assert two.is_dir()


def forged(path: Path, change: Callable[[dict], None], key: SigningKey) -> None:
    """The whole chain one that was rewritten under `key`."""
    previous, lines = "", []
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        change(entry)
        body = {k: v for k, v in entry.items() if k not in ("signature", "hash", "previous")}
        if "key" in body:
            body["key"] = key.public.hex()
        made = signed_line(body, previous, key)
        previous = json.loads(made)["hash"]
        lines.append(made)
    path.write_bytes(b"".join(lines))


@pytest.mark.parametrize("lie", ["another PC's", "one that was rewritten", "a stranger's key line"])
def test_a_foreign_ledger_in_a_pcs_folder_is_not_called_good(
    fedaipc: Callable[..., Ran], two: Path, lie: str
) -> None:
    path, stranger = two / "a" / "ledger.jsonl", SigningKey()
    if lie == "another PC's":
        shutil.copy(two / "b" / "ledger.jsonl", path)
    elif lie == "one that was rewritten":
        forged(path, lambda entry: entry.update(steps=1) if "steps" in entry else None, stranger)
    else:
        last = json.loads(path.read_text().splitlines()[-1])["hash"]
        path.write_bytes(path.read_bytes() + key_line(last, "2026", stranger, stranger))
    ran = fedaipc("privacy", "ledger", "verify", two / "a")
    assert ran.code == 8
    assert "NOT GOOD" in ran.out
    assert "not this PC's key" in ran.err or "did not sign" in ran.err
    if lie != "a stranger's key line":  # outside of the folder nothing contradicts it but the key
        shutil.copy(path, two)
        Path("out.json").write_bytes(write_export([read_copy(two / "ledger.jsonl")]))
        ran = fedaipc("privacy", "ledger", "verify", "out.json")
        assert ran.code == 0
        assert "consistent" in ran.out
        assert "good" not in ran.out
        assert "--key" in ran.out
        own = fingerprint(KeyStore(two / "a").identity.public)
        assert fedaipc("privacy", "ledger", "verify", "out.json", "--key", own).code == 8


def test_the_ledger_of_a_pc_that_left_is_good_by_the_key_that_it_keeps(
    fedaipc: Callable[..., Ran], two: Path
) -> None:
    folder, new = two / "a", SigningKey()
    Ledger.hand_over(folder / "ledger.jsonl", KeyStore(folder).identity, new)
    (folder / "successor.key").write_bytes(new.secret())
    shutil.rmtree(folder / "keys")
    rows = json.loads(fedaipc("privacy", "ledger", "verify", folder, "--json").out)
    assert [row["verdict"] for row in rows] == ["good"]
    (folder / "successor.key").unlink()
    rows = json.loads(fedaipc("privacy", "ledger", "verify", folder, "--json").out)
    assert [row["verdict"] for row in rows] == ["consistent"]


def test_names_in_a_file_style_nothing(fedaipc: Callable[..., Ran], two: Path) -> None:
    assert fedaipc("privacy", "ledger", "export", two, "out.json").code == 0
    content = json.loads(Path("out.json").read_text())
    content["ledgers"][0]["pc"] = "[/x] \x1b[31m"
    Path("out.json").write_text(json.dumps(content))
    ran = fedaipc("privacy", "ledger", "verify", "out.json")
    assert ran.code == 0
    assert "[/x]" in ran.out
    assert "\x1b" not in ran.out


@pytest.mark.parametrize("content", ["[]", "{}", "\xff", "[" * 100_000, '{"format": 1}', "null"])
def test_any_file_that_is_no_export_is_refused(
    fedaipc: Callable[..., Ran], tmp_path: Path, content: str
) -> None:
    (tmp_path / "x.json").write_text(content)
    assert "is not what" in refused(fedaipc("privacy", "ledger", "verify", "x.json"), 8)
