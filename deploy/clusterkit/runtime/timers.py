"""Time limits that do not fill the memory.

Celery sets a timer for each task that has a time limit, and takes it back when the task has ended. kombu
(5.7) keeps such a timer until it would have been due: a thousand tasks a second with a limit of an hour
are 3.6 million of them.
"""

from __future__ import annotations

import heapq
from typing import Any, Final

#: Seconds between two sweeps.
INTERVAL: Final = 10.0


def sweep(timer: Any) -> None:
    """Have kombu's ``timer`` forget what was taken back; only its own thread may."""
    queue = timer._queue  # noqa: SLF001 - the hub holds this very list
    queue[:] = [scheduled for scheduled in queue if not scheduled.entry.canceled]
    heapq.heapify(queue)
