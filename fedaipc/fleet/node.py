"""A PC at its federation's server: one process that asks for messages and answers them.

Flower's own SuperNode would start a new Python for every message and run the code that the server
ships with a run. This one calls the client app that is installed here and fetches no code at all.
It asks often while messages come and seldom when none do, waits for a server that does not
answer, and resumes its place after a crash.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
from flwr.app import Context, RecordDict
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node as NodeId
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient

from fedaipc import strict_json
from fedaipc.client.client import serving
from fedaipc.errors import EncodingError
from fedaipc.files import write_atomic
from fedaipc.fleet.answers import Promise, failure, push
from fedaipc.fleet.clients import LetGo, flower_client
from fedaipc.fleet.http_client import bounded_client
from fedaipc.fleet.node_auth import NodeAuth
from fedaipc.fleet.proxy import proxy_for
from fedaipc.fleet.trouble import why
from fedaipc.fleet.wire import fetch, is_whole, unpack
from fedaipc.stopping import Stop

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from flwr.app import Message, Metadata
    from flwr.clientapp import ClientApp

_HEARTBEAT = 10  # s: Flower's least; a node that is silent for twice as long counts as offline
_SHORTEST, _LONGEST = 0.02, 5.0  # s between two looks for a message
_PATIENT = 20  # waiting costs at most this part of the time since the last message
_LONGEST_PAUSE = 60.0  # s between two attempts at a server that does not answer
_DOWNLOAD, _UPLOAD = 600.0, 170.0  # s; the SuperLink gives an upload up after 180 s of silence
_HOUR = 3600.0
_REST = 15.0  # s between two questions whether to work again
_NODE_FILE = "node.json"
_BUSY = (502, 503, 504)
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class _RunOver(Exception):  # noqa: N818 - a state, not a fault
    """The run of a message has ended: drop it."""


class _NotAdmitted(Exception):  # noqa: N818 - a state, not a fault
    """The server does not, or no longer, know this PC's key."""


