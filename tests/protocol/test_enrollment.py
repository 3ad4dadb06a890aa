"""Letters: what is written is read; what was changed, cut, late or another's is one clear line."""

from __future__ import annotations

import time
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedaipc.errors import AdmissionError
from fedaipc.protocol.enrollment import Invite, Request
from fedaipc.secagg.keys import SigningKey
from tests.support.node_keys import node_key

KEY = SigningKey(b"k" * 32)
NODE_KEY = node_key(7)


def invite(**changes: Any) -> Invite:
    values = {
        "federation": "0123456789abcdef", "issuer": KEY.public.hex(),
        "not_after": int(time.time()) + 1000, "address": "fleet.example.org:8443",
        "authority": "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n",
        "base": "minilm-l6", "labels": ("no", "yes"), "lifetime_epsilon": 8.0, "delta": 1e-5,
        "filter": 4.0,
    }  # fmt: skip
    return Invite.model_validate({**values, **changes})


def request(**changes: Any) -> Request:
    values = {
        "federation": "0123456789abcdef", "issuer": KEY.public.hex(),
        "not_after": int(time.time()) + 1000, "name": "office-1", "node_key": NODE_KEY,
        "size_class": 64,
    }  # fmt: skip
    return Request.model_validate({**values, **changes})


@given(
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", fullmatch=True),
    size=st.integers(0, 40),
)
def test_what_is_written_is_read(name: str, size: int) -> None:
    letter = request(name=name, size_class=2**size)
    assert Request.read(letter.write(KEY)) == letter


def test_mail_may_break_and_indent_lines() -> None:
    text = invite().write(KEY)
    assert max(map(len, text.splitlines())) <= 76
    quoted = "\r\n".join(f"   {line} " for line in text.splitlines())
    assert Invite.read(quoted) == invite(not_after=Invite.read(text).not_after)


@settings(max_examples=200)
@given(place=st.integers(0, 10_000), sign=st.sampled_from("Aa0_-Z9."))
def test_a_changed_letter_is_refused(place: int, sign: str) -> None:
    text = "".join(TEXT.split())
    place %= len(text)
    changed = text[:place] + sign + text[place + 1 :]
    if changed == text:
        return
    spare = {len(text) - 1, text.rindex(".") - 1}  # the last sign of base64 has bits to spare
    if place in spare:
        return
    with pytest.raises(AdmissionError) as caught:
        Request.read(changed)
    assert "\n" not in str(caught.value)


LETTER = request(not_after=2**33)
TEXT = LETTER.write(KEY)


@settings(max_examples=200)
@given(st.text(max_size=300) | st.binary(max_size=100).map(lambda b: f"fedaipc-request-1.{b!r}.x"))
def test_anything_else_is_one_line(text: str) -> None:
    with pytest.raises(AdmissionError) as caught:
        Request.read(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("end", [1, 50, 200, -1])
def test_a_letter_cut_off_is_refused(end: int) -> None:
    with pytest.raises(AdmissionError):
        Request.read("".join(TEXT.split())[:end])


def test_one_kind_is_not_taken_for_the_other() -> None:
    with pytest.raises(
        AdmissionError, match="not a complete request, which begins with fedaipc-request-1"
    ):
        Request.read(invite().write(KEY))
    # Not even with the other's head: what is signed names the kind.
    forged = TEXT.replace("fedaipc-request-1", "fedaipc-invite-1")
    with pytest.raises(AdmissionError, match="changed or cut off"):
        Invite.read(forged)


def test_another_ones_signature_is_refused() -> None:
    with pytest.raises(AdmissionError, match="changed"):
        Request.read(LETTER.write(SigningKey(b"o" * 32)))


def test_a_late_letter_is_refused_and_says_whom_to_ask() -> None:
    late = int(time.time()) - 1
    with pytest.raises(AdmissionError, match=r"invite has expired: ask the federation"):
        Invite.read(invite(not_after=late).write(KEY))
    with pytest.raises(AdmissionError, match=r"request has expired: ask the PC's owner"):
        Request.read(request(not_after=late).write(KEY))


def test_a_huge_letter_is_refused_before_it_is_read() -> None:
    with pytest.raises(AdmissionError, match="too long"):
        Invite.read("fedaipc-invite-1." + "A" * 10**7)


@pytest.mark.parametrize(
    "change",
    [
        {"address": "no port"}, {"address": "a b:1"}, {"lifetime_epsilon": -1},
        {"lifetime_epsilon": float("inf")}, {"delta": 0.5}, {"filter": 1.0}, {"filter": "gauss"},
    ],
    ids=str,
)  # fmt: skip
def test_an_invite_with_nonsense_is_refused(change: dict[str, Any]) -> None:
    good = invite()
    bad = good.model_construct(**{**good.model_dump(), **change})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pydantic sees it too, and writes it
        token = bad.write(KEY)
    with pytest.raises(AdmissionError, match="changed or cut off"):
        Invite.read(token)


def test_both_sides_see_one_fingerprint() -> None:
    assert Request.read(TEXT).fingerprint == LETTER.fingerprint
    assert len(LETTER.fingerprint.split()) == 8
