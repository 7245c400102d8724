"""Resizing a worker node's pool while it runs: the pool and its prefetch follow a file.

The deployment writes ``{"concurrency": N}``; the worker looks at it every second. Celery's own
``pool_grow`` and ``pool_shrink`` do not do (5.7.0): a process that shrinking ends may have been given a
task in the same moment, which is then neither run nor given back; a busy pool refuses to shrink; what
``inspect stats`` says stays as it was; and on a quorum queue, whose prefetch belongs to the consumer, the
new prefetch never reaches the broker.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from celery import bootsteps
from celery.utils.log import get_logger
from celery.worker.state import reserved_requests

from clusterkit.runtime.errors import BadInputError
from clusterkit.runtime.prefetch import TaskConsumer

if TYPE_CHECKING:
    import logging

    from celery import Celery

logger: logging.Logger = get_logger(__name__)

#: Names the file with a worker node's size, as an absolute path.
NODE_FILE_VARIABLE: Final = "CLUSTERKIT_NODE_FILE"
#: Seconds between two looks at the file, and between two tries to end idle processes.
INTERVAL: Final = 1.0
#: Processes started in one go. The main process forks each itself and does nothing else meanwhile;
#: and billiard takes more than 100 starts in a second for a pool that crashes.
_STARTS_AT_ONCE: Final = 16


def attach(app: Celery) -> None:
    """Give the workers of ``app`` the size in the file that ``$CLUSTERKIT_NODE_FILE`` names, if any.

    Raises:
        BadInputError: the file is not there, or holds no size.
    """
    path = os.environ.get(NODE_FILE_VARIABLE)
    if path:
        app.conf.worker_concurrency = read(Path(path))
        app.steps["worker"].add(ResizeStep)


def read(path: Path) -> int:
    """Return the tasks that a node runs at once, as its file says.

    Raises:
        BadInputError: the file is not there, or holds no size.
    """
    next_step = "make cluster-up writes it anew"
    try:
        concurrency = json.loads(path.read_text(encoding="utf-8"))["concurrency"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadInputError(f"{path}: cannot be read: {error!r}", next_step=next_step) from error
    if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
        raise BadInputError(
            f"{path}: concurrency must be a whole number of at least 1, not {concurrency!r}",
            next_step=next_step,
        )
    return concurrency


class ResizeStep(bootsteps.StartStopStep):
    """The step of a worker's start that begins to follow the node's file."""

    # After the pool, so that there is no timer while it forks.
    requires = ("celery.worker.components:Pool", "celery.worker.components:Timer")

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        self._path = Path(os.environ[NODE_FILE_VARIABLE])
        self._problem = ""
        self._wanted = 0
        self._pool: _Prefork | _Green
        self._timer: Any = None

    def start(self, worker: Any) -> None:
        """Begin to look at the file."""
        self._pool = _Green(worker.pool) if worker.pool.is_green else _Prefork(worker.pool, worker.semaphore)
        self._wanted = worker.concurrency
        self._timer = worker.timer.call_repeatedly(INTERVAL, self._look, (worker,))

    def stop(self, worker: Any) -> None:  # noqa: ARG002 - Celery's signature
        """Resize no more: the worker is on its way out."""
        if self._timer:
            self._timer.cancel()

    def _look(self, worker: Any) -> None:
        consumer = worker.consumer
        if not consumer or consumer.blueprint.state != bootsteps.RUN:
            return
        wanted = self._read()
        if wanted != self._wanted:
            logger.info("pool: from %d to %d tasks at once", self._wanted, wanted)
            worker.concurrency = self._wanted = wanted
            consumer.initial_prefetch_count = wanted * consumer.prefetch_multiplier
            if isinstance(
                consumer.task_consumer, TaskConsumer
            ):  # Celery's own cannot (clusterkit.runtime.stock)
                consumer.task_consumer.fits = False
        self._pool.resize(wanted)
        if isinstance(consumer.task_consumer, TaskConsumer) and not consumer.task_consumer.fits:
            # Only the consumer's own loop may use its connection.
            consumer.call_soon(_set_prefetch, consumer)

    def _read(self) -> int:
        """Return the size the file says, or while it says none the last one."""
        try:
            wanted, problem = read(self._path), ""
        except BadInputError as error:
            wanted, problem = self._wanted, str(error)
        if problem and problem != self._problem:
            logger.warning("the pool keeps its size: %s", problem)
        self._problem = problem
        return wanted


def _set_prefetch(consumer: Any) -> None:
    """Have the broker send ``consumer`` as many messages in advance as its size asks for."""
    tasks = consumer.task_consumer
    if not (consumer.connection and tasks) or consumer.blueprint.state != bootsteps.RUN:
        return  # the next connection begins with the new number
    consumer.qos.value = consumer.initial_prefetch_count
    if consumer.qos_global:
        return  # classic queues: the loop tells the broker
    held = Counter(request.message.delivery_info.get("consumer_tag") for request in tuple(reserved_requests))
    tasks.fit(consumer.initial_prefetch_count, held)


class _Green:
    """Resizes a pool of greenlets. Those beyond a smaller size run to their end."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def resize(self, wanted: int) -> None:
        """Let ``wanted`` tasks run at once."""
        change = wanted - self._pool.limit
        if change > 0:
            self._pool.grow(change)
        elif change < 0:
            self._pool.shrink(-change)


