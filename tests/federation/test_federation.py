"""A federation's folder: made once; members come, go, expire; the server gets no secret of it."""

from __future__ import annotations

import os
import ssl
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification

from fedaipc.errors import AdmissionError
from fedaipc.federation.federation import Federation
from fedaipc.protocol.enrollment import Invite, Request
from fedaipc.protocol.server_folder import SERVER_FILES, Facts, Nodes
from fedaipc.secagg.keys import SigningKey
from fedaipc.secagg.roster import read_roster
from tests.support.node_keys import node_key


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation.create(tmp_path / "acme", "fleet.example:8443", ["fleet.example", "10.0.0.7"])


def request(to: Federation, number: int, **changes: Any) -> Request:
    values = {
        "federation": to.facts.federation,
        "issuer": SigningKey(bytes([number]) * 32).public.hex(),
        "not_after": int(time.time()) + 1000, "name": f"pc-{number}",
        "node_key": node_key(number), "size_class": 64,
    }  # fmt: skip
    return Request.model_validate({**values, **changes})


def members(federation: Federation) -> tuple[bytes, ...]:
    return read_roster((federation.folder / "server" / "roster.bin").read_bytes())[1].members


def test_the_server_gets_all_it_needs_and_no_secret_but_its_own(federation: Federation) -> None:
    federation.admit([request(federation, 1)])
    server = federation.folder / "server"
    assert {path.name for path in server.iterdir()} == {*SERVER_FILES, ".gitignore"}
    for folder in (federation.folder, server):  # `git add .` takes no key along
        assert (folder / ".gitignore").read_text() == "*\n"
    secrets = [
        (federation.folder / name).read_bytes() for name in ("admission.key", "authority.key")
    ]
    for path in server.iterdir():
        for secret in secrets:
            assert secret not in path.read_bytes()
            assert secret.hex().encode() not in path.read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")
