"""The base class of every task in an app that called ``configure``."""

from __future__ import annotations

import math
import threading
from datetime import datetime
from typing import TYPE_CHECKING, Any

import celery
import celery.worker.request
from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery.worker.state import successful_requests

from clusterkit.runtime import rejections

if TYPE_CHECKING:
    from collections.abc import Callable

    from kombu import Message

#: Seconds. Delayed delivery counts whole seconds and refuses less than one (kombu 5.7: ValueError).
SHORTEST_DELAY = 1


class TaskMemoryError(RuntimeError):
    """A task ran out of memory; says what Python said."""


class Request(celery.worker.request.Request):
    """A task at a worker, which survives what the task does."""

    _failure: BaseException | None = None
    #: Which greenlet or thread is sending an event of this task, and which greenlet cancels it; 0: none.
    _teller = _canceller = 0

    acknowledged: bool
    #: Takes the message when it is acknowledged together with others; False: it is not.
    acknowledge_with_others: Callable[[Message], bool] = staticmethod(lambda _: False)

    def cancel(self, pool: Any, *args: Any, **kwargs: Any) -> None:
        """End the task's run: its message is lost with its connection, and comes again.

        A greenlet that waits for its turn to send an event is not killed but ends itself afterwards: it could
        be given the turn and be killed before it knows, and then nobody would ever get it again (gevent 25).
        """
        # Celery notes it afterwards; a greenlet reports its end before that.
        self._already_cancelled: bool = bool(self.time_start)
        self._canceller = threading.get_ident() if pool.is_green else 0
        if self._canceller and self._teller:
            self._announce_cancelled()
        else:
            super().cancel(pool, *args, **kwargs)

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 - Celery's name
        """Send an event of the task; one that was cancelled meanwhile ends here."""
        if self._already_cancelled and type == "task-succeeded":
            return
        me = threading.get_ident()
        if me == self._canceller:
            super().send_event(type, **fields)
            return
        self._teller = me
        try:
            super().send_event(type, **fields)
        finally:
            self._teller = 0
        if self._canceller:
            from greenlet import GreenletExit  # noqa: PLC0415 - only where greenlets run tasks

            raise GreenletExit

    def acknowledge(self) -> None:
        """Acknowledge the message, but not for a run that was cancelled.

        A greenlet that Celery 5.7 ends reports success. The worker then took the message for done when it
        came again, and acknowledged it without running the task: it was lost. (Here and not in
        ``on_success``: the class that Celery makes of this one for each task has its own.)
        """
        if self._already_cancelled:
            successful_requests.discard(self.id)
        else:
            super().acknowledge()

    def on_failure(
        self,
        exc_info: ExceptionInfo,
        send_failed_event: bool = True,  # noqa: FBT001, FBT002 - Celery's signature
        return_ok: bool = False,  # noqa: FBT001, FBT002
    ) -> Any:
        """Handle a failed task; a MemoryError counts as one.

        Celery 5.7 raises it again in the worker's main process and ends the whole worker (celery
        #10462); with late acknowledgement the message then ends the next worker as well.
        """
        exc_info = _without_memory_error(exc_info)
        self._failure = exception_of(exc_info)
        return super().on_failure(exc_info, send_failed_event, return_ok)

    def acknowledge(self) -> None:
        """Acknowledge the message, together with others where the worker node's profile says so."""
        if not self.acknowledged and self.acknowledge_with_others(self.message):
            self.acknowledged = True
        else:
            super().acknowledge()

    def reject(self, requeue: bool = False) -> None:  # noqa: FBT001, FBT002
        """Give the message back; what goes to the dead letters for its failure leaves a note of it."""
        if not requeue and not self.acknowledged and self._failure:
            rejections.notes(self.app, self.hostname).write(self.message, self._failure)
        super().reject(requeue)


def exception_of(exc_info: ExceptionInfo) -> BaseException:
    """Return what was raised, without billiard's wrapping."""
    exception: BaseException = exc_info.exception
    return exception.exc if isinstance(exception, ExceptionWithTraceback) else exception


def _without_memory_error(exc_info: ExceptionInfo) -> ExceptionInfo:
    exception = exception_of(exc_info)
    if not isinstance(exception, MemoryError):
        return exc_info
    try:
        raise TaskMemoryError(str(exception) or "the task ran out of memory")  # noqa: TRY301 - for its traceback
    except TaskMemoryError:
        replacement = ExceptionInfo()
    replacement.traceback = exc_info.traceback  # where the task was, not where this is
    return replacement


class Task(celery.Task):
    """Celery's task with the kit's request class and delays that quorum queues can hold."""

    abstract = True
    Request = "clusterkit.runtime.task:Request"

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        **options: Any,
    ) -> Any:
        """Publish the task; a delay below one second becomes one second, never earlier than asked."""
        countdown, eta = options.get("countdown"), options.get("eta")
        if countdown is not None and countdown > 0:
            options["countdown"] = max(SHORTEST_DELAY, math.ceil(countdown))
        elif isinstance(eta, datetime) and eta.tzinfo is not None:
            seconds = (eta - self.app.now()).total_seconds()
            if 0 < seconds < SHORTEST_DELAY:
                options["eta"], options["countdown"] = None, SHORTEST_DELAY
        return super().apply_async(args, kwargs, **options)
