"""A map of calls that compute for 10 ms: what a cluster adds to the work itself."""

from __future__ import annotations

from tests.benchmarks.samples import Sample
from tests.benchmarks.scene import Scene
from tests.benchmarks.workload import Workload
from tests.benchmarks.workloads import calls, cpu

_CHUNK = 10


def _measured(executor: str, scene: Scene, quick: bool) -> Sample:
    return calls.measure(executor, cpu.COUNT, _CHUNK, cpu.loops(), scene, quick)


WORKLOAD = Workload(
    name="cpumap",
    title=f"Map of {cpu.COUNT} calls that compute for 10 ms",
    unit="calls/s",
    contenders=calls.contenders(lambda name: lambda scene, quick: _measured(name, scene, quick)),
    notes=(f"{_CHUNK} calls in a message or job, one worker process per core.", *calls.NOTES),
)
