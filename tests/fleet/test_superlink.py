"""How Flower's SuperLink is started: silent, its log no more than text, its disk given back."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fedaipc.fleet import superlink
from fedaipc.fleet.superlink import environment


def test_what_a_pc_sends_is_one_line_of_text_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    before = logging.getLogRecordFactory()
    try:
        superlink._escape_logs()
        logging.getLogger("flwr").warning("reply to %s", "\x1b[2J\nINFO all is well")
        logging.getLogger("flwr").warning("%d of %d", 1, 2)
    finally:
        logging.setLogRecordFactory(before)
    texts = [record.getMessage() for record in caplog.records]
    assert texts == ["reply to \\x1b[2J\\nINFO all is well", "1 of 2"]


def test_the_disk_gets_back_what_messages_took(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    superlink._shrink(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE kept (x)")
        connection.execute("CREATE TABLE big (x)")
        connection.execute("INSERT INTO kept VALUES (7)")
        connection.executemany("INSERT INTO big VALUES (?)", [(b"x" * 4000,)] * 500)
        connection.commit()
        connection.execute("DELETE FROM big")
        connection.commit()
    before = path.stat().st_size
    superlink._shrink(path)
    assert path.stat().st_size < before / 10
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT x FROM kept").fetchall() == [(7,)]


def test_flower_tells_nobody_anything(tmp_path: Any) -> None:
    env = environment(tmp_path)
    assert env["FLWR_TELEMETRY_ENABLED"] == "0"
    assert env["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert env["FLWR_HOME"] == str(tmp_path)
