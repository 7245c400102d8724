"""The worker's consumer: no message ends the worker, none disappears for being unreadable or untouched.

Celery 5.7 acknowledges (forgets) a message that cannot be decoded, and a known task name with a body
that is no task ends the worker's main process, then the next worker's. Here both go to the dead
letters, with a line in the log that says why, and a note of it for the operator (``rejections``).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, ClassVar

import celery.worker.consumer
from amqp.exceptions import RecoverableConnectionError
from celery import bootsteps
from celery.concurrency import solo
from celery.exceptions import NotRegistered
from celery.utils.log import get_logger
from celery.utils.threads import bound_open_broker_sockets

import clusterkit.runtime.giveback  # noqa: F401 - registers the control command
from clusterkit.runtime import profiles, properties, reading, rejections, timers
from clusterkit.runtime.acks import Acks
from clusterkit.runtime.batches import Batches
from clusterkit.runtime.drain import Drain
from clusterkit.runtime.events import GATHER, Dispatcher, without_confirms
from clusterkit.runtime.settings import weakened

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from kombu import Connection, Message

logger: logging.Logger = get_logger(__name__)

#: args, kwargs and embed (callbacks, errbacks, chain, chord) of Celery's message protocol 2.
BODY_PARTS = 3

#: Seconds a stopping worker waits for the broker to close the connection of its events.
CLOSE_TIMEOUT = 2.0


class MalformedTaskError(ValueError):
    """A message names a task and does not carry one, or names none."""


class Consumer(celery.worker.consumer.Consumer):
    """Celery's consumer, with dead letters for what cannot run and events that never block."""

    class Blueprint(celery.worker.consumer.Consumer.Blueprint):
        """The steps of a consumer's start, with the kit's for control commands."""

        default_steps: ClassVar = [
            {"celery.worker.consumer.control:Control": "clusterkit.runtime.control:ControlStep"}.get(
                step, step
            )
            for step in celery.worker.consumer.Consumer.Blueprint.default_steps
        ]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        properties.tolerate()
        if isinstance(self.pool, solo.TaskPool):
            # Nobody would send any while a task runs, and a long one would be delivered again beside itself.
            self.amqheartbeat = 0
        if not self.hub and self.pool.is_green:
            self.app.events.dispatcher_cls = Dispatcher
            # Each task has a greenlet of its own, for which Celery would make a result backend of its own:
            # half of the worker's processor time, and a new connection to the store for each result.
            self.app.conf.result_backend_thread_safe = True
        self._drain: Drain | None = None
        self._gathers_events = False
        #: Both only where a loop drives a pool of processes.
        self.acks: Acks | None = None
        self.batches: Batches | None = None
        self._run_in_batches(profiles.current())
        self._notes = rejections.notes(self.app, self.hostname)
        for name, (has, should) in weakened(self.app).items():
            logger.warning("setting %s is %r; tasks can be lost: the kit sets %r", name, has, should)

    def _run_in_batches(self, profile: profiles.Profile) -> None:
        profiles.apply(profile, self.app)
        if self.hub and self.pool.uses_semaphore and profile.batch > 1:
            self.acks = Acks(self.call_soon)
            self.batches = Batches(self, profile.batch)
            self.on_task_request = self._on_task_request
        if self.hub:
            self.timer.call_repeatedly(timers.INTERVAL, self._sweep_timers)

    def _on_task_request(self, request: Any) -> None:
        assert self.batches  # noqa: S101 - set together with this
        request.acknowledge_with_others = self._acknowledge
        self.batches.take(request)

    def _sweep_timers(self) -> None:
        if not self._drain:  # then another thread fires them
            timers.sweep(self.timer)

    def on_ready(self) -> None:
        """Note with what prefetch consuming began, for it may change (``clusterkit.runtime.resize``)."""
        self.task_consumer.first_prefetch = self.initial_prefetch_count
        super().on_ready()

    def stop(self) -> None:
        """Stop consuming for good, and see to what is still here."""
        self._drain = Drain(self)
        if self.event_dispatcher:
            # In an alarm the broker does not even answer that this connection may close.
            bound_open_broker_sockets(self.event_dispatcher.connection, CLOSE_TIMEOUT)
        super().stop()
        if self.acks and self.connection:
            with contextlib.suppress(*self.connection_errors, *self.channel_errors):
                self.acks.flush()
        self._drain.begin()

    def on_send_event_buffered(self) -> None:
        """Have events of tasks leave together a moment later; Celery's leave at the loop's next turn.

        A worker that is not busy sent each in a message of its own, which cost it half a millisecond a task.
        """
        if self._drain:
            super().on_send_event_buffered()
        elif not self._gathers_events:
            self._gathers_events = True
            self.call_soon(self.timer.call_after, GATHER, self._flush_gathered)

    def _flush_gathered(self) -> None:
        self._gathers_events = False
        self._flush_events()

    def on_close(self) -> None:
        """Forget what a lost connection had delivered; a worker that stops forgets nothing.

        Celery's would drop a task that was just written to its process and not begun yet; it would run, and
        again at another worker.
        """
        # When an acknowledgement meets the lost connection, the hub drops what was to be called after it, and
        # the flush that events wait for may have been that.
        self._gathers_events = False
        if not self._drain:
            if self.batches:
                self.batches.forget()
            super().on_close()

    def _acknowledge(self, message: Message) -> bool:
        """Acknowledge ``message`` together with others; False: it has to be done the usual way."""
        return bool(self.acks and not self._drain and self.acks.add(message))

    def shutdown(self) -> None:
        """Close the connection; all tasks have ended."""
        if self._drain:
            self._drain.end()
        super().shutdown()

    def connection_for_read(self, heartbeat: float | None = None) -> Connection:
        """Return the connection that tasks and control commands arrive on."""
        connection = self.ensure_connected(
            without_confirms(self.app.connection_for_read(heartbeat=heartbeat))
        )
        if self.acks:
            reading.read_ahead(connection)
        return connection

    def connection_for_write(self, url: str | None = None, heartbeat: float | None = None) -> Connection:
        """Return the connection that the worker's own events leave on.

        That of greenlets has no heartbeat but the events: nobody reads it.
        """
        beat = heartbeat if self.hub else 0
        return self.ensure_connected(without_confirms(self.app.connection_for_write(url=url, heartbeat=beat)))

    def loop_args(self) -> tuple[Any, ...]:
        """Return what the loop is called with; it begins on the connection that is there now."""
        self._begun_on = self.connection.connection
        args: tuple[Any, ...] = super().loop_args()
        return args

    def perform_pending_operations(self) -> None:
        """Do what greenlets have left to the loop of a gevent or eventlet worker, which calls this each time.

        Raises:
            RecoverableConnectionError: the connection was lost. kombu makes one that it finds dead anew in
                silence, and without consumers: when the greenlet that acknowledges a task is the first to
                notice, Celery's loop would go on for ever and get no task any more (5.7).
        """
        super().perform_pending_operations()
        connection = self.connection
        if self.hub or connection is None or self._drain:
            return
        if isinstance(self.event_dispatcher, Dispatcher):
            self.event_dispatcher.renew_if_stuck()
        if not connection.connected or connection.connection is not self._begun_on:
            raise RecoverableConnectionError("the connection that tasks arrive on was lost")

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Send a message that cannot be decoded to the dead letters; Celery would acknowledge it."""
        if self.acks:
            self.acks.seen(message)
        self._to_dead_letters(message, exc)

    def on_unknown_message(self, body: Any, message: Message) -> None:
        """Let Celery reject a message that names no task."""
        self._notes.write(message, MalformedTaskError("the message names no task"))
        super().on_unknown_message(body, message)

    def on_unknown_task(self, body: Any, message: Message, exc: Exception) -> None:
        """Let Celery reject a task that this worker's release does not have."""
        self._notes.write(message, NotRegistered(*exc.args))
        super().on_unknown_task(body, message, exc)

    def on_invalid_task(self, body: Any, message: Message, exc: Exception) -> None:
        """Let Celery reject what it finds no task."""
        self._notes.write(message, exc)
        super().on_invalid_task(body, message, exc)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Message], Any]:
        """Return what handles each arriving message."""
        handle = super().create_task_handler(*args, **kwargs)
        connection_trouble = (*self.connection_errors, *self.channel_errors)

        def on_task_received(message: Message) -> Any:
            if self.acks:
                self.acks.seen(message)
            if self.blueprint.state != bootsteps.RUN:  # it was on its way when consuming was stopped
                return message.reject_log_error(logger, self.connection_errors, requeue=True)
            try:
                _check(message)
            except Exception as error:  # noqa: BLE001 - a decoder may raise anything
                return self._to_dead_letters(message, error)
            try:
                return handle(message)
            except connection_trouble:
                raise
            except Exception as error:
                if message.acknowledged:
                    raise
                return self._to_dead_letters(message, error)

        return on_task_received

    def _to_dead_letters(self, message: Message, error: Exception) -> None:
        self._notes.write(message, error)
        logger.critical(
            "message to the dead letters: %s: %s (task %r, id %r, content type %r, routing key %r)",
            type(error).__name__,
            error,
            (message.headers or {}).get("task"),
            (message.headers or {}).get("id"),
            message.content_type,
            (message.delivery_info or {}).get("routing_key"),
        )
        message.reject_log_error(logger, self.connection_errors)


