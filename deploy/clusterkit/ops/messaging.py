"""Takes messages out of queues and puts them in, whole and unread: for dead letters, dumps and loads.

    with connected(cluster) as connection, Reader(connection, "celery.dead") as reader:
        for message in reader.messages(reader.ready):
            ...
            reader.remove(message)

A message that was read and not removed goes back to its place when the reader ends, however it ends.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import amqp
from amqp.exceptions import AMQPError, MessageNacked, NotFound
from celery import Celery
from kombu.exceptions import OperationalError

from clusterkit.ops import topology
from clusterkit.runtime import configure, properties
from clusterkit.runtime.clusterfile import ClusterFile
from clusterkit.runtime.errors import BadInputError, ClusterUnreachableError, PublishTimeoutError
from clusterkit.runtime.settings import join

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from kombu import Connection

    from clusterkit.ops.model import Cluster

#: Messages one reader can hold, the most a consumer may ask for. It asks for all at once: returned together
#: they keep their order, while those of a part of a queue would go behind the rest (RabbitMQ 3.10, 4.0).
MOST_HELD: Final = 65_535
#: Seconds to connect, and for the broker to confirm a message.
_CONNECT_TIMEOUT, CONFIRM_TIMEOUT = 5.0, 15.0
#: Seconds without a message of a queue that should have some, after which the broker is not waited for.
_SILENCE: Final = 5.0
#: Seconds another reader is waited for.
_PATIENCE: Final = 10.0
#: What RabbitMQ adds to a message's headers when it dies and when it is delivered.
_DEATHS: Final = ("x-death", "x-first-death-", "x-last-death-")
_DELIVERIES: Final = ("x-delivery-count", "x-acquired-count")


@dataclass(frozen=True)
class Message:
    """A message as it is on the wire; ``tag`` is by what its reader knows it."""

    body: bytes
    properties: dict[str, Any]
    """AMQP's properties but the headers, by py-amqp's names (content_type, correlation_id, ...)."""
    headers: dict[str, Any]
    exchange: str = ""
    routing_key: str = ""
    tag: int = 0

    @classmethod
    def received(cls, message: amqp.Message) -> Self:
        """Make one from what py-amqp delivered."""
        found = dict(message.properties)
        headers = found.pop("application_headers", None) or {}
        info = message.delivery_info
        body = message.body.encode() if isinstance(message.body, str) else bytes(message.body or b"")
        return cls(body, found, headers, info["exchange"], info["routing_key"], info["delivery_tag"])

    def without_deaths(self) -> Message:
        """Return it as it was before RabbitMQ noted where it died."""
        return Message(self.body, self.properties, _without(self.headers, _DEATHS))

    def to_publish(self) -> amqp.Message:
        """Return it for py-amqp, without what the broker counts itself or takes only from whom it names."""
        kept = {key: value for key, value in self.properties.items() if key != "user_id"}
        return amqp.Message(self.body, application_headers=_without(self.headers, _DELIVERIES), **kept)


def _without(headers: dict[str, Any], beginnings: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in headers.items() if not str(key).startswith(beginnings)}


@contextlib.contextmanager
def connected(cluster: Cluster) -> Iterator[Connection]:
    """Give a connection to the broker as the operator; the result store need not be there.

    Raises:
        NoClusterError: the cluster was never brought up from here.
        ClusterUnreachableError: no broker answers, or the connection broke.
    """
    properties.tolerate()
    file = ClusterFile.load(cluster.state_dir / "operator.json")
    connection = join(configure(Celery("operator")), file).connection_for_write(
        connect_timeout=_CONNECT_TIMEOUT
    )
    look = f"make cluster-status CLUSTER={cluster.name}"
    try:
        connection.ensure_connection(
            max_retries=len(connection.alt) or 1,
            interval_start=0,
            timeout=_CONNECT_TIMEOUT,
            reraise_as_library_errors=False,
        )
    except (OSError, OperationalError, AMQPError) as error:
        raise ClusterUnreachableError(
            f"the broker of cluster {cluster.name!r} does not answer: {error}", next_step=look
        ) from error
    try:
        yield connection
    except (OSError, AMQPError) as error:
        raise ClusterUnreachableError(
            f"the connection to the broker broke: {error or type(error).__name__};"
            " what was not yet removed is back in its queue",
            next_step=f"{look}, then the same command again",
        ) from error
    finally:
        connection.collect()  # whatever state it is in, without waiting


class Reader:
    """Reads a queue from its oldest message on, keeping what it read until ``remove`` or its end.

    ``window`` is how many messages it may hold unremoved; with so many it gets no more. ``ready`` is how
    many there were at the start.
    """

    def __init__(self, connection: Connection, queue: str, window: int = MOST_HELD) -> None:
        self._connection, self._queue, self._window = connection, queue, window
        self._received: deque[amqp.Message] = deque()
        self._held: set[int] = set()
        self._channel: Any = None
        self.ready = 0

    def __enter__(self) -> Self:
        """Begin.

        Raises:
            BadInputError: there is no such queue.
        """
        self._channel = self._connection.channel()
        self._channel.auto_decode = False
        with _there(self._queue):
            self.ready = self._count()
        self._channel.basic_qos(0, self._window, False)  # noqa: FBT003 - a_global, by place alone
        self._channel.basic_consume(self._queue, callback=self._keep)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        broken = kind is not None and issubclass(kind, (OSError, AMQPError, GeneratorExit, KeyboardInterrupt))
        if not broken:
            self._received = deque(maxlen=0)
            self._count()  # answered when the broker has read every removal before it
        # The connection's end returns what is held.

    def _keep(self, message: amqp.Message) -> None:
        self._received.append(message)

    def messages(self, number: int) -> Iterator[Message]:
        """Yield the next ``number`` messages; fewer when it holds all that it may.

        Raises:
            ClusterUnreachableError: the broker stopped sending; a queue that elects a leader does.
        """
        for count in range(number):
            if len(self._held) >= self._window:
                return
            message = self.next(_SILENCE)
            if message is None:
                raise ClusterUnreachableError(
                    f"the broker sent {count} of {number} messages of queue {self._queue}, then none for"
                    f" {_SILENCE:g} s; what was done with those stays done",
                    next_step="the same command again goes on; make cluster-status says how the broker is",
                )
            yield message

    def next(self, seconds: float) -> Message | None:
        """Return the next message; None when none came for ``seconds``."""
        give_up_at = time.monotonic() + seconds
        while not self._received:
            try:
                self._connection.drain_events(timeout=max(give_up_at - time.monotonic(), 0.01))
            except TimeoutError:
                return None
        message = Message.received(self._received.popleft())
        self._held.add(message.tag)
        return message

    def remove(self, message: Message, *, all_before: bool = False) -> None:
        """Take a message that was read out of the queue, and ``all_before`` it, too."""
        self._channel.basic_ack(message.tag, multiple=all_before)
        self._held -= {tag for tag in self._held if tag <= message.tag} if all_before else {message.tag}

    def left(self) -> int:
        """Return how many messages wait in the queue that no one holds."""
        return self._count()

    def _count(self) -> int:
        return int(self._channel.queue_declare(self._queue, passive=True).message_count)


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Give what tells whether Ctrl-C was pressed, so that work ends between two messages, not within one.

    The second Ctrl-C ends it at once.
    """
    pressed = False

    def press(*_: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def check_queue(connection: Connection, queue: str) -> None:
    """Make sure that there is a queue of this name.

    Raises:
        BadInputError: there is not.
    """
    with _there(queue), connection.channel() as channel:
        channel.queue_declare(queue, passive=True)


def wait_for_others(connection: Connection, queue: str) -> None:
    """Wait until no other reader holds messages of ``queue``, which it would hide.

    Raises:
        BadInputError: there is no such queue, or it is being read.
    """
    give_up_at = time.monotonic() + _PATIENCE
    with connection.channel() as channel, _there(queue):
        while channel.queue_declare(queue, passive=True).consumer_count:
            if time.monotonic() > give_up_at:
                raise BadInputError(
                    f"another command is reading {queue}, and what it holds cannot be seen meanwhile",
                    next_step="wait for it to end",
                )
            time.sleep(0.5)


@contextlib.contextmanager
def _there(queue: str) -> Iterator[None]:
    try:
        yield
    except NotFound:
        raise BadInputError(
            f"there is no queue {queue!r} on the broker", next_step="make cluster-status lists the queues"
        ) from None


class Publisher:
    """Puts messages into queues, each confirmed by the broker before ``publish`` returns."""

    def __init__(self, connection: Connection, cluster: Cluster) -> None:
        self._channel: Any = connection.channel()
        self._queues = cluster.queues

    def publish(self, message: Message, queue: str) -> None:
        """Put ``message`` into ``queue``. After an error the publisher is of no use any more.

        Raises:
            PublishTimeoutError: the broker refused it (the queue is full), or did not confirm it in time;
                then it is unknown whether the queue has it.
            BadInputError: there is no such queue.
        """
        # As a producer would; only queues that are not the kit's have no way from its exchange.
        exchange = topology.EXCHANGE if queue in self._queues else ""
        try:
            self._channel.basic_publish_confirm(
                message.to_publish(),
                exchange,
                queue,
                mandatory=True,
                timeout=CONFIRM_TIMEOUT,
                confirm_timeout=CONFIRM_TIMEOUT,
            )
        except MessageNacked:
            raise PublishTimeoutError(
                f"the broker refused a message: queue {queue} is full",
                next_step="when it has room again, the same command goes on",
            ) from None
        except amqp.exceptions.ChannelError as error:
            raise BadInputError(f"the broker has no way to queue {queue!r}: {error}") from error
        except (TimeoutError, amqp.exceptions.ConnectionError) as error:
            raise PublishTimeoutError(
                f"the broker did not confirm a message within {CONFIRM_TIMEOUT:g} s: it holds publishers back"
                f" (an alarm), or cannot be reached; whether queue {queue} has that one is unknown",
                next_step="make cluster-status; when it is well, the same command goes on",
            ) from error
