"""All that a PC may send, field by field: why it may be known, and what it may hold.

`complaints` reads what calls sent and lists what is not declared here, or holds something else than
is declared. A new stage or field needs a line in `HEADERS`, `FIELDS`, `ANSWERS` or `OBJECTS`.
"""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64decode
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, Message
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2
from flwr.supercore.inflatable.inflatable_object import get_object_head_values_from_object_content
from google.protobuf.unknown_fields import UnknownFieldSet

from fedaipc.fleet.wire import unpack
from fedaipc.protocol.messages import REFUSALS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.recorder import Call

# Extensions of a TLS 1.3 client hello (RFC 8446, 4.2), by number. Without 41 and 42 no session is
# resumed: no ticket of the server's comes back, and nothing is sent before the handshake.
HELLO = {
    0: "server_name: the host of the server, as in the invite",
    10: "supported_groups: of the TLS library",
    11: "ec_point_formats: of the TLS library",
    13: "signature_algorithms: of the TLS library",
    16: "alpn: http/1.1, constant",
    22: "encrypt_then_mac: empty",
    23: "extended_master_secret: empty",
    35: "session_ticket: empty, of TLS 1.2",
    43: "supported_versions: TLS 1.3",
    45: "psk_key_exchange_modes: of the TLS library",
    49: "post_handshake_auth: empty",
    51: "key_share: a fresh random key",
    65281: "renegotiation_info: empty",
}
_FLEET = "/v1/fleet/"
CALLS: dict[str, tuple[type[Any], type[Any]]] = {
    "activate-node": (fleet_pb2.ActivateNodeRequest, fleet_pb2.ActivateNodeResponse),
    "deactivate-node": (fleet_pb2.DeactivateNodeRequest, fleet_pb2.DeactivateNodeResponse),
    "send-node-heartbeat": (
        heartbeat_pb2.SendNodeHeartbeatRequest, heartbeat_pb2.SendNodeHeartbeatResponse,
    ),
    "pull-messages": (fleet_pb2.PullMessagesRequest, fleet_pb2.PullMessagesResponse),
    "push-messages": (fleet_pb2.PushMessagesRequest, fleet_pb2.PushMessagesResponse),
    "pull-object": (message_pb2.PullObjectRequest, message_pb2.PullObjectResponse),
    "push-object": (message_pb2.PushObjectRequest, message_pb2.PushObjectResponse),
    "confirm-message-received": (
        message_pb2.ConfirmMessageReceivedRequest, message_pb2.ConfirmMessageReceivedResponse,
    ),
}  # fmt: skip


class Seen:
    """What the server said before, which a PC may say again."""

    def __init__(self, calls: Sequence[Call] = ()) -> None:
        self._said: set[tuple[str, Any]] = set()
        self.objects: set[str] = set()  # by their hashes
        for call in calls:
            request, answer = CALLS[call.target.removeprefix(_FLEET)]
            for path, value in _leaves(answer.FromString(call.answer), ""):
                self.add(path.rpartition(".")[2], value)
                if path == "object_content" and value.startswith(b"Message "):
                    for inner, told in _leaves(message_pb2.Message.FromString(_body(value)), ""):
                        self.add(inner.rpartition(".")[2], told)
            if request is message_pb2.PushObjectRequest:
                self.objects.add(request.FromString(call.body).object_id)

    def add(self, name: str, value: Any) -> None:
        self._said.add((name, value))

    def says(self, *names: str) -> Check:
        return lambda value, seen, _: any((name, value) in seen._said for name in names)


Check = Callable[[Any, Seen, "Call"], bool]


def equals(wanted: Any) -> Check:
    return lambda value, _seen, _call: bool(value == wanted)


def matches(pattern: str) -> Check:
    return lambda value, _seen, _call: re.fullmatch(pattern, str(value)) is not None


def again(*names: str) -> Check:
    return Seen().says(*names)


def _is_length(value: Any, _: Seen, call: Call) -> bool:
    return int(value) == len(call.body)


