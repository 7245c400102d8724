"""The state of a cluster: what the inventory wants beside what Celery, RabbitMQ and the hosts say."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from clusterkit.ops import drained, flower, lock, releases, topology
from clusterkit.ops.tables import new_table
from clusterkit.runtime.clusterfile import DEFAULT_CLUSTER
from clusterkit.runtime.nodename import logical

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
    from clusterkit.ops.rollout import Known
    from clusterkit.runtime.errors import ClusterUnreachableError

#: Queues that Celery makes for delays, control commands and events.
_CELERYS_OWN = re.compile(r"celery_delayed_|celeryev|.*pidbox")
#: The state of a service that was replaced and finishes what it has (role service).
RETIRING = "retiring"
#: Seconds within which a worker node has to answer. On a host that is starting processes it can take two.
_ANSWER = 5.0


@dataclass(frozen=True)
class NodeStatus:
    """One worker node; ``problem`` is empty when it is as the inventory says. Times in seconds.

    ``name`` is the inventory's, ``celery_name`` that of the slot it runs in. One that is ``retiring`` was
    replaced, and only finishes the tasks it has.
    """

    name: str
    pool: str
    concurrency: int
    queues: tuple[str, ...]
    processes: int
    running: int
    done: int
    uptime: int
    problem: str
    celery_name: str = ""
    retiring: bool = False


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

    @property
    def dead_letters(self) -> int:
        """Messages that no worker could run, and that wait for a person."""
        return sum(queue.ready for queue in self.queues if queue.name == topology.DEAD_LETTERS)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-safe values."""
        return {**asdict(self), "dead_letters": self.dead_letters, "healthy": not self.problems}


def collect(cluster: Cluster, app: Celery, broker: Broker, services: tuple[ServiceStatus, ...]) -> Status:
    """Ask everybody and compare with the inventory.

    Raises:
        ClusterUnreachableError: RabbitMQ's HTTP API does not answer.
    """
    brokers = broker.nodes()
    queues = broker.queues()
    alarmed = any(node.memory_alarm or node.disk_alarm for node in brokers)
    # In an alarm a control command is held back like any publish, so nobody could answer.
    found = () if alarmed else nodes(cluster, app, retiring=_retiring(services))
    problems = [
        *_broker_problems(cluster, brokers),
        *(f"worker node {node.name}: {node.problem}" for node in found if node.problem),
        *_service_problems(services),
        *_queue_problems(cluster, queues, found),
        *_forgotten_queues(cluster, queues),
        *_release_problems(cluster),
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
        if service.state not in {"running", RETIRING}
    ]


def _retiring(services: tuple[ServiceStatus, ...]) -> int:
    return sum(service.state == RETIRING for service in services)


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


def nodes(cluster: Cluster, app: Celery, *, retiring: int = 0) -> tuple[NodeStatus, ...]:
    """Return every worker node of the inventory with what it says of itself, then those that are retiring.

    ``retiring`` is how many of these there are, as far as that is known.
    """
    expected = cluster.expected_nodes()
    # A connection of its own: one of the pool may be from before a broker went away.
    with app.connection_for_write() as connection:
        # Waiting ends when all have answered, so the limit only costs when one is missing.
        control = app.control.inspect(timeout=_ANSWER, limit=len(expected) + retiring, connection=connection)
        stats = control.stats() or {}
        queues = (control.active_queues() or {}) if stats else {}
        active = (control.active() or {}) if stats else {}
    answers = [
        _Answer(name, found, _names(queues.get(name, ())), len(active.get(name, ())))
        for name, found in stats.items()
    ]
    serving = {name: _serving(name, node, answers) for name, node in expected}
    chosen = [answer for answer in serving.values() if answer]
    others = [answer for answer in answers if answer not in chosen and logical(answer.name) in serving]
    return (
        *(_node(name, node, serving[name]) for name, node in expected),
        *(_retired(answer) for answer in others),
    )


@dataclass(frozen=True)
class _Answer:
    """What a worker node says of itself: its statistics, the queues it consumes, how many tasks it runs."""

    name: str
    stats: dict[str, Any]
    queues: tuple[str, ...]
    running: int


def _names(queues: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(sorted(queue["name"] for queue in queues))


def _serving(name: str, wanted: WorkerNode, answers: list[_Answer]) -> _Answer | None:
    """Return the answer of the slot that is the node ``name``: the one that consumes, of several."""
    own = [answer for answer in answers if logical(answer.name) == name]
    own.sort(key=lambda answer: (answer.queues != _sorted(wanted.queues), not answer.queues))
    return own[0] if own else None


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(names))


def _node(name: str, wanted: WorkerNode, answer: _Answer | None) -> NodeStatus:
    if answer is None:
        return NodeStatus(name, wanted.pool, 0, wanted.queues, 0, 0, 0, 0, "does not answer")
    kind = _pool_kind(answer.stats["pool"].get("implementation", ""))
    problem = ""
    if kind != wanted.pool:
        problem = f"runs the pool {kind}, the inventory says {wanted.pool}: make cluster-up"
    elif answer.queues != _sorted(wanted.queues):
        consumed = ", ".join(answer.queues) or "nothing"
        problem = f"consumes {consumed}, the inventory says {', '.join(wanted.queues)}"
    return _described(name, answer, problem)


def _retired(answer: _Answer) -> NodeStatus:
    return replace(_described(logical(answer.name), answer, ""), retiring=True)


