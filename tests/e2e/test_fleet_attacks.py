"""A real server that lies, and strangers on the network, against real clients that train on."""

from __future__ import annotations

import json
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import Message
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.node_pb2 import Node as NodeId
from flwr.supercore.fab import Fab

from fedaipc.client.disclosure_log import read as read_sent
from fedaipc.config import load_owner, load_settings, to_toml
from fedaipc.coordinator.checkpoint import Checkpoint
from fedaipc.coordinator.coordinator import Coordinator
from fedaipc.coordinator.upload_store import UploadStore
from fedaipc.errors import BudgetExhausted, RoundError
from fedaipc.federation.federation import Federation
from fedaipc.files import write_text
from fedaipc.fleet.grid import FleetGrid
from fedaipc.fleet.registry import Registry
from fedaipc.fleet.superlink import SECRET_FILE, UPLOAD_FILE
from fedaipc.model.classifier import Classifier, read_vector
from fedaipc.privacy.ledger import Ledger
from fedaipc.protocol.job import Job, SignedJob
from fedaipc.protocol.job_folder import read_job
from fedaipc.protocol.messages import MASK
from fedaipc.secagg.keys import SigningKey
from fedaipc.secagg.round_keys import Group
from tests.support.fleets import PCS, ROUNDS, Fleet, wait_for_line

pytestmark = [pytest.mark.slow, pytest.mark.alone]
NAMES = [f"pc-{number:04d}" for number in range(PCS)]


class Nothing:
    """In place of a measurement: a server that lies needs none."""

    def score(self, _: Any) -> Any:
        raise AssertionError("no round should come this far")


class Deaf(Coordinator):
    """Asks nobody whether it takes part, and sends the model to all, without any round key."""

    def _ready_groups(
        self, attempt: int, number: int, store: UploadStore, outcome: Any
    ) -> list[Group]:
        groups = [Group(terms, ()) for terms in self._groups(attempt)]
        outcome.charged = {pc for group in groups for pc in group.terms.participants}
        outcome.asked = outcome.charged
        return groups


