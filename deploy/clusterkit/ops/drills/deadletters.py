"""The dead letters of a drill: found by their ids among everybody's, and taken out when they are counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusterkit.ops import topology
from clusterkit.ops.drills.journal import id_prefix

if TYPE_CHECKING:
    from celery import Celery


def take(app: Celery, drill: str, *, keep: bool) -> set[str]:
    """Return the ids of the drill's messages among the dead letters; take them out unless ``keep``.

    All others go back to the queue, in their place.
    """
    found: set[str] = set()
    prefix = id_prefix(drill)
    with app.connection_for_read() as connection, connection.channel() as channel:
        others = []
        while message := channel.basic_get(topology.DEAD_LETTERS):
            headers = message.headers or {}
            task = headers.get("id")
            if isinstance(task, str) and task.startswith(prefix):
                found.add(task)
                if not keep:
                    channel.basic_ack(message.delivery_tag)
                    continue
            others.append(message.delivery_tag)
        for tag in others:
            channel.basic_reject(tag, requeue=True)
    return found