def _described(name: str, answer: _Answer, problem: str) -> NodeStatus:
    pool = answer.stats["pool"]
    return NodeStatus(
        name=name,
        pool=_pool_kind(pool.get("implementation", "")),
        concurrency=pool.get("max-concurrency") or 1,
        queues=answer.queues,
        processes=len(pool.get("processes", ())) or 1,
        running=answer.running,
        done=sum(answer.stats.get("total", {}).values()),
        uptime=answer.stats.get("uptime", 0),
        problem=problem,
        celery_name=answer.name,
    )


def _pool_kind(implementation: str) -> str:
    """Return the inventory's name for Celery's pool class, such as celery.concurrency.prefork:TaskPool."""
    module = implementation.partition(":")[0].rpartition(".")[2]
    return {"thread": "threads", "asynpool": "prefork"}.get(module, module)


def _queue_problems(cluster: Cluster, queues: dict[str, Queue], found: tuple[NodeStatus, ...]) -> list[str]:
    # The broker's own count is up to five seconds old, and 0 right after a restart: ask the workers too.
    consumed = {queue for node in found if not node.problem and not node.retiring for queue in node.queues}
    problems = []
    for name in cluster.queues:
        queue = queues.get(name)
        if queue is None:
            problems.append(f"queue {name} is not declared: make cluster-up")
        elif queue.type != "quorum" and not cluster.stock:
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


def _release_problems(cluster: Cluster) -> list[str]:
    """Return a line when a release got to some hosts alone, and no command is at it now."""
    stuck = releases.Record.load(cluster).unfinished
    if not stuck or lock.holder(cluster):
        return []
    ways_out = "make cluster-release goes on with the others, make cluster-rollback takes it back"
    return [f"release {stuck.id} did not get to all worker hosts: {ways_out}"]


def show(status: Status, console: Console) -> None:
    """Print the status as tables."""
    if status.services:
        console.print(_service_table(status))
    if status.broker_version:
        console.print(_node_table(status))
        console.print(_queue_table(status))
    for name, url in status.urls.items():
        console.print(f"[bold]{name:9}[/] {url}", highlight=False, soft_wrap=True)
    if status.dead_letters:
        option = "" if status.cluster == DEFAULT_CLUSTER else f" CLUSTER={status.cluster}"
        console.print(
            f"[yellow]letters[/]   {status.dead_letters} dead letters, which no worker could run:"
            f" make dlq-list{option}",
            highlight=False,
            soft_wrap=True,
        )
    show_drained(status.drained, console)
    for problem in status.problems:
        console.print(f"[red]problem[/]   {problem}", highlight=False, soft_wrap=True)
    if not status.problems:
        console.print(
            f"[green]healthy[/]   {sum(not node.retiring for node in status.nodes)} worker nodes,"
            f" RabbitMQ {status.broker_version}",
            highlight=False,
            soft_wrap=True,
        )


def show_drained(marks: Iterable[Mark], console: Console) -> None:
    """Print which hosts run no worker nodes, by whose wish."""
    for mark in marks:
        console.print(f"[yellow]drained[/]   {mark}", highlight=False, soft_wrap=True)


def _service_table(status: Status) -> Table:
    table = new_table("Services", "service", "host", "state", "pid", "up", right=("pid", "up"))
    for service in status.services:
        table.add_row(
            service.name,
            service.host,
            _coloured(service.state, good=service.state in {"running", RETIRING}),
            str(service.pid or ""),
            duration(service.uptime),
        )
    return table


def _node_table(status: Status) -> Table:
    numbers = ("slots", "running", "done", "up")
    table = new_table(
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
            _coloured(_word_for(node), good=not node.problem),
        )
    return table


def _word_for(node: NodeStatus) -> str:
    if node.retiring:
        return f"retiring as {node.celery_name}, {node.running} tasks running"
    return node.problem or "ok"


def _queue_table(status: Status) -> Table:
    numbers = ("ready", "unacked", "consumers")
    table = new_table("Queues", "queue", "type", "ready", "unacked", "consumers", right=numbers)
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
    table = new_table(
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
    table = new_table("Certificates", "host", "good until")
    for name, end in ends.items():
        table.add_row(name, f"{end:%Y-%m-%d}")
    console.print(table)


def show_releases(cluster: Cluster, found: Iterable[Known], console: Console) -> None:
    """Print the releases as a table."""
    table = new_table(
        f"Releases of cluster {cluster.name}",
        "release",
        "when",
        "how",
        "who",
        "tasks",
        "runs on",
        "source",
        right=("tasks",),
    )
    for one in found:
        entry = one.entry
        mark = "" if entry.complete else " (unfinished)"
        table.add_row(
            f"{entry.id}{' *' if one.current else ''}",
            entry.when,
            f"{entry.how}{mark}",
            entry.who,
            str(len(entry.tasks)),
            ", ".join(one.hosts) or ("installed" if one.installed else "gone"),
            entry.source,
        )
    console.print(table)


def show_probes(probes: Probes, console: Console) -> None:
    """Print which worker node answered on which queue, and how long its probe took."""
    table = new_table("Probe tasks", "queue", "node", "answer", right=("answer",))
    for queue, answers in probes.answers.items():
        for node, milliseconds in sorted(answers.items()):
            table.add_row(queue, node, f"{milliseconds:.0f} ms")
        for node in probes.missing.get(queue, ()):
            table.add_row(queue, node, "[red]none[/]")
    console.print(table)


def show_deployed(cluster: Cluster, deployed: Deployed, console: Console) -> None:
    """Print what runs now, where to look, and what to type next."""
    table = new_table(
        f"Cluster {cluster.name}", "node", "pool", "slots", "queues", "probes answered in", right=("slots",)
    )
    for node in (node for node in deployed.nodes if not node.retiring):
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
