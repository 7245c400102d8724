"""Drain of a full queue: how fast workers get through no-ops, and through tasks that wait 10 ms."""

from __future__ import annotations

import functools

from tests.benchmarks import systems
from tests.benchmarks.processes import Watch
from tests.benchmarks.samples import Sample
from tests.benchmarks.scene import Scene
from tests.benchmarks.systems import Kind, System
from tests.benchmarks.workload import MICRO, Contender, Workload

#: Of so many tasks the first tenth only gets the workers going.
_WARM = 10


def measure(  # noqa: PLR0913, PLR0917 - what varies between workloads
    system: System, kind: Kind, count: int, arguments: tuple[int, ...], scene: Scene, quick: bool
) -> Sample:
    """Fill a queue with ``count`` tasks, start the workers, and measure all but the first tenth."""
    count = count // 50 if quick else count
    place = system.place(kind)
    scene.purge(place)
    marks = scene.marks(count)
    scene.measure(
        "benchwork.produce",
        system.module,
        kind,
        str(count),
        *map(str, arguments),
        environment=system.environment,
    )
    with system.workers(scene, kind) as workers:
        scene.all_ran(marks, count // _WARM)
        watch = Watch({"workers": workers, "broker": scene.broker})
        watched = max(count - marks.done(), 1)
        scene.all_ran(marks, count)
        used = watch.used()
    scene.holds(place, 0)
    return Sample(
        marks.pace(count // _WARM),
        used["workers"] / watched * MICRO,
        used["broker"] / watched * MICRO,
        {"ran twice": marks.twice()},
    )


CONTENDERS = (systems.KIT, systems.CELERY, systems.DRAMATIQ, systems.TASKIQ)
COUNTED = (
    (
        "Every task marks its number in shared memory, the same for all: all must have run, and afterwards"
        " the queue must be empty."
    ),
    "Measured from the tenth part of the tasks to the last: no system's start counts. No results are stored.",
)


def contender(system: System, kind: Kind, count: int) -> Contender:
    """Return ``system`` with ``count`` tasks of ``kind`` to drain."""
    return Contender(system.name, system.runs, functools.partial(measure, system, kind, count, ()))


WORKLOAD = Workload(
    name="drain",
    title="Drain of no-op tasks",
    unit="tasks/s",
    contenders=tuple(contender(system, "noop", 10_000) for system in (*CONTENDERS, systems.RAW)),
    notes=(
        (
            "Worker processes: one per core of every system. The kit's queue has the profile `throughput`"
            " (batches, prefetch 60 a process, no events); prefetch of raw py-amqp is 64, of taskiq 100, of"
            " Celery and dramatiq the default. dramatiq has 8 threads a process."
        ),
        *COUNTED,
    ),
)
