"""The primitives give the published answers, and fail with one error."""

from __future__ import annotations

import pytest

from fedaipc.errors import SecAggError
from fedaipc.secagg.keys import (
    ExchangeKey,
    SigningKey,
    derive,
    fingerprint,
    read_fingerprint,
    verify,
)


def test_signatures_are_those_of_rfc_8032() -> None:
    # RFC 8032, 7.1, test 2.
    key = SigningKey(
        bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    )
    assert key.public.hex() == "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    signature = key.sign(b"\x72")
    assert signature.hex() == (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    verify(key.public, signature, b"\x72", "test")


def test_agreement_is_that_of_rfc_7748() -> None:
    # RFC 7748, 6.1.
    alice = ExchangeKey(
        bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    )
    assert alice.public.hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    bob = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert alice.agree(bob).hex() == shared


def test_derivation_is_that_of_rfc_5869() -> None:
    # RFC 5869, A.1, the first 32 of its 42 bytes.
    key = derive(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)))
    assert key.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"


@pytest.mark.parametrize("public", [bytes(32), b"\x01" + bytes(31), b"", bytes(31)])
def test_a_public_key_that_shares_no_secret_is_refused(public: bytes) -> None:
    with pytest.raises(SecAggError):
        ExchangeKey().agree(public)


def test_a_wrong_signature_is_named() -> None:
    key = SigningKey()
    good = key.sign(b"content")
    for public, signature, content in (
        (key.public, good, b"other"),
        (SigningKey().public, good, b"content"),
        (key.public, good[:-1], b"content"),
        (b"", good, b"content"),
    ):
        with pytest.raises(SecAggError, match="the roster: the signature is wrong"):
            verify(public, signature, content, "the roster")


def test_keys_come_back_from_their_bytes_and_show_nothing() -> None:
    for kind in (SigningKey, ExchangeKey):
        key = kind()
        assert kind(key.secret()).public == key.public
        assert key.secret().hex() not in repr(key)


def test_a_fingerprint_is_short_enough_to_compare() -> None:
    text = fingerprint(SigningKey().public)
    assert len(text.split()) == 8
    assert text != fingerprint(SigningKey().public)


def test_a_fingerprint_may_be_spelt_as_people_like() -> None:
    public = SigningKey().public
    text = fingerprint(public)
    plain = text.replace(" ", "")
    pairs = ":".join(plain[i : i + 2] for i in range(0, 32, 2))
    for spelt in (text, plain, plain.upper(), pairs, f" {text} ", public.hex()):
        assert read_fingerprint(spelt) == text
    for wrong in ("", "deadbeef", text[:-1], text + "0", "x" * 32, public.hex() + "00"):
        with pytest.raises(SecAggError, match="is not a fingerprint"):
            read_fingerprint(wrong)
