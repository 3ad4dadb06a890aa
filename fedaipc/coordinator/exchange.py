"""Messages to PCs and back over Flower's public `Grid`, with their sizes."""

from __future__ import annotations

import time
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING

from flwr.app import Message, RecordDict

from fedaipc.errors import EncodingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from flwr.serverapp import Grid

_LONGEST_PAUSE = 1.0  # seconds between two looks for replies
_AT_ONCE = 8


class Exchange:
    """Counts the bytes of all records, by stage, until `reset`."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.bytes_down: Counter[str] = Counter()
        self.bytes_up: Counter[str] = Counter()

    def reset(self) -> None:
        self.bytes_down.clear()
        self.bytes_up.clear()

    def allow_answers(self, size: int) -> None:
        """Tell a real server how many bytes an answer can have; a larger one will not come."""
        allow = getattr(self.grid, "allow_uploads", None)
        if allow is not None:
            allow(size)

    def ask(
        self, stage: str, requests: Iterable[tuple[int, RecordDict]], timeout: float
    ) -> Iterator[tuple[int, RecordDict]]:
        """Send each node its request; yield (node, reply) as they arrive, each once.

        What answers with an error, or not at all, is left out. Gives up after `timeout` seconds
        of silence. Requests are made and pushed a few at a time: they may be large.
        """
        waiting: dict[str, int] = {}
        for part in _parts(requests):
            messages = [Message(request, node, stage) for node, request in part]
            self.bytes_down[stage] += sum(_size(request) for _, request in part)
            pushed = set(self.grid.push_messages(messages))  # a PC that has left gets no identifier
            waiting |= {
                message.metadata.message_id: message.metadata.dst_node_id
                for message in messages
                if message.metadata.message_id in pushed
            }
            del messages, part  # each may hold a vector
        deadline = time.monotonic() + timeout
        pause = 0.01
        while waiting and time.monotonic() < deadline:
            answered = False
            for reply in self.grid.pull_messages(waiting):
                # An error reply can name a wrong sender: only the message it answers counts.
                node = waiting.pop(reply.metadata.reply_to_message_id, None)
                if node is None:
                    continue
                answered = True
                if reply.has_error():
                    continue
                try:
                    self.bytes_up[stage] += _size(reply.content)
                except EncodingError:
                    continue
                content = reply.content
                del reply
                yield node, content
                del content
            if answered:
                pause, deadline = 0.01, time.monotonic() + timeout
            else:
                time.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause * 1.5)
        forget = getattr(self.grid, "forget", None)
        if waiting and forget is not None:  # a real server keeps what is no longer asked for
            forget(list(waiting))


def _parts(
    requests: Iterable[tuple[int, RecordDict]],
) -> Iterator[list[tuple[int, RecordDict]]]:
    iterator = iter(requests)
    while part := list(islice(iterator, _AT_ONCE)):
        yield part


def _size(records: RecordDict) -> int:
    """Bytes of all records. Raises EncodingError where one holds what cannot be counted."""
    try:
        return sum(record.count_bytes() for record in records.values())
    except ValueError:  # Flower's own count refuses an empty text, which anybody can send
        raise EncodingError("a message cannot be counted") from None
