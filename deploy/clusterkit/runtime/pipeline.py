"""Confirmed publishing without a wait for each message: many are on their way to the broker at once.

py-amqp waits for the confirm of every message before it sends the next (1,500 messages/s, where the broker
takes 23,000). A pipeline has a window of messages that the broker has not confirmed yet. What it has not
confirmed when a connection is lost is sent again on the next one, with the same ids: tasks may then run
twice, and none is lost.
"""

from __future__ import annotations

import contextlib
import math
import struct
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

from amqp import spec
from amqp.serialization import dumps
from kombu.common import maybe_declare

from clusterkit.runtime.errors import PublishTimeoutError
from clusterkit.runtime.publish import RETRY_INTERVAL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import amqp
    from celery import Celery

#: Messages that may be unconfirmed at once. Measured with one publisher: 100 reach two thirds of the rate.
WINDOW: Final = 1_000
#: Bytes that may be unconfirmed at once, for large messages: they are kept until they are confirmed.
WINDOW_BYTES: Final = 16 * 2**20
#: Seconds that a look at what the broker said may take when nothing is awaited.
_GLANCE = 0.000_1
#: Seconds without any confirm after which another node of the broker is tried, half as many again each time,
#: up to the last figure; and that a write may take where there is another.
#: One that is cut off from the others takes messages and confirms none, until it notices within a minute.
#: The queues it led have another leader after 9 s (RabbitMQ 4.0), which who connected before may not hear of.
_PATIENCE: Final = 4.0
_MORE: Final = 1.5
_MOST_PATIENCE: Final = 60.0
#: Bytes of a message that are written at a time: each may take as long as the node has to answer.
_WRITE_AT_ONCE: Final = 2**20
#: A method frame, a header frame and a body frame of AMQP 0-9-1 (its specification, 4.2.3), on a channel.
_METHOD, _HEADER, _BODY = 1, 2, 3
_FRAME_START: Final = struct.Struct(">BHI")
_METHOD_START: Final = struct.pack(">HH", *spec.Basic.Publish)
_HEADER_START: Final = struct.Struct(">HHQ")
_FRAME_END: Final = b"\xce"
#: Bytes of a frame around what it carries.
_FRAME_EXTRA: Final = 8


@dataclass(slots=True)
class Message:
    """A message as the broker gets it, and whose it is.

    ``target`` is the content of the frame that says where to (``target``), ``head`` the properties and
    headers, ``number`` the publisher's own count.
    """

    number: int
    id: str
    target: bytes
    head: bytes
    body: bytes
    #: When the broker's refusals (of a full queue, say) count, by the monotonic clock; 0 before the first.
    give_up_at: float = 0.0


class Outcomes(Protocol):
    """Who is told what became of messages, of each once; what it raises, the pipeline's caller gets."""

    def confirmed(self, message: Message) -> None:
        """The broker has it, on disk and on a majority of the queue's members."""

    def refused(self, message: Message, reason: str) -> None:
        """The broker does not have it, and will not take it."""


def target(exchange: str, routing_key: str, *, mandatory: bool, immediate: bool = False) -> bytes:
    """Return the content of the frame that says where a message goes."""
    arguments: bytes = dumps("Bssbb", (0, exchange, routing_key, mandatory, immediate))
    return _METHOD_START + arguments


def frames(message: Message, channel: int, frame_max: int) -> bytes:
    """Return the frames of a message, one after the other: AMQP lets nothing else come between."""
    start, size = _FRAME_START.pack, len(message.body)
    header = _HEADER_START.pack(spec.Basic.CLASS_ID, 0, size) + message.head
    parts = [
        start(_METHOD, channel, len(message.target)),
        message.target,
        _FRAME_END,
        start(_HEADER, channel, len(header)),
        header,
        _FRAME_END,
    ]
    room = frame_max - _FRAME_EXTRA
    for begin in range(0, size, room):
        piece = message.body if size <= room else message.body[begin : begin + room]
        parts += (start(_BODY, channel, len(piece)), piece, _FRAME_END)
    return b"".join(parts)


