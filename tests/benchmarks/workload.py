"""What a workload is, and how it is run: in pairs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.benchmarks import samples
from tests.benchmarks.samples import Pair, Sample, Table
from tests.benchmarks.scene import Scene

#: Microseconds in a second.
MICRO = 1_000_000


@dataclass(frozen=True)
class Contender:
    """A system under a workload."""

    name: str
    guarantees: str
    measure: Callable[[Scene, bool], Sample]
    """Takes the scene, and whether the least will do."""


@dataclass(frozen=True)
class Workload:
    """The same work for several systems; the first is what the others are compared with."""

    name: str
    title: str
    unit: str
    contenders: tuple[Contender, ...]
    notes: tuple[str, ...]

    def names(self, *, quick: bool) -> list[str]:
        """Return what the rows are called."""
        del quick
        return [contender.name for contender in self.contenders]

    def run(self, scene: Scene, repeats: int, say: Callable[[str], None], *, quick: bool) -> Table:
        """Measure every pair ``repeats`` times; ``quick``: every system once.

        Raises:
            MeasureError: a system could not be measured, or not all of its tasks ran.
        """
        began = time.monotonic()
        reference, *peers = self.contenders
        by_name = {contender.name: contender for contender in self.contenders}
        pairs = []
        found: dict[str, Sample] = {}
        for turn in samples.turns(reference.name, [peer.name for peer in peers], repeats):
            for name in turn.order:
                if quick and name in found:
                    continue
                say(f"{self.name}: {name}")
                found[name] = by_name[name].measure(scene, quick)
            pairs.append(Pair(turn.peer, found[reference.name], found[turn.peer]))
        return Table(
            bench=self.name,
            title=self.title,
            unit=self.unit,
            rows=samples.rows(reference.name, pairs),
            notes=self.notes,
            guarantees={contender.name: contender.guarantees for contender in self.contenders},
            seconds=time.monotonic() - began,
        )
