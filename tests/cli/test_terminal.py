"""On a real terminal, too, nothing that a stranger wrote steers it: a pipe would hide this."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedaipc
from fedaipc.cli import main
from fedaipc.files import write_atomic
from fedaipc.terminal import Formatter, printable
from tests.support.results import make_results

if TYPE_CHECKING:
    from collections.abc import Callable

pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")

# Sets the title, clears the screen (ESC, and as one C1 byte), turns the order, breaks the line.
EVIL = "a\x1b]0;owned\x07b\x1b[2Jc\x9b31md\u202ee\nfedaipc: all is well\rf\x08"
STEERS = ("\x1b]", "\x07", "\x1b[2J", "\x9b", "\u202e", "\nfedaipc: all is well", "\rf", "\x08")


@pytest.fixture
def on_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The console command in this process, and all that it wrote to its terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "xterm-256color")

    def call(*words: Any) -> str:
        upper, lower = pty.openpty()
        said = bytearray()

        def listen() -> None:
            while True:
                try:
                    said.extend(os.read(upper, 4096) or b"")
                except OSError:  # the other side was closed
                    return

        listener = threading.Thread(target=listen)
        listener.start()
        with os.fdopen(lower, "w", encoding="utf-8") as screen, monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["fedaipc", *map(str, words)])
            patch.setattr(sys, "stdout", screen)
            patch.setattr(sys, "stderr", screen)
            assert screen.isatty()
            # A command cleans the environment for the processes that it starts.
            with mock.patch.dict(os.environ), suppress(SystemExit):
                main.run()
        listener.join(10)
        os.close(upper)
        return said.decode("utf-8", "replace")

    return call


def check_harmless(said: str) -> None:
    assert "owned" in said, "the canary was not printed, so this shows nothing"
    plain = said.replace("\r\n", "\n")  # as a terminal ends a line
    assert [what for what in STEERS if what in plain] == []


def test_a_report_of_somebody_elses_results(on_terminal: Callable[..., str]) -> None:
    changes = make_results().model_dump(mode="json")
    changes["name"] = EVIL
    changes["not_private"] = [EVIL]
    changes["data"] |= {"source": EVIL, "labels": [EVIL, "b"], "notes": [EVIL]}
    changes["model"] |= {"base": EVIL, "device": EVIL, "reason": EVIL}
    changes["machine"] |= {"processor": EVIL}
    for one in changes["test_classes"]:
        one["label"] = EVIL
    for run in ("one", "two"):
        write_folder(Path(run), changes)
    check_harmless(on_terminal("report", "one"))
    check_harmless(on_terminal("report", "one", "two"))


def write_folder(folder: Path, results: object) -> None:
    folder.mkdir()
    write_atomic(folder / "results.json", json.dumps(results).encode())


def test_an_export_with_evil_names(on_terminal: Callable[..., str]) -> None:
    content = {
        "format": "fedaipc ledgers", "version": 1, "ledgers": [{"pc": EVIL, "lines": [EVIL]}],
    }  # fmt: skip
    Path("export.json").write_text(json.dumps(content), encoding="utf-8")
    check_harmless(on_terminal("privacy", "ledger", "verify", "export.json"))


def test_somebodys_csv(on_terminal: Callable[..., str]) -> None:
    rows = [["text", "label"], *([f"text {n}", f'"{EVIL}"' if n % 2 else "b"] for n in range(60))]
    Path("a.csv").write_text("\n".join(map(",".join, rows)), encoding="utf-8", newline="")
    words = ("data.source=a.csv", "data.text_column=text", "data.label_column=label",
             "federation.clients=2")  # fmt: skip
    check_harmless(on_terminal("data", "describe", *(w for s in words for w in ("--set", s))))


def test_errors_that_repeat_what_was_given(on_terminal: Callable[..., str]) -> None:
    check_harmless(on_terminal("report", EVIL))
    check_harmless(on_terminal(EVIL))
    check_harmless(on_terminal(f"--{EVIL}"))
    check_harmless(on_terminal("report", f"--{EVIL}"))
    check_harmless(on_terminal("client", "enroll", EVIL, "--data", EVIL, "--name", EVIL))


def test_a_file_name_that_is_not_utf_8(on_terminal: Callable[..., str]) -> None:
    assert r"\udcff" in on_terminal("report", os.fsdecode(b"caf\xff"))


def test_log_lines() -> None:
    record = logging.makeLogRecord({"msg": "PC %s refuses", "args": (EVIL,)})
    record.exc_info = (ValueError, ValueError(EVIL), None)
    first, *rest = Formatter("%(message)s").format(record).split("\n")
    assert "owned" in first
    assert [what for what in STEERS if what in first + "\n" + "\n".join(rest)[1:]] == [
        "\nfedaipc: all is well"  # a line of the error's own text, which nothing can tell apart
    ]


@given(st.text())
def test_what_is_printed_is_one_line_and_steers_nothing(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    shown.encode()
    assert not re.search("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]", shown)


@pytest.mark.parametrize("text", ["café", "prix\u00a0: 3\u202f€", "क्\u200dष", "👩\u200d🔧"])
def test_ordinary_texts_stay_as_they_are(text: str) -> None:
    assert printable(text) == text


def test_commands_print_by_one_way_only() -> None:
    folder = Path(fedaipc.__file__).parent / "cli"
    other = re.compile(
        r"typer\.(echo|secho|confirm|prompt)\(|(?<![._\w])print\(|(?<![_\w])Console\(|sys\.std(out|err)\.write"
    )
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted(folder.glob("*.py"))
        if path.name != "output.py"
        for line in path.read_text(encoding="utf-8").splitlines()
        if other.search(line)
    ]
    assert found == []