class Pipeline:
    """A connection of its own with a window of messages that are not confirmed yet; for one thread.

    ``timeout`` is how many seconds may pass without any confirm while one is awaited; None: as many as it
    takes. It ends waits for a broker in an alarm, for one that is away, and for a full queue.
    """

    def __init__(self, app: Celery, outcomes: Outcomes, *, window: int, timeout: float | None) -> None:
        self._outcomes = outcomes
        self._window = window
        self._timeout = timeout
        self._connection = app.connection_for_write()
        self._lost: tuple[type[Exception], ...] = self._connection.recoverable_connection_errors
        self._channel: Any = None
        self._tag = 0
        #: Delivery tag -> message, as sent on this connection.
        self._pending: OrderedDict[int, Message] = OrderedDict()
        self._pending_bytes = 0
        #: To be sent again: those of a lost connection, and those that a full queue refused.
        self._again: deque[Message] = deque()
        self._again_at = 0.0
        #: Ids that came back, and why: their confirms follow, and mean nothing.
        self._returned: dict[str, str] = {}
        #: What became of messages, and was not told yet: message, reason of a refusal.
        self._untold: deque[tuple[Message, str | None]] = deque()
        self._declared: list[Any] = []
        self._problem: Exception | None = None
        self._progress_at = self._left_at = self._connected_at = time.monotonic()
        self._patience = _PATIENCE
        #: The broker said that it holds publishers back (an alarm), which all its nodes do then.
        self._blocked = False

    @property
    def unconfirmed(self) -> list[Message]:
        """Messages of which it is unknown whether the broker has them."""
        return [*self._pending.values(), *self._again]

    @property
    def socket(self) -> Any:
        """What to watch for the broker's answers; None: there is no connection, or nothing is awaited."""
        return self._amqp.transport.sock if self._channel is not None and self._pending else None

    def declare(self, entities: Iterable[Any]) -> None:
        """See to it that queues and exchanges exist, on this connection and any later one."""
        for entity in entities:
            if entity not in self._declared:
                self._declared.append(entity)
                if self._channel is not None:
                    self._guarded(maybe_declare, entity, self._channel)

    def send(self, message: Message) -> None:
        """Send a message; waits while the window is full, or a queue is.

        Raises:
            PublishTimeoutError: nothing was confirmed for ``timeout`` seconds.
            amqp.exceptions.ChannelError: the broker closed the channel (no such exchange, no right to it).
        """
        self._begin()
        if self._channel is None or self._again:
            self._again.append(message)
        else:
            self._guarded(self._write, message)
        if self._again or len(self._pending) >= self._window or self._pending_bytes >= WINDOW_BYTES:
            # Down to the half: the broker has work meanwhile, and its answers come in few, large pieces.
            self._settle(self._window // 2, WINDOW_BYTES // 2)
        self._left_at = time.monotonic()

    def poll(self, seconds: float = _GLANCE) -> None:
        """Take note of what the broker has said by now, or says within ``seconds``; raises as ``send``.

        The time since the last call counts against the broker: who polls has nothing better to do.
        """
        if self._pending or self._again:
            self._turn(seconds)
        self._left_at = time.monotonic()

    def finish(self) -> None:
        """Wait until the broker has said of every message what became of it; raises as ``send``."""
        self._begin()
        self._settle(0, 0)

    def close(self) -> None:
        """Drop the connection; politely closing one waits for a broker that may be in an alarm."""
        self._connection.collect()
        self._channel = None

    # -- waiting

    def _begin(self) -> None:
        """Have the time in which the caller did something else not count against the broker."""
        now = time.monotonic()
        awaited = self._pending or self._again
        self._progress_at = self._progress_at + now - self._left_at if awaited else now

    def _settle(self, most: int, most_bytes: int) -> None:
        while self._again or len(self._pending) > most or self._pending_bytes > most_bytes:
            self._turn(RETRY_INTERVAL)

    def _turn(self, seconds: float) -> None:
        """Connect if need be, send what is to be sent again, and read for up to ``seconds``."""
        if self._again:
            seconds = min(seconds, max(self._again_at - time.monotonic(), _GLANCE))
        self._guarded(self._go_on, seconds)
        if self._overdue():
            self._give_up()

    def _go_on(self, seconds: float) -> None:
        due = time.monotonic() >= self._again_at
        if not due and not self._pending:
            time.sleep(seconds)
            return
        if self._channel is None:
            self._connect()
        while due and self._again and len(self._pending) < self._window:
            self._write(self._again.popleft())
        with contextlib.suppress(TimeoutError):
            while self._pending:
                self._amqp.drain_events(timeout=seconds)
                seconds = _GLANCE
        if self._pending and self._is_silent():
            raise TimeoutError("the node confirms nothing, and says nothing of an alarm")

    def _is_silent(self) -> bool:
        """Whether this node has confirmed nothing for long, gives no reason for it, and there are others."""
        since = max(self._progress_at, self._connected_at)
        return self._has_others() and not self._blocked and time.monotonic() - since > self._patience

    def _has_others(self) -> bool:
        """Whether there are other nodes of the broker."""
        return len(self._connection.alt) > 1

    def _overdue(self) -> bool:
        waiting = bool(self._pending or self._again)
        return waiting and self._timeout is not None and time.monotonic() - self._progress_at > self._timeout

    def _give_up(self) -> NoReturn:
        held_back = "it holds publishers back (an alarm), or cannot be reached"
        unreachable = self._problem and not self._blocked
        why = f"it cannot be reached: {self._problem}" if unreachable else held_back
        raise PublishTimeoutError(
            f"the broker confirmed nothing for {self._timeout:g} s: {why}; whether it has the"
            f" {len(self.unconfirmed)} messages that were on their way is unknown, and they may still run",
            next_step="make cluster-status shows alarms and full queues",
        ) from self._problem

    # -- the connection

    def _guarded(self, act: Callable[..., Any], *args: Any) -> None:
        """Do something on the connection; when that is lost, all that is unconfirmed is to be sent again.

        What became of messages is told afterwards: trouble of who is told is none of the connection.
        """
        try:
            act(*args)
        except self._lost as error:
            self.close()
            if isinstance(error, TimeoutError):  # the node is stuck, or cut off from the others
                self._connection.maybe_switch_next()
                self._patience = min(self._patience * _MORE, _MOST_PATIENCE)
            # Connecting can fail at once; and what was sent again is lost once more.
            self._again_at = time.monotonic() + (RETRY_INTERVAL if self._problem else 0)
            self._problem = error
            self._again.extendleft(reversed(self._pending.values()))
            self._pending.clear()
            self._pending_bytes = 0
            self._returned.clear()
        except BaseException:
            self.close()
            raise
        finally:
            if self._untold:
                self._tell()

    def _tell(self) -> None:
        """Tell of all messages what became of them; what a callback raises comes after that."""
        problem: BaseException | None = None
        while self._untold:
            message, reason = self._untold.popleft()
            try:
                if reason is None:
                    self._outcomes.confirmed(message)
                else:
                    self._outcomes.refused(message, reason)
            except BaseException as error:  # noqa: BLE001 - is raised below
                problem = problem or error
        if problem is not None:
            raise problem

    def _connect(self) -> None:
        left = self._timeout and max(self._timeout - (time.monotonic() - self._progress_at), 0.01)
        # One round of all brokers; the loop around it is that of `_settle`.
        self._connection.ensure_connection(
            max_retries=len(self._connection.alt) or 1,
            interval_start=0,
            timeout=left,
            reraise_as_library_errors=False,
        )
        self._amqp = self._connection.connection
        # A write, or an answer to what follows, that takes longer is that of a broker which is stuck.
        waits = [each for each in (self._timeout, self._patience if self._has_others() else None) if each]
        self._amqp.transport.sock.settimeout(min(waits, default=None))
        self._blocked = False
        self._amqp.on_blocked, self._amqp.on_unblocked = self._on_blocked, self._on_unblocked
        channel = self._connection.channel()
        channel.confirm_select()
        channel.events["basic_ack"].add(self._on_ack)
        channel.events["basic_nack"].add(self._on_nack)
        channel.events["basic_return"].add(self._on_return)
        for entity in self._declared:
            maybe_declare(entity, channel)
        self._tag, self._channel = 0, channel
        self._connected_at = time.monotonic()

    # -- what goes out, what comes in

    def _write(self, message: Message) -> None:
        self._tag += 1
        # First: a write that fails half-way has to be done again.
        self._pending[self._tag] = message
        self._pending_bytes += len(message.body)
        data = frames(message, self._channel.channel_id, self._amqp.frame_max)
        for begin in range(0, len(data), _WRITE_AT_ONCE):
            self._amqp.transport.write(data[begin : begin + _WRITE_AT_ONCE])

    def _on_ack(self, tag: int, multiple: bool) -> None:  # noqa: FBT001 - py-amqp's signature
        for message in self._take(tag, multiple=multiple):
            self._untold.append((message, self._returned.pop(message.id, None) if self._returned else None))

    def _on_nack(self, tag: int, multiple: bool) -> None:  # noqa: FBT001 - py-amqp's signature
        now = time.monotonic()
        for message in self._take(tag, multiple=multiple):
            message.give_up_at = message.give_up_at or now + (self._timeout or math.inf)
            if now >= message.give_up_at:
                self._untold.append((message, "the broker refused it (queue full, or not available)"))
            else:
                self._again.append(message)
                self._again_at = now + RETRY_INTERVAL

    def _on_blocked(self, reason: str) -> None:
        del reason
        self._blocked = True

    def _on_unblocked(self) -> None:
        self._blocked = False

    def _on_return(self, error: Exception, exchange: str, routing_key: str, message: amqp.Message) -> None:
        del error
        self._returned[message.properties["correlation_id"]] = (
            f"no queue takes the routing key {routing_key!r} of exchange {exchange!r}"
        )

    def _take(self, tag: int, *, multiple: bool) -> list[Message]:
        """Return the messages that an answer is about, which are pending no more."""
        self._progress_at = time.monotonic()
        self._patience = _PATIENCE
        self._problem = None
        pending = self._pending
        taken = []
        if not multiple:
            taken.append(pending.pop(tag))
        else:
            while pending and next(iter(pending)) <= tag:
                taken.append(pending.popitem(last=False)[1])
        self._pending_bytes -= sum(len(message.body) for message in taken)
        return taken