class Liar:
    """Has all that a server has, and no admission key: it says what it likes to the PCs."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.state = fleet, fleet.server / "state"
        self.secret = (self.state / SECRET_FILE).read_bytes()
        self.address = json.loads((self.state / "running.json").read_text())["superlink"]
        self.settings = load_settings(fleet.out / "first-job" / "config.toml")
        folder = fleet.out / "read"
        folder.mkdir()
        for path in (fleet.out / "first-job").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        (folder / "roster.bin").write_bytes((fleet.server / "roster.bin").read_bytes())
        self.signed, self.roster = read_job(folder)
        self.vector = read_vector(Classifier(self.signed.job.model, self.signed.job.labels))
        self.number = 0

    def asks(self, signed: SignedJob) -> None:
        """Run this job with all the PCs that are there: in order, and deaf to what they answer."""
        for kind in (Coordinator, Deaf):
            self._runs(kind, signed)

    def _runs(self, kind: type[Coordinator], signed: SignedJob) -> None:
        self.number += 1
        folder = self.fleet.out / f"lie-{self.number}"
        folder.mkdir()
        validation: Any = Nothing()
        coordinator = kind(
            folder=folder,
            settings=self.settings,
            job=signed,
            roster=self.roster,
            checkpoint=Checkpoint(layout_hash=signed.job.layout_hash, vector=self.vector.copy()),
            validation=validation,
            claims_epsilon=False,
            on_round=lambda _: None,
        )
        with pytest.raises((RoundError, BudgetExhausted)), self.grid() as grid:
            coordinator.run(grid)

    @contextmanager
    def grid(self) -> Iterator[FleetGrid]:
        with FleetGrid(self.address, self.secret, self.state / UPLOAD_FILE) as grid:
            yield grid

    def changed(self, key: SigningKey, **changes: Any) -> SignedJob:
        return SignedJob.sign(key, Job.model_validate({**self.signed.job.model_dump(), **changes}))


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Flower's bundles
def test_a_server_that_lies_gets_nothing_and_training_goes_on(fleet: Fleet, tmp_path: Path) -> None:
    limit(fleet, "pc-0000", max_local_steps=2, max_epsilon=100.0)
    fleet.start_server()
    for number in range(PCS):
        fleet.start_client(number)
    for name in NAMES:
        wait_for_line(fleet.out / f"{name}.log", "connected")
    liar, admission = Liar(fleet), Federation(fleet.out / "acme").admission.key
    job, stranger = liar.signed, SigningKey()
    before = {name: (fleet.out / name / "ledger.jsonl").read_bytes() for name in NAMES}

    # Jobs that the admission key did not sign: none, cut, another's, another text's.
    liar.asks(SignedJob(job.job, job.text, bytes(64)))
    flipped = job.signature[:-1] + bytes([job.signature[-1] ^ 1])
    liar.asks(SignedJob(job.job, job.text, flipped))
    liar.asks(SignedJob.sign(stranger, job.job))
    changed = job.text.replace(f'"rounds":{ROUNDS}', '"rounds":9')
    assert changed != job.text
    liar.asks(SignedJob(Job.parse(changed), changed, job.signature))
    # Signed, and yet not what owners allow: updates that the server can read, no noise, too long.
    liar.asks(liar.changed(admission, aggregation={"kind": "plain"}))
    liar.asks(liar.changed(admission, privacy={"kind": "none"}))
    training = {**job.job.training.model_dump(), "local_steps": 1001}
    loud = {**job.job.privacy.model_dump(), "noise_multiplier": 200.0}
    # With so much noise that a budget covers it: else nobody would be asked.
    liar.asks(liar.changed(admission, training=training, privacy=loud))
    liar.asks(liar.changed(admission, not_after=int(time.time()) - 60))
    liar.asks(liar.changed(admission, min_roster=liar.roster.version + 1))
    # No messages at all, another's kind, too large, and a bundle with code in it.
    marker = tmp_path / "ran"
    bundle = another_bundle(marker)
    registry = Registry(liar.address, liar.secret)
    registry._client.StartRun(StartRunRequest(fab=fab_to_proto(bundle)))
    registry.stop_unfinished()
    registry.close()
    with liar.grid() as grid:
        nodes = grid.get_node_ids()
        for kind, content in hostile_contents(liar):
            replies = grid.send_and_receive(
                [Message(content, node, kind) for node in nodes], timeout=300
            )
            assert len(replies) == PCS
            assert all(reply.has_error() and not reply.error.reason for reply in replies), kind

    for name in NAMES:
        assert (fleet.out / name / "ledger.jsonl").read_bytes() == before[name]
        kinds = {entry.kind for entry in read_sent(fleet.out / name)}
        assert kinds == {"setup", "ready, refused", "mask, refused"}
        assert fleet.processes[name].poll() is None
    assert not marker.exists()

    # And then the job that is signed, on the same processes.
    trained = fleet.command("server", "train", fleet.out / "first-job", "--server", fleet.server)
    assert trained.returncode == 0, trained.stderr
    results = fleet.results()
    assert results is not None
    assert [r.arrived for r in results.rounds] == [PCS] * ROUNDS
    for name in NAMES:
        assert len(Ledger(fleet.out / name / "ledger.jsonl").charges) == ROUNDS


def limit(fleet: Fleet, name: str, **policy: Any) -> None:
    path = fleet.out / name / "owner.toml"
    owner = load_owner(path)
    changed = owner.policy.model_copy(update=policy)
    write_text(path, to_toml(owner.model_copy(update={"policy": changed})))


def another_bundle(marker: Path) -> Fab:
    """A Flower app whose client writes a file, as soon as anybody imports it."""
    project = """
