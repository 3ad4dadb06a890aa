"""What a sealed round sends, and a PC's word as a member of its group."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from fedaipc.client import key_store as key_store_module
from fedaipc.client.client import LOG_FILE
from fedaipc.client.key_store import KeyStore
from fedaipc.config import PlainAggregation
from fedaipc.privacy.budget import charged_epsilon
from fedaipc.privacy.ledger import LEDGER_FILE, Charge, Ledger
from fedaipc.protocol.job import SignedJob
from fedaipc.protocol.messages import (
    AGREE,
    EXHAUSTED,
    UNMASK,
    MemberRequest,
    Readiness,
    decode_answer,
)
from fedaipc.secagg.committee import Agreement, Release, read_answer
from fedaipc.secagg.round_keys import Group, KeyShares
from fedaipc.secagg.terms import Terms
from fedaipc.secagg.uploads import Upload
from tests.support.clients import (
    Federation,
    among,
    asker,
    copies,
    exotic,
    failed,
    gave,
    job_with,
    offer,
    owner,
    refused,
    send,
    without_values,
)
from tests.support.secagg import Sum

# What a sealed round sends


def test_a_sealed_reply_is_a_whole_upload_and_the_same_for_any_data(
    five: Federation, tmp_path: Path
) -> None:
    """M16 and M17: no size depends on a PC's data or its class."""
    folders = list(copies(five, tmp_path).values())
    again = [Path(shutil.copytree(folders[0], tmp_path / str(count))) for count in (1, 40)]
    for count, folder in zip((1, 40), again, strict=True):
        exotic(folder, count)
    wires = []
    for folder in folders + again:
        answer = asker(five, folder)()
        upload = Upload.decode(answer.frame)
        upload.check(answer.group)
        assert upload.header.uploader == KeyStore(folder).identity.public
        wires.append(without_values(answer.reply))
    assert len(set(wires)) == 1
    assert list(answer.reply.content) == ["update"]
    assert list(answer.reply.content["update"]) == ["frame"]


def test_a_pc_without_its_data_seals_noise(ask_member: Any, member: Path) -> None:
    (member / "records.parquet").unlink()
    answer = ask_member()
    Upload.decode(answer.frame).check(answer.group)
    assert "trained on nothing" in (member / LOG_FILE).read_text()


@pytest.mark.parametrize("attempt", [1, 2])
def test_a_sealed_attempt_leaves_once(ask_member: Any, member: Path, attempt: int) -> None:
    """M14: a second upload would have another own key, and two would show their difference."""
    assert gave(ask_member(attempt=2))
    before = (member / LEDGER_FILE).read_bytes()
    for number in (1, 2):
        assert refused(ask_member(attempt=attempt, number=number))
    key_store_module._cache.clear()  # as in another process
    assert refused(ask_member(attempt=attempt))
    assert (member / LEDGER_FILE).read_bytes() == before
    assert gave(ask_member(attempt=3))


def test_every_upload_has_a_mask_of_its_own(five: Federation, tmp_path: Path) -> None:
    """M15: also of a PC that was restored from a copy and has a test seed."""
    own = five.bundles[0].identity
    sent = []
    for name in ("now", "restored"):
        folder = copies(five, tmp_path / name)[own]
        owner(folder, insecure_test_seed=3)
        answer = asker(five, folder)()
        assert not (folder / "keys" / "secrets").exists()
        assert refused(asker(five, folder)(group=answer.group))
        sent.append(Upload.decode(answer.frame).vector)
    assert bytes(sent[0]) != bytes(sent[1])


