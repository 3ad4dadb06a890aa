"""Checks of what is charged and what is said, as functions: true builds pass, broken ones fail.

Those of training are in tests/support/private_rounds.py. Each makes its own folder, so that a
script can run them as well.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant

from fedaipc.client import trainer
from fedaipc.errors import BudgetExhausted
from fedaipc.privacy.accountant import filter_budget, rdp
from fedaipc.privacy.ledger import LEDGER_FILE, Charge, Ledger
from fedaipc.privacy.randomness import SecureRandom
from fedaipc.protocol.messages import SETUP, Description, SetupRequest
from fedaipc.secagg.keys import SigningKey
from fedaipc.secagg.roster import Bundle
from tests.support import private_rounds as steps
from tests.support.clients import asker, charges, enroll, send
from tests.support.schedules import dp_sgd, mechanism_of

DELTA, ORDER = 1e-5, 4.0
STEP = dp_sgd(noise_multiplier=2.0, sampling_rate=0.1, steps=10)


def _ledger(folder: Path, rounds: float) -> Ledger:
    """With room for so many rounds of STEP."""
    cost = rdp([STEP], ORDER) * rounds
    epsilon = cost - filter_budget(ORDER, 0.0, DELTA)
    return Ledger.create(
        folder / LEDGER_FILE, SigningKey(bytes(32)), lifetime_epsilon=epsilon, delta=DELTA,
        filter_kind=ORDER,
    )  # fmt: skip


def _charge(attempt: int, run: str = "a") -> Charge:
    return Charge(run=run, round=attempt, attempt=attempt, schedule=STEP)


def check_composition() -> None:
    """What a ledger says after three rounds is their composition by dp-accounting."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = _ledger(Path(folder), 10)
        for attempt in (1, 2, 3):
            ledger.charge(_charge(attempt))
        accountant = RdpAccountant(orders=[ORDER])
        step = mechanism_of(STEP)
        gaussian = dp_event.GaussianDpEvent(step.multiplier)
        accountant.compose(dp_event.PoissonSampledDpEvent(step.sampling_rate, gaussian), 30)
        expected = accountant.get_epsilon(DELTA)
        assert math.isclose(Ledger(ledger.path).spent_epsilon(), expected, rel_tol=1e-6)


def check_lifetime_budget() -> None:
    """A budget for two rounds and a half is over after two, in whichever runs they are."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = _ledger(Path(folder), 2.5)
        ledger.charge(_charge(1, "a"))
        ledger.charge(_charge(1, "b"))
        try:
            ledger.charge(_charge(1, "c"))
        except BudgetExhausted:
            return
        raise AssertionError("a third round was granted")


def check_charge_before_training() -> None:
    """A PC that dies in training has been charged."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        federation = enroll(Path(folder), 260, "federation.clients=5")
        pc = federation.folders[federation.bundles[0].identity]

        def dies(*_: Any, **__: Any) -> object:
            raise SystemExit(1)

        patch.setattr(trainer, "train_round", dies)
        asker(federation, pc)(attempt=1)
        assert charges(pc) == 1


def check_public_weight() -> None:
    """The weight that a PC states is its size class, and not how many records it holds."""
    with tempfile.TemporaryDirectory() as folder:
        federation = enroll(Path(folder), 260, "federation.clients=5")
        pc = federation.folders[federation.bundles[0].identity]
        request = SetupRequest("f" * 16, 1, federation.roster.encode())
        bundle = Bundle.decode(Description.decode(send(pc, SETUP, request.encode()).content).bundle)
        assert bundle.size_class == 64  # of 41 or 42 records


def check_every_round() -> None:
    """The second round of a process has noise, too."""
    for seed in (1, 2):
        noise = steps.update(SecureRandom.for_test(seed), method="full", keep=[0],
                             sampling_rate=1e-18)  # fmt: skip
        deviation = steps.NOISE * steps.CLIP / (1e-18 * steps.CLASS)
        steps.assert_deviation(noise / deviation, 1.0)
        assert np.isfinite(noise).all()
