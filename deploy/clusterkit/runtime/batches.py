"""Several short tasks in one job of a prefork pool: what a queue with the profile `throughput` is run with.

Celery sends a pool process one task, hears that it has begun, hears that it has ended, and sends the next
one: for a task that does nothing this is most of the work. Here the tasks that wait while all processes are
busy go together, as many as are expected to take no longer than ``SPAN``; one that comes while a process is
idle goes at once and alone, so nothing waits for company. What Celery does about a task stays as it is:
each has its own result, stored before its message is acknowledged, its own retries, errors and revokes.

When a process dies, those of its batch that had begun are treated as Celery treats a task whose process
died (one whose success is stored is done, another comes again); the others have not begun, and are run here.
"""

from __future__ import annotations

import math
import mmap
import struct
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from billiard.einfo import ExceptionInfo
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import bootsteps
from celery.app.trace import fast_trace_task
from celery.utils.log import get_logger
from celery.worker.state import active_requests, task_ready

from clusterkit.runtime.task import exception_of

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterable

logger: logging.Logger = get_logger(__name__)

#: Seconds that the tasks of a batch take together, as far as can be told before; and after which a process
#: begins no other task of its batch.
SPAN: Final = 0.1
#: Weight of the newest batch in how long a task of some name takes.
_WEIGHT: Final = 0.3

#: How many of its tasks each batch has begun, by slot; pool processes are forked and share it.
_SLOTS: Final = 1_024
_COUNT: Final = struct.Struct("I")
_begun: Final = mmap.mmap(-1, _SLOTS * _COUNT.size)

#: Whether a task ended as Celery expects (then what its tracer returned), or what went wrong.
Outcome = tuple[bool, Any]


def run(slot: int, jobs: list[tuple[Any, ...]]) -> tuple[float, list[Outcome]]:
    """Run ``jobs`` in a pool process; return the seconds it took, and the outcomes of those begun."""
    begin = time.monotonic()
    outcomes: list[Outcome] = []
    for job in jobs:
        _COUNT.pack_into(_begun, slot * _COUNT.size, len(outcomes) + 1)
        try:
            outcomes.append((True, fast_trace_task(*job)))
        except Exception:  # noqa: BLE001 - as billiard does: the worker's main process decides about it
            outcomes.append((False, ExceptionInfo()))
        if time.monotonic() - begin > SPAN:
            break
    return time.monotonic() - begin, outcomes


