"""Celery as it comes: its own defaults on quorum queues, with confirms for a publisher that asks for them."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from celery import Celery

from benchwork import marks, work

if TYPE_CHECKING:
    from collections.abc import Sequence

app = Celery("benchwork.stock", broker=os.environ["BENCH_BROKER"])
# The two settings that durability is made of; all else is Celery's default: early acknowledgements, a
# prefetch of 4 per process, gossip and mingle on, events off.
app.conf.task_default_queue = "celery"
app.conf.task_default_queue_type = "quorum"
app.conf.worker_detect_quorum_queues = True
app.conf.broker_connection_retry_on_startup = True
if os.environ.get("BENCH_WAY") == "confirms":
    app.conf.broker_transport_options = {"confirm_publish": True}


@app.task
def noop(number: int) -> None:
    """Do nothing."""
    work.noop(number)


@app.task
def nap(number: int) -> None:
    """Wait 10 ms."""
    time.sleep(work.NAP)
    marks.here().ran(number)


@app.task
def paced(number: int) -> None:
    """Wait 10 ms, and note when that began."""
    marks.here().begins(number)
    time.sleep(work.NAP)
    marks.here().ran(number)


@app.task
def compute(number: int, loops: int) -> None:
    """Keep a core busy."""
    work.compute(number, loops)


class Sender:
    """Publishes with ``apply_async``."""

    def one(self, task: str, *arguments: Any) -> None:
        """Publish one task."""
        app.tasks[f"{__name__}.{task}"].apply_async(arguments)

    def many(self, task: str, arguments: Sequence[tuple[Any, ...]]) -> None:
        """Publish a task for each of ``arguments``."""
        apply_async = app.tasks[f"{__name__}.{task}"].apply_async
        for each in arguments:
            apply_async(each)

    def close(self) -> None:
        """Leave nothing behind."""
        app.close()
