"""A small federation with real keys, for the tests of this folder."""

from __future__ import annotations

import dataclasses
from typing import Any

from fedaipc.sealing.dealing import Keys
from fedaipc.sealing.keys import ExchangeKey, SigningKey
from fedaipc.sealing.roster import Bundle, Roster
from fedaipc.sealing.terms import Terms, usual_thresholds

NOW = 1_800_000_000.0


def federation(count: int, **changes: Any) -> tuple[Terms, dict[bytes, Keys]]:
    """Terms of a round of `count` PCs, and everybody's keys by identity."""
    keys = [
        Keys(
            SigningKey(number.to_bytes(32, "big")),
            ExchangeKey((1000 + number).to_bytes(32, "big")),
            ExchangeKey((2000 + number).to_bytes(32, "big")),
        )
        for number in range(1, count + 1)
    ]
    own = {key.identity.public: key for key in keys}
    roster = Roster.sign(
        SigningKey(bytes(31) + b"\xff"), federation="f", version=1, beacon=bytes(32),
        members=list(own),
    )  # fmt: skip
    bundles = tuple(
        Bundle(
            federation="f", run="r", epoch=1, not_after=int(NOW) + 60, identity=identity,
            mask_key=own[identity].mask.public, share_key=own[identity].share.public,
        ).signed_by(own[identity].identity)
        for identity in sorted(own)
    )  # fmt: skip
    terms = Terms(
        roster=roster, run="r", number=1, job_hash=bytes(32), vector_hash=bytes(32), size=50,
        bits=32, bound=1.0, thresholds=usual_thresholds(count), bundles=bundles,
        weights=(1,) * count,
    )  # fmt: skip
    terms = dataclasses.replace(terms, **changes)
    terms.check(count, NOW)
    return terms, own
