"""A map of 100,000 tiny calls: what is left when a message carries many of them."""

from __future__ import annotations

import functools
from collections.abc import Callable

from tests.benchmarks.samples import Sample
from tests.benchmarks.scene import Scene
from tests.benchmarks.workload import MICRO, Contender, Workload

_IN_MEMORY = "in memory: all is lost with the calling process"
_ON_DISK = "confirmed, on quorum queues, acknowledged late; results in the store"
_COUNT, _CHUNK = 100_000, 1_000
#: Without a chunk size the standard library sends each call alone.
_FEW, _AS_WRITTEN = 20_000, 0
_QUICK_SHARE = 50


def measure(  # noqa: PLR0913, PLR0917 - what varies between workloads
    executor: str, count: int, chunk: int, loops: int, scene: Scene, quick: bool
) -> Sample:
    """Map ``count`` calls over an executor that has a process per core."""
    count = count // _QUICK_SHARE if quick else count
    command = (executor, str(scene.cores), str(count), str(chunk), str(loops))
    with scene.nodes(*(["default"] if executor == "cluster" else [])) as workers:
        found = scene.measure("benchwork.mapping", *command, workers=workers, itself="itself")
    if not found.answer["right"]:
        scene.lost(f"{executor} returned wrong results")
    return Sample(
        count / found.answer["seconds"],
        (found.used["itself"] + found.used["workers"]) / count * MICRO,
        found.used["broker"] / count * MICRO,
    )


def contenders(
    measured: Callable[[str], Callable[[Scene, bool], Sample]],
) -> tuple[Contender, ...]:
    """Return the executors, each with what ``measured`` makes of its name."""
    return (
        Contender(
            "kit, ClusterExecutor",
            _ON_DISK,
            measured("cluster"),
        ),
        Contender("ProcessPoolExecutor", _IN_MEMORY, measured("multiprocessing")),
        Contender("Parallel Python (ppft)", _IN_MEMORY, measured("ppft")),
    )


def as_written() -> tuple[Contender, ...]:
    """Return the executors that do without a chunk size."""
    return (
        Contender(
            "kit, no chunksize", _ON_DISK, functools.partial(measure, "cluster", _COUNT, _AS_WRITTEN, 0)
        ),
        Contender(
            "ProcessPoolExecutor, no chunksize",
            _IN_MEMORY,
            functools.partial(measure, "multiprocessing", _FEW, _AS_WRITTEN, 0),
        ),
    )


NOTES = (
    "The results are compared. CPU is that of the calling process and of all workers.",
    "The column of the broker includes the result store.",
)

WORKLOAD = Workload(
    name="map",
    title="Map of 100,000 tiny calls",
    unit="calls/s",
    contenders=(
        *contenders(lambda name: functools.partial(measure, name, _COUNT, _CHUNK, 0)),
        *as_written(),
    ),
    notes=(
        f"{_CHUNK:,} calls in a message or job, one worker process per core.",
        f"No chunksize: as code is written; {_COUNT:,} calls of the kit, {_FEW:,} of the standard library.",
        *NOTES,
    ),
)
