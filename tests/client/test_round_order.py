"""The order of a round's events: a PC is charged first, whatever fails after it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fedaipc.client import examples, trainer
from fedaipc.client.key_store import KeyStore
from fedaipc.data.sources import read_records
from fedaipc.errors import (
    BudgetExhausted,
    DataError,
    EncodingError,
    LedgerError,
    ModelError,
    PrivacyError,
    RoundError,
    SecAggError,
)
from fedaipc.privacy.ledger import Ledger
from fedaipc.protocol.messages import REFUSALS, SETUP, SetupRequest
from tests.support.clients import (
    CANARY,
    Federation,
    charges,
    failed,
    gave,
    owner,
    refused,
    send,
    spy,
)
from tests.support.jobs import on_the_wire


def test_a_round_charges_first_and_then_reads_trains_and_replies(
    ask: Any, folder: Path, touched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Ledger.charge

    def charge(self: Ledger, charge: Any) -> None:
        touched.append("charge")
        real(self, charge)
        touched.append("charged")

    monkeypatch.setattr(Ledger, "charge", charge)
    assert gave(ask())
    assert touched == ["charge", "charged", "read_records", "make_inputs", "train_round"]


def test_the_charge_is_on_the_disk_when_the_first_text_is_read(
    ask: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real_sync, real_read = os.fsync, read_records
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(file), real_sync(file))[1])

    def read(*args: Any, **named: Any) -> Any:
        assert charges(folder) == 1
        assert len(synced) >= 1
        return real_read(*args, **named)

    monkeypatch.setattr(examples, "read_records", read)
    assert gave(ask())


def test_a_sealed_round_is_kept_and_charged_before_it_is_trained_and_sealed(
    ask_member: Any, touched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """M14, M15: durable before anything leaves, and no second upload can have the same mask."""
    spy(monkeypatch, KeyStore, "keep", touched)
    spy(monkeypatch, KeyStore, "forget_secrets", touched)
    spy(monkeypatch, Ledger, "charge", touched)
    assert gave(ask_member())
    assert touched == [
        "keep",
        "forget_secrets",
        "charge",
        "read_records",
        "make_inputs",
        "train_round",
        "mask_update",
    ]


@pytest.mark.parametrize("error", [LedgerError, PrivacyError, BudgetExhausted, OSError, ValueError])
def test_without_a_charge_no_data_is_touched(
    ask: Any,
    folder: Path,
    touched: list[str],
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
) -> None:
    def charge(self: Ledger, charge: Any) -> None:
        raise error(CANARY)

    monkeypatch.setattr(Ledger, "charge", charge)
    answer = ask()
    assert touched == []
    assert CANARY.encode() not in on_the_wire(answer.reply)
    assert answer.reply.has_error() or answer.content in REFUSALS


@pytest.mark.parametrize("step", ["read_records", "make_inputs", "train_round"])
@pytest.mark.parametrize(
    "error",
    [
        DataError,
        ModelError,
        EncodingError,
        PrivacyError,
        BudgetExhausted,
        RoundError,
        SecAggError,
        OSError,
        MemoryError,
    ],
)
def test_a_charge_stands_whatever_fails_after_it(
    ask: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: type[Exception]
) -> None:
    def fail(*args: Any, **named: Any) -> None:
        raise error(CANARY)

    monkeypatch.setattr(trainer if step == "train_round" else examples, step, fail)
    answer = ask()
    if step == "train_round":  # it cannot even make noise
        assert failed(answer)
    else:
        assert gave(answer)
    assert charges(folder) == 1
    assert refused(ask())  # the same attempt again
    assert charges(folder) == 1


def test_a_simulated_drop_out_is_charged_and_looks_like_any_failure(
    ask: Any, folder: Path, touched: list[str]
) -> None:
    owner(folder, dropout_rate=1.0)
    assert failed(ask())
    assert charges(folder) == 1
    assert touched == []


def test_a_simulated_drop_out_of_another_stage_leaves_the_training_alone(
    ask: Any, folder: Path, enrolled: Federation
) -> None:
    owner(folder, dropout_rate=1.0, dropout_stage="setup")
    request = SetupRequest(enrolled.job.run, 1, enrolled.roster.encode())
    assert failed(send(folder, SETUP, request.encode()))
    assert gave(ask())
