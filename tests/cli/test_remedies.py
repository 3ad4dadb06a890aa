"""What an error about texts advises is accepted by the command that printed it, and helps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fedaipc.config import load_settings
from tests.support.commands import all_commands, refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.commands import Ran

ROWS = [f"straße {n},{('no', 'yes')[n % 2]}" for n in range(60)]
TEXT = "\n".join(("text,label", *ROWS, ""))
SWALLOWS = TEXT.replace("straße 0,no\nstraße 1,", '"straße 0,no\nstraße 1",')
HEADER = {"--no-header", "--set data.header=false", "--set warm_up.header=false"}
# What is in the file, and what is said of it.
FAULTS = {
    "encoding": (TEXT.encode("cp1252"), "not valid in this encoding"),
    "wide": (TEXT.encode("utf-16-le"), "could be utf-16-le"),
    "swallows": (SWALLOWS.encode(), "look like records"),
    "quotation": (TEXT.replace("straße 4", 'ein "x').encode() + b'"a"b,no\n', "quotation mark"),
    "header": ("\n".join(ROWS).encode(), "does not read like column names"),
    "few": ((TEXT + "x\n").encode(), "too few columns (line 62)"),
}
BASE = ("--set", "federation.clients=3", "--set", "data.source=texts.csv")
PUBLIC = ("--set", "data.validation=texts.csv", "--set", "data.test=texts.csv")
READERS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("data", "describe"): ("texts.csv", "--clients", "3"),
    ("simulate",): ("texts.csv", "--clients", "3"),
    ("doctor",): ("texts.csv", "--clients", "3"),
    ("config", "check"): BASE,
    ("privacy", "plan"): ("--work", "--epsilon", "2", *BASE),
    ("privacy", "audit"): BASE,
    ("federation", "base"): ("job.toml", "--out", "base", *PUBLIC),
    ("client", "enroll"): ("invite.txt", "--data", "texts.csv", "--name", "pc", "--base", "later"),
}
WARM: dict[tuple[str, ...], tuple[str, ...]] = {
    words: (
        "--clients" in given and ("good.csv", "--clients", "3", "--set", "warm_up.source=texts.csv")
    )
    or ("--set", "data.source=good.csv", "--set", "warm_up.source=texts.csv", *BASE[:2])
    for words, given in READERS.items()
    if words in {("simulate",), ("config", "check")}
}


def remedies(said: str) -> list[list[str]]:
    """The flags in `said`, each with its value; those that belong together as one."""
    found = re.findall(r"--set [\w.]+=[\w.-]+|--[a-z-]+(?: (?!--|if |and )[\w.-]+)?", said)
    return [found] if HEADER & set(found) else [[one] for one in found]


def accepted(path: tuple[str, ...], words: tuple[str, ...], remedy: list[str]) -> list[str]:
    """The words of `remedy`, which the command and the settings must take."""
    extra = [word for one in remedy for word in one.split()]
    all_commands()[path].make_context("fedaipc", [*words, *extra])
    load_settings(None, [word for word in extra if "=" in word])
    return extra


@pytest.fixture
def place(fedaipc: Callable[..., Ran]) -> None:
    Path("good.csv").write_text(TEXT, encoding="utf-8")
    Path("job.toml").write_text("")
    assert fedaipc("federation", "init", "acme", "--address", "localhost:8443").code == 0
    Path("invite.txt").write_text(fedaipc("federation", "invite", "acme").out)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("fault", FAULTS)
def test_each_remedy_is_taken_by_each_command_that_prints_it(
    fedaipc: Callable[..., Ran], fault: str
) -> None:
    content, expected = FAULTS[fault]
    Path("texts.csv").write_bytes(content)
    for path, words in READERS.items():
        ran = fedaipc(*path, *words)
        if path == ("client", "enroll") and fault in {"quotation", "few"}:
            assert ran.code == 0  # a few records that cannot be used are left out
            continue
        said = ran.err.splitlines()[-1]
        assert (ran.code, expected in said) == (3, True), (path, said)
        assert remedies(said), (path, said)
        for remedy in remedies(said):
            accepted(path, words, remedy)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("fault", FAULTS)
def test_each_remedy_helps(fedaipc: Callable[..., Ran], fault: str) -> None:
    content, expected = FAULTS[fault]
    Path("texts.csv").write_bytes(content)
    describe = ("data", "describe")
    words = READERS[describe]
    for remedy in remedies(refused(fedaipc(*describe, *words), 3)):
        said = fedaipc(*describe, *words, *accepted(describe, words, remedy)).err
        assert expected not in said or "quotation" in fault


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("path", WARM)
def test_a_fault_of_the_warm_ups_texts_names_their_settings(
    fedaipc: Callable[..., Ran], path: tuple[str, ...], fault: str
) -> None:
    content, expected = FAULTS[fault]
    Path("texts.csv").write_bytes(content)
    said = fedaipc(*path, *WARM[path]).err.splitlines()[-1]
    assert expected in said
    (*_, remedy) = remedies(said)
    assert remedy[0].startswith("--set warm_up.") or "skip" in remedy[0]
    accepted(path, WARM[path], remedy)


@pytest.mark.usefixtures("place")
def test_a_sweep_names_keys_for_its_own_file(fedaipc: Callable[..., Ran]) -> None:
    Path("texts.csv").write_bytes(FAULTS["encoding"][0])
    sweep = '[set]\n"data.source" = "texts.csv"\n"federation.clients" = 3\n[grid]\nrounds = [1]\n'
    Path("sweep.toml").write_text("seeds = [1]\n" + sweep)
    said = fedaipc("privacy", "sweep", "sweep.toml", "--parallel", "1").err
    assert 'as in data.encoding = "cp1252"' in said
    assert "--set" not in said


@pytest.mark.usefixtures("place")
def test_an_owner_file_is_given_its_own_keys(tmp_path: Path) -> None:
    from fedaipc.config import OwnerSettings
    from fedaipc.data.sources import read_records

    Path("texts.csv").write_bytes(FAULTS["encoding"][0])
    owner = OwnerSettings(
        name="pc", source="texts.csv", size_class=64, base="minilm-l6", admission="a" * 64
    )
    advice = read_records(owner.source, owner).advice
    assert 'as in encoding = "cp1252" in owner.toml' in advice


@pytest.mark.usefixtures("place")
def test_to_leave_records_out_is_not_advised_where_most_would_go(
    fedaipc: Callable[..., Ran],
) -> None:
    Path("texts.csv").write_text("text,label\n" + "x\n" * 60 + "a,no\n")
    said = refused(fedaipc("data", "describe", "texts.csv"), 3)
    assert "60 of 61 records cannot be used" in said
    assert "skip" not in said


@pytest.mark.usefixtures("place")
def test_a_column_beyond_the_last_is_said_to_be_so(fedaipc: Callable[..., Ran]) -> None:
    Path("texts.csv").write_text("\n".join(ROWS))
    words = ("data", "describe", "texts.csv", "--no-header", "--text", "1", "--label")
    assert "texts.csv: there is no column 9: it has columns 1 to 2" in refused(
        fedaipc(*words, "9"), 3
    )
    Path("texts.csv").write_text("\n".join(ROWS).replace(",", ";"))
    assert "no column 2: it has one column, if commas" in refused(fedaipc(*words, "2"), 3)


@pytest.mark.usefixtures("place")
def test_what_looks_odd_about_labels_is_said_before_and_after_a_run(
    fedaipc: Callable[..., Ran],
) -> None:
    rows = [f"text {n},{('no', 'yes', 'Yes')[n % 3]}" for n in range(90)]
    Path("texts.csv").write_text("text,label\n" + "\n".join([*rows, "x"]))
    odd = "labels that differ only in case or spaces count as different: 'Yes', 'yes'"
    left = "left out: texts.csv: 1 of 91 records cannot be used"
    few = ("--set", "rounds=1", "--set", "output.plots=false")
    skip = ("--set", "data.skip_unusable=true")
    checked = fedaipc("config", "check", *BASE, *skip).out
    ran = fedaipc("simulate", "texts.csv", "--clients", "3", *few, "--skip-unusable")
    assert ran.code == 0, ran.err
    for out, times in ((checked, 1), (ran.out, 2), (fedaipc("report", "runs/run").out, 1)):
        lines = " ".join(out.split())
        assert (lines.count(odd), lines.count(left)) == (times, times), out


@pytest.mark.parametrize("name", ["utf-16", "utf_16", "U32", "utf-32"])
@pytest.mark.parametrize("file", ["a.csv", "a.tsv", "a.jsonl"])
def test_a_wide_encoding_without_its_mark_is_refused_in_one_line(
    fedaipc: Callable[..., Ran], name: str, file: str
) -> None:
    """Once a traceback; and what Python guesses in its place may be wrong."""
    Path(file).write_bytes(TEXT.encode("cp1252"))
    said = refused(fedaipc("data", "describe", file, "--encoding", name), 3)
    assert f"{file}: does not begin with a byte order mark: the file is not {name}" in said
    assert "--encoding cp1252" in said


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_the_order_of_wide_letters_is_found_out(fedaipc: Callable[..., Ran], codec: str) -> None:
    Path("a.csv").write_bytes(TEXT.encode(codec))
    said = refused(fedaipc("data", "describe", "a.csv", "--encoding", codec[:6]), 3)
    assert f"as in --encoding {codec}\n" in said
    assert fedaipc("data", "describe", "a.csv", "--clients", "3", "--encoding", codec).code == 0


def test_the_source_is_named_where_its_labels_do_not_do(fedaipc: Callable[..., Ran]) -> None:
    Path("semi.csv").write_text("text;label\n" + "".join(f"text {n};a\n" for n in range(60)))
    said = refused(fedaipc("data", "describe", "semi.csv"), 3)
    assert "data.source = semi.csv: all records have one label" in said
