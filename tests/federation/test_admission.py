"""Who belongs to the federation is signed by a key that is made once and never replaced."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from fedaipc.errors import EncodingError, SecAggError
from fedaipc.federation.key import Admission
from fedaipc.secagg.keys import SigningKey
from fedaipc.secagg.roster import ROSTER_FILE, read_roster

if TYPE_CHECKING:
    from pathlib import Path

PCS = [SigningKey(bytes([number]) * 32).public for number in range(1, 6)]


def test_the_key_is_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "federation"
    first = Admission(folder)
    content = (folder / "admission.key").read_bytes()
    assert Admission(folder).key.public == first.key.public
    assert (folder / "admission.key").read_bytes() == content == first.key.secret()
    assert Admission(tmp_path / "other").key.public != first.key.public


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")
def test_only_the_owner_can_read_the_key_and_the_coordinator_can_read_the_list(
    tmp_path: Path,
) -> None:
    folder, old = tmp_path / "federation", os.umask(0)
    try:
        Admission(folder).roster(PCS)
    finally:
        os.umask(old)
    rights = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert rights == {"admission.key": 0o600, ROSTER_FILE: 0o644}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_secret_key_is_in_no_file_that_the_coordinator_gets(tmp_path: Path) -> None:
    admission = Admission(tmp_path)
    content, secret = admission.roster(PCS), admission.key.secret()
    assert content == (tmp_path / ROSTER_FILE).read_bytes()
    assert secret not in content
    assert secret.hex().encode() not in content


def test_a_list_is_signed_and_holds_its_members_in_order(tmp_path: Path) -> None:
    """M5."""
    admission = Admission(tmp_path)
    public, roster = read_roster(admission.roster(PCS[::-1]))
    assert public == admission.key.public
    assert roster.members == tuple(sorted(PCS))
    assert roster.version == 1
    assert len(roster.beacon) == 32


def test_the_same_members_get_the_same_list_again(tmp_path: Path) -> None:
    """M6: else there were two lists of one version, or a draw to choose."""
    content = Admission(tmp_path).roster(PCS)
    for members in (PCS, PCS[::-1], set(PCS)):
        for admission in (Admission(tmp_path), Admission(tmp_path)):
            assert admission.roster(members) == content
    assert (tmp_path / ROSTER_FILE).read_bytes() == content


def test_other_members_get_a_new_version_and_a_new_beacon(tmp_path: Path) -> None:
    """M6: the beacon is drawn after the members are final, also where they were so before."""
    lists = [
        read_roster(Admission(tmp_path).roster(members))[1]
        for members in (PCS[:3], PCS, PCS[:4], PCS[1:], PCS[:3])
    ]
    assert [roster.version for roster in lists] == [1, 2, 3, 4, 5]
    assert len({roster.beacon for roster in lists}) == 5
    assert len({roster.federation for roster in lists}) == 1
    assert set(lists[3].members) == set(PCS[1:])
    assert lists[4].members == lists[0].members


def test_two_federations_have_different_names_and_beacons(tmp_path: Path) -> None:
    """M6: else a list of the one would be taken for an older one of the other."""
    _, one = read_roster(Admission(tmp_path / "one").roster(PCS))
    _, two = read_roster(Admission(tmp_path / "two").roster(PCS))
    assert one.federation != two.federation
    assert one.beacon != two.beacon


def test_every_bit_of_the_file_is_signed(tmp_path: Path) -> None:
    """M5: the public key before the list too."""
    content = Admission(tmp_path).roster(PCS[:3])
    for place in range(8 * len(content)):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises((SecAggError, EncodingError)):
            read_roster(bytes(changed))


def test_a_file_that_is_cut_off_or_longer_is_refused(tmp_path: Path) -> None:
    """M29."""
    content = Admission(tmp_path).roster(PCS[:3])
    for end in range(len(content)):
        with pytest.raises((SecAggError, EncodingError)):
            read_roster(content[:end])
    with pytest.raises(EncodingError):
        read_roster(content + b"\0")


def test_a_list_under_another_keys_name_is_refused(tmp_path: Path) -> None:
    """M5."""
    content = Admission(tmp_path).roster(PCS)
    with pytest.raises(SecAggError, match="list of members"):
        read_roster(SigningKey().public + content[32:])


def test_a_damaged_list_is_not_replaced(tmp_path: Path) -> None:
    """M6: a list that began at version 1 again would be refused by every PC."""
    path = tmp_path / ROSTER_FILE
    damaged = Admission(tmp_path).roster(PCS)[:-1]
    path.write_bytes(damaged)
    with pytest.raises((SecAggError, EncodingError)):
        Admission(tmp_path).roster(PCS)
    assert path.read_bytes() == damaged


def test_a_list_that_another_key_signed_is_not_handed_out(tmp_path: Path) -> None:
    """M5: with a beacon that somebody else chose."""
    foreign = Admission(tmp_path / "other").roster(PCS)
    admission = Admission(tmp_path)
    (tmp_path / ROSTER_FILE).write_bytes(foreign)
    try:
        content = admission.roster(PCS)
    except SecAggError:
        return
    assert read_roster(content)[0] == admission.key.public


def test_a_damaged_key_is_told_and_not_replaced(tmp_path: Path) -> None:
    Admission(tmp_path)
    path = tmp_path / "admission.key"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises((SecAggError, OSError)):
        Admission(tmp_path)
    assert len(path.read_bytes()) == 31
