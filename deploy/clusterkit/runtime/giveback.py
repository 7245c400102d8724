"""The control command ``give_back``: what a worker node has taken in advance goes back to its queue.

Celery's ``cancel_consumer`` keeps what was prefetched, and runs it as slots get free: a node that shall stop
would first work off a backlog that others could have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery.utils.log import get_logger
from celery.worker.control import control_command
from celery.worker.state import task_ready

if TYPE_CHECKING:
    import logging

logger: logging.Logger = get_logger(__name__)


@control_command()  # type: ignore[untyped-decorator]
def give_back(state: Any) -> dict[str, int]:
    """Reject, back to its queue, each message that waits for a slot; say how many there were.

    Only a prefork pool lets messages wait where they can be taken back: other pools have them in the hands
    of threads and greenlets that may begin at any moment, and those run here.
    """
    worker = state.consumer.controller
    batches = getattr(state.consumer, "batches", None)
    given = batches.give_up() if batches else []
    waiting: Any = getattr(worker.semaphore, "_waiting", None) or ()
    for entry in [each for each in waiting if each[0] == worker._process_task]:  # noqa: SLF001 - no other way
        waiting.remove(entry)
        given.append(entry[1][0])
    for request in given:
        request.reject(requeue=True)
        task_ready(request)
    if given:
        logger.info("%d messages that waited for a slot went back to their queues", len(given))
    return {"ok": len(given)}
