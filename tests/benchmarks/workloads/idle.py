"""Idle worker nodes: what they say to each other and to the broker, and what that costs, by their number."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import psutil

from tests.benchmarks import samples
from tests.benchmarks.processes import Watch
from tests.benchmarks.samples import Sample, Table
from tests.benchmarks.scene import Place, Scene
from tests.benchmarks.workload import MICRO

#: Seconds until what the start caused is over and the broker has counted it, and seconds that are measured.
#: The broker's counts are 5 s old and more: in less than 10 s they may not have moved at all.
_SETTLE, _MEASURE = 10.0, 20.0
_QUICK_SETTLE, _QUICK_MEASURE = 1.0, 12.0
#: Seconds all worker nodes together may take to start.
_START_WITHIN = 240.0


@dataclass(frozen=True)
class Flags:
    """Worker nodes of one kind: the kit's, or Celery's with these options."""

    name: str
    module: str
    """Of `benchwork`."""
    place: Place
    says: str
    options: tuple[str, ...] = ()


KIT: Final = Flags(
    "kit", "kit", Place("steady", peers=False), "no gossip, no mingle, events on; control queues replicated"
)
DEFAULT: Final = Flags("Celery", "stock", Place("celery"), "default: gossip and mingle, no events of tasks")
PLAIN: Final = Flags(
    "Celery without gossip",
    "stock",
    Place("celery"),
    "`--without-gossip --without-mingle`",
    ("--without-gossip", "--without-mingle"),
)


@dataclass(frozen=True)
class Crowd:
    """So many worker nodes of one kind: real ones of one process each, or simulated ones."""

    flags: Flags
    count: int
    simulated: bool = False

    @property
    def name(self) -> str:
        """What the row is called."""
        return f"{self.flags.name}, {self.count:,}{' simulated' if self.simulated else ''}"

    @contextlib.contextmanager
    def there(self, scene: Scene) -> Iterator[list[psutil.Process]]:
        """Have the nodes meanwhile, and one reader of their events, as Flower is one."""
        flags = self.flags
        if self.simulated:
            gossip = ("--gossip",) if flags is DEFAULT else ()
            with scene.fleet(flags.module, self.count, *gossip):
                yield []
            return
        worker = ("celery", "--app", "benchwork.stock", "worker", "--concurrency", "1", *flags.options)
        commands = [(*worker, "--hostname", f"steady@idle-{number}") for number in range(self.count)]
        with (
            scene.fleet(flags.module, 0),
            scene.copies("steady", self.count) if flags is KIT else scene.processes(*commands) as started,
        ):
            self._came(scene)
            yield started

    def _came(self, scene: Scene) -> None:
        deadline = time.monotonic() + _START_WITHIN
        while (there := scene.consumers(self.flags.place)) < self.count:
            if time.monotonic() > deadline:
                scene.lost(f"{there} of {self.count} worker nodes came; {scene.log} may say why")
            time.sleep(0.5)

    def measure(self, scene: Scene, *, quick: bool) -> Sample:
        """Have the nodes do nothing, and count.

        Raises:
            MeasureError: they did not all come, or one left.
        """
        with self.there(scene) as workers:
            time.sleep(_QUICK_SETTLE if quick else _SETTLE)
            watch = Watch({"workers": workers, "broker": scene.broker})
            before, began = scene.traffic(), time.monotonic()
            time.sleep(_QUICK_MEASURE if quick else _MEASURE)
            used, after = watch.used(), scene.traffic()
            seconds = time.monotonic() - began
            memory = sum(process.memory_info().rss for process in scene.broker) / 2**20
            if (there := scene.consumers(self.flags.place)) != self.count:
                scene.lost(f"{there} of {self.count} worker nodes were there at the end")
        taken, delivered = ((late - early) / seconds for early, late in zip(before, after, strict=True))
        return Sample(
            taken + delivered,
            used["workers"] / seconds / self.count * MICRO,
            used["broker"] / seconds / self.count * MICRO,
            {
                "published/s": taken,
                "delivered/s": delivered,
                "broker, % of a core": used["broker"] / seconds * 100,
                "broker and store, MiB": memory,
            },
        )


#: The first of the simulated ones are as many as were real, to compare. With Celery's default flags what is
#: said grows with the square of their number: after the last the broker has no CPU time left here.
#: 4,300 of the kit's are more than the one process that simulates them gets connected on two cores.
CROWDS: Final = (
    *(Crowd(flags, count) for count in (1, 10, 40) for flags in (KIT, DEFAULT)),
    Crowd(PLAIN, 40),
    *(Crowd(KIT, count, simulated=True) for count in (40, 1_000, 2_000)),
    *(Crowd(DEFAULT, count, simulated=True) for count in (40, 100, 200)),
)
_QUICK: Final = (*CROWDS[:2], Crowd(KIT, 40, simulated=True), Crowd(DEFAULT, 40, simulated=True))


@dataclass(frozen=True)
class Idle:
    """A workload of its own kind: no pairs, for nobody works and what is said is the same each time."""

    name: str = "idle"
    title: str = "Idle worker nodes"
    unit: str = "messages/s"

    def names(self, *, quick: bool) -> list[str]:
        """Return what the rows are called."""
        return [crowd.name for crowd in (_QUICK if quick else CROWDS)]

    def run(self, scene: Scene, repeats: int, say: Callable[[str], None], *, quick: bool) -> Table:
        """Measure every crowd once, whatever ``repeats`` says.

        Raises:
            MeasureError: the nodes did not all come, or one left.
        """
        del repeats
        began = time.monotonic()
        crowds = _QUICK if quick else CROWDS
        rows = []
        for crowd in crowds:
            say(f"{self.name}: {crowd.name}")
            rows.append(samples.row(crowd.name, [crowd.measure(scene, quick=quick)]))
        return Table(
            bench=self.name,
            title=self.title,
            unit=self.unit,
            rows=tuple(rows),
            notes=_NOTES,
            guarantees={crowd.name: crowd.flags.says for crowd in crowds},
            seconds=time.monotonic() - began,
            logarithmic=True,
            cpu_of="of a node in a second",
        )


_NOTES: Final = (
    "Every node has one process and consumes one queue; one connection more reads all events, as Flower.",
    (
        "Messages/s: published and delivered, of all together. Microseconds are of a node and a second: its"
        " own CPU time, and its share of the broker's."
    ),
    (
        "Simulated nodes are in one process: connections, consumers, control queues and heartbeats, made by"
        " the libraries that real ones use. They throw away what they receive and have no CPU time of their"
        " own here."
    ),
)
WORKLOAD: Final = Idle()
