"""The events of gevent and eventlet workers: one greenlet sends them, and nobody waits for it.

In Celery 5.7 whoever has an event to tell sends it, one after the other: a task's greenlet, the timer, the
one that takes messages. Where the connection of events is lost, the one whose turn it is makes it anew; when
it is ended meanwhile, or never gets an answer, all others wait for ever, and the worker takes no task any
more. And an answer may never come, for the worker's loop reads that connection as well; besides, it waits
0.1 s there after each message, so that such a worker took no more than ten tasks a second.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import celery.events.dispatcher
from celery.events import event as celery_event
from celery.utils.log import get_logger

if TYPE_CHECKING:
    import logging

    import kombu

logger: logging.Logger = get_logger(__name__)

#: Events that wait at most; the oldest are dropped.
_MOST_WAITING = 10_000
#: Seconds after which an event that is being sent counts as stuck; the others go over a new connection.
_STUCK = 30.0
#: Seconds until a lost connection is made anew.
_PAUSE = 1.0
#: Seconds that events of tasks are gathered for, to leave in one message, and how many do at most.
GATHER, _TOGETHER = 0.05, 100
#: Seconds a stopping worker waits for its last events to leave.
_LAST = 1.0


def without_confirms(connection: kombu.Connection) -> kombu.Connection:
    """Turn publisher confirms off on the main process's own connections.

    What leaves on them (events, heartbeats, replies to control commands) may be lost, and must not
    block the main process while the broker holds publishers back: with confirms it would stand still
    until the alarm is over, its tasks with it.
    """
    connection.transport_options = {**connection.transport_options, "confirm_publish": False}
    return connection


class Dispatcher(celery.events.dispatcher.EventDispatcher):
    """Celery's dispatcher with a thread (under gevent a greenlet) that alone uses the connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.waiting: deque[tuple[Any, str]] = deque(maxlen=_MOST_WAITING)
        self._wake = threading.Event()
        self._since = 0.0
        self._sender: threading.Thread | None = None
        super().__init__(*args, **kwargs)
        # The loop reads the `connection` of a dispatcher. This one's is the sender's alone.
        self.channel: kombu.Connection | None = self.connection
        self.connection: kombu.Connection | None = None

    def send(self, type: str, blind: bool = False, **fields: Any) -> None:  # noqa: A002, FBT001, FBT002
        """Have an event sent, without waiting for it."""
        for option in ("utcoffset", "retry", "retry_policy"):
            fields.pop(option, None)
        make = fields.pop("Event", celery_event.Event)
        if not self.enabled or (self.groups and celery_event.group_from(type) not in self.groups):
            return
        event = self._prepare_event(type, fields, blind=blind, Event=make)
        self.waiting.append((event, type.replace("-", ".")))
        self._wake.set()
        if self._sender is None:
            self._begin()

    def flush(self, errors: bool = True, groups: bool = True) -> None:  # noqa: FBT001, FBT002 - Celery's signature
        """Do nothing: all that waits is on its way."""

    def extend_buffer(self, other: Dispatcher) -> None:
        """Take over what another dispatcher has not sent."""
        self.waiting.extend(other.waiting)
        if self.waiting and self.enabled:
            self._wake.set()
            self._begin()

    def renew_if_stuck(self) -> None:
        """Leave a connection that has not taken an event for long, and send the others over another."""
        if self._since and time.monotonic() - self._since > _STUCK:
            logger.warning("an event could not be sent for %d s: connecting anew for the others", _STUCK)
            # The old one is left to whom it holds: to close it could take as long.
            self.channel = without_confirms(self.app.connection_for_write())
            self._since = 0.0
            self.enable()
            self._begin()

    def disable(self) -> None:
        """Send no more, once what waits is sent or a second has passed."""
        give_up_at = time.monotonic() + _LAST
        while self.enabled and self.waiting and time.monotonic() < give_up_at:
            time.sleep(0.05)
        super().disable()
        self._wake.set()

    def _begin(self) -> None:
        self._wake.set()
        self._sender = threading.Thread(
            target=self._run, args=(self.producer, self.channel), name="events", daemon=True
        )
        self._sender.start()

    def _run(self, producer: Any, connection: kombu.Connection) -> None:
        while self.producer is producer:
            self._wake.wait()
            time.sleep(GATHER)
            self._wake.clear()
            while self.waiting and self.producer is producer:
                self._send_next(producer, connection)
        with contextlib.suppress(Exception):
            connection.collect()

    def _next(self) -> tuple[Any, str]:
        """Return what goes into the next message: an event, or those of tasks that come one after the other.

        Celery's prefork workers send them together as well, and whoever receives events knows it.
        """
        event, key = self.waiting.popleft()
        if not _of_task(event, key):
            return event, key
        together = [event]
        while self.waiting and len(together) < _TOGETHER and _of_task(*self.waiting[0]):
            together.append(self.waiting.popleft()[0])
        return (together, "task.multi") if len(together) > 1 else (event, key)

    def _send_next(self, producer: Any, connection: kombu.Connection) -> None:
        event, key = self._next()
        self._since = time.monotonic()
        self._publish(event, producer, key)
        if self._outbound_buffer:  # the connection is away
            self.waiting.extendleft(reversed(self._outbound_buffer))
            self._outbound_buffer.clear()
            with contextlib.suppress(Exception):
                connection.collect()
                producer.revive(connection)
            time.sleep(_PAUSE)
        if self.producer is producer:
            self._since = 0.0


def _of_task(event: Any, key: str) -> bool:
    return isinstance(event, dict) and key.startswith("task.")
