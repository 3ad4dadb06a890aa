"""A PC's answers on the wire: they do not show how long the work took."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.proto.fleet_pb2 import PushMessagesRequest
from google.protobuf.message import DecodeError

from fedaipc.files import write_private
from fedaipc.fleet.wire import pack

if TYPE_CHECKING:
    from pathlib import Path

    from flwr.app import Metadata
    from flwr.proto.node_pb2 import Node

    from fedaipc.fleet.wire import Parcel

_PROMISE_FILE = "promised.bin"


def failure(asked: Message, code: int = ErrorCode.CLIENT_APP_RAISED_EXCEPTION) -> Message:
    """A code and no text: what went wrong may depend on data."""
    return Message(Error(code=code, reason=""), reply_to=asked)


def push(node: Node | None, asked: Metadata, reply: Message) -> tuple[PushMessagesRequest, Parcel]:
    """The call that announces `reply`, and its objects.

    Flower dates an answer to the microsecond and has a place for the seconds that the work took.
    Here an answer has the date of the request, and the seconds are 0.
    """
    reply.metadata.created_at, reply.metadata.ttl = asked.created_at, asked.ttl
    parcel = pack(reply)
    request = PushMessagesRequest(
        node=node, messages_list=[parcel.head], message_object_trees=[parcel.tree],
        clientapp_runtime_list=[0.0],
    )  # fmt: skip
    return request, parcel


class Promise:
    """An error answer prepared in `folder`: after a crash it spares the round from waiting."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / _PROMISE_FILE

    def give(self, asked: Message) -> None:
        """Raises OSError."""
        request, _ = push(None, asked.metadata, failure(asked, ErrorCode.CLIENT_APP_CRASHED))
        write_private(self._file, request.SerializeToString())

    def broken(self) -> PushMessagesRequest | None:
        """What is left where a message was never answered; an incomplete one counts as missing."""
        request = PushMessagesRequest()
        try:
            request.ParseFromString(self._file.read_bytes())
        except (OSError, DecodeError):
            return None
        return request

    def keep(self) -> None:
        """It was answered, or will no longer be asked for. Raises OSError."""
        self._file.unlink(missing_ok=True)
