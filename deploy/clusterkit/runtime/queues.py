"""The queues and exchanges as Celery sees them; ``clusterkit.ops.topology`` declares the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kombu import Exchange, Queue

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Topic, because native delayed delivery (ETA, countdown, retry on quorum queues) passes direct
#: exchanges by: there an ETA task blocks a worker's slot until it is due.
EXCHANGE = "celery"


def queues(names: Iterable[str], *, declare: bool, kind: str = "quorum") -> list[Queue]:
    """Return a queue per name, bound to the topic exchange under its own name.

    With ``declare`` False, a process never tries to create them: it needs no right to.
    """
    exchange = Exchange(EXCHANGE, type="topic", durable=True, no_declare=not declare)
    return [
        Queue(
            name,
            exchange,
            routing_key=name,
            durable=True,
            queue_arguments={"x-queue-type": kind} if kind != "classic" else None,
            no_declare=not declare,
        )
        for name in names
    ]
