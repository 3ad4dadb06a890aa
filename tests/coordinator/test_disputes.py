"""What a coalition can do with its word against others': never more than its own number of PCs."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from fedaipc.coordinator.disputes import to_leave_out


def pc(number: int) -> bytes:
    return bytes([number]) * 32


@given(st.data())
def test_each_colluding_pc_takes_at_most_one_honest_pc_along(data: st.DataObject) -> None:
    """M20: over all attempts of a run, whatever it says of whom, and in whatever order."""
    colluding = data.draw(st.integers(1, 6))
    members = data.draw(st.integers(colluding + 2, 25))
    bad, honest = range(colluding), range(colluding, members)
    disputes: set[tuple[bytes, bytes]] = set()
    out: set[bytes] = set()
    for _ in range(data.draw(st.integers(1, 8))):
        said = st.tuples(st.sampled_from(bad), st.integers(0, members - 1))
        for liar, other in data.draw(st.lists(said, max_size=40)):
            there = {pc(liar), pc(other)} - out
            if liar != other and len(there) == 2:  # who is out is not asked
                pair = (pc(liar), pc(other))
                disputes.add(pair if data.draw(st.booleans()) else pair[::-1])
        out |= to_leave_out(disputes, out, colluding)
        assert all(out.intersection(pair) for pair in disputes)
        victims, liars = ({pc(n) for n in who} & out for who in (honest, bad))
        assert len(victims) <= len(liars)


def test_a_pc_that_disputes_with_more_than_may_collude_goes_alone() -> None:
    assert to_leave_out([(pc(1), pc(n)) for n in range(2, 5)], (), 2) == {pc(1)}
    assert to_leave_out([(pc(n), pc(1)) for n in range(2, 5)], (), 2) == {pc(1)}


def test_of_a_single_dispute_both_go() -> None:
    assert to_leave_out([(pc(1), pc(2))], (), 2) == {pc(1), pc(2)}
    assert to_leave_out([(pc(2), pc(1)), (pc(1), pc(2))], (), 1) == {pc(1), pc(2)}


def test_of_a_dispute_with_a_pc_that_is_out_nobody_else_goes() -> None:
    assert to_leave_out([(pc(1), pc(2))], [pc(1)], 2) == set()


def test_no_dispute_is_left_whoever_disputes_with_whom() -> None:
    pairs = list(combinations(map(pc, range(6)), 2))
    out = to_leave_out(pairs, (), 2)
    assert all(out.intersection(pair) for pair in pairs)
