"""Confirmed publish: how many messages one publisher gets onto a quorum queue."""

from __future__ import annotations

import functools

from tests.benchmarks import systems
from tests.benchmarks.samples import Sample
from tests.benchmarks.scene import Scene
from tests.benchmarks.systems import System
from tests.benchmarks.workload import MICRO, Contender, Workload

#: Messages of a publisher that waits for each, and of one that has many under way.
_EACH, _PIPELINED, _QUICK = 2_500, 20_000, 100


def _measure(system: System, scene: Scene, quick: bool) -> Sample:
    count = _QUICK if quick else _PIPELINED if system.pipelined else _EACH
    place = system.place("noop")
    scene.purge(place)
    found = scene.measure(
        "benchwork.produce", system.module, "noop", str(count), environment=system.environment
    )
    scene.holds(place, count)
    scene.purge(place)
    measured = found.answer["count"]
    return Sample(
        measured / found.answer["seconds"],
        found.answer["cpu"] / measured * MICRO,
        found.used["broker"] / measured * MICRO,
    )


WORKLOAD = Workload(
    name="publish",
    title="Publish to a quorum queue",
    unit="messages/s",
    contenders=tuple(
        Contender(system.name, system.publishes, functools.partial(_measure, system))
        for system in (
            systems.KIT,
            systems.KIT_EACH,
            systems.CELERY_CONFIRMS,
            systems.CELERY,
            systems.DRAMATIQ_CONFIRMS,
            systems.DRAMATIQ,
            systems.TASKIQ,
            systems.TASKIQ_TOGETHER,
            systems.RAW,
        )
    ),
    notes=(
        "One publisher, one process, one connection; the task takes one number. CPU is the publisher's.",
        "Afterwards every message must be in the queue.",
    ),
)
