"""Proves that a cluster works: a task through every queue of every worker node, and back."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from clusterkit.runtime.nodename import logical
from clusterkit.runtime.probe import PROBE

if TYPE_CHECKING:
    from celery import Celery
    from celery.result import AsyncResult

    from clusterkit.ops.model import Cluster

#: Seconds until probes that were not enough are followed by more.
_ROUND = 1.0
_POLL_INTERVAL = 0.05

Report = Callable[[str], None]


@dataclass
class Probes:
    """Which worker nodes answered: queue -> node -> milliseconds from sending to result."""

    answers: dict[str, dict[str, float]]
    missing: dict[str, list[str]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every node answered for each of its queues."""
        return not self.missing

    def describe_missing(self) -> list[str]:
        """Return a line per node that did not answer."""
        return [
            f"{node} did not answer on queue {queue}"
            for queue, nodes in self.missing.items()
            for node in nodes
        ]


def probe(
    app: Celery,
    cluster: Cluster,
    *,
    deadline: float,
    report: Report = lambda _: None,
    but: Collection[str] = (),
) -> Probes:
    """Send probe tasks to every queue until each of its worker nodes has answered, or ``deadline`` s passed.

    The broker gives a queue's messages to its consumers in turn, so a few probes reach every node; more
    are sent every second to the queues that are not through. Those in ``but`` are left out.
    """
    wanted: dict[str, set[str]] = defaultdict(set)
    for name, node in cluster.expected_nodes():
        for queue in node.queues:
            if queue not in but:
                wanted[queue].add(name)
    answers: dict[str, dict[str, float]] = {queue: {} for queue in wanted}
    sent: dict[AsyncResult, tuple[str, float]] = {}
    give_up_at = time.monotonic() + deadline
    next_round = 0.0
    while time.monotonic() < give_up_at:
        missing = _missing(wanted, answers)
        if not missing:
            break
        if time.monotonic() >= next_round:
            for queue, nodes in missing.items():
                for _ in range(2 * len(nodes)):
                    result = app.send_task(PROBE, queue=queue)
                    sent[result] = (queue, time.monotonic())
            next_round = time.monotonic() + _ROUND
            total, done = sum(map(len, wanted.values())), sum(map(len, answers.values()))
            report(f"{done} of {total} answered")
        _gather(sent, answers)
        time.sleep(_POLL_INTERVAL)
    for result in sent:
        result.forget()
    return Probes(answers, {queue: sorted(nodes) for queue, nodes in _missing(wanted, answers).items()})


def _gather(sent: dict[AsyncResult, tuple[str, float]], answers: dict[str, dict[str, float]]) -> None:
    for result in [result for result in sent if result.ready()]:
        queue, at = sent.pop(result)
        value: Any = result.result
        if result.successful():
            answers[queue].setdefault(logical(value["node"]), (time.monotonic() - at) * 1000)
        result.forget()


def _missing(wanted: dict[str, set[str]], answers: dict[str, dict[str, float]]) -> dict[str, set[str]]:
    left = {queue: nodes - answers[queue].keys() for queue, nodes in wanted.items()}
    return {queue: nodes for queue, nodes in left.items() if nodes}