class _Prefork:
    """Resizes a pool of processes; called again and again, for a busy process goes only after its task.

    ``semaphore`` lets as many tasks into the pool as it has slots; others that the broker delivered wait.
    """

    def __init__(self, pool: Any, semaphore: Any) -> None:
        self._celery_pool = pool
        self._semaphore = semaphore

    def resize(self, wanted: int) -> None:
        """Come as near to ``wanted`` processes as can be without ending one that is at work."""
        pool = self._celery_pool._pool  # noqa: SLF001 - billiard's, below Celery's
        self._celery_pool.limit = wanted  # what `inspect stats` says
        self._set_slots(wanted)
        change = wanted - pool._processes  # noqa: SLF001
        if change > 0:
            self._start(pool, min(change, _STARTS_AT_ONCE))
        elif change < 0:
            for process in _idle(pool)[:-change]:
                _end(pool, process)
            if pool._processes == wanted:  # noqa: SLF001
                logger.info("pool: %d of its processes left", wanted)

    def _start(self, pool: Any, number: int) -> None:
        pool._processes += number  # noqa: SLF001 - pool.grow also lets in more tasks than there are slots
        pool.on_grow(number)
        pool.maintain_pool()
        logger.info("pool: %d processes", pool._processes)  # noqa: SLF001

    def _set_slots(self, wanted: int) -> None:
        slots, waiting = self._semaphore, self._semaphore._waiting  # noqa: SLF001
        leaving = sum(1 for callback, *_ in waiting if callback == self._take_away)
        while slots.initial_value < wanted:
            slots.initial_value += 1
            slots.release()
        while slots.initial_value - leaving > wanted:
            if slots.value > 0:
                slots.value -= 1
                slots.initial_value -= 1
            else:  # in use: it goes when its task has ended, before another task gets it
                waiting.appendleft((self._take_away, (), {}))
                leaving += 1

    def _take_away(self) -> None:
        self._semaphore.initial_value -= 1


def _idle(pool: Any) -> list[Any]:
    """Return the processes of billiard's asynchronous ``pool`` that have nothing to do."""
    jobs = list(pool._cache.values())  # noqa: SLF001
    given = {id(process) for job in jobs for process in (job._write_to, job._scheduled_for) if process}  # noqa: SLF001
    working = {pid for job in jobs for pid in job.worker_pids()}
    return [
        process
        for process in pool._pool  # noqa: SLF001
        # Only of processes that are up, and were not told to end before.
        if process.inqW_fd in pool._all_inqueues  # noqa: SLF001
        and process.inqW_fd not in pool._busy_workers  # noqa: SLF001
        and process.inqW_fd not in pool._active_writes  # noqa: SLF001
        and id(process) not in given
        and process.pid not in working
    ]


def _end(pool: Any, process: Any) -> None:
    """Have an idle process end by itself, as at a shutdown; no task is written to it from now on."""
    pool._processes -= 1  # noqa: SLF001 - so that it is not replaced
    pool._all_inqueues.discard(process.inqW_fd)  # noqa: SLF001
    process._controlled_termination = True  # noqa: SLF001 - no error in the log
    process.inq.put(None)
