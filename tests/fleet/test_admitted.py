"""Who may come in: by the list as it is now, and by a signature that only the member can make."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fedaipc.fleet.admitted import Admitted
from fedaipc.fleet.node_auth import NodeAuth
from fedaipc.protocol.server_folder import NODES_FILE
from tests.support.node_keys import key_file, node_key


def headers(folder: Path, number: int) -> dict[bytes, bytes]:
    """As the PC `number` sends them."""
    auth = NodeAuth(key_file(folder / "key", ec.derive_private_key(number, ec.SECP384R1())))
    request = SimpleNamespace(headers={})
    auth.intercept(SimpleNamespace(request=request), lambda _: SimpleNamespace(status_code=200))
    return {name.encode(): value.encode() for name, value in request.headers.items()}


def admit(folder: Path, *numbers: int) -> None:
    nodes = [f'{{"name":"pc-{n}","node_key":"{node_key(n)}"}}' for n in numbers]
    (folder / NODES_FILE).write_text(f'{{"nodes":[{",".join(nodes)}]}}')


def test_members_come_in_and_nobody_else(tmp_path: Path) -> None:
    admit(tmp_path, 1, 2)
    admitted = Admitted(tmp_path)
    assert admitted.has_signed(headers(tmp_path, 1))
    assert admitted.has_signed(headers(tmp_path, 2))
    assert not admitted.knows(headers(tmp_path, 3))
    assert not admitted.has_signed(headers(tmp_path, 3))
    assert not admitted.has_signed({})


@pytest.mark.parametrize("name", ["flwr-signature", "flwr-timestamp", "flwr-public-key"])
def test_a_signature_that_is_not_the_members_is_none(tmp_path: Path, name: str) -> None:
    admit(tmp_path, 1, 2)
    admitted, good, other = Admitted(tmp_path), headers(tmp_path, 1), headers(tmp_path, 2)
    key = name.encode()
    for value in (None, b"", b"!", b"AAAA", other[key] if key != b"flwr-timestamp" else b"1"):
        wrong = {k: v for k, v in {**good, key: value}.items() if v is not None}
        assert not admitted.has_signed(wrong)


def test_the_list_counts_as_it_is_now_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    admitted = Admitted(tmp_path)
    mine = headers(tmp_path, 1)
    assert not admitted.knows(mine)
    admit(tmp_path, 1)
    assert admitted.knows(mine)
    (tmp_path / NODES_FILE).write_text("{")
    assert admitted.knows(mine)
    admit(tmp_path, 2)
    assert not admitted.knows(mine)
    admit(tmp_path, 1, 2)  # shut out by mistake: nothing is for good
    assert admitted.knows(mine)


def test_one_key_that_cannot_be_read_shuts_out_nobody_else(tmp_path: Path) -> None:
    admit(tmp_path, 1)
    text = (tmp_path / NODES_FILE).read_text()
    bad = '{"name":"x","node_key":"ecdsa-sha2-nistp384 AAAA"},'
    (tmp_path / NODES_FILE).write_text(text.replace("[", f"[{bad}"))
    assert Admitted(tmp_path).has_signed(headers(tmp_path, 1))
