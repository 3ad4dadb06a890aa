"""Flower's messages on the wire, with few requests and few copies.

A message is a tree of objects (Flower's "inflatables"): the message, its records, its arrays, and
their chunks of 5 MiB, each named by its hash. A small message travels with its content inside
and its tree is only its root, which takes two requests instead of six. A large one goes object
by object, so that memory holds only one copy of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flwr.app import Array, ArrayRecord, Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_head_values_from_object_content,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflatable_class_registry

from fedaipc import strict_json
from fedaipc.errors import EncodingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_INLINE = 200_000  # bytes of records that travel inside their message
CHUNK = 5 * 2**20  # bytes of an array that are an object
_MAX_OBJECTS = 10_000
_MAX_DEPTH = 8


@dataclass(slots=True)
class Parcel:
    """A message ready to be sent: what announces it, its tree, and the objects to upload."""

    head: Any
    tree: Any
    _objects: dict[str, Any]

    def take(self, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
        """Identifiers and bytes of the wanted objects, children first; each is released."""
        for name in list(self._objects):
            item = self._objects.pop(name)
            if name in wanted:
                with no_object_id_recompute():
                    yield name, item.deflate()


def pack(message: Message) -> Parcel:
    """Give `message` the identifier that follows from its content, and take it apart."""
    message.metadata.__dict__["_message_id"] = message.object_id
    with no_object_id_recompute():
        if message.has_error() or _size(message) < MAX_INLINE:
            return Parcel(message_to_proto(message), ObjectTree(object_id=message.object_id), {})
        return Parcel(
            message_to_proto(remove_content_from_message(message)),
            get_object_tree(message),
            get_all_nested_objects(message),
        )


def is_whole(tree: Any) -> bool:
    """Whether a message came with its content inside."""
    return not tree.children


def unpack(head: Any) -> Message:
    """A message that came whole. Raises EncodingError."""
    try:
        return message_from_proto(head)
    except Exception as error:  # noqa: BLE001 - the sender's bytes: Flower raises many kinds
        raise EncodingError(f"a message cannot be read ({type(error).__name__})") from None


def fetch(message_id: str, pull: Callable[[str], bytes], most: int) -> Message:
    """A message object by object. `pull` gives an object's bytes; what it raises comes through.

    Raises EncodingError on bytes that are not a message, or where they are more than `most` in all.
    Flower's own way holds a vector three times.
    """
    left = _MAX_OBJECTS  # the tree is what the sender claims
    room = most
    not_there: list[Exception] = []

    def get(name: str) -> bytes:
        nonlocal room
        try:
            content = pull(name)
        except Exception as error:
            not_there.append(error)
            raise
        room -= len(content)
        if room < 0:
            raise EncodingError(f"a message is larger than the {most:,} bytes that it can have")
        return content

    def inflate(name: str, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > _MAX_DEPTH:
            raise EncodingError("a message is made of too many objects")
        content = get(name)
        kind, children, size = get_object_head_values_from_object_content(content)
        if kind == "Array":
            about = strict_json.parse(content[-size:])
            data = bytearray()
            for index in about["arraychunk_ids"]:  # equal chunks are one object: each use counts
                left -= 1
                if left < 0:
                    raise EncodingError("a message is made of too many objects")
                chunk = get(children[index])
                length = get_object_head_values_from_object_content(chunk)[2]
                data += memoryview(chunk)[len(chunk) - length :]
            array = Array(str(about["dtype"]), tuple(about["shape"]), str(about["stype"]), b"")
            array.data = data  # type: ignore[assignment]  # one buffer; its readers take any
            return array
        inner = {child: inflate(child, depth + 1) for child in children}
        if kind == "ArrayRecord":  # its own way insists on bytes
            record = ArrayRecord()
            for key, child in strict_json.parse(content[-size:]).items():
                record[key] = inner[child]
            return record
        return inflatable_class_registry[kind].inflate(content, children=inner)

    try:
        message = inflate(message_id, 0)
    except EncodingError:
        raise
    except Exception as error:  # the sender's bytes: parsers raise many kinds
        if error in not_there:
            raise
        raise EncodingError(f"a message cannot be read ({type(error).__name__})") from None
    if not isinstance(message, Message):
        raise EncodingError("what was sent is not a message")
    message.metadata.__dict__["_message_id"] = message_id
    return message


def _size(message: Message) -> int:
    return sum(record.count_bytes() for record in message.content.values())
