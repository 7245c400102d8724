"""A consumer of tasks whose prefetch can change while it consumes from quorum queues.

There the prefetch belongs to each consumer, and is fixed when it begins. So a larger prefetch is one more
consumer, with the difference; a smaller one takes consumers away, and what they hold unacknowledged counts
until it is done. (Consuming again under the same tag would be simpler: RabbitMQ 4.0 allows it, 3.10 closes
the connection with an internal error while messages are unacknowledged.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import kombu

if TYPE_CHECKING:
    from collections.abc import Mapping


class TaskConsumer(kombu.Consumer):
    """kombu's consumer, with as many consumers of the broker's per queue as it takes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        #: Messages that each queue's first consumer takes in advance.
        self.first_prefetch = 0
        #: Whether the broker sends as many in advance as it should.
        self.fits = True
        #: queue -> tag -> prefetch, of consumers the broker has now; empty until a size changed.
        self._live: dict[str, dict[str, int]] = {}
        #: queue -> tags of consumers that were taken away, and may hold messages still.
        self._gone: dict[str, set[str]] = {}
        super().__init__(*args, **kwargs)

    def fit(self, prefetch: int, held: Mapping[str, int]) -> None:
        """Take up to ``prefetch`` messages in advance from each queue, and note in ``fits`` whether it is so.

        ``held`` is how many messages are unacknowledged by consumer tag. It does not fit yet while consumers
        that were taken away hold some: call it again. Only the loop that owns the connection may.
        """
        queues = [self._fit(queue, prefetch, held) for queue in tuple(self._active_tags)]
        self.fits = all(queues)

    def _fit(self, queue: str, prefetch: int, held: Mapping[str, int]) -> bool:
        live = self._live.setdefault(queue, {self._active_tags[queue]: self.first_prefetch})
        while sum(live.values()) > prefetch:
            tag, _ = live.popitem()  # the newest
            self.channel.basic_cancel(tag)
            self._gone.setdefault(queue, set()).add(tag)
        left = sum(held.get(tag, 0) for tag in self._gone.get(queue, ()))
        room = prefetch - sum(live.values()) - left
        if room > 0:
            tag = f"{self.tag_prefix}{next(self._tags)}"
            live[tag] = room
            self.channel.basic_qos(0, room, False)  # noqa: FBT003 - amqp's signature
            self._queues[queue].consume(tag, self._receive_callback, no_ack=self.no_ack, nowait=True)
        return sum(live.values()) == prefetch

    def cancel(self) -> None:
        """Stop taking messages; what was delivered stays delivered."""
        for queue in tuple(self._live):
            self._cancel_more(queue)
        super().cancel()

    def cancel_by_queue(self, queue: Any) -> None:
        """Stop taking messages from one queue."""
        self._cancel_more(getattr(queue, "name", queue))
        super().cancel_by_queue(queue)

    def _cancel_more(self, queue: str) -> None:
        """Take away the consumers that kombu does not know of."""
        for tag in self._live.pop(queue, {}):
            if tag != self._active_tags.get(queue):
                self.channel.basic_cancel(tag)
