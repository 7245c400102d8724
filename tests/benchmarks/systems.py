"""The systems: how each publishes, what runs its tasks, and what it guarantees."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Literal

import psutil

from tests.benchmarks.scene import Place, Scene

#: Kinds of work: no-ops, tasks that wait (100 at a time a process), tasks that compute (one at a time a
#: process), tasks at a steady rate (one at a time a process).
Kind = Literal["noop", "nap", "compute", "paced"]
#: Tasks at a time of a process whose tasks wait.
WAITING: Final = 100

Workers = Callable[[Scene, Kind], AbstractContextManager[list[psutil.Process]]]


@dataclass(frozen=True)
class System:
    """One way to publish tasks and run them."""

    name: str
    module: str
    """Of `benchwork`: has the tasks and the publisher."""
    publishes: str
    """What a publish guarantees."""
    runs: str
    """What its workers guarantee; empty: it is measured as a publisher only."""
    workers: Workers
    way: str = ""
    """Which of its module's ways to publish."""
    pipelined: bool = False
    """Whether many publishes are under way at a time: these are measured with more messages."""
    queue: str = ""
    """The kit's queue that every kind of task goes to; empty: each to its own."""

    @property
    def environment(self) -> dict[str, str]:
        """Return what its publisher is told."""
        return {"BENCH_WAY": self.way, "BENCH_QUEUE": self.queue}

    def place(self, kind: Kind) -> Place:
        """Return the queue its tasks go through."""
        if self.module == "benchwork.kit":
            return Place(self.queue or _KIT_QUEUES[kind], peers=False)
        return Place(_PEER_QUEUES[self.module])


_KIT_QUEUES: Final[dict[Kind, str]] = {"noop": "drain", "nap": "waits", "compute": "cpu", "paced": "steady"}
_KIT_NODES: Final[dict[Kind, tuple[str, ...]]] = {
    "noop": ("drain",),
    "nap": ("waits-1", "waits-2"),
    "compute": ("cpu",),
    "paced": ("steady",),
}
_PEER_QUEUES: Final = {
    "benchwork.stock": "celery",
    "benchwork.dramatiq_tasks": "dramatiq",
    "benchwork.taskiq_tasks": "taskiq",
    "benchwork.raw": "raw",
}


def _kit(scene: Scene, kind: Kind) -> AbstractContextManager[list[psutil.Process]]:
    return scene.nodes(*_KIT_NODES[kind])


def _node(name: str, scene: Scene, kind: Kind) -> AbstractContextManager[list[psutil.Process]]:
    del kind
    return scene.nodes(name)


def _stock(scene: Scene, kind: Kind, *options: str) -> AbstractContextManager[list[psutil.Process]]:
    worker = ("celery", "--app", "benchwork.stock", "worker", *options)
    if kind != "nap":
        return scene.processes((*worker, "--concurrency", str(scene.cores)))
    green = ("--pool", "gevent", "--concurrency", str(WAITING))
    return scene.processes(*((*worker, *green, "--hostname", f"{n}@bench") for n in range(scene.cores)))


def _silent(scene: Scene, kind: Kind) -> AbstractContextManager[list[psutil.Process]]:
    return _stock(scene, kind, "--without-gossip", "--without-mingle", "--without-heartbeat")


def _dramatiq(scene: Scene, kind: Kind) -> AbstractContextManager[list[psutil.Process]]:
    threads = {"noop": 8, "nap": WAITING, "compute": 1, "paced": 1}[kind]
    return scene.processes(
        ("dramatiq", "benchwork.dramatiq_tasks", "--processes", str(scene.cores), "--threads", str(threads))
    )


def _taskiq(scene: Scene, kind: Kind) -> AbstractContextManager[list[psutil.Process]]:
    at_once = {"noop": WAITING, "nap": WAITING, "compute": 1, "paced": 1}[kind]
    return scene.processes(
        (
            *("taskiq", "worker", "benchwork.taskiq_tasks:broker", "--workers", str(scene.cores)),
            *("--max-async-tasks", str(at_once), "--max-threadpool-threads", "1", "--log-level", "WARNING"),
        ),
        BENCH_PREFETCH=str(at_once),
    )


def _raw(scene: Scene, kind: Kind) -> AbstractContextManager[list[psutil.Process]]:
    return scene.processes(*[("python", "-m", "benchwork.raw")] * scene.cores)


_LATE: Final = "acknowledged after the task; what a killed worker had runs again"
_KIT_RUNS: Final = f"{_LATE}, at most 20 times, then dead letters"
_STOCK_RUNS: Final = "acknowledged before the task: what a killed worker had is lost"

KIT: Final = System(
    "kit", "benchwork.kit", "confirmed, `mandatory`, 1,000 under way", _KIT_RUNS, _kit, pipelined=True
)
KIT_EACH: Final = System(
    "kit, apply_async", "benchwork.kit", "confirmed, `mandatory`, one at a time", "", _kit, "each"
)
#: The kit under each profile, and with one message more in advance: a queue, and a node of the same name.
PROFILES: Final = tuple(
    System(
        profile,
        "benchwork.kit",
        "",
        _KIT_RUNS,
        functools.partial(_node, queue),
        pipelined=True,
        queue=queue,
    )
    for profile, queue in (
        ("latency", "steady"),
        ("latency, prefetch 2", "default"),
        ("throughput", "drain"),
        ("long-tasks", "long"),
    )
)
CELERY: Final = System("Celery", "benchwork.stock", "not confirmed", _STOCK_RUNS, _stock)
CELERY_SILENT: Final = System(
    "Celery, silent", "benchwork.stock", "not confirmed", f"{_STOCK_RUNS}; nobody sees it", _silent
)
CELERY_CONFIRMS: Final = System(
    "Celery, confirm_publish", "benchwork.stock", "confirmed, one at a time", "", _stock, "confirms"
)
DRAMATIQ: Final = System("dramatiq", "benchwork.dramatiq_tasks", "not confirmed", _LATE, _dramatiq)
DRAMATIQ_CONFIRMS: Final = System(
    "dramatiq, confirm_delivery",
    "benchwork.dramatiq_tasks",
    "confirmed, `mandatory`, one at a time",
    "",
    _dramatiq,
    "confirms",
)
TASKIQ: Final = System("taskiq", "benchwork.taskiq_tasks", "confirmed, one at a time", _LATE, _taskiq)
TASKIQ_TOGETHER: Final = System(
    "taskiq, 1,000 at a time",
    "benchwork.taskiq_tasks",
    "confirmed, 1,000 under way",
    "",
    _taskiq,
    "together",
    pipelined=True,
)
RAW: Final = System(
    "raw py-amqp",
    "benchwork.raw",
    "confirmed, `mandatory`, 1,000 under way",
    f"{_LATE}; no task framework",
    _raw,
    pipelined=True,
)
