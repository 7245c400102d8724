"""A task that is due every second, to see what a scheduler's death does to the schedule."""

from __future__ import annotations

import contextlib
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from celery.schedules import schedule
from redbeat import RedBeatSchedulerEntry
from redbeat.schedulers import get_redis

from clusterkit.runtime.drill import DRILL

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from celery import Celery

    from clusterkit.ops.drills.executions import Execution

#: The number of the tasks that the scheduler sends; they are no part of the load.
BEAT: Final = -1
_INTERVAL: Final = 1.0
#: Seconds after which the task is gone in any case.
_LEFT_AFTER: Final = 1_800


@dataclass(frozen=True)
class Beats:
    """How the schedule was kept; ``longest_gap`` is in seconds, and 1 when nothing happens."""

    count: int
    longest_gap: float
    twice: int
    """Tasks beyond one a second: two schedulers sent them."""


@contextlib.contextmanager
def every_second(app: Celery, drill: str) -> Iterator[None]:
    """Have the cluster's scheduler send a task every second."""
    entry = RedBeatSchedulerEntry(
        drill, DRILL, schedule(run_every=_INTERVAL, app=app), args=[drill, BEAT, 0], app=app
    )
    entry.save()
    # Of a drill that was killed nobody takes it back: redbeat then drops it from the schedule.
    get_redis(app).expire(entry.key, _LEFT_AFTER)
    try:
        yield
    finally:
        entry.delete()


def count(executions: Iterable[Execution]) -> Beats:
    """Return how the schedule was kept."""
    first: dict[str, float] = {}
    for each in executions:
        if each.number == BEAT:  # of one that ran twice, the first run
            first[each.task] = min(each.begin, first.get(each.task, each.begin))
    begins = sorted(first.values())
    gaps = [later - earlier for earlier, later in itertools.pairwise(begins)]
    due = math.ceil(sum(gaps) / _INTERVAL) + 1
    return Beats(len(begins), round(max(gaps, default=0), 1), max(len(begins) - due, 0))
