"""The kit: an app that calls ``configure``, with every setting against loss."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from celery import Celery

from benchwork import marks, work
from clusterkit.runtime import configure
from clusterkit.runtime.bulk import submit_many

if TYPE_CHECKING:
    from collections.abc import Sequence

app = Celery("benchwork")
app.conf.task_ignore_result = True  # as with the others, none of which stores any
configure(app)


@app.task(queue="drain")
def noop(number: int) -> None:
    """Do nothing."""
    work.noop(number)


@app.task(queue="waits")
def nap(number: int) -> None:
    """Wait 10 ms."""
    time.sleep(work.NAP)
    marks.here().ran(number)


@app.task(queue="steady")
def paced(number: int) -> None:
    """Wait 10 ms, and note when that began."""
    marks.here().begins(number)
    time.sleep(work.NAP)
    marks.here().ran(number)


@app.task(queue="cpu")
def compute(number: int, loops: int) -> None:
    """Keep a core busy."""
    work.compute(number, loops)


class Sender:
    """Publishes many with ``submit_many``, or with ``apply_async``, which waits for each confirm."""

    def __init__(self) -> None:
        queue = os.environ.get("BENCH_QUEUE")
        self.options: dict[str, Any] = {"queue": queue} if queue else {}

    def one(self, task: str, *arguments: Any) -> None:
        """Publish one task."""
        app.tasks[f"{__name__}.{task}"].apply_async(arguments, **self.options)

    def many(self, task: str, arguments: Sequence[tuple[Any, ...]]) -> None:
        """Publish a task for each of ``arguments``."""
        if os.environ.get("BENCH_WAY") == "each":
            for each in arguments:
                self.one(task, *each)
        else:
            submit_many(app.tasks[f"{__name__}.{task}"], arguments, **self.options)

    def close(self) -> None:
        """Leave nothing behind."""
        app.close()