def _signs_the_stamp(value: Any, _: Seen, call: Call) -> bool:
    headers = dict(call.headers)
    key = serialization.load_pem_public_key(b64decode(headers["flwr-public-key"]))
    assert isinstance(key, ec.EllipticCurvePublicKey)
    try:
        key.verify(b64decode(value), headers["flwr-timestamp"].encode(), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


_HASH = matches("[0-9a-f]{64}")
_NODE = again("node_id", "dst_node_id")
_RUN = again("run_id")
HEADERS: dict[str, tuple[str, Check]] = {
    "host": ("the server's own address", matches(r"localhost:\d+")),
    "user-agent": ("the HTTP library", matches(r"python-httpx/[\d.]+")),
    "accept": ("constant", equals("application/protobuf")),
    "accept-encoding": ("constant", equals("identity")),
    "connection": ("constant", equals("keep-alive")),
    "content-type": ("constant", equals("application/protobuf")),
    "content-length": ("follows from the body", _is_length),
    "flwr-package-name": ("constant", equals("flwr")),
    "flwr-package-version": ("the version of Flower", matches(r"[\d.]+")),
    "flwr-component-name": ("constant", equals("SuperNode")),
    "flwr-public-key": ("the PC's public key", matches("[A-Za-z0-9+/=]+")),
    "flwr-timestamp": (
        "the moment of sending, which the server sees, in whole seconds",
        matches(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00"),
    ),
    "flwr-signature": ("of the stamp, by that key, and of nothing else", _signs_the_stamp),
}
FIELDS: dict[str, tuple[str, Check]] = {
    "activate-node.public_key": ("the PC's public key", matches(r"(?s)b'-----BEGIN PUBLIC.*")),
    "activate-node.heartbeat_interval": ("constant", equals(10)),
    "deactivate-node.node_id": ("its number, from the server", _NODE),
    "send-node-heartbeat.node.node_id": ("its number, from the server", _NODE),
    "send-node-heartbeat.heartbeat_interval": ("constant", equals(10)),
    "pull-messages.node.node_id": ("its number, from the server", _NODE),
    "pull-object.node.node_id": ("its number, from the server", _NODE),
    "pull-object.run_id": ("the request's", _RUN),
    "pull-object.object_id": ("which object of the request", again("object_id", "message_id")),
    "confirm-message-received.node.node_id": ("its number, from the server", _NODE),
    "confirm-message-received.run_id": ("the request's", _RUN),
    "confirm-message-received.message_object_id": ("the request's", again("message_id")),
    "push-object.node.node_id": ("its number, from the server", _NODE),
    "push-object.run_id": ("the request's", _RUN),
    "push-object.session_id": ("the server's for this upload", again("session_id")),
    "push-object.object_id": ("the content's hash", _HASH),
    "push-messages.node.node_id": ("its number, from the server", _NODE),
    "push-messages.clientapp_runtime_list": ("constant: no time", equals(0.0)),
    "push-messages.messages_list.error.code": ("constant", equals(100)),
    "push-messages.message_object_trees.object_id": ("the answer's hash", _HASH),
    "push-messages.message_object_trees.children.object_id": ("a hash", _HASH),
    "push-messages.message_object_trees.children.children.object_id": ("a hash", _HASH),
    "push-messages.message_object_trees.children.children.children.object_id": ("a hash", _HASH),
    "push-messages.message_object_trees.children.children.children.children.object_id": (
        "a hash", _HASH,
    ),
}  # fmt: skip
_METADATA: dict[str, tuple[str, Check]] = {
    "run_id": ("the request's", _RUN),
    "src_node_id": ("its number, from the server", _NODE),
    "dst_node_id": ("the server", equals(1)),
    "reply_to_message_id": ("the request's", again("message_id")),
    "group_id": ("the request's", again("group_id")),
    "ttl": ("the request's", again("ttl")),
    "created_at": ("the request's: no time of the PC's", again("created_at")),
    "message_type": ("the request's", again("message_type")),
    "src_task_id": ("the request's", again("dst_task_id")),
    "dst_task_id": ("the request's", again("src_task_id")),
}
FIELDS |= {f"push-messages.messages_list.metadata.{n}": v for n, v in _METADATA.items()}
FIELDS["push-messages.messages_list.metadata.message_id"] = ("the answer's hash", _HASH)
# What an answer holds: by stage, record and key.
ANSWERS: dict[tuple[str, str, str], tuple[str, Check]] = {
    ("query.setup", "pc", "name"): ("the PC's public name", matches(r"pc-\d{4}")),
    ("query.setup", "pc", "bundle"): ("its signed public keys", matches(r"(?s)b'.*'|b\".*\"")),
    ("query.ready", "ready", "charged"): (
        "how many attempts of this run its ledger holds: as many as it was asked in",
        matches(r"\d{1,9}"),
    ),
    ("query.ready", "ready", "shares"): (
        "a round key, and shares of secrets that are drawn for the round", matches("(?s).*"),
    ),
    ("query.ready", "ready", "refusal"): (
        "a word that follows from public facts", matches("|".join(REFUSALS)),
    ),
    ("train.mask", "update", "frame"): ("the noisy update, masked", matches("(?s).*")),
    ("train.mask", "refusal", "word"): (
        "a word that follows from public facts", matches("|".join(REFUSALS)),
    ),
    ("query.agree", "answer", "frame"): ("an agreement on a set", matches("(?s).*")),
    ("query.unmask", "answer", "frame"): ("shares for that set", matches("(?s).*")),
}  # fmt: skip
# A large answer's parts: the keys of each kind of object. Its vector is the bytes of its chunks.
OBJECTS: dict[str, set[str]] = {
    "RecordDict": {record for _, record, _ in ANSWERS},
    "ArrayRecord": {key for _, _, key in ANSWERS},
    "Array": {"dtype", "shape", "stype", "arraychunk_ids"},
    "ArrayChunk": set(),
}


def complaints(calls: Sequence[Call], seen: Seen | None = None) -> list[str]:
    """One line for each thing that is not as declared, at most once."""
    seen = Seen(calls) if seen is None else seen
    return list(dict.fromkeys(line for call in calls for line in _about(call, seen)))


def _about(call: Call, seen: Seen) -> Iterator[str]:
    name = call.target.removeprefix(_FLEET)
    if name not in CALLS:
        yield f"call {call.target}"
        return
    for header, text in call.headers:
        yield from _judge(f"header {header}", HEADERS.get(header.lower()), text, seen, call)
    request = CALLS[name][0].FromString(call.body)
    if request.SerializeToString(deterministic=True) != call.body:
        yield f"{name}: bytes that its fields do not explain"
    for path, value in _leaves(request, name):
        if path.endswith("object_content"):
            yield from _object(value, seen, call)
        elif ".content." not in path:
            yield from _judge(path, FIELDS.get(path), value, seen, call)
    if name == "push-messages":
        for head in request.messages_list:
            if head.HasField("content") and not head.HasField("error"):
                yield from _answer(unpack(head), seen, call)


def _answer(message: Message, seen: Seen, call: Call) -> Iterator[str]:
    stage = message.metadata.message_type
    for record, values in message.content.items():
        for key, value in dict(values).items():
            held = value.data if isinstance(value, Array) else value
            what = (stage, record, key)
            yield from _judge(" ".join(what), ANSWERS.get(what), held, seen, call)


def _object(content: bytes, seen: Seen, call: Call) -> Iterator[str]:
    kind, children, size = get_object_head_values_from_object_content(content)
    body = _body(content)
    head = f"{kind} {','.join(children)} {size}".encode() + b"\0"
    if content != head + body:
        yield f"object {kind}: bytes that its head does not explain"
    request = message_pb2.PushObjectRequest.FromString(call.body)
    if hashlib.sha256(content).hexdigest() != request.object_id:
        yield f"object {kind}: another name than its hash"
    if not set(children) <= seen.objects:
        yield f"object {kind}: children that do not exist"
    if kind == "Message":
        for path, value in _leaves(message_pb2.Message.FromString(body), ""):
            name = path.rpartition(".")[2]
            yield from _judge(f"object Message {path}", _METADATA.get(name), value, seen, call)
    elif kind not in OBJECTS:
        yield f"object {kind}"
    elif OBJECTS[kind] and not set(json.loads(body)) <= OBJECTS[kind]:
        yield f"object {kind}: {sorted(set(json.loads(body)) - OBJECTS[kind])}"


def _body(content: bytes) -> bytes:
    return content[len(content) - get_object_head_values_from_object_content(content)[2] :]


def _judge(
    what: str, declared: tuple[str, Check] | None, value: Any, seen: Seen, call: Call
) -> Iterator[str]:
    if declared is None:
        yield f"{what} is not declared"
    elif not declared[1](value, seen, call):
        yield f"{what} = {str(value)[:80]!r} is not as declared: {declared[0]}"


def _leaves(message: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every field that is set, down to values; unknown ones, too."""
    for unknown in UnknownFieldSet(message):
        yield f"{path}.field-{unknown.field_number}", unknown.data
    for field, value in message.ListFields():
        here = f"{path}.{field.name}" if path else field.name
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key, one in value.items():  # of plain values, wherever Flower has one here
                yield f"{here}.key", key
                yield f"{here}.value", one
            continue
        for one in value if isinstance(value, _REPEATED) else [value]:
            if field.message_type is None:
                yield here, one
            else:
                yield from _leaves(one, here)


_REPEATED = (
    type(fleet_pb2.PushMessagesRequest().messages_list),
    type(fleet_pb2.PushMessagesRequest().clientapp_runtime_list),
)
