"""taskiq over aio-pika: quorum queues and confirms are its defaults."""

from __future__ import annotations

import asyncio
import itertools
import os
from typing import TYPE_CHECKING, Any, Final

from taskiq_aio_pika import AioPikaBroker

from benchwork import marks, work

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Publishes at a time of a publisher that does not wait for each.
_WINDOW: Final = 1_000

broker = AioPikaBroker(os.environ["BENCH_BROKER"], qos=int(os.environ.get("BENCH_PREFETCH", "10")))


@broker.task(task_name="noop")
async def noop(number: int) -> None:
    """Do nothing."""
    work.noop(number)


@broker.task(task_name="nap")
async def nap(number: int) -> None:
    """Wait 10 ms."""
    await asyncio.sleep(work.NAP)
    marks.here().ran(number)


@broker.task(task_name="paced")
async def paced(number: int) -> None:
    """Wait 10 ms, and note when that began."""
    marks.here().begins(number)
    await asyncio.sleep(work.NAP)
    marks.here().ran(number)


@broker.task(task_name="compute")
def compute(number: int, loops: int) -> None:
    """Keep a core busy; no coroutine, so that taskiq runs it in a thread."""
    work.compute(number, loops)


_TASKS: Final[dict[str, Any]] = {"noop": noop, "nap": nap, "paced": paced, "compute": compute}


class Sender:
    """Publishes with ``kiq``, in a loop of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(broker.startup())

    def one(self, task: str, *arguments: Any) -> None:
        """Publish one task."""
        self._loop.run_until_complete(_TASKS[task].kiq(*arguments))

    def many(self, task: str, arguments: Sequence[tuple[Any, ...]]) -> None:
        """Publish a task for each of ``arguments``."""
        together = os.environ.get("BENCH_WAY") == "together"
        self._loop.run_until_complete((_together if together else _in_turn)(_TASKS[task], arguments))

    def close(self) -> None:
        """Leave nothing behind."""
        self._loop.run_until_complete(broker.shutdown())
        self._loop.close()


async def _in_turn(task: Any, arguments: Sequence[tuple[Any, ...]]) -> None:
    for each in arguments:
        await task.kiq(*each)


async def _together(task: Any, arguments: Sequence[tuple[Any, ...]]) -> None:
    left = iter(arguments)
    while window := list(itertools.islice(left, _WINDOW)):
        await asyncio.gather(*(task.kiq(*each) for each in window))