[project]
name = "fedaipc"
version = "9"
[tool.flwr.app]
publisher = "fedaipc"
[tool.flwr.app.components]
serverapp = "fedaipc.coordinator.server_app:app"
clientapp = "fedaipc.client.client_app:app"
[tool.flwr.app.config]
"""
    code = f"open({str(marker)!r}, 'w').close()\n"
    files = {
        "pyproject.toml": project.encode(), "fedaipc/__init__.py": code.encode(),
        "fedaipc/client/__init__.py": code.encode(), "fedaipc/client/client_app.py": code.encode(),
    }  # fmt: skip
    content, digest, *_ = build_fab_from_files(files)
    return Fab(str(digest), content, {})


def hostile_contents(liar: Liar) -> list[tuple[str, Any]]:
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

    large = Array(np.zeros(60_000_000, np.float32))  # 240 MB, more than a PC takes
    return [
        (MASK, RecordDict({})),
        (MASK, RecordDict({"ask": ConfigRecord({"job": "{}", "round": True})})),
        ("query.evaluate", RecordDict({"ask": ConfigRecord({"x": 1})})),
        ("query.setup", RecordDict({"ask": ConfigRecord({"run": "../../x", "epoch": 1})})),
        (MASK, RecordDict({"model": ArrayRecord({"vector": large})})),
    ]


def test_strangers_are_refused_while_training_goes_on(fleet: Fleet) -> None:
    """From an address of its own, while four PCs train."""
    fleet.start_server()
    for number in range(PCS):
        fleet.start_client(number)
    assert fleet.command("server", "train", fleet.out / "first-job", "--server", fleet.server,
                         "--detach").returncode == 0  # fmt: skip
    fleet.wait_for_round(1)
    stranger = Stranger(fleet)
    stranger.everything()
    results = fleet.wait_for_round(ROUNDS)
    assert [r.arrived for r in results.rounds] == [PCS] * ROUNDS
    assert not [r for r in results.rounds if r.void]
    stranger.floods()
    deadline = time.monotonic() + 60
    while (found := fleet.results()) is None or found.status != "finished":
        assert time.monotonic() < deadline
        time.sleep(0.2)


class Stranger:
    """Connects from 127.0.0.2, with a key that nobody admitted."""

    def __init__(self, fleet: Fleet) -> None:
        self.port = fleet.port
        self.context = ssl.create_default_context(
            cafile=fleet.server / "authority.pem"  # public: it is in every invite
        )
        state = json.loads((fleet.server / "state" / "running.json").read_text())
        self.inner = int(state["superlink"].rpartition(":")[2])
        self.key = ec.generate_private_key(ec.SECP384R1())

    def plain(self) -> socket.socket:
        return socket.create_connection(
            ("127.0.0.1", self.port), timeout=15, source_address=("127.0.0.2", 0)
        )

    def tried(self) -> socket.socket | None:
        """A connection, where the front did not cut it at once."""
        try:
            return self.plain()
        except OSError:
            return None

    def ask(self, content: bytes, context: ssl.SSLContext | None = None) -> bytes:
        """What comes back, up to the end of a head; nothing where the connection is cut."""
        answer = b""
        context = context or self.context
        with (
            suppress(OSError),
            self.plain() as raw,
            context.wrap_socket(raw, server_hostname="localhost") as sock,
        ):
            sock.sendall(content)
            while b"\r\n\r\n" not in answer and (part := sock.recv(65536)):
                answer += part
        return answer

    def status(self, path: str, body: bytes = b"", **headers: str) -> int:
        lines = {
            "Host": "localhost", "Content-Type": "application/protobuf",
            "Content-Length": str(len(body)), "Connection": "close", **headers,
        }  # fmt: skip
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        answer = self.ask(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        return int(answer.split(b" ", 2)[1]) if answer else 0

    def signed(self) -> dict[str, str]:
        """Good headers of a node, by a key that is not on the list."""
        public = self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        stamp = (datetime.now(UTC) - timedelta(seconds=100)).isoformat()
        signature = self.key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
        return {
            "flwr-public-key": b64encode(public).decode(), "flwr-timestamp": stamp,
            "flwr-signature": b64encode(signature).decode(),
        }  # fmt: skip

    def everything(self) -> None:
        pull = "/v1/fleet/pull-messages"
        body = PullMessagesRequest(node=NodeId(node_id=1)).SerializeToString()
        for path in (
            "/v1/control/list-nodes", "/v1/control/register-node", "/v1/runtime/acquire-task",
            "/v1/fleet/get-fab", "/v1/fleet/register-node", "/docs", "/",
        ):  # fmt: skip
            assert self.status(path, body) == 404, path
        assert self.status(pull, body) == 401
        assert self.status(pull, body, **self.signed()) == 401
        assert self.status(pull, b"", **{"Content-Length": str(10**9)}) == 413
        assert self.status(pull, b"", X="y" * 200_000) in (400, 431)
        # Plain HTTP, TLS 1.2, another authority, garbage.
        with self.plain() as raw:
            raw.sendall(f"POST {pull} HTTP/1.1\r\n\r\n".encode())
            with suppress(OSError):
                assert b"HTTP/1.1 200" not in raw.recv(100)
        old = ssl.create_default_context()
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        assert self.ask(b"GET /health HTTP/1.1\r\n\r\n", old) == b""
        strict = ssl.create_default_context()  # the system's authorities
        with self.plain() as raw, pytest.raises(ssl.SSLCertVerificationError):
            strict.wrap_socket(raw, server_hostname="localhost")
        assert not self.ask(bytes(range(256)) * 20).startswith(b"HTTP/1.1 200")
        # The SuperLink itself is for this machine's loopback alone.
        for address in outside_addresses():
            with pytest.raises(OSError, match=r"refused|unreachable|timed out"):
                socket.create_connection((address, self.inner), timeout=3).close()

    def floods(self) -> None:
        """More connections than one address may have, none of which says a word."""
        held = [sock for _ in range(200) if (sock := self.tried()) is not None]
        # From another address everything goes on meanwhile.
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=15) as raw,
            self.context.wrap_socket(raw, server_hostname="localhost") as sock,
        ):
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert sock.recv(100).startswith(b"HTTP/1.1 200")
        begun = time.monotonic()
        for sock in held:  # a handshake that does not come is not waited for
            with suppress(OSError):
                assert sock.recv(1) == b""
            sock.close()
        assert time.monotonic() - begun < 30


def outside_addresses() -> list[str]:
    return [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    ]