def _check(message: Message) -> None:
    """Raise unless ``message`` is one that Celery's strategies can take.

    Celery looks into the payload here as well, and the message keeps it: a good one costs this process no
    second decoding. With protocol 2 a pool process gets the body as it came, and decodes it again.
    """
    headers = message.headers or {}
    if "task" not in headers:
        return  # protocol 1 or no task at all: Celery tells them apart, and rejects the latter
    if not isinstance(headers.get("id"), str):
        raise MalformedTaskError("the message has no task id")
    limits = headers.get("timelimit")
    if limits is not None and not (
        isinstance(limits, (list, tuple)) and len(limits) == len(("hard", "soft"))
    ):
        raise MalformedTaskError("timelimit is not [hard, soft]")
    payload = message.payload
    if isinstance(payload, dict):  # hybrid of protocols 1 and 2, checked by Celery
        return
    if not isinstance(payload, (list, tuple)) or len(payload) != BODY_PARTS:
        raise MalformedTaskError(f"the body is not [args, kwargs, embed] but {type(payload).__name__}")
    args, kwargs, embed = payload
    if not (isinstance(args, (list, tuple)) and isinstance(kwargs, dict)):
        raise MalformedTaskError("args is not a list, or kwargs is not an object")
    if not (embed is None or isinstance(embed, dict)):
        raise MalformedTaskError("embed is not an object")
