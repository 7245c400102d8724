"""Tasks that wait 10 ms: how many a system keeps waiting at the same time, and what that costs."""

from __future__ import annotations

from tests.benchmarks.systems import WAITING
from tests.benchmarks.workload import Workload
from tests.benchmarks.workloads import drain

WORKLOAD = Workload(
    name="sleep",
    title="Tasks that wait 10 ms",
    unit="tasks/s",
    contenders=tuple(drain.contender(system, "nap", 10_000) for system in drain.CONTENDERS),
    notes=(
        (
            f"One worker process per core, {WAITING} tasks at a time in each: greenlets (the kit and Celery:"
            " gevent), threads (dramatiq), coroutines (taskiq)."
        ),
        *drain.COUNTED,
    ),
)
