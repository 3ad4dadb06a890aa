"""What Flower's abstract `Grid` asks of every grid, where a grid has one run and pulls replies."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from flwr.app import Message
from flwr.serverapp import Grid

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flwr.app import RecordDict


class OneRunGrid(Grid):
    """A subclass sets `_run`, pushes and pulls; `_pause` is its time between two pulls."""

    _run: Any  # Flower's own type, which it does not export
    _pause = 0.0

    def set_run(self, run: Any) -> None:
        """Set what `run` returns; nothing else depends on it."""
        self._run = run

    @property
    def run(self) -> Any:
        """The run; only its `run_id` is filled in."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return `Message(...)`, which new code should call directly (deprecated in Flower)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Push all messages and pull until every reply is there or `timeout` seconds are over.

        Holds all replies at once: aggregate with push and pull where updates are large.
        """
        end = None if timeout is None else time.monotonic() + timeout
        waiting = dict.fromkeys(name for name in self.push_messages(messages) if name)
        replies: list[Message] = []
        while waiting and (end is None or time.monotonic() < end):
            for reply in self.pull_messages(waiting):
                waiting.pop(reply.metadata.reply_to_message_id, None)
                replies.append(reply)
            time.sleep(self._pause)
        self.forget(waiting)
        return replies

    def forget(self, message_ids: Iterable[str]) -> None:
        """Delete messages whose reply is no longer wanted, where a server would keep them."""
