"""A proof holds for one entry at one place of one list."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedaipc.errors import SecAggError
from fedaipc.secagg.tree import Tree, check, root

LISTS = st.lists(st.binary(max_size=6), min_size=1, max_size=40)


def test_the_root_is_that_of_rfc_6962() -> None:
    """Section 2.1, spelt out for up to three entries."""

    def sha(content: bytes) -> bytes:
        return hashlib.sha256(content).digest()

    a, b, c = (sha(b"\0" + entry) for entry in (b"a", b"b", b"c"))
    assert root([]) == sha(b"")
    assert root([b""]).hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert root([b"a", b"b"]) == sha(b"\1" + a + b)
    assert root([b"a", b"b", b"c"]) == sha(b"\1" + sha(b"\1" + a + b) + c)


@given(LISTS, st.data())
def test_every_entry_can_be_proved_and_nothing_else(
    entries: list[bytes], data: st.DataObject
) -> None:
    number = data.draw(st.integers(0, len(entries) - 1))
    top, proof, count = root(entries), Tree(entries).path(number), len(entries)
    assert len(proof) <= max(1, (count - 1).bit_length())
    check(top, entries[number], number, count, proof)
    with pytest.raises(SecAggError):
        check(top, entries[number] + b"x", number, count, proof)
    with pytest.raises(SecAggError):
        check(bytes(32), entries[number], number, count, proof)
    with pytest.raises(SecAggError):
        check(top, entries[number], number, count, [*proof, bytes(32)])
    for other in range(count):
        if entries[other] != entries[number]:
            with pytest.raises(SecAggError):
                check(top, entries[number], other, count, proof)


@given(LISTS, LISTS)
def test_two_lists_have_two_roots(one: list[bytes], other: list[bytes]) -> None:
    assert (root(one) == root(other)) == (one == other)


@pytest.mark.parametrize("number", [-1, 3])
def test_an_entry_outside_the_list_is_refused(number: int) -> None:
    with pytest.raises(SecAggError, match="outside"):
        check(root([b"a", b"b", b"c"]), b"a", number, 3, [])
    with pytest.raises(IndexError):
        Tree([b"a", b"b", b"c"]).path(number)