class Batches:
    """The tasks that a prefork worker's ``consumer`` has taken, on their way into its pool.

    ``most`` is how many tasks go together at most. All is done in the main process's only thread.
    """

    def __init__(self, consumer: Any, most: int) -> None:
        self._consumer = consumer
        self._most = most
        self._waiting: deque[Any] = deque()
        #: How many slots of the pool were asked for and not yet given.
        self._asked = 0
        #: Slots of the count that no batch has. The one that was given back first is taken first: a process
        #: that is killed for its time limit may write into its slot a moment longer.
        self._free = deque(range(_SLOTS))
        #: Task's name -> seconds one takes, as measured.
        self._seconds: dict[str, float] = {}
        #: Number of a batch's job in the pool -> its slot of the count, its tasks.
        self._running: dict[Any, tuple[int, list[Any]]] = {}

    def take(self, request: Any) -> None:
        """Have ``request`` run as soon as a process is idle."""
        self._waiting.append(request)
        self._ask()

    def give_up(self) -> list[Any]:
        """Return the tasks that wait for a process, and forget them."""
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting

    def forget(self) -> None:
        """Forget what waits: the connection that brought it is lost, and slots are counted anew."""
        self._waiting.clear()
        self._asked = 0

    def of(self, job: Any) -> list[Any]:
        """Return the tasks that the pool's ``job`` consists of; none if it is no batch."""
        return self._running[job][1] if job in self._running else []

    def _ask(self) -> None:
        slots = self._consumer.controller.semaphore
        while self._asked < min(len(self._waiting), slots.initial_value):
            self._asked += 1
            slots.acquire(self._begin)

    def _begin(self) -> None:
        """Use a slot of the pool, which is ours now."""
        self._asked = max(self._asked - 1, 0)
        if not self._free:
            self._reclaim()
        batch = self._next_batch()
        if not batch:
            self._consumer.controller.semaphore.release()
        elif self._goes_alone(batch[0]):
            self._consumer.controller._process_task(batch[0])  # noqa: SLF001 - what Celery would have called
        else:
            self._send(batch)
        self._ask()

    def _reclaim(self) -> None:
        """Take back the slots of batches that the pool forgot, as it does when a connection is lost."""
        for job in self._running.keys() - self._consumer.pool._pool._cache.keys():  # noqa: SLF001
            slot, _ = self._running.pop(job)
            self._free.append(slot)

    def _next_batch(self) -> list[Any]:
        """Take from those that wait what goes into the pool together."""
        batch: list[Any] = []
        idle = self._consumer.controller.semaphore.value + 1
        most = min(self._most, math.ceil(len(self._waiting) / idle))
        seconds, limit = 0.0, None
        while self._waiting and len(batch) < max(most, 1):
            request = self._waiting[0]
            seconds += self._seconds.get(request.type, math.inf)
            if batch and (seconds > SPAN or self._goes_alone(request) or self._limit_of(request) != limit):
                break
            self._waiting.popleft()
            if request.revoked():
                continue
            batch.append(request)
            limit = self._limit_of(request)
            if self._goes_alone(request):
                break
        return batch

    def _goes_alone(self, request: Any) -> bool:
        """Whether ``request`` has limits that count from its begin, or is acknowledged then, not late.

        All go alone while no slot is free, which takes more processes than there are slots.
        """
        pool = self._consumer.pool._pool  # noqa: SLF001 - billiard's, below Celery's
        limited = any(request.time_limits) or request.task.soft_time_limit or pool.soft_timeout
        return bool(limited or not request.task.acks_late or not self._free)

    def _limit_of(self, request: Any) -> float | None:
        limit: float | None = request.task.time_limit or self._consumer.pool._pool.timeout  # noqa: SLF001
        return limit

    def _send(self, batch: list[Any]) -> None:
        job: Any = None
        slot, begin = self._free.popleft(), time.monotonic()
        _COUNT.pack_into(_begun, slot * _COUNT.size, 0)
        limit = self._limit_of(batch[0])

        def accepted(pid: int, time_accepted: float) -> None:
            for request in batch:
                request.on_accepted(pid, time_accepted)

        def over() -> None:
            if self._running.pop(job, None):
                self._free.append(slot)

        def ended(result: tuple[float, list[Outcome]]) -> None:
            over()
            self._ended(batch, *result)

        def died(why: ExceptionInfo) -> None:
            (begun,) = _COUNT.unpack_from(_begun, slot * _COUNT.size)
            over()
            logger.warning(
                "%d of %d tasks in a process had begun when it ended after %.3f s: %r",
                begun,
                len(batch),
                time.monotonic() - begin,
                exception_of(why),
            )
            self._died(batch, begun, why)

        result = self._consumer.pool.apply_async(
            run,
            args=(
                slot,
                [
                    (
                        each.type,
                        each.id,
                        each.request_dict,
                        each.body,
                        each.content_type,
                        each.content_encoding,
                    )
                    for each in batch
                ],
            ),
            accept_callback=accepted,
            callback=ended,
            error_callback=died,
            # No task begins after SPAN, so that the last one has its whole limit.
            timeout=limit and limit + SPAN,
            correlation_id=batch[0].id,
        )
        if result is None:  # the pool is closed, and the messages go back with the connection
            self._free.append(slot)
        else:
            job = result._job  # noqa: SLF001
            self._running[job] = (slot, batch)

    def _ended(self, batch: list[Any], seconds: float, outcomes: list[Outcome]) -> None:
        for request in batch[: len(outcomes)]:
            before = self._seconds.get(request.type)
            now = seconds / len(outcomes)
            self._seconds[request.type] = now if before is None else before + _WEIGHT * (now - before)
        for request, (traced, outcome) in zip(batch, outcomes, strict=False):
            self._tell(request, outcome, traced=traced)
        self._again(batch[len(outcomes) :])

    def _died(self, batch: list[Any], begun: int, why: ExceptionInfo) -> None:
        """Treat the first ``begun`` as lost; all when none had begun, so that no crash repeats for ever."""
        begun = begun or len(batch)
        over_limit = isinstance(exception_of(why), TimeLimitExceeded)
        for number, request in enumerate(batch[:begun], 1):
            if over_limit and number == begun:
                self._tell(request, why, traced=False)
                request.on_timeout(False, self._limit_of(request))  # noqa: FBT003 - Celery's signature
            else:
                self._tell(request, _lost(why), traced=False)
        self._again(batch[begun:])

    def _tell(self, request: Any, outcome: Any, *, traced: bool) -> None:
        """Let ``request`` do what Celery does at its end; trouble with one keeps no other from it."""
        if _is_over(request):
            return
        try:
            (request.on_success if traced else request.on_failure)(outcome)
        except self._consumer.connection_errors:
            raise
        except Exception:
            logger.exception("the end of task %s[%s]", request.name, request.id)

    def _again(self, requests: Iterable[Any]) -> None:
        """Have ``requests`` wait again: their process has not begun them."""
        for request in reversed([each for each in requests if not _is_over(each)]):
            active_requests.discard(request)
            request.time_start = request.worker_pid = None
            if self._consumer.blueprint.state != bootsteps.RUN:
                request.reject(requeue=True)
                task_ready(request)
            else:
                self._waiting.appendleft(request)
        self._ask()


def _is_over(request: Any) -> bool:
    """Whether ``request`` was revoked, or cancelled for its message is delivered again."""
    return bool(request.acknowledged or request._already_cancelled or request._already_revoked)  # noqa: SLF001


def _lost(why: ExceptionInfo) -> ExceptionInfo:
    """Return ``why`` as the loss of a process, whatever ended it: the task itself was not meant."""
    if isinstance(exception_of(why), WorkerLostError):
        return why
    try:
        raise WorkerLostError(f"the process was ended: {exception_of(why)!r}")  # noqa: TRY301 - for its traceback
    except WorkerLostError:
        return ExceptionInfo()