def test_only_the_owner_can_read_what_is_secret(federation: Federation) -> None:
    federation.admit([request(federation, 1)])
    for name in ("admission.key", "authority.key", "members.json", "server/server.key"):
        assert stat.S_IMODE((federation.folder / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(federation.folder.stat().st_mode) == 0o700


def test_its_authority_vouches_for_its_server_alone(federation: Federation, tmp_path: Path) -> None:
    other = Federation.create(tmp_path / "other", "o:1", ["o"])
    server = x509.load_pem_x509_certificate(
        (federation.folder / "server" / "server.pem").read_bytes()
    )
    for authority, good in ((federation, True), (other, False)):
        root = x509.load_pem_x509_certificate((authority.folder / "authority.pem").read_bytes())
        store = verification.PolicyBuilder().store(verification.Store([root]))
        verifier = store.build_server_verifier(x509.DNSName("fleet.example"))
        if good:
            assert verifier.verify(server, [])
        else:
            with pytest.raises(verification.VerificationError):
                verifier.verify(server, [])
    root = x509.load_pem_x509_certificate((federation.folder / "authority.pem").read_bytes())
    builder = verification.PolicyBuilder().store(verification.Store([root]))
    verifier = builder.build_server_verifier(x509.DNSName("evil.example"))
    with pytest.raises(verification.VerificationError):
        verifier.verify(server, [])


def test_python_and_openssl_take_the_certificates(federation: Federation) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server = federation.folder / "server"
    context.load_cert_chain(server / "server.pem", server / "server.key")
    client = ssl.create_default_context(cafile=federation.folder / "authority.pem")
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    _handshake(client, context, "10.0.0.7")
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(client, context, "10.0.0.8")


def _handshake(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(10):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue


def test_a_new_certificate_replaces_the_old_one(federation: Federation) -> None:
    before = (federation.folder / "server" / "server.pem").read_bytes()
    assert federation.renew_server() == federation.server_until()
    assert (federation.folder / "server" / "server.pem").read_bytes() != before


def test_members_come_and_go(federation: Federation) -> None:
    for number in (1, 2, 3):
        federation.admit([request(federation, number)])
    assert len(members(federation)) == len(Nodes.load(federation.folder / "server").nodes) == 3
    federation.revoke("pc-2")
    gone = SigningKey(bytes([2]) * 32).public
    assert gone not in members(federation)
    assert {node.name for node in Nodes.load(federation.folder / "server").nodes} == {
        "pc-1",
        "pc-3",
    }
    assert [m.state for m in Federation(federation.folder).members.members] == [
        "member", "revoked", "member",
    ]  # fmt: skip


def test_every_change_gives_a_newer_list_and_no_change_the_same(federation: Federation) -> None:
    def version() -> int:
        return read_roster((federation.folder / "server" / "roster.bin").read_bytes())[1].version

    seen = [version()]
    federation.admit([request(federation, 1)])
    seen.append(version())
    Federation(federation.folder)
    assert version() == seen[-1]
    federation.revoke("pc-1")
    assert [*seen, version()] == [1, 2, 3]


def test_members_expire_and_can_be_renewed(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation.admit([request(federation, 1)], days=10)
    federation.admit([request(federation, 2)], days=100)
    later = time.time() + 20 * 86400
    monkeypatch.setattr(time, "time", lambda: later)
    opened = Federation(federation.folder)
    assert [m.state for m in opened.members.members] == ["expired", "member"]
    assert len(members(opened)) == 1
    opened.renew(["pc-1"], days=30)
    assert len(members(opened)) == 2


def test_a_crash_between_two_files_is_mended_when_it_is_opened_again(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Federation, "_publish", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        federation.admit([request(federation, 1)])
    assert members(federation) == ()
    monkeypatch.undo()
    Federation(federation.folder)
    assert len(members(federation)) == 1


def test_a_pc_may_ask_again_with_the_same_keys(federation: Federation) -> None:
    federation.admit([request(federation, 1)], days=10)
    federation.admit([request(federation, 1)], days=20)
    assert len(federation.members.members) == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"federation": "f" * 16}, "for another federation"),
        ({"issuer": SigningKey(bytes([9]) * 32).public.hex()}, "another member is called pc-1"),
        ({"size_class": 128}, "size class is fixed"),
        (
            {"issuer": SigningKey(bytes([9]) * 32).public.hex(), "name": "x"},
            "transport key of pc-1",
        ),
    ],
    ids=str,
)
def test_who_cannot_be_admitted(federation: Federation, change: dict[str, Any], why: str) -> None:
    federation.admit([request(federation, 1)])
    before = members(federation)
    with pytest.raises(AdmissionError, match=why):
        federation.admit([request(federation, 1, **change)])
    assert members(federation) == before


def test_who_was_revoked_does_not_come_back_with_the_same_key(federation: Federation) -> None:
    federation.admit([request(federation, 1)])
    federation.revoke("pc-1")
    with pytest.raises(AdmissionError, match="pc-1 was revoked already"):
        federation.revoke("pc-1")
    with pytest.raises(AdmissionError, match="no member is called pc-2"):
        federation.revoke("pc-2")
    with pytest.raises(AdmissionError, match="revoked"):
        federation.admit([request(federation, 1)])
    federation.admit([request(federation, 4, name="pc-1")])  # the name is free again


def test_of_two_with_one_name_the_one_that_belongs_is_meant(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation.admit([request(federation, 1)], days=10)
    later = time.time() + 20 * 86400
    monkeypatch.setattr(time, "time", lambda: later)
    opened = Federation(federation.folder)
    opened.admit([request(federation, 2, name="pc-1")])
    old, new = opened.members.members
    with pytest.raises(AdmissionError, match="another member is called pc-1"):
        opened.renew([old.fingerprint])
    assert opened.revoke("pc-1").fingerprint == new.fingerprint
    assert [m.state for m in opened.members.members] == ["expired", "revoked"]
    assert members(opened) == ()
    opened.renew([old.fingerprint])  # nobody has the name now
    assert [m.state for m in opened.members.members] == ["member", "revoked"]


def test_a_name_of_two_that_are_gone_is_not_guessed(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, day in ((1, 0), (2, 20)):
        now = 1.8e9 + day * 86400
        monkeypatch.setattr(time, "time", lambda now=now: now)
        opened = Federation(federation.folder)
        opened.admit([request(federation, number, name="pc-1")], days=10)
    monkeypatch.setattr(time, "time", lambda: 1.8e9 + 40 * 86400)
    opened = Federation(federation.folder)
    with pytest.raises(AdmissionError, match="give the fingerprint"):
        opened.renew(["pc-1"])


def test_all_of_several_are_admitted_or_none(federation: Federation) -> None:
    federation.admit([request(federation, 1)])
    with pytest.raises(AdmissionError, match="another member"):
        federation.admit([request(federation, 2), request(federation, 3, name="pc-1")])
    assert len(members(federation)) == 1


@pytest.mark.parametrize(
    ("address", "names"),
    [("fleet_x:8443", ["x"]), ("host name:8443", ["x"]), ("flöt.example:1", ["flöt.example"]),
     ("a.example:1", ["a b"])],
)  # fmt: skip
def test_a_name_that_no_certificate_holds_is_refused_before_anything_is_made(
    tmp_path: Path, address: str, names: list[str]
) -> None:
    with pytest.raises(AdmissionError, match="letters, digits"):
        Federation.create(tmp_path / "new", address, names)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"node_key": "ecdsa-sha2-nistp384 AAAA"}, {"node_key": node_key(1) + " a comment"},
        {"node_key": node_key(1).replace("nistp384", "nistp256")}, {"node_key": "x" * 600},
        {"size_class": 3}, {"size_class": 0}, {"size_class": 2**41},
    ],
    ids=str,
)  # fmt: skip
def test_a_request_with_a_key_that_the_server_cannot_read_is_no_request(
    federation: Federation, change: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="1 validation error"):
        request(federation, 1, **change)


