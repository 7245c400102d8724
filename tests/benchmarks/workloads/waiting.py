"""Tasks that wait 10 ms: how many a system keeps waiting at the same time, and what that costs."""

from __future__ import annotations

from tests.benchmarks import systems
from tests.benchmarks.systems import WAITING
from tests.benchmarks.workload import Workload
from tests.benchmarks.workloads import drain

#: Celery 5.7 reads its events' connection for up to 0.1 s after each message where greenlets run the tasks.
_FEW, _MANY = 500, 10_000

WORKLOAD = Workload(
    name="sleep",
    title="Tasks that wait 10 ms",
    unit="tasks/s",
    contenders=tuple(
        drain.contender(system, "nap", count)
        for system, count in (
            (systems.KIT, _MANY),
            (systems.CELERY, _FEW),
            (systems.CELERY_SILENT, _MANY),
            (systems.DRAMATIQ, _MANY),
            (systems.TASKIQ, _MANY),
        )
    ),
    notes=(
        (
            f"One worker process per core, {WAITING} tasks at a time in each: greenlets (the kit and Celery:"
            " gevent), threads (dramatiq), coroutines (taskiq)."
        ),
        (
            "Celery 5.7 with gevent waits up to 0.1 s for its events' connection after each message; so it"
            f" gets {_FEW} tasks, the others {_MANY:,}. Silent: `--without-gossip --without-mingle"
            " --without-heartbeat`, which does without that connection, and without being seen by Flower."
        ),
        *drain.COUNTED,
    ),
)