def test_a_pc_that_cannot_pay_is_a_member_all_the_same(
    ask_member: Any, member: Path, five: Federation
) -> None:
    """Else each spent budget would cost the others a word that they need."""
    plan, order = five.job.schedule, Ledger(member / LEDGER_FILE).filter_kind
    (member / LEDGER_FILE).unlink()
    allowed = (charged_epsilon(plan, 1, order) + charged_epsilon(plan, 2, order)) / 2
    Ledger.create(
        member / LEDGER_FILE,
        KeyStore(member).identity,
        lifetime_epsilon=allowed,
        delta=plan.mechanism.delta,
        filter_kind=order,
    ).charge(Charge(run="f" * 16, round=1, attempt=1, schedule=plan))
    answer = ask_member()
    assert answer.content == EXHAUSTED
    assert KeyStore(member).group(five.job.run, 1) == answer.group
    other = ask_member(state=lambda terms: among(terms, terms.bundles[:-1]))
    assert refused(other)  # a round is described once
    assert KeyStore(member).group(five.job.run, 1) == answer.group


# A PC's word as a member of its group


@dataclass(frozen=True)
class Round:
    """A round in which all five PCs were asked; their folders, and what a coordinator has of it."""

    folders: dict[bytes, Path]
    sum: Sum

    @property
    def terms(self) -> Terms:
        return self.sum.group.terms

    def request(self, frame: bytes) -> RecordDict:
        return MemberRequest(self.terms.run, self.terms.number, frame).encode()

    def agree(self, member: bytes) -> Message:
        frame = self.sum.proposal.encode()
        return send(self.folders[member], AGREE, self.request(frame))

    def agreed(self, *members: bytes) -> tuple[Agreement, ...]:
        """Their agreements; fails where one does not agree."""
        found = [read_answer(decode_answer(self.agree(member).content)) for member in members]
        assert all(isinstance(one, Agreement) for one in found)
        return tuple(one for one in found if isinstance(one, Agreement))

    def unmask(self, member: bytes, agreements: tuple[Agreement, ...]) -> Message:
        frame = self.sum.unmask(member, agreements).encode()
        return send(self.folders[member], UNMASK, self.request(frame))

    def released(self, member: bytes, agreements: tuple[Agreement, ...]) -> Release:
        return Release.decode(decode_answer(self.unmask(member, agreements).content))


def asked_five(five: Federation, folder: Path, missing: int = 0, **job: Any) -> Round:
    """The last `missing` of the PCs' uploads do not arrive."""
    folders = copies(five, folder)
    for own in folders.values():
        owner(own, insecure_test_seed=3)
    said = {pc: Readiness.decode(offer(five, own, **job).content) for pc, own in folders.items()}
    key_shares = [KeyShares.decode(said[pc].shares) for pc in folders]
    terms = five.terms(SignedJob.sign(five.admission, job_with(five, **job)))
    group = Group(terms, tuple(made.card for made in key_shares))
    uploads = {
        pc: Upload.decode(asker(five, own)(group=group, **job).frame) for pc, own in folders.items()
    }
    return Round(folders, Sum(group, key_shares, uploads, list(folders)[: len(folders) - missing]))


@pytest.mark.parametrize("missing", [0, 1])
def test_what_is_opened_is_the_sum_of_what_would_have_travelled_openly(
    five: Federation, tmp_path: Path, missing: int
) -> None:
    # Equal weights: those of sealed updates are limited.
    sealed = asked_five(five, tmp_path / "sealed", missing, weighting="equal")
    pcs = sealed.terms.participants
    agreements = sealed.agreed(*pcs[:4])
    opened = sealed.sum.open([sealed.released(pc, agreements) for pc in pcs[:4]])

    total = np.zeros(sealed.terms.size, sealed.terms.encoding.dtype)
    folders = copies(five, tmp_path / "open")
    for pc in pcs[: 5 - missing]:
        owner(folders[pc], policy={"allow_plain_updates": True}, insecure_test_seed=3)
        plain = PlainAggregation(bound=five.job.aggregation.bound)
        answer = asker(five, folders[pc])(aggregation=plain, weighting="equal")
        assert answer.frame != sealed.sum.uploads[pc].vector
        total += answer.terms.encoding.unpack(answer.frame, answer.terms.size)
    np.testing.assert_array_equal(opened, sealed.terms.encoding.decode(total))


