"""Flower in this process: the one module that touches what Flower does not export.

`InProcessGrid` drives a `ClientApp` by plain calls, with no server, no port and no other process.
An app that runs on it runs unchanged on Flower's simulation runtime and in a real federation,
because the grid shows the app nothing that those do not:

- a message and its reply are copies, so nobody can reach into another's records;
- node ids are above 2**63, as Flower's random 64-bit ids often are, so an app that takes one for
  a partition number or a signed integer fails here too;
- a client that raises loses its changes to `context.state`, and its reply is an error code.

It is kinder than the others in one point: a client that returns no message gets an error code here
at once; there nobody ever answers for it.

Replies come one by one, each computed when it is pulled, so memory does not grow with the number
of PCs.
"""

from __future__ import annotations

import logging
from copy import copy
from typing import TYPE_CHECKING

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedaipc.protocol.one_run_grid import OneRunGrid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from flwr.serverapp import ServerApp

    Scalar = str | int | float | bool

CLIENT_RAISED = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
CLIENT_CRASHED = ErrorCode.CLIENT_APP_CRASHED
MESSAGE_UNKNOWN = ErrorCode.MESSAGE_UNAVAILABLE

_RUN_ID = 2**63 + 1
_FIRST_NODE_ID = 2**63 + 1001
_log = logging.getLogger(__name__)


def ensure_message_identity() -> None:
    """Let this process construct a `Message`; does nothing where Flower has already done so.

    Flower reads the ids of run, node and task from process-wide variables that only its own
    launchers set.
    """
    ids = {"run_id": _RUN_ID, "node_id": SUPERLINK_NODE_ID, "task_id": 1}
    for name, value in ids.items():
        try:
            getattr(TaskIdentity, name)
        except RuntimeError:  # unset
            setattr(TaskIdentity, name, value)


class InProcessGrid(OneRunGrid):
    """A grid whose nodes are calls of `client_app` in this process.

    Node i gets `partition-id` i and `num-partitions`, as on Flower's simulation runtime, and on
    top whatever `node_configs[i]` holds. A message's time to live is not enforced. Not safe for
    use by several threads. Raises ValueError if `node_configs` is empty.
    """

    def __init__(
        self,
        client_app: Callable[[Message, Context], Message],
        node_configs: Sequence[Mapping[str, Scalar]],
        run_config: Mapping[str, Scalar],
    ) -> None:
        if not node_configs:
            raise ValueError("a grid needs at least one node; give one node_config per PC")
        ensure_message_identity()
        self._client_app = client_app
        self._run = Run.create_empty(TaskIdentity.run_id)
        self._contexts = {
            _FIRST_NODE_ID + i: Context(
                run_id=self._run.run_id,
                node_id=_FIRST_NODE_ID + i,
                node_config={"partition-id": i, "num-partitions": len(node_configs), **config},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for i, config in enumerate(node_configs)
        }
        self._queue: dict[str, Message] = {}  # in the order of pushing
        self._pushed = 0

    def get_node_ids(self) -> list[int]:
        """Node ids in the order of `node_configs`; elsewhere the order is arbitrary."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue a copy of each message and return their ids, in order; "" for an unknown node.

        Array bytes are shared with the caller, not copied; they cannot be changed. An integer
        of more than 64 bits raises ValueError.
        """
        ids = []
        for message in messages:
            if message.metadata.dst_node_id not in self._contexts:
                ids.append("")
                continue
            self._pushed += 1
            message_id = f"message-{self._pushed}"
            message.metadata.__dict__["_message_id"] = message_id
            self._queue[message_id] = _copy_message(message)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Run the first queued message of `message_ids`; return its one reply.

        Each id before it that was never pushed, or whose reply was taken, adds an error reply, as
        on a real SuperLink. It looks no further: thousands may be waiting.
        """
        replies = []
        for message_id in message_ids:
            if message_id in self._queue:
                replies.append(self.answer(self._queue.pop(message_id)))
                break
            replies.append(self._unknown_reply(message_id))
        return replies

    def answer(self, message: Message) -> Message:
        """Run the client that the message is for, and return its reply."""
        node_id = message.metadata.dst_node_id
        kept = self._contexts[node_id]
        context = Context(
            run_id=kept.run_id,
            node_id=node_id,
            node_config=dict(kept.node_config),
            state=_copy_records(kept.state),
            run_config=dict(kept.run_config),
        )
        try:
            reply = _copy_message(_checked(self._client_app(message, context), message))
            kept.state = _copy_records(context.state)
        except Exception as error:  # noqa: BLE001 - whatever a client raises is a code here
            # The class name only: an exception's text may hold the PC's data.
            partition = kept.node_config["partition-id"]
            _log.warning("client app of node %s raised %s", partition, type(error).__name__)
            reply = Message(Error(code=CLIENT_RAISED), reply_to=message)
        except SystemExit:
            reply = Message(Error(code=CLIENT_CRASHED), reply_to=message)
        reply.metadata.__dict__["_message_id"] = f"reply-to-{message.metadata.message_id}"
        return reply

    def _unknown_reply(self, message_id: str) -> Message:
        asked = Message(RecordDict(), SUPERLINK_NODE_ID, SYSTEM_MESSAGE_TYPE)
        asked.metadata.__dict__["_message_id"] = message_id
        return Message(Error(code=MESSAGE_UNKNOWN), reply_to=asked)


def run_server_app(
    server_app: ServerApp, grid: InProcessGrid, run_config: Mapping[str, Scalar]
) -> None:
    """Run the server app to its end in this process; what it raises comes through."""
    context = Context(
        run_id=grid.run.run_id,
        node_id=SUPERLINK_NODE_ID,
        node_config={},
        state=RecordDict(),
        run_config=dict(run_config),
    )
    server_app(grid, context)


def _checked(reply: object, message: Message) -> Message:
    if not isinstance(reply, Message):
        raise TypeError("a client app must return a Message")
    if reply.metadata.reply_to_message_id != message.metadata.message_id:
        raise ValueError("a client app must answer the message that it got")
    return reply


def _copy_message(message: Message) -> Message:
    metadata = copy(message.metadata)
    if message.has_error():
        return make_message(metadata, error=Error(message.error.code, message.error.reason))
    return make_message(metadata, content=_copy_records(message.content))


def _copy_records(records: RecordDict) -> RecordDict:
    """A copy that shares only immutable bytes with the original, as if it had been sent.

    Everything except bytes takes Flower's own way through protobuf, so types and ranges come out as
    after a real transport. Bytes are not copied: thousands of messages may hold the same ones.
    """
    sent = RecordDict()
    for name, record in records.items():
        if isinstance(record, ArrayRecord):
            sent[name] = ArrayRecord(dict(record))  # new Array objects around the same bytes
        elif isinstance(record, ConfigRecord):
            copied = ConfigRecord()  # in the record's order
            for key, value in record.items():
                one = ConfigRecord({key: value})
                whole = isinstance(value, bytes)
                copied[key] = value if whole else ConfigRecord.inflate(one.deflate())[key]
            sent[name] = copied
        else:
            sent[name] = MetricRecord.inflate(record.deflate())
    return sent
