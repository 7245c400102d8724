"""The systems that are compared, and how many calls each runs at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from clusterkit.ops.model import AUTO_CONCURRENCY, POOLS, Pool
from clusterkit.ops.suggest import did_you_mean
from clusterkit.runtime.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterable

Kind = Literal["one at a time", "processes", "threads", "greenlets"]

#: The variant that every other is held against.
PLAIN: Final = "plain"


@dataclass(frozen=True)
class Variant:
    """One system: its ``name`` on the command line, its ``title`` in tables, the pool if it is Celery's."""

    name: str
    title: str
    kind: Kind
    pool: Pool
    """Celery's pool, or the one whose `concurrency: auto` says how many calls it runs at once."""
    celery: bool = False

    def at_once(self, cores: int, wanted: int | None = None) -> int:
        """Return how many calls run at once on ``cores`` cores: ``wanted``, or what `auto` means."""
        if self.kind == "one at a time":
            return 1
        return wanted or AUTO_CONCURRENCY[self.pool].on(cores)


_POOL_KINDS: Final[dict[Pool, Kind]] = {
    "prefork": "processes",
    "threads": "threads",
    "gevent": "greenlets",
    "eventlet": "greenlets",
    "solo": "one at a time",
}

VARIANTS: Final[tuple[Variant, ...]] = (
    Variant(PLAIN, "plain loop", "one at a time", "solo"),
    Variant("threading", "threading", "threads", "threads"),
    Variant("multiprocessing", "multiprocessing", "processes", "prefork"),
    Variant("ppft", "Parallel Python", "processes", "prefork"),
    *(Variant(pool, f"Celery {pool}", _POOL_KINDS[pool], pool, celery=True) for pool in POOLS),
)


def chosen(names: Iterable[str]) -> tuple[Variant, ...]:
    """Return the variants called ``names`` (none: all); the plain loop is always one of them.

    Raises:
        BadInputError: there is no variant of a name.
    """
    known = [variant.name for variant in VARIANTS]
    wanted = {*names}
    for name in sorted(wanted.difference(known)):
        raise BadInputError(
            f"there is no system {name!r} to compare. {did_you_mean(name, known, otherwise='There are')}"
        )
    return tuple(variant for variant in VARIANTS if not wanted or variant.name in {PLAIN, *wanted})
