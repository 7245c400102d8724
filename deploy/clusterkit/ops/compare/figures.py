"""What a comparison found, as typed objects, and as JSON and CSV."""

from __future__ import annotations

import csv
import io
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from clusterkit.ops.compare.variants import PLAIN
from clusterkit.ops.model import POOLS

MEGABYTE: Final = 1_000_000
#: Part of its time that the plain loop waited for a core from which on the rates are doubtful.
DISTURBED: Final = 0.15
#: Packages whose versions decide what is measured.
_PACKAGES: Final = ("celery", "kombu", "gevent", "eventlet", "ppft")


@dataclass(frozen=True)
class Figure:
    """One variant at one work; medians of the rounds.

    ``seconds`` for all calls, ``processor`` the seconds of CPU a call of the variant's own processes (the one
    that calls, and those that work), ``servers`` those of broker and result store, ``queued`` the seconds
    that the calling thread waited for a core, ``memory`` the peak of bytes of the own processes. ``problem``
    is empty when it ran and gave the plain loop's results.
    """

    variant: str
    title: str
    kind: str
    at_once: int
    calls: int
    seconds: float = 0.0
    processor: float = 0.0
    servers: float = 0.0
    queued: float = 0.0
    memory: int = 0
    problem: str = ""

    @property
    def celery(self) -> bool:
        """Whether it is one of Celery's pools."""
        return self.variant in POOLS

    @property
    def ran(self) -> bool:
        """Whether there are figures: it was called and all calls came back."""
        return self.seconds > 0

    @property
    def rate(self) -> float:
        """Calls a second."""
        return self.calls / self.seconds if self.seconds else 0.0

    @property
    def cores(self) -> float:
        """Processor cores that it kept busy, in the mean."""
        return self.processor * self.calls / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Compared:
    """One work under all variants."""

    work: str
    limit: str
    what: str
    figures: tuple[Figure, ...]

    @property
    def plain(self) -> Figure:
        """The plain loop's."""
        return next(figure for figure in self.figures if figure.variant == PLAIN)

    def times(self, figure: Figure) -> float:
        """Return how many times the plain loop's rate ``figure`` has."""
        return figure.rate / self.plain.rate if self.plain.rate else 0.0

    @property
    def disturbed(self) -> float:
        """The part of its time that the plain loop waited for a core: other programs had it."""
        return self.plain.queued / self.plain.seconds if self.plain.seconds else 0.0

    @property
    def quiet(self) -> bool:
        """Whether the machine was quiet enough to say who is fast."""
        return self.disturbed < DISTURBED

    @property
    def ran(self) -> list[Figure]:
        """The variants that have figures, the fastest first."""
        return sorted((figure for figure in self.figures if figure.ran), key=lambda figure: -figure.rate)

    @property
    def sound(self) -> list[Figure]:
        """Those of them whose results are the plain loop's."""
        return [figure for figure in self.ran if not figure.problem]


@dataclass(frozen=True)
class Comparison:
    """All of a run: where and when (seconds since 1970), what, and what came of it."""

    started: float
    cores: int
    rounds: int
    machine: dict[str, str]
    works: tuple[Compared, ...] = ()
    reading: tuple[str, ...] = field(default=())

    @property
    def problems(self) -> list[str]:
        """What went wrong, one line each."""
        return [
            f"{compared.work}, {figure.title}: {figure.problem}"
            for compared in self.works
            for figure in compared.figures
            if figure.problem
        ]

    def to_json(self) -> dict[str, Any]:
        """Return all of it for programs; memory is in bytes, the rest in seconds."""
        return {
            "started": self.started,
            "cores": self.cores,
            "rounds": self.rounds,
            "machine": self.machine,
            "works": [
                {
                    "work": compared.work,
                    "limit": compared.limit,
                    "what": compared.what,
                    "figures": [
                        {
                            **asdict(figure),
                            "rate": round(figure.rate, 2),
                            "times_plain": round(compared.times(figure), 3),
                            "cores_used": round(figure.cores, 2),
                        }
                        for figure in compared.figures
                    ],
                }
                for compared in self.works
            ],
            "reading": list(self.reading),
            "problems": self.problems,
        }

    def to_csv(self) -> str:
        """Return a line for each variant and work, with a head."""
        text = io.StringIO()
        rows = [
            {"work": work["work"], "limit": work["limit"], **figure}
            for work in self.to_json()["works"]
            for figure in work["figures"]
        ]
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def machine(brokers: dict[str, str]) -> dict[str, str]:
    """Return what the figures depend on: processor, system and versions; ``brokers`` has the servers'."""
    return {
        "processor": _processor(),
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
        **brokers,
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
