"""A PC is killed in the midst of rounds: its ledger never says less than it trained or sent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.skipif(not hasattr(signal, "SIGKILL") or not hasattr(os, "fork"), reason="no fork")
@pytest.mark.slow
def test_kill_9_at_random_times_costs_one_charge_each_at_most(tmp_path: Path, minilm: Path) -> None:
    kills = 200
    command = [sys.executable, "-m", "tests.support.killed_client", str(tmp_path), str(kills)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["charges"] == told["sent"] + told["over"]
    assert 0 <= told["over"] <= told["kills"] == kills
    assert told["killed_while"]["training"] > 0
    assert told["killed_while"]["before the charge"] > 0
