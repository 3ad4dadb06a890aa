"""Secure aggregation: the coordinator learns the sum of the updates and none of them.

Pure: no files, no network, no torch. SPEC.md is the protocol.

wire.py        frames: one form for each value, strict reading
keys.py        Ed25519, X25519, HKDF
shares.py      Shamir's sharing of keys
masks.py       AES-256-CTR streams added to a vector
encoding.py    floats as ring elements
roster.py      members, key bundles, the public draw of groups
terms.py       thresholds; all that a round is bound to
round_keys.py  a PC's secrets of a round, and shares of them
uploads.py     a PC's upload
committee.py   a member's agreement and release
aggregator.py  the coordinator's sum
"""
