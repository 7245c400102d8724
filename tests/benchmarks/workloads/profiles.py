"""The kit's profiles side by side: no-ops of a full queue, and how late tasks begin at three loads."""

from __future__ import annotations

import functools

from tests.benchmarks import systems
from tests.benchmarks.samples import Sample
from tests.benchmarks.scene import Scene
from tests.benchmarks.systems import System
from tests.benchmarks.workload import Contender, Workload
from tests.benchmarks.workloads import drain, latency

#: Of a full queue.
_TASKS = 5_000


def _measure(system: System, scene: Scene, quick: bool) -> Sample:
    drained = drain.measure(system, "noop", _TASKS, (), scene, quick)
    late = latency.measure(system, scene, quick).figures
    figures = {f"ms at {name}": late[name] for name in ("30% p50", "60% p50", "90% p50", "90% p95")}
    return Sample(drained.value, drained.cpu, drained.broker, figures)


WORKLOAD = Workload(
    name="profiles",
    title="The kit's profiles",
    unit="tasks/s",
    contenders=tuple(
        Contender(system.name, system.runs, functools.partial(_measure, system))
        for system in systems.PROFILES
    ),
    notes=(
        "Tasks/s and CPU are of no-ops from a full queue, one worker process per core.",
        (
            "Milliseconds are from when a task was due to be submitted to when it began: tasks that wait"
            " 10 ms, at random, at 30, 60 and 90 % of what the processes can do."
        ),
        "`long-tasks` is `latency` with a day for a task instead of an hour.",
    ),
)