class FleetNode:
    """The PC in `folder` at the server with this address; `authority` is a certificate in PEM.

    `largest` is the most bytes that a message may have, whoever sends it. With an `answer_slot` (in
    seconds) what was trained is sent a whole number of slots after the request came. `may_work` is
    asked before each look for a message and says why not to work now; `each_hour` is called at the
    start and then each hour, also while the server does not answer. `serve` returns after `stop`.
    Raises AdmissionError where the PC's key or the certificate cannot be read, or another process
    serves this PC.
    """

    def __init__(
        self,
        address: str,
        authority: bytes,
        key: Path,
        folder: Path,
        app: ClientApp,
        *,
        largest: int,
        answer_slot: float = 0.0,
        may_work: Callable[[], str | None] = lambda: None,
        each_hour: Callable[[], None] = lambda: None,
    ) -> None:
        self._auth = NodeAuth(key)
        self._folder, self._app, self._may_work = folder, app, may_work
        self._largest, self._each_hour = largest, each_hour
        self._resting, self._slot = False, answer_slot
        self._proxy = proxy_for(address)
        self._fleet = flower_client(
            FleetHttpClient, f"https://{address}", bounded_client(authority, self._proxy),
            [LetGo(), RuntimeVersionHttpInterceptor("SuperNode"), self._auth],
        )  # fmt: skip
        self._file, self._promise = folder / _NODE_FILE, Promise(folder)
        self._node: NodeId | None = None
        self._heard = time.monotonic()
        self._stop, self._over = Stop(), Stop()

    def stop(self) -> None:
        """Finish the current message and return from `serve`; from any thread or signal handler."""
        self._stop.set()

    def await_stop(self) -> None:
        """Return once `stop` was called."""
        self._stop.wait()

    def serve(self) -> None:
        """Until `stop`, whatever happens to the network."""
        with serving(self._folder):
            self._serve()

    def _serve(self) -> None:
        heart = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)
        heart.start()
        try:
            self._loop()
        finally:
            self._stop.set()
            self._over.set()
            if self._node is not None:
                with suppress(Exception):  # whatever the server answers
                    self._fleet.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id))
            heart.join()
            self._fleet.close()

    def _loop(self) -> None:
        pause = 0.5
        while not self._stop.is_set():
            if self._rests():
                continue
            try:
                if self._node is None:
                    self._come_online()
                    self._break_promise()
                    _log.info("connected")
                self._look()
                pause = 0.5
                continue
            except _NotAdmitted:
                self._node = None
                _log.warning(
                    "the server does not admit this PC: ask the federation whether its request was "
                    "admitted, has expired or was revoked"
                )
            except httpx.HTTPStatusError as error:
                self._node = None
                _log.warning("the server refuses with status %d", error.response.status_code)
            except httpx.HTTPError as error:
                self._node = None  # say immediately that we are back
                _log.warning(
                    "the server cannot be reached (%s); tries again", why(error, self._proxy)
                )
            except Exception as error:  # noqa: BLE001 - whatever a server answers, or a full disk
                self._node = None
                _log.warning("this PC could not continue (%s)", type(error).__name__)
            self._stop.wait(pause * random.uniform(0.7, 1.3))  # noqa: S311 - no secret
            pause = min(_LONGEST_PAUSE, pause * 2)

    def _rests(self) -> bool:
        """Whether the owner wants no work now: then the server counts on no answer."""
        reason = self._may_work()
        if (reason is not None) != self._resting:
            self._resting = reason is not None
            _log.info("at work again" if reason is None else f"resting: {reason}")
            if self._resting and self._node is not None:
                with suppress(Exception):  # whatever the server answers
                    self._fleet.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id))
                self._node = None
        if self._resting:
            self._stop.wait(_REST)
        return self._resting

    def _come_online(self) -> None:
        """A node that crashed is online for the SuperLink, which activates no such node. But it
        takes a heartbeat from it; so the node's number, no secret, is kept on the disk.
        """
        number = self._kept()
        if number is not None:
            self._node = NodeId(node_id=number)
            try:
                self._beat()
            except _NotAdmitted:  # revoked, or registered again under another number
                self._node = None
                self._file.unlink(missing_ok=True)
            else:
                return
        try:
            answer = self._call(
                self._fleet.ActivateNode,
                ActivateNodeRequest(public_key=self._auth.public, heartbeat_interval=_HEARTBEAT),
            )
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.PRECONDITION_FAILED:
                raise _NotAdmitted from None
            raise
        self._node = NodeId(node_id=answer.node_id)
        write_atomic(self._file, json.dumps({"node": answer.node_id}).encode())

    def _kept(self) -> int | None:
        try:
            return int(strict_json.load(self._file)["node"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _beat(self) -> None:
        self._call(
            self._fleet.SendNodeHeartbeat,
            SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=_HEARTBEAT),
        )

    def _beat_on(self) -> None:
        due = 0.0
        while not self._over.wait(_HEARTBEAT * random.uniform(0.4, 0.6)):  # noqa: S311
            if time.monotonic() >= due:
                due = time.monotonic() + _HOUR
                with suppress(Exception):
                    self._each_hour()
            if self._node is not None:
                with suppress(Exception):  # the loop sees it, too
                    self._beat()

    def _look(self) -> None:
        """Look for one message and answer it, or wait a while."""
        answer = self._call(self._fleet.PullMessages, PullMessagesRequest(node=self._node))
        if not answer.messages_list:
            idle = time.monotonic() - self._heard
            self._stop.wait(min(_LONGEST, max(_SHORTEST, idle / _PATIENT)))
            return
        head = answer.messages_list[0]
        try:
            self._handle(head, answer.message_object_trees[0])
        except _RunOver:
            self._promise.keep()
            _log.info("the run of a message has ended")
        except EncodingError as error:
            _log.warning("%s", error)
            with suppress(EncodingError, _RunOver):  # spare the round from waiting for us
                asked = unpack(head)
                self._send(asked.metadata, failure(asked))
        self._heard = time.monotonic()

    def _handle(self, head: Any, tree: Any) -> None:
        received = time.monotonic()
        run, name = head.metadata.run_id, head.metadata.message_id
        if is_whole(tree):
            message = unpack(head)
        else:
            message = fetch(name, lambda wanted: self._pull(run, wanted), self._largest)
        confirm = ConfirmMessageReceivedRequest(node=self._node, run_id=run, message_object_id=name)
        self._call(self._fleet.ConfirmMessageReceived, confirm, patience=30)
        # A new `Message` reads these; nothing else of Flower's does here.
        TaskIdentity.run_id, TaskIdentity.task_id = run, 0
        TaskIdentity.node_id = 0 if self._node is None else self._node.node_id
        self._promise.give(message)
        started = time.monotonic()
        reply = self._answer(message)
        asked = message.metadata
        del message
        done = time.monotonic()
        if asked.message_type.startswith("train."):  # the others see no data
            self._await_slot(received)
        ready = time.monotonic()
        self._send(asked, reply)
        self._promise.keep()
        _log.info(
            "%.40r: worked %.3f s, sent in %.3f s",
            asked.message_type, done - started, time.monotonic() - ready,
        )  # fmt: skip

    def _await_slot(self, received: float) -> None:
        """Make the time of sending show only how many slots went by; also when stopping."""
        if self._slot > 0:
            time.sleep(self._slot - (time.monotonic() - received) % self._slot)

    def _break_promise(self) -> None:
        """Say that the message on which this PC was interrupted will not be answered."""
        request = self._promise.broken()
        if request is not None:
            request.node.CopyFrom(self._node)
            with suppress(httpx.HTTPStatusError, _RunOver):
                self._call(self._fleet.PushMessages, request)
        self._promise.keep()

    def _answer(self, message: Message) -> Message:
        node = 0 if self._node is None else self._node.node_id
        context = Context(
            run_id=message.metadata.run_id,
            node_id=node,
            node_config={"pc-folder": str(self._folder)},  # this PC's own, never the server's
            state=RecordDict(),
            run_config={},
        )
        try:
            return self._app(message, context)
        except Exception as error:  # noqa: BLE001 - its text must not leave the PC
            _log.warning("a message is answered with an error (%s)", type(error).__name__)
            return failure(message)

    def _pull(self, run: int, name: str) -> bytes:
        end, pause = time.monotonic() + _DOWNLOAD, _SHORTEST
        while time.monotonic() < end:
            request = PullObjectRequest(node=self._node, run_id=run, object_id=name)
            answer = self._call(self._fleet.PullObject, request, patience=60)
            if not answer.object_found:
                break
            if answer.object_available:
                return bytes(answer.object_content)
            if self._stop.wait(pause):  # the coordinator still uploads
                break
            pause = min(1.0, pause * 1.5)
        raise _RunOver

    def _send(self, asked: Metadata, reply: Message) -> None:
        run = asked.run_id
        request, parcel = push(self._node, asked, reply)
        answer = self._call(self._fleet.PushMessages, request, patience=_UPLOAD)
        for name, content in parcel.take(set(answer.objects_to_push)):
            content_of = PushObjectRequest(
                node=self._node, run_id=run, session_id=answer.session_id, object_id=name,
                object_content=content,
            )  # fmt: skip
            if self._call(self._fleet.PushObject, content_of, patience=_UPLOAD).stored:
                continue
            # A repeated push is refused though the first came through: is it there?
            look = PullObjectRequest(node=self._node, run_id=run, object_id=name)
            if not self._call(self._fleet.PullObject, look, patience=30).object_available:
                raise _RunOver

    def _call(self, method: Callable[[Any], _T], request: Any, patience: float = 0.0) -> _T:
        """One call, repeated while the server does not answer; so only for calls that may be
        repeated.
        """
        end, pause = time.monotonic() + patience, 0.1
        while True:
            try:
                return method(request)
            except httpx.HTTPStatusError as error:
                status = error.response.status_code
                if status == httpx.codes.UNAUTHORIZED:
                    raise _NotAdmitted from None
                if status == httpx.codes.FORBIDDEN:
                    raise _RunOver from None
                if status not in _BUSY or time.monotonic() > end:
                    raise
            except httpx.TransportError:
                if time.monotonic() > end:
                    raise
            if self._stop.wait(pause):
                raise httpx.TransportError("stopping")
            pause = min(5.0, pause * 2)