def test_a_pc_agrees_to_one_set_of_a_round(five: Federation, tmp_path: Path) -> None:
    """M21 and M25: the same one again, another never, also after a restart."""
    asked = asked_five(five, tmp_path)
    first, *_, last = asked.terms.participants
    (agreement,) = asked.agreed(first)
    assert asked.agreed(first) == (agreement,)
    asked.sum.leave_out(last)
    assert failed(asked.agree(first))
    key_store_module._cache.clear()  # as in another process
    assert failed(asked.agree(first))
    assert not failed(asked.agree(last))  # which has agreed to none yet


@pytest.mark.parametrize("stage", [AGREE, UNMASK])
def test_without_a_record_of_the_set_no_word_leaves(
    five: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """M21 and M23: the set is durable first, and binds whatever was asked."""
    asked = asked_five(five, tmp_path)
    first, *others = asked.terms.participants
    agreements = asked.agreed(*others)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError

    def word() -> Message:
        return asked.agree(first) if stage == AGREE else asked.unmask(first, agreements)

    with monkeypatch.context() as patch:
        patch.setattr(key_store_module, "write_atomic", fail)
        assert failed(word())
    assert not failed(word())
    asked.sum.leave_out(others[-1])
    assert failed(asked.agree(first))


def test_a_pc_releases_shares_for_the_set_that_it_agreed_to_only(
    five: Federation, tmp_path: Path
) -> None:
    """M22 and M23: whatever four others agreed to, and for those who agreed, not for fewer."""
    asked = asked_five(five, tmp_path)
    first, *others = asked.terms.participants
    whole = asked.agreed(first)
    asked.sum.leave_out(others[0])
    agreements = asked.agreed(*others)
    assert failed(asked.unmask(first, agreements))
    assert failed(asked.unmask(others[0], whole + agreements[1:]))
    assert failed(asked.unmask(others[0], agreements[:1] * 4))
    assert failed(asked.unmask(others[0], agreements[:3]))
    assert asked.released(others[0], agreements).member == others[0]


def test_a_set_of_a_round_that_was_asked_before_a_newer_one_is_refused(
    five: Federation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = asked_five(five, tmp_path)
    first, *_ = asked.terms.participants
    assert gave(asker(five, asked.folders[first])(attempt=2))
    assert failed(asked.agree(first))
    assert "a newer one has begun" in caplog.text


ONLY_A_WORD = """
import json, sys
from flwr.app import Message
from fedaipc.client.client_app import app
from fedaipc.simulation.flower_adapter import InProcessGrid
from fedaipc.protocol.messages import AGREE, SETUP, UNMASK, MemberRequest, SetupRequest

told = json.load(sys.stdin)
roster, proposal, unmask = (bytes.fromhex(told[k]) for k in ("roster", "proposal", "unmask"))
grid = InProcessGrid(app, [{"pc-folder": told["folder"]}], {})
(node,) = grid.get_node_ids()
replies = grid.send_and_receive([
    Message(SetupRequest(told["run"], 1, roster).encode(), node, SETUP),
    Message(MemberRequest(told["run"], 1, proposal).encode(), node, AGREE),
    Message(MemberRequest(told["run"], 1, unmask).encode(), node, UNMASK),
])
loaded = sorted({"torch", "opacus", "transformers"} & set(sys.modules))
print(json.dumps({"answered": [reply.has_content() for reply in replies], "loaded": loaded}))
"""


def test_a_pc_that_only_gives_its_word_loads_no_model_library(
    five: Federation, tmp_path: Path
) -> None:
    """Within a stage's minute a slow PC must have answered."""
    asked = asked_five(five, tmp_path)
    first, *others = asked.terms.participants
    proposal = asked.sum.proposal
    told = {
        "folder": str(asked.folders[first]),
        "run": five.job.run,
        "roster": five.roster.encode().hex(),
        "proposal": proposal.encode().hex(),
        "unmask": asked.sum.unmask(first, asked.agreed(*others)).encode().hex(),
    }
    ran = subprocess.run(
        [sys.executable, "-c", ONLY_A_WORD],
        input=json.dumps(told),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(ran.stdout) == {"answered": [True, True, True], "loaded": []}
