"""The coordinator's end of a Flower run, as a `Grid`: this process is the run's ServerApp.

No SuperExec and no bundle: the coordinator starts a run whose bundle holds no code, claims its task
by the bundle's hash, and speaks Flower's runtime API. Flower's own HttpGrid collects all replies
before it gives the first, and ends the process on a refusal.
"""

from __future__ import annotations

import logging
import secrets
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Self

import httpx
from flwr.app import Message
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    GetNodesRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity

from fedaipc.errors import EncodingError, EngineError
from fedaipc.files import write_atomic
from fedaipc.fleet.clients import LetGo, loopback
from fedaipc.fleet.registry import Registry
from fedaipc.fleet.wire import fetch, is_whole, pack, unpack
from fedaipc.protocol.one_run_grid import OneRunGrid
from fedaipc.stopping import STOPPED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

_HEARTBEAT = 5.0  # s; the SuperLink gives a task up 60 s after its last one
_PATIENCE = 55.0  # s that calls wait for a SuperLink that does not answer; then the run is lost
_NODES_BACK = 15.0  # s after an outage in which PCs come back
_SELF = Node(node_id=1)  # the SuperLink's own number
_log = logging.getLogger(__name__)


class FleetGrid(OneRunGrid):
    """`with FleetGrid(...) as grid:` is one Flower run, completed or failed when it ends.

    `upload_file` tells the SuperLink how large an answer may be. Once `is_stopped`, the next call
    raises SystemExit. Replies come one by one. Not safe for use by several threads. Raises
    EngineError where the SuperLink does not answer, or has given the run up: the job continues
    from its checkpoint.
    """

    _pause = 0.05

    def __init__(
        self,
        address: str,
        secret: bytes,
        upload_file: Path,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._is_stopped = is_stopped
        self._address, self._secret = address, secret
        self._upload_file, self._largest = upload_file, 0
        self._over, self._lost, self._away = (threading.Event() for _ in range(3))
        self._uploading: dict[str, tuple[Any, Any]] = {}  # by the request that it answers
        self._run = Run.create_empty(0)
        self._client: Any = None

    def __enter__(self) -> Self:
        try:
            self._begin()
        except httpx.HTTPError as error:
            raise EngineError(
                f"the server's SuperLink does not start a run ({type(error).__name__}); is "
                "`fedaipc server start` running?"
            ) from None
        self._heart = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)
        self._heart.start()
        return self

    def _begin(self) -> None:
        registry = Registry(self._address, self._secret)
        try:
            registry.stop_unfinished()
            run, bundle = registry.start_run(secrets.token_hex(8))
        finally:
            registry.close()
        executor = loopback(
            RuntimeHttpClient, self._address,
            [
                RuntimeVersionHttpInterceptor("SuperExec"),
                SuperExecAuthHttpInterceptor(
                    master_secret=self._secret,
                    protected_methods={"/flwr.proto.Runtime/AcquireTask"},
                ),
            ],
        )  # fmt: skip
        with executor:
            # By the hash of our own bundle: never another run's task.
            claim = executor.AcquireTask(AcquireTaskRequest(agentapp_fab_hashes=[bundle]))
        if not claim.token or claim.task.run_id != run:
            raise EngineError("the server's SuperLink gave the run's task to another process")
        self._client = loopback(
            RuntimeHttpClient, self._address,
            [
                LetGo(),
                RuntimeVersionHttpInterceptor("flwr-serverapp"),
                RuntimeTokenHttpInterceptor(claim.token),
            ],
        )  # fmt: skip
        task = self._client.PullTaskInput(PullTaskInputRequest())
        # A new `Message` reads these.
        TaskIdentity.task_id, TaskIdentity.run_id = task.task_id, task.run.run_id
        TaskIdentity.node_id = task.context.node_id
        self._run = Run.create_empty(run)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        self._heart.join()
        # Whoever lists runs sees the details: no text of an error.
        end = PushTaskOutputRequest(
            sub_status="completed" if kind is None else "failed",
            details="" if kind is None else kind.__name__,
        )
        try:
            self._client.PushTaskOutput(end)
        except httpx.HTTPError:
            _log.warning("the SuperLink could not be told that the run is over")
        self._client.close()

    def get_node_ids(self) -> list[int]:
        """PCs that are online now."""
        return [node.node_id for node in self._call("GetNodes", GetNodesRequest()).nodes]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send; identifiers in order, "" for a PC that has left."""
        parcels = [pack(message) for message in messages]
        answer = self._call(
            "PushMessages",
            PushAppMessagesRequest(
                messages_list=[parcel.head for parcel in parcels],
                message_object_trees=[parcel.tree for parcel in parcels],
            ),
        )
        missing = set(answer.objects_to_push)
        for parcel in parcels:
            for name, content in parcel.take(missing):
                missing.discard(name)  # a vector that several messages share is sent once
                self._call(
                    "PushObject",
                    PushObjectRequest(
                        node=_SELF, run_id=self._run.run_id, object_id=name,
                        object_content=content, session_id=answer.session_id,
                    ),
                )  # fmt: skip
        return list(answer.message_ids)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that are there, small ones all, of the large ones one at a time.

        A reply that cannot be read is left out: its PC counts as dropped.
        """
        wanted = set(message_ids)
        if self._away.is_set():
            self._await_nodes()
        ready: list[Message] = []
        asked = [name for name in wanted if name not in self._uploading]
        if asked:
            answer = self._call("PullMessages", PullAppMessagesRequest(message_ids=asked))
            for head, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
                if not head.HasField("error") and not is_whole(tree):
                    # It is announced before its objects are uploaded.
                    self._uploading[head.metadata.reply_to_message_id] = head, tree
                    continue
                try:
                    ready.append(unpack(head))
                except EncodingError as error:
                    _log.warning("%s", error)
                if not head.HasField("error"):
                    self._confirm(head.metadata.message_id)
        for name in [name for name in self._uploading if name in wanted]:
            head, _ = self._uploading[name]
            reply = self._fetched(head.metadata.message_id)
            if reply is not None:
                del self._uploading[name]
                if isinstance(reply, Message):
                    ready.append(reply)
                break
            # Look at the others first next time.
            self._uploading[name] = self._uploading.pop(name)
        return ready

    def allow_uploads(self, size: int) -> None:
        """Take answers of up to `size` bytes, and let the SuperLink take them; before that it takes
        none.
        """
        self._largest = size
        write_atomic(self._upload_file, str(size).encode(), private=True)

    def forget(self, message_ids: Iterable[str]) -> None:
        """Delete messages whose reply is no longer wanted; the SuperLink would keep them."""
        for name in message_ids:
            head, _ = self._uploading.pop(name, (None, None))
            self._confirm(name if head is None else head.metadata.message_id)

    def _fetched(self, name: str) -> Message | bool | None:
        """A large reply; None while it is being uploaded, False where it cannot be read."""
        root = self._look(name)  # which is uploaded last
        if root.object_found and not root.object_available:
            return None

        def pull(wanted: str) -> bytes:
            answer = root if wanted == name else self._look(wanted)
            if not answer.object_available:
                raise EncodingError("a reply's upload was given up")
            return bytes(answer.object_content)

        try:
            found: Message | bool = fetch(name, pull, self._largest)
        except EncodingError as error:
            _log.warning("%s", error)
            found = False
        self._confirm(name)
        return found

    def _look(self, name: str) -> Any:
        request = PullObjectRequest(node=_SELF, run_id=self._run.run_id, object_id=name)
        return self._call("PullObject", request)

    def _confirm(self, name: str) -> None:
        self._call(
            "ConfirmMessageReceived",
            ConfirmMessageReceivedRequest(
                node=_SELF, run_id=self._run.run_id, message_object_id=name
            ),
        )

    def _await_nodes(self) -> None:
        """Wait after an outage: a message to a node that is not back yet would become an error."""
        before = self.get_node_ids()  # waits for the SuperLink
        self._away.clear()
        end = time.monotonic() + _NODES_BACK
        while time.monotonic() < end:
            time.sleep(1.0)
            now = self.get_node_ids()
            if len(now) >= len(before) > 0 and set(now) == set(before):
                return
            before = now

    def _call(self, name: str, request: Any) -> Any:
        """One call, repeated while the SuperLink does not answer. Raises EngineError."""
        method: Callable[[Any], Any] = getattr(self._client, name)
        end, pause = time.monotonic() + _PATIENCE, 0.05
        while not self._lost.is_set():
            if self._is_stopped():
                sys.exit(STOPPED)
            try:
                return method(request)
            except httpx.HTTPStatusError as error:
                status = error.response.status_code
                if status == httpx.codes.UNAUTHORIZED:
                    break
                if status not in (502, 503, 504) or time.monotonic() > end:
                    raise EngineError(f"the SuperLink answers {name} with {status}") from None
            except httpx.TransportError as error:
                self._away.set()
                if time.monotonic() > end:
                    kind = type(error).__name__
                    raise EngineError(f"the SuperLink does not answer ({kind})") from None
            time.sleep(pause)
            pause = min(2.0, pause * 2)
        raise EngineError(
            "the SuperLink gave the run up, as it does after a minute without a message from the "
            "coordinator; continue from the checkpoint"
        )

    def _beat_on(self) -> None:
        while not self._over.wait(_HEARTBEAT):
            try:
                if not self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success:
                    self._lost.set()
            except httpx.TransportError:
                self._away.set()
            except httpx.HTTPStatusError as error:
                if error.response.status_code == httpx.codes.UNAUTHORIZED:
                    self._lost.set()
