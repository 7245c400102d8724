"""The state of a cluster: what the inventory wants beside what Celery, RabbitMQ and the hosts say."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from clusterkit.ops import drained, flower, topology
from clusterkit.ops.tables import new_table as _table

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from celery import Celery
    from rich.console import Console
    from rich.table import Table

    from clusterkit.ops.broker import Broker, Node, Queue
    from clusterkit.ops.deployment import Deployed
    from clusterkit.ops.drained import Mark
    from clusterkit.ops.model import Cluster, WorkerNode
    from clusterkit.ops.needs import HostFacts
    from clusterkit.ops.probing import Probes
    from clusterkit.runtime.errors import ClusterUnreachableError

#: Queues that Celery makes for delays, control commands and events.
_CELERYS_OWN = re.compile(r"celery_delayed_|celeryev|.*pidbox")
#: Seconds within which a worker node has to answer.
_ANSWER = 2.0


@dataclass(frozen=True)
class NodeStatus:
    """One worker node; ``problem`` is empty when it is as the inventory says. Times in seconds."""

    name: str
    pool: str
    concurrency: int
    queues: tuple[str, ...]
    processes: int
    running: int
    done: int
    uptime: int
    problem: str


@dataclass(frozen=True)
class ServiceStatus:
    """One service as its host's service manager sees it; ``uptime`` in seconds."""

    host: str
    name: str
    state: str
    pid: int
    uptime: int


