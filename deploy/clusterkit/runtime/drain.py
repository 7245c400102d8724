"""A worker on its way out: what it has not begun goes back, what it runs is run once.

Celery 5.7 keeps the messages a stopping worker took in advance until its last task has ended, does not see
that its connection is gone meanwhile (the broker then gives the running task to another worker: it runs
twice at once), and with the pool ``threads`` sends no heartbeats, which has the same end after a minute.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from amqp.exceptions import RecoverableConnectionError
from celery.concurrency.prefork import _run_ready_callbacks
from celery.utils.log import get_logger
from celery.worker.state import active_requests, reserved_requests

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterator

logger: logging.Logger = get_logger(__name__)

#: Seconds between two looks at the connection.
INTERVAL: Final = 1.0
#: Seconds a look waits for something to read.
_LOOK: Final = 0.01


class Drain:
    """The end of a worker's ``consumer``, from when it stopped consuming until its connection is closed."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._over = threading.Event()
        self._connection: Any = None
        self._timer: Any = None
        self._pump: threading.Thread | None = None

    def begin(self) -> None:
        """Give back what was not begun, and watch the connection while the rest runs."""
        consumer = self._consumer
        if not consumer.connection:
            return
        # amqp's: kombu makes a connection that it finds dead anew, and that one would look well.
        self._connection = consumer.task_consumer.channel.connection
        waiting = tuple(_not_begun(consumer))
        for request in waiting:
            self._give_back(request)
        logger.info("stopping: %d messages given back, %d tasks run", len(waiting), len(active_requests))
        self._timer = consumer.timer.call_repeatedly(INTERVAL, self._look)
        if consumer.hub and not consumer.pool.uses_semaphore:
            # Prefork fires the timers itself while it waits for its processes; threads do not.
            self._pump = threading.Thread(target=self._fire_timers, name="drain", daemon=True)
            self._pump.start()

    def end(self) -> None:
        """Stop watching; the connection is about to be closed."""
        self._over.set()
        if self._timer:
            self._timer.cancel()
        if self._pump:
            self._pump.join(timeout=2 * INTERVAL)

    def _give_back(self, request: Any) -> None:
        request.message.reject_log_error(logger, self._consumer.connection_errors, requeue=True)
        request.acknowledged = True

    def _fire_timers(self) -> None:
        while not self._over.wait(INTERVAL / 2):
            self._consumer.hub.fire_timers()
            _run_ready_callbacks(self._consumer.hub)

    def _look(self) -> None:
        if self._over.is_set():
            return
        try:
            if not self._connection.connected:
                raise RecoverableConnectionError("the connection is closed")
            self._connection.drain_events(timeout=_LOOK)
        except TimeoutError:
            return
        except (*self._consumer.connection_errors, *self._consumer.channel_errors) as error:
            logger.warning("connection lost while stopping: %r", error)
            self._over.set()  # the timer stays: a greenlet's would end this very greenlet
            self._end_tasks()

    def _end_tasks(self) -> None:
        """End what runs: its messages are in their queues again, and other workers take them."""
        for request in tuple(active_requests):
            if request.task.acks_late and not request.acknowledged:
                logger.warning("ending task %s[%s], which another worker runs now", request.name, request.id)
                try:
                    request.cancel(self._consumer.pool)
                except Exception as error:  # noqa: BLE001 - the others are to be ended all the same
                    logger.warning("task %s[%s] goes on: %r", request.name, request.id, error)


def _not_begun(consumer: Any) -> Iterator[Any]:
    """Yield the requests that no process has, and see to it that none gets them any more.

    Only prefork keeps some: with the other pools each message has its thread or greenlet.
    """
    semaphore = consumer.controller.semaphore
    if not consumer.pool.uses_semaphore or semaphore is None:
        return
    pool = consumer.pool._pool  # noqa: SLF001 - billiard's, below Celery's
    semaphore._waiting.clear()  # noqa: SLF001
    pool.outbound_buffer.clear()
    batches = consumer.batches
    if batches:
        batches.forget()
    written = set()
    for job in tuple(pool._cache.values()):  # noqa: SLF001
        if job._write_to:  # noqa: SLF001
            together = batches.of(job._job) if batches else []  # noqa: SLF001
            written |= {request.id for request in together} or {job.correlation_id}
        else:
            job.discard()
    for request in tuple(reserved_requests):
        if request not in active_requests and request.id not in written and not request.acknowledged:
            yield request
