"""Publishing that ends: with the broker's confirm, or with an error within a deadline.

py-amqp waits for a confirm without limit. While the broker holds publishers back in a memory or disk
alarm there is none, and closing such a connection politely waits as well (celery #5410; neither
``confirm_timeout`` nor ``read_timeout`` helps, because kombu then retries). So the kit's producer does
its own retrying within one deadline and drops a doubtful connection instead of closing it. Dropping
also keeps confirms and messages together: py-amqp takes the next confirm for the message at hand, so
one left over from a failed publish would vouch for a message the broker never got.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

import celery.app.amqp
import kombu
from amqp.exceptions import MessageNacked

from clusterkit.runtime.errors import PublishTimeoutError
from clusterkit.runtime.prefetch import TaskConsumer

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds between two tries.
RETRY_INTERVAL = 0.5


class Producer(kombu.Producer):
    """A kombu producer with a deadline in seconds for each publish; None waits for ever."""

    def __init__(self, *args: Any, deadline: float | None = None, **kwargs: Any) -> None:
        self.deadline = deadline
        super().__init__(*args, **kwargs)

    def publish(self, body: Any, *args: Any, **options: Any) -> Any:
        """Publish ``body``; ``timeout`` (seconds) replaces the producer's deadline for this call.

        Raises:
            PublishTimeoutError: no confirm in time. Whether the broker has the message is then
                unknown, so it may run: tasks should be idempotent.
            amqp.exceptions.ChannelError: the broker refused the message (no such queue or exchange).
        """
        retry = options.pop("retry", False)
        options.pop("retry_policy", None)
        options.pop("confirm_timeout", None)
        seconds = options.pop("timeout", None) or self.deadline
        give_up_at = None if seconds is None else time.monotonic() + seconds
        while True:
            left = None if give_up_at is None else max(give_up_at - time.monotonic(), 0.01)
            try:
                self._connect(left)
                return super().publish(body, *args, timeout=left, confirm_timeout=left, **options)
            except MessageNacked as error:  # a full queue: the connection is fine
                problem: Exception = error
            except self.connection.recoverable_connection_errors as error:
                problem = error
                self._drop_connection()
                if isinstance(error, TimeoutError):  # this node may be cut off from the others
                    self.connection.maybe_switch_next()
            except BaseException:
                self._drop_connection()
                raise
            if not retry or (give_up_at is not None and time.monotonic() + RETRY_INTERVAL >= give_up_at):
                raise PublishTimeoutError(
                    _why(problem, seconds), next_step="make cluster-status shows alarms and full queues"
                ) from problem
            time.sleep(RETRY_INTERVAL)

    def _connect(self, seconds: float | None) -> None:
        connection = self.connection
        if not connection.connected:
            # One round of all brokers; the loop around it is `publish`. As the library's own error, a
            # broker that is down could not be told from one that refuses us.
            connection.ensure_connection(
                max_retries=len(connection.alt) or 1,
                interval_start=0,
                timeout=seconds,
                reraise_as_library_errors=False,
            )
            self.revive(connection)

    def _drop_connection(self) -> None:
        self.connection.collect()
        self.revive(self.connection)


def _why(problem: Exception, seconds: float | None) -> str:
    if isinstance(problem, MessageNacked):
        return "the broker refused the message: the queue is full"
    if isinstance(problem, TimeoutError) and seconds is not None:
        return (
            f"the broker did not confirm the message within {seconds:g} s: it holds publishers back"
            " (an alarm), or cannot be reached; the task may still run"
        )
    return f"the broker cannot be reached: {problem}"


class AMQP(celery.app.amqp.AMQP):
    """Celery's message sender with the kit's producer, and its consumer with the kit's."""

    Consumer = TaskConsumer

    @property
    def Producer(self) -> Callable[..., Producer]:  # noqa: N802 - Celery's name; beat makes its own with it
        """Makes a producer with the deadline of this process's role."""
        return functools.partial(Producer, deadline=self.app.conf.get("clusterkit_publish_deadline"))

    @property
    def producer_pool(self) -> Any:
        """The pool of producers of this process."""
        fresh = self._producer_pool is None
        pool = super().producer_pool
        if fresh:
            pool.Producer = self.Producer
        return pool

    def _create_task_sender(self) -> Callable[..., Any]:
        send = super()._create_task_sender()

        def send_task_message(producer: Any, name: str, message: Any, **options: Any) -> Any:
            # Without this a confirm also comes for a message that no queue took (NO_ROUTE otherwise).
            options.setdefault("mandatory", True)
            return send(producer, name, message, **options)

        return send_task_message
