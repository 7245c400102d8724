"""The dead letters of a drill: found by their ids among everybody's, and taken out when they are counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clusterkit.ops.drills.journal import id_prefix
from clusterkit.ops.messaging import Reader, connected, wait_for_others
from clusterkit.ops.topology import DEAD_LETTERS

if TYPE_CHECKING:
    from clusterkit.ops.model import Cluster


def take(cluster: Cluster, drill: str, *, keep: bool) -> set[str]:
    """Return the ids of the drill's messages among the dead letters; take them out unless ``keep``.

    All others go back to the queue, in their place.

    Raises:
        BadInputError: somebody else is reading them.
        ClusterUnreachableError: the broker does not answer.
    """
    found: set[str] = set()
    prefix = id_prefix(drill)
    with connected(cluster) as connection:
        wait_for_others(connection, DEAD_LETTERS)
        with Reader(connection, DEAD_LETTERS) as reader:
            for message in reader.messages(reader.ready):
                task = message.headers.get("id")
                if isinstance(task, str) and task.startswith(prefix):
                    found.add(task)
                    if not keep:
                        reader.remove(message)
    return found
