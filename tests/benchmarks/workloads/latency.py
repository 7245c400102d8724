"""Latency: from when a task was due to be submitted to when it began, at three loads."""

from __future__ import annotations

import functools

from benchwork import work

from tests.benchmarks.samples import Sample, percentile
from tests.benchmarks.scene import Scene
from tests.benchmarks.systems import System
from tests.benchmarks.workload import MICRO, Contender, Workload
from tests.benchmarks.workloads import drain

#: Shares of what the worker processes can do.
_LOADS = (0.3, 0.6, 0.9)
_SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
#: Seconds of each load.
_SECONDS = 4.0
#: Tasks that get workers and publisher going.
_WARM = 20
_MILLI = 1_000


def measure(system: System, scene: Scene, quick: bool) -> Sample:
    """Submit at each load, and say how late tasks began, in ms."""
    capacity = scene.cores / work.NAP
    counts = [20 if quick else round(load * capacity * _SECONDS) for load in _LOADS]
    place = system.place("paced")
    scene.purge(place)
    marks = scene.marks(_WARM + sum(counts))
    figures: dict[str, float] = {}
    used = {"workers": 0.0, "broker": 0.0}
    with system.workers(scene, "paced") as workers:
        scene.measure("benchwork.produce", system.module, "paced", str(_WARM), environment=system.environment)
        scene.all_ran(marks, _WARM)
        first = _WARM
        for load, count in zip(_LOADS, counts, strict=True):
            found = scene.measure(
                *("benchwork.produce", system.module, "paced", str(count), "--first", str(first)),
                *("--rate", str(load * capacity), "--seed", str(first)),
                workers=workers,
                environment=system.environment,
            )
            scene.all_ran(marks, first + count)
            begins = marks.when()[first : first + count]
            waited = [begin - due for begin, due in zip(begins, found.answer["submitted"], strict=True)]
            for name, share in _SHARES.items():
                figures[f"{load:.0%} {name}"] = percentile(waited, share) * _MILLI
            used = {name: used[name] + found.used[name] for name in used}
            first += count
    scene.holds(place, 0)
    total = sum(counts)
    return Sample(
        figures["90% p95"], used["workers"] / total * MICRO, used["broker"] / total * MICRO, figures
    )


WORKLOAD = Workload(
    name="latency",
    title="Latency from submit to begin",
    unit="ms (p95 at 90 %)",
    contenders=tuple(
        Contender(system.name, system.runs, functools.partial(measure, system)) for system in drain.CONTENDERS
    ),
    notes=(
        (
            "Tasks that wait 10 ms, one at a time in one process per core: 100 % are 100 tasks/s a process."
            " They come at random (Poisson), at the same times for every system, each published by itself."
        ),
        "A task is late from when it was due to be published, so that a publisher that falls behind counts.",
        "Less is better. CPU is the workers', their idle time between the tasks included.",
    ),
)