@dataclass(frozen=True)
class Status:
    """All of it; healthy when there is no problem. Without an answer of the broker there is no version."""

    cluster: str
    broker_version: str
    brokers: tuple[Node, ...]
    nodes: tuple[NodeStatus, ...]
    queues: tuple[Queue, ...]
    services: tuple[ServiceStatus, ...]
    urls: dict[str, str]
    problems: tuple[str, ...]
    drained: tuple[Mark, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-safe values."""
        return {**asdict(self), "healthy": not self.problems}


def collect(cluster: Cluster, app: Celery, broker: Broker, services: tuple[ServiceStatus, ...]) -> Status:
    """Ask everybody and compare with the inventory.

    Raises:
        ClusterUnreachableError: RabbitMQ's HTTP API does not answer.
    """
    brokers = broker.nodes()
    queues = broker.queues()
    alarmed = any(node.memory_alarm or node.disk_alarm for node in brokers)
    # In an alarm a control command is held back like any publish, so nobody could answer.
    found = () if alarmed else nodes(cluster, app)
    problems = [
        *_broker_problems(cluster, brokers),
        *(f"worker node {node.name}: {node.problem}" for node in found if node.problem),
        *_service_problems(services),
        *_queue_problems(cluster, queues, found),
        *_forgotten_queues(cluster, queues),
    ]
    shown = tuple(queues[name] for name in sorted(queues) if not _CELERYS_OWN.match(name))
    return Status(
        cluster.name,
        broker.version(),
        brokers,
        found,
        shown,
        services,
        urls(cluster),
        tuple(problems),
        drained.marks(cluster),
    )


def unreachable(
    cluster: Cluster, services: tuple[ServiceStatus, ...], error: ClusterUnreachableError
) -> Status:
    """Return what can be said of a cluster whose broker or result store does not answer."""
    problems = (str(error), *_service_problems(services))
    marks = drained.marks(cluster)
    return Status(cluster.name, "", (), (), (), services, urls(cluster), problems, marks)


def _broker_problems(cluster: Cluster, brokers: tuple[Node, ...]) -> list[str]:
    problems = []
    for node in brokers:
        alarms = [kind for kind, on in (("memory", node.memory_alarm), ("disk", node.disk_alarm)) if on]
        problems += [f"the broker holds publishers back: {node.name}: {kind} alarm" for kind in alarms]
        if not node.running:
            problems.append(f"broker node {node.name} is down, or cut off from the others")
        elif node.partitioned_from:
            problems.append(
                f"broker node {node.name} saw a partition from {', '.join(node.partitioned_from)}"
            )
    wanted = len(cluster.group("brokers"))
    if len(brokers) != wanted:
        names = ", ".join(node.name for node in brokers)
        problems.append(f"the broker has {len(brokers)} nodes ({names}), the inventory {wanted}")
    return problems


def _service_problems(services: tuple[ServiceStatus, ...]) -> list[str]:
    return [
        f"service {service.name} on {service.host}: {service.state}"
        for service in services
        if service.state != "running"
    ]


def urls(cluster: Cluster) -> dict[str, str]:
    """Return what a person opens in a browser."""
    return {"flower": flower_pages(cluster)["admin"], "rabbitmq": broker_urls(cluster)[0]}


def flower_pages(cluster: Cluster) -> dict[str, str]:
    """Return Flower's pages by the user who may open them; who only looks has pages of their own on hosts."""
    place = f"{cluster.listen_address(cluster.group('monitors')[0])}:{cluster.ports.flower}"
    page = f"{_scheme(cluster)}://{place.removesuffix(':443')}/"
    return {"viewer": page, "admin": f"{page}{flower.ADMIN_PREFIX}/"} if cluster.tls else {"admin": page}


def broker_urls(cluster: Cluster) -> list[str]:
    """Return where RabbitMQ's HTTP API is, on every broker."""
    port = cluster.ports.management
    return [
        f"{_scheme(cluster)}://{cluster.listen_address(host)}:{port}/" for host in cluster.group("brokers")
    ]


def _scheme(cluster: Cluster) -> str:
    return "https" if cluster.tls else "http"


def nodes(cluster: Cluster, app: Celery) -> tuple[NodeStatus, ...]:
    """Return every worker node of the inventory with what it says of itself."""
    expected = cluster.expected_nodes()
    # Waiting ends when all have answered, so the limit only costs when one is missing.
    control = app.control.inspect(timeout=_ANSWER, limit=len(expected))
    stats = control.stats() or {}
    queues = control.active_queues() if stats else {}
    active = control.active() if stats else {}
    return tuple(_node(name, node, stats.get(name), queues or {}, active or {}) for name, node in expected)


def _node(
    name: str,
    wanted: WorkerNode,
    stats: dict[str, Any] | None,
    queues: dict[str, Any],
    active: dict[str, Any],
) -> NodeStatus:
    if stats is None:
        return NodeStatus(name, wanted.pool, 0, wanted.queues, 0, 0, 0, 0, "does not answer")
    pool = stats["pool"]
    kind = _pool_kind(pool.get("implementation", ""))
    consumed = tuple(sorted(queue["name"] for queue in queues.get(name, ())))
    problem = ""
    if kind != wanted.pool:
        problem = f"runs the pool {kind}, the inventory says {wanted.pool}: make cluster-up"
    elif consumed != tuple(sorted(wanted.queues)):
        problem = (
            f"consumes {', '.join(consumed) or 'nothing'}, the inventory says {', '.join(wanted.queues)}"
        )
    return NodeStatus(
        name=name,
        pool=kind,
        concurrency=pool.get("max-concurrency") or 1,
        queues=consumed,
        processes=len(pool.get("processes", ())) or 1,
        running=len(active.get(name, ())),
        done=sum(stats.get("total", {}).values()),
        uptime=stats.get("uptime", 0),
        problem=problem,
    )


def _pool_kind(implementation: str) -> str:
    """Return the inventory's name for Celery's pool class, such as celery.concurrency.prefork:TaskPool."""
    module = implementation.partition(":")[0].rpartition(".")[2]
    return {"thread": "threads", "asynpool": "prefork"}.get(module, module)


def _queue_problems(cluster: Cluster, queues: dict[str, Queue], found: tuple[NodeStatus, ...]) -> list[str]:
    # The broker's own count is up to five seconds old, and 0 right after a restart: ask the workers too.
    consumed = {queue for node in found if not node.problem for queue in node.queues}
    problems = []
    for name in cluster.queues:
        queue = queues.get(name)
        if queue is None:
            problems.append(f"queue {name} is not declared: make cluster-up")
        elif queue.type != "quorum":
            problems.append(f"queue {name} is a {queue.type} queue, not a quorum queue")
        elif not queue.consumers and name not in consumed:
            problems.append(f"queue {name} has no consumer")
    return problems


def _forgotten_queues(cluster: Cluster, queues: dict[str, Queue]) -> list[str]:
    """Return a line per queue that holds messages and that the inventory no longer has."""
    return [
        f"queue {name} is not in the inventory any more and holds {queue.ready} messages:"
        " declare it again, with a worker node, or delete it"
        for name, queue in sorted(queues.items())
        if queue.ready
        and name not in cluster.queues
        and name != topology.DEAD_LETTERS
        and not _CELERYS_OWN.match(name)
    ]


def show(status: Status, console: Console) -> None:
    """Print the status as tables."""
    if status.services:
        console.print(_service_table(status))
    if status.broker_version:
        console.print(_node_table(status))
        console.print(_queue_table(status))
    for name, url in status.urls.items():
        console.print(f"[bold]{name:9}[/] {url}", highlight=False, soft_wrap=True)
    show_drained(status.drained, console)
    for problem in status.problems:
        console.print(f"[red]problem[/]   {problem}", highlight=False, soft_wrap=True)
    if not status.problems:
        console.print(
            f"[green]healthy[/]   {len(status.nodes)} worker nodes, RabbitMQ {status.broker_version}",
            highlight=False,
            soft_wrap=True,
        )


def show_drained(marks: Iterable[Mark], console: Console) -> None:
    """Print which hosts run no worker nodes, by whose wish."""
    for mark in marks:
        console.print(f"[yellow]drained[/]   {mark}", highlight=False, soft_wrap=True)


def _service_table(status: Status) -> Table:
    table = _table("Services", "service", "host", "state", "pid", "up", right=("pid", "up"))
    for service in status.services:
        table.add_row(
            service.name,
            service.host,
            _coloured(service.state, good=service.state == "running"),
            str(service.pid or ""),
            duration(service.uptime),
        )
    return table


def _node_table(status: Status) -> Table:
    numbers = ("slots", "running", "done", "up")
    table = _table(
        "Worker nodes", "node", "pool", "slots", "queues", "running", "done", "up", "state", right=numbers
    )
    for node in status.nodes:
        table.add_row(
            node.name,
            node.pool,
            str(node.concurrency),
            ", ".join(node.queues),
            str(node.running),
            str(node.done),
            duration(node.uptime),
            _coloured(node.problem or "ok", good=not node.problem),
        )
    return table


def _queue_table(status: Status) -> Table:
    numbers = ("ready", "unacked", "consumers")
    table = _table("Queues", "queue", "type", "ready", "unacked", "consumers", right=numbers)
    for queue in status.queues:
        table.add_row(
            queue.name, queue.type, str(queue.ready), str(queue.unacknowledged), str(queue.consumers)
        )
    return table


def _coloured(text: str, *, good: bool) -> str:
    return f"[green]{text}[/]" if good else f"[red]{text}[/]"


def duration(seconds: int) -> str:
    """Return ``seconds`` as a person says it: 45s, 12m, 3h 20m, 2d 4h."""
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86_400
    if days:
        return f"{days}d {hours % 24}h"
    if hours:
        return f"{hours}h {minutes % 60}m"
    return f"{minutes}m" if minutes else f"{seconds}s"


def show_preflight(cluster: Cluster, found: dict[str, HostFacts], console: Console) -> None:
    """Print what was found on hosts that are fit for the cluster."""
    table = _table(
        f"Hosts of cluster {cluster.name}", "host", "groups", "address", "Python", "machine", "to install"
    )
    for name, facts in found.items():
        missing = ", ".join(package for package, program in facts.programs.items() if not program)
        host = cluster.hosts[name]
        table.add_row(name, ", ".join(host.groups), host.address, facts.python, facts.machine, missing)
    console.print(table)
    console.print("[green]fit[/]       nothing was changed", highlight=False)


def show_certificates(ends: dict[str, datetime], console: Console) -> None:
    """Print until when each host's certificate is good."""
    table = _table("Certificates", "host", "good until")
    for name, end in ends.items():
        table.add_row(name, f"{end:%Y-%m-%d}")
    console.print(table)


def show_probes(probes: Probes, console: Console) -> None:
    """Print which worker node answered on which queue, and how long its probe took."""
    table = _table("Probe tasks", "queue", "node", "answer", right=("answer",))
    for queue, answers in probes.answers.items():
        for node, milliseconds in sorted(answers.items()):
            table.add_row(queue, node, f"{milliseconds:.0f} ms")
        for node in probes.missing.get(queue, ()):
            table.add_row(queue, node, "[red]none[/]")
    console.print(table)


def show_deployed(cluster: Cluster, deployed: Deployed, console: Console) -> None:
    """Print what runs now, where to look, and what to type next."""
    table = _table(
        f"Cluster {cluster.name}", "node", "pool", "slots", "queues", "probes answered in", right=("slots",)
    )
    for node in deployed.nodes:
        answers = (f"{deployed.probes.answers[queue][node.name]:.0f} ms" for queue in node.queues)
        table.add_row(node.name, node.pool, str(node.concurrency), ", ".join(node.queues), ", ".join(answers))
    console.print(table)
    for name, url in urls(cluster).items():
        console.print(f"[bold]{name:9}[/] {url}", highlight=False, soft_wrap=True)
    changes = f"{deployed.changes} changes" if deployed.changes else "no change"
    console.print(
        f"[green]up[/]        {changes}, {deployed.seconds:.0f} s, release {deployed.release}",
        highlight=False,
        soft_wrap=True,
    )
    option = "" if cluster.name == "local" else f" CLUSTER={cluster.name}"
    console.print(
        f"next      make submit{option} TASK=tasks.compute.fibonacci ARGS='[30]'",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"          make flower{option}; make cluster-status{option}", highlight=False, soft_wrap=True
    )
