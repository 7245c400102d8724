"""Tasks that compute for 10 ms: what is left of the cores for them."""

from __future__ import annotations

import functools
import time

from benchwork import work

from tests.benchmarks.samples import Sample
from tests.benchmarks.scene import Scene
from tests.benchmarks.systems import System
from tests.benchmarks.workload import Contender, Workload
from tests.benchmarks.workloads import drain

#: Seconds a task computes, on a core of its own.
_SECONDS = 0.01
COUNT = 500


@functools.cache
def loops() -> int:
    """Return how many loops take 10 ms here, by the fastest of several tries: the same work for all."""
    sample = 20_000

    def once() -> float:
        began = time.perf_counter()
        work.spin(sample)
        return time.perf_counter() - began

    return round(sample * _SECONDS / min(once() for _ in range(50)))


def _measure(system: System, scene: Scene, quick: bool) -> Sample:
    return drain.measure(system, "compute", COUNT, (loops(),), scene, quick)


WORKLOAD = Workload(
    name="cpu",
    title="Tasks that compute for 10 ms",
    unit="tasks/s",
    contenders=tuple(
        Contender(system.name, system.runs, functools.partial(_measure, system))
        for system in drain.CONTENDERS
    ),
    notes=(
        "One task at a time in one worker process per core; the broker runs on the same cores.",
        "The kit's queue has the profile `throughput`; without it a process waits for the broker after each.",
        *drain.COUNTED,
    ),
)
