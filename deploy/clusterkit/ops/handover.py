r"""Tells whether new worker nodes serve, before the old ones they shall replace are asked to end.

    python -m clusterkit.ops.handover .cluster/lab/operator.json h4 \
        '[{"name": "worker-cpu.b", "replaces": "worker-cpu"}]' '{"cpu": ["cpu", "default"]}'

Role `worker` runs it on the control machine, whose operator may send control commands; no worker may. It ends
with 0 when every new node consumes its queues and runs tasks, otherwise with 1 and what is missing.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kombu.exceptions import OperationalError

from clusterkit.runtime import client
from clusterkit.runtime.errors import ClusterkitError
from clusterkit.runtime.probe import PROBE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from celery import Celery

#: Seconds new nodes have to come up and run a task.
DEADLINE: Final = 60.0
#: Seconds between two looks.
_PAUSE: Final = 0.3
#: Seconds an answer to a control command may take.
_ANSWER: Final = 2.0


@dataclass(frozen=True)
class Pair:
    """A new worker node and the one it shall replace, by Celery's names, and the queues of both."""

    new: str
    old: str
    queues: tuple[str, ...]


def pairs_of(host: str, joining: str, queues: str) -> list[Pair]:
    """Return the pairs of ``host`` from role `worker`'s JSON: what joins, and the queues of each node."""
    consumed: dict[str, list[str]] = json.loads(queues)
    pairs = []
    for one in json.loads(joining):
        new, old = (one[key].removeprefix("worker-") for key in ("name", "replaces"))
        pairs.append(Pair(f"{new}@{host}", f"{old}@{host}", tuple(consumed[new.partition(".")[0]])))
    return pairs


def wait(app: Celery, pairs: Iterable[Pair], deadline: float = DEADLINE) -> dict[str, str]:
    """Wait until the new nodes serve; return what each of them lacks, by name: nothing when all do.

    A node serves when it consumes its queues and has begun a task since it started. An idle one is sent probe
    tasks; behind a backlog a task of the backlog will do. As soon as a node answers at all it is told of the
    tasks that were revoked at the old one.
    """
    pending = {pair.new: pair for pair in pairs}
    told: set[str] = set()
    lacks = dict.fromkeys(pending, "does not answer")
    connection = app.connection_for_write()  # not opened: it knows which errors mean that it was lost
    passing = (OperationalError, OSError, *connection.connection_errors, *connection.channel_errors)
    give_up_at = time.monotonic() + deadline
    while pending and time.monotonic() < give_up_at:
        try:
            _look(app, pending, told, lacks)
        except passing as error:
            lacks.update(dict.fromkeys(pending, f"cannot be asked: {error}"))
        time.sleep(_PAUSE if pending else 0)
    return {name: lacks[name] for name in pending}


def _look(app: Celery, pending: dict[str, Pair], told: set[str], lacks: dict[str, str]) -> None:
    """Ask the pending nodes once; take out of ``pending`` those that serve."""
    inspect = app.control.inspect(destination=list(pending), timeout=_ANSWER, limit=len(pending))
    stats: dict[str, Any] = inspect.stats() or {}
    for name in stats.keys() - told:
        _tell_revoked(app, pending[name])
        told.add(name)
    queues: dict[str, Any] = (inspect.active_queues() or {}) if stats else {}
    for name, found in stats.items():
        pair = pending[name]
        missing = set(pair.queues) - {queue["name"] for queue in queues.get(name, ())}
        if missing:
            lacks[name] = f"does not consume {', '.join(sorted(missing))}"
        elif not found.get("total"):
            lacks[name] = "consumes its queues, but has begun no task"
            # The broker gives messages to the consumers in turn; whoever runs them, they are gone at once.
            for _ in range(2):
                app.send_task(PROBE, queue=pair.queues[0], ignore_result=True)
        else:
            del pending[name]


def _tell_revoked(app: Celery, pair: Pair) -> None:
    """Tell the new node what was revoked at the old one."""
    revoked = app.control.inspect(destination=[pair.old], timeout=_ANSWER, limit=1).revoked() or {}
    if ids := revoked.get(pair.old):
        app.control.revoke(ids, destination=[pair.new])


def main(arguments: list[str]) -> int:
    """Wait for the nodes in ``arguments``: the operator's cluster file, and what ``pairs_of`` takes."""
    path, *described = arguments
    try:
        app = client.connect(path=Path(path))
    except ClusterkitError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the task that runs it shows this
        return 1
    lacking = wait(app, pairs_of(*described))
    for name, what in lacking.items():
        message = f"{name} {what} after {DEADLINE:.0f} s, so the node before it goes on"
        print(message, file=sys.stderr)  # noqa: T201 - as above
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