def test_an_invite_names_this_federation(federation: Federation) -> None:
    text = federation.invite(
        days=3, base="minilm-l6", labels=(), lifetime_epsilon=8.0, unit="client", delta=1e-5,
        filter_kind=4.0,
    )  # fmt: skip
    letter = Invite.read(text)
    assert letter.fingerprint == federation.fingerprint
    assert letter.unit == "client"
    assert letter.address == "fleet.example:8443"
    assert letter.not_after == pytest.approx(time.time() + 3 * 86400, abs=60)
    x509.load_pem_x509_certificate(letter.authority.encode())


@pytest.mark.parametrize("name", ["federation.json", "members.json", "admission.key"])
def test_a_damaged_folder_is_one_line(federation: Federation, name: str) -> None:
    federation.admit([request(federation, 1)])
    (federation.folder / name).write_bytes(b"{")
    with pytest.raises(AdmissionError) as caught:
        Federation(federation.folder)
    assert "\n" not in str(caught.value)
    assert str(federation.folder) in str(caught.value)


def test_the_servers_folder_is_no_place_for_the_admission_key(federation: Federation) -> None:
    with pytest.raises(AdmissionError, match="never on the server"):
        Federation(federation.folder / "server")
    assert Facts.load(federation.folder / "server") == federation.facts


def test_another_ones_admission_key_is_noticed(federation: Federation) -> None:
    (federation.folder / "admission.key").write_bytes(SigningKey().secret())
    with pytest.raises(AdmissionError, match="another federation"):
        Federation(federation.folder)


def test_no_federation_is_made_over_something(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(AdmissionError, match="not empty"):
        Federation.create(tmp_path / "full", "a:1", ["a"])


def test_the_authority_signs_with_a_curve_that_all_know(federation: Federation) -> None:
    key = x509.load_pem_x509_certificate(
        (federation.folder / "authority.pem").read_bytes()
    ).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
