"""Changes how many tasks a worker node runs at once, in the inventory and on its hosts, while it runs."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from clusterkit.ops import addresses, inventoryedit, playbook, status
from clusterkit.ops.deployment import base_variables, operator_app
from clusterkit.ops.lock import alone
from clusterkit.ops.progress import Progress
from clusterkit.ops.suggest import did_you_mean
from clusterkit.ops.tables import new_table
from clusterkit.runtime.errors import BadInputError

if TYPE_CHECKING:
    from rich.console import Console

    from clusterkit.ops.model import Cluster, Pool, WorkerNode
    from clusterkit.ops.status import NodeStatus

#: Pools that take another size while they run (role `worker` has the same list).
RESIZED_POOLS: Final[frozenset[Pool]] = frozenset({"prefork", "gevent", "eventlet"})
_WAIT: Final = "Worker nodes"
#: Seconds between two looks at the nodes.
_PAUSE: Final = 1.0


@dataclass(frozen=True)
class Sized:
    """A worker node's tasks at once before and after, and what it has and runs now."""

    node: str
    before: int
    after: int
    processes: int
    running: int
    done: bool
    """Whether it has the size that was asked for."""


@dataclass(frozen=True)
class Scaled:
    """What a scaling did."""

    wanted: int
    nodes: tuple[Sized, ...]
    seconds: float

    @property
    def complete(self) -> bool:
        """Whether every node has its new size."""
        return all(node.done for node in self.nodes)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-safe values."""
        return {**asdict(self), "complete": self.complete}


def scale(cluster: Cluster, node: str, size: int, console: Console, *, timeout: int) -> Scaled:
    """Let the worker node ``node`` run ``size`` tasks at once on each of its hosts; nothing is restarted.

    Waits up to ``timeout`` seconds until the nodes say so: a process that is at work goes after its task.

    Raises:
        BadInputError: there is no such node, or its pool cannot; nothing was changed.
        InventoryError: the inventory could not be edited; nothing was changed.
    """
    _check(cluster, node)
    phases = [*playbook.phases(cluster, "scale"), _WAIT]
    with (
        alone(cluster),
        Progress(f"cluster {cluster.name}: scale {node} to {size}", phases, console) as progress,
    ):
        resized = inventoryedit.set_of_node(cluster, node, "concurrency", size)
        found = resize(resized, node, size, timeout=timeout, progress=progress)
        return Scaled(size, found, round(progress.seconds, 1))


def resize(
    cluster: Cluster, node: str, size: int, *, timeout: int, progress: Progress | None = None
) -> tuple[Sized, ...]:
    """Make the worker node ``node`` the size that ``cluster`` says, and wait until it is ``size``."""
    before = {one.name: one.concurrency for one in _look(cluster, node)}
    write_sizes(cluster, node, progress)
    if progress:
        progress.start(_WAIT)
    give_up_at = time.monotonic() + timeout
    while True:
        found = tuple(_sized(one, before, size) for one in _look(cluster, node))
        waiting = [one for one in found if not one.done]
        if not waiting or time.monotonic() >= give_up_at:
            return found
        if progress:
            progress.doing("; ".join(map(_describe, waiting)))
        time.sleep(_PAUSE)


def write_sizes(cluster: Cluster, node: str, progress: Progress | None = None) -> None:
    """Tell the hosts of ``node`` what size ``cluster`` says it has."""
    cluster = addresses.resolved(cluster)
    playbook.run(cluster, "scale", {**base_variables(cluster), "cluster_node": node}, progress)


def _check(cluster: Cluster, name: str) -> None:
    nodes: dict[str, WorkerNode] = {node.name: node for node in cluster.worker_nodes}
    if name not in nodes:
        hint = did_you_mean(name, nodes, otherwise="Worker nodes")
        raise BadInputError(f"cluster {cluster.name!r} has no worker node {name!r}. {hint}")
    pool = nodes[name].pool
    if pool not in RESIZED_POOLS:
        raise BadInputError(
            f"worker node {name!r} has the pool {pool}, whose size is fixed while it runs",
            next_step="a solo node runs one task: add hosts or nodes"
            if pool == "solo"
            else "change its concurrency in the inventory; make cluster-up then replaces the node",
        )


def _look(cluster: Cluster, node: str) -> list[NodeStatus]:
    found = status.nodes(cluster, operator_app(cluster))
    return [one for one in found if one.name.partition("@")[0] == node and not one.retiring]


def _sized(found: NodeStatus, before: dict[str, int], size: int) -> Sized:
    processes = size if found.pool == "prefork" else 1
    done = not found.problem and (found.concurrency, found.processes) == (size, processes)
    return Sized(
        found.name, before.get(found.name, 0), found.concurrency, found.processes, found.running, done
    )


def _describe(node: Sized) -> str:
    if not node.after:
        return f"{node.node} does not answer"
    return f"{node.node}: {node.processes} processes, {node.running} tasks run"


def show(cluster: Cluster, scaled: Scaled, console: Console) -> None:
    """Print the nodes as a table."""
    numbers = ("before", "after", "processes", "running")
    table = new_table(f"Cluster {cluster.name}", "node", *numbers, "state", right=numbers)
    for node in scaled.nodes:
        state = "[green]ok[/]" if node.done else "[yellow]waits for its tasks[/]"
        if not node.after:
            state = "[red]does not answer[/]"
        table.add_row(
            node.node, str(node.before), str(node.after), str(node.processes), str(node.running), state
        )
    console.print(table)
