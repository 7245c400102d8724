"""What a queue's tasks are like, and how a worker node therefore runs them."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from clusterkit.runtime.errors import BadInputError

if TYPE_CHECKING:
    from celery import Celery

#: Names the profile that a worker node runs with.
PROFILE_VARIABLE: Final = "CLUSTERKIT_PROFILE"

Name = Literal["latency", "throughput", "long-tasks"]


@dataclass(frozen=True)
class Profile:
    """How a worker node runs the tasks of its queues."""

    prefetch_multiplier: int
    """Messages taken from the broker per slot, unless the inventory says otherwise."""
    time_limit: int
    """Seconds after which a task is ended by force, unless the inventory says otherwise."""
    batch: int = 1
    """Tasks that go to a pool process together at most; 1: Celery's own way. Only prefork."""
    events: bool = True
    """Whether Flower and others hear of each task; of each worker node they do in any case."""
    log_tasks: bool = True
    """Whether the log has a line for each task received and succeeded."""


PROFILES: Final[dict[Name, Profile]] = {
    # A task begins as soon as any slot of any node is free: none waits at a node for a task before it.
    "latency": Profile(prefetch_multiplier=1, time_limit=3_600),
    # docs/howto/speed.md has the figures. A minute, for the broker waits for all that a slot has taken: that
    # is an hour for 60 of them, as with `latency`, and a profile can change without a broker's restart.
    "throughput": Profile(prefetch_multiplier=60, time_limit=60, batch=32, events=False, log_tasks=False),
    "long-tasks": Profile(prefetch_multiplier=1, time_limit=86_400),
}


def current() -> Profile:
    """Return the profile of this process's worker node.

    Raises:
        BadInputError: ``$CLUSTERKIT_PROFILE`` names none.
    """
    name: Any = os.environ.get(PROFILE_VARIABLE) or "latency"
    try:
        return PROFILES[name]
    except KeyError:
        raise BadInputError(
            f"${PROFILE_VARIABLE} is {name!r}, which is no profile", next_step=f"one of {', '.join(PROFILES)}"
        ) from None


def apply(profile: Profile, app: Celery) -> None:
    """Have the tasks of ``app`` run quietly where ``profile`` says so; before the pool has its processes.

    Whoever watches may ask a node for events at any time (Flower does): each task itself sends none.
    """
    if not profile.events:
        for task in app.tasks.values():
            task.send_events = False
    if not profile.log_tasks:
        for logger in ("celery.worker.strategy", "celery.app.trace"):
            logging.getLogger(logger).setLevel(logging.WARNING)
