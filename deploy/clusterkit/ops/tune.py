"""Finds how many tasks a worker node should run at once and take in advance, from what its tasks really do.

Each host is looked at for a while: what the worker nodes' processes use of the processors and the memory, and
how long the tasks ran that ended meanwhile, by their events. What comes of it is arithmetic, and printed with
its figures.
"""

from __future__ import annotations

import functools
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from celery.utils import uuid

from clusterkit.ops import discover, inventoryedit, scale, topology
from clusterkit.ops.lock import alone
from clusterkit.ops.tables import new_table
from clusterkit.runtime import client
from clusterkit.runtime.nodename import logical
from clusterkit.runtime.profiles import PROFILES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery
    from rich.console import Console

    from clusterkit.ops.discover import HostResources, NodeUse
    from clusterkit.ops.model import Cluster, WorkerNode

#: Fewer tasks than this say little about a worker node.
ENOUGH: Final = 20
#: Seconds of work that each slot should have in advance, so that it need not wait for the broker: a few dozen
#: round trips.
AHEAD: Final = 0.1
#: Messages in advance at most: the profile `throughput`, for tasks of milliseconds, takes about as many.
MOST_AHEAD: Final = 64
#: Share of a core that a task uses while it runs, below which processes are not what it needs.
WAITS: Final = 0.2
#: Seconds between two looks at how many of a sample are under way.
_PAUSE: Final = 0.05
#: Processes per core at most, for tasks that wait.
MOST_PER_CORE: Final = 8
#: Share of the available memory that more processes may take.
MEMORY_SHARE: Final = 0.8
#: Share of its slots in use from which a node of threads or greenlets is full, and share of its cores from
#: which more slots or processes would not help a node.
FULL: Final = 0.9


@dataclass
class Durations:
    """What the tasks of one worker node on one host took, in seconds."""

    count: int = 0
    total: float = 0.0
    longest: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one task."""
        self.count += 1
        self.total += seconds
        self.longest = max(self.longest, seconds)


@dataclass(frozen=True)
class Proposal:
    """What a worker node has and should have; times in seconds, ``share`` of a core while a task runs."""

    node: str
    pool: str
    tasks: int
    mean: float
    longest: float
    share: float
    concurrency: int
    better_concurrency: int
    prefetch: int
    better_prefetch: int
    why: str

    @property
    def better(self) -> bool:
        """Whether there is anything to change."""
        return (self.concurrency, self.prefetch) != (self.better_concurrency, self.better_prefetch)


@dataclass(frozen=True)
class Tuning:
    """The proposals, the worker nodes that ran too few tasks to say anything, and how long it looked.

    ``effects`` are what bringing the proposals to the cluster does to it, besides.
    """

    proposals: tuple[Proposal, ...]
    unknown: dict[str, int]
    seconds: float
    effects: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-safe values."""
        return asdict(self)


@dataclass(frozen=True)
class Sample:
    """A task for a cluster that has nothing to do: ``number`` of it are kept under way meanwhile."""

    task: str
    queue: str
    arguments: list[Any]
    keywords: dict[str, Any]
    number: int

    @classmethod
    def of(cls, app: Celery, task: str, arguments: str, number: int) -> Self:
        """Return the sample of ``task`` with ``arguments`` (JSON).

        Raises:
            UnknownTaskError: the cluster's release has no such task.
            BadInputError: the arguments are neither a JSON list nor an object.
        """
        return cls(task, client.queue_of(app, task), *client.read_arguments(arguments), number)


@dataclass
class Watch:
    """What the tasks' events say while the hosts are looked at.

    ``ended`` has for each worker node the tasks that succeeded: when, by its host's clock in seconds since
    1970, and how many seconds they ran. ``under_way`` are the sample's that have not.
    """

    ended: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    under_way: set[str] = field(default_factory=set)
    begun: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    def succeeded(self, event: dict[str, Any]) -> None:
        """Note what an event says."""
        ran = (event["timestamp"], event["runtime"])
        self.ended.setdefault(logical(event["hostname"]), []).append(ran)
        self.under_way.discard(event["uuid"])

    def durations(self, node: str, host: HostResources) -> Durations:
        """Return how long the tasks of ``node`` ran that ended while ``host`` was looked at."""
        found = Durations()
        for when, seconds in self.ended.get(f"{node}@{host.name}", ()):
            if host.begin <= when <= host.end:
                found.add(seconds)
        return found


def tune(cluster: Cluster, app: Celery, *, seconds: float, sample: Sample | None = None) -> Tuning:
    """Look at ``cluster`` for ``seconds`` and propose; ``app`` has the operator's identity."""
    watch = Watch()
    with ThreadPoolExecutor(2, thread_name_prefix="tune") as pool:
        going = [pool.submit(listen, app, watch)]
        if sample:
            going.append(pool.submit(feed, app, sample, watch))
        try:
            found = discover.discover(cluster, seconds)
        finally:
            watch.over.set()
        for one in going:
            one.result()
    proposals, unknown = [], {}
    for node in cluster.worker_nodes:
        measured = [
            (watch.durations(node.name, host), use, host)
            for host in found.hosts
            for use in host.nodes
            if use.name == node.name
        ]
        count = sum(one.count for one, _, _ in measured)
        if count < ENOUGH:
            unknown[node.name] = count
        else:
            proposals.append(propose(node, measured))
    looked = max((host.seconds for host in found.hosts), default=0.0)
    return Tuning(tuple(proposals), unknown, round(looked, 1), tuple(effects(cluster, proposals)))


def listen(app: Celery, watch: Watch) -> None:
    """Have ``watch`` note the events of tasks until it is over."""
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"task-succeeded": watch.succeeded})
        # A timestamp is compared with the clock of the host it is from: Celery would add the difference of
        # the time zones to it.
        receiver.event_from_message = functools.partial(receiver.event_from_message, localize=False)
        receiver.on_consume_ready = lambda *_, **__: watch.begun.set()
        while not watch.over.is_set():
            try:
                receiver.capture(limit=None, timeout=0.5, wakeup=False)
            except TimeoutError:
                continue


def feed(app: Celery, sample: Sample, watch: Watch) -> None:
    """Keep ``sample`` under way until ``watch`` is over; what fails is not sent again."""
    while not watch.over.wait(_PAUSE):
        missing = sample.number - len(watch.under_way) if watch.begun.is_set() else 0
        for _ in range(missing):
            task_id = uuid()
            watch.under_way.add(task_id)
            app.send_task(
                sample.task,
                sample.arguments,
                sample.keywords,
                task_id=task_id,
                queue=sample.queue,
                ignore_result=True,
            )


def propose(node: WorkerNode, measured: list[tuple[Durations, NodeUse, HostResources]]) -> Proposal:
    """Say what ``node`` should have, from its tasks and its use on each of its hosts."""
    count = sum(one.count for one, _, _ in measured)
    total = sum(one.total for one, _, _ in measured)
    mean = total / count
    share = min(sum(use.cores * host.seconds for _, use, host in measured) / max(total, 0.001), 1.0)
    slots = min(use.slots for _, use, _ in measured)
    if node.pool == "prefork":
        better, why = _processes(node, share, measured)
    elif node.pool == "solo":
        better, why = 1, "the pool solo runs one task"
    else:
        better, why = _slots(measured)
    return Proposal(
        node.name,
        node.pool,
        count,
        round(mean, 4),
        round(max(one.longest for one, _, _ in measured), 3),
        round(share, 2),
        slots,
        better,
        node.prefetch_multiplier,
        ahead(mean),
        why,
    )


def ahead(mean: float) -> int:
    """Return how many messages a slot should have, its running one included, of ``mean`` seconds each."""
    return min(max(math.ceil(AHEAD / max(mean, 0.0001)), 1), MOST_AHEAD)


def _processes(
    node: WorkerNode, share: float, measured: list[tuple[Durations, NodeUse, HostResources]]
) -> tuple[int, str]:
    """Return how many processes keep the node's cores busy, on the host that has the fewest for it."""
    per_core = min(1 / max(share, 1 / MOST_PER_CORE), MOST_PER_CORE)
    found = []
    for _, use, host in measured:
        others = sum(other.cores for other in host.nodes if other.name != use.name)
        cores = min(max(host.cores - round(others), 1), node.most_cores or host.cores)
        # Tasks that wait for a core look as if they waited for something else.
        full = use.cores >= FULL * cores or host.busy >= FULL * host.host_cores
        memory = use.memory / max(use.processes, 1)
        room = use.slots + int(host.memory_available * MEMORY_SHARE / max(memory, 1))
        wanted = max(use.slots, cores) if full else max(round(cores * per_core), 1)
        found.append((min(wanted, room), cores, wanted > room, memory, full))
    better, cores, tight, memory, full = min(found)
    why = f"a task uses {share:.0%} of a core while it runs; {cores} cores"
    if tight:
        why += f"; memory for no more, at {memory:.0f} MiB a process"
    elif full:
        why += ", all busy: more processes than cores would not help"
    elif share < WAITS:
        why += "; it mostly waits, which gevent or threads do for less memory"
    return better, why


def _slots(measured: list[tuple[Durations, NodeUse, HostResources]]) -> tuple[int, str]:
    """Return how many tasks a node of threads or greenlets should run: more when it is full and not busy."""
    slots = min(use.slots for _, use, _ in measured)
    busiest = max(one.total / host.seconds / use.slots for one, use, host in measured)
    cores = max(use.cores for _, use, _ in measured)
    if cores >= FULL:
        return (
            slots,
            f"its one process keeps {cores:.1f} cores busy: more slots would not help, another node would",
        )
    if busiest >= FULL:
        return slots * 2, f"{busiest:.0%} of its slots were in use, and {cores:.1f} cores"
    return slots, f"{busiest:.0%} of its slots were in use"


def effects(cluster: Cluster, proposals: list[Proposal]) -> Iterator[str]:
    """Yield, in words, what bringing ``proposals`` to ``cluster`` replaces and restarts."""
    for one in proposals:
        resized = one.pool in scale.RESIZED_POOLS
        if one.prefetch != one.better_prefetch or (one.concurrency != one.better_concurrency and not resized):
            yield f"{one.node} is replaced on its hosts; running tasks end on the old one"
    prefetch = {one.node: one.better_prefetch for one in proposals}
    nodes = tuple(
        node.model_copy(update={"prefetch_multiplier": prefetch.get(node.name, node.prefetch_multiplier)})
        for node in cluster.worker_nodes
    )
    before = topology.consumer_timeout_ms(cluster) // 1000
    after = topology.consumer_timeout_ms(cluster.model_copy(update={"worker_nodes": nodes})) // 1000
    if before != after:
        longest = max(nodes, key=lambda node: node.prefetch_multiplier * node.time_limit)
        yield (
            "the brokers restart one after the other: a message may then be with a stuck worker node for"
            f" {after} s (consumer_timeout), not {before} s. Node {longest.name} decides it, with"
            f" {longest.prefetch_multiplier} x {longest.time_limit} s: lower its time_limit first if its"
            " tasks are short"
        )


def apply(cluster: Cluster, tuning: Tuning) -> None:
    """Write what was proposed into the inventory; the next `cluster up` brings it to the hosts.

    Raises:
        InventoryError: a place could not be found, or what came of it is not right; that file is as it was.
    """
    with alone(cluster):
        for proposal in tuning.proposals:
            if proposal.better_concurrency != proposal.concurrency:
                inventoryedit.set_of_node(cluster, proposal.node, "concurrency", proposal.better_concurrency)
            if proposal.better_prefetch != proposal.prefetch:
                inventoryedit.set_of_node(
                    cluster, proposal.node, "prefetch_multiplier", proposal.better_prefetch
                )


def show(cluster: Cluster, tuning: Tuning, console: Console) -> None:
    """Print what was measured and what is proposed."""
    numbers = ("tasks", "tasks/s", "mean", "longest", "CPU of it", "concurrency", "prefetch")
    table = new_table(
        f"Cluster {cluster.name}, {tuning.seconds:g} s", "node", "pool", *numbers, right=numbers
    )
    for one in tuning.proposals:
        table.add_row(
            one.node,
            one.pool,
            str(one.tasks),
            f"{one.tasks / tuning.seconds:.1f}",
            _time(one.mean),
            _time(one.longest),
            f"{one.share:.0%}",
            _change(one.concurrency, one.better_concurrency),
            _change(one.prefetch, one.better_prefetch),
        )
    if tuning.proposals:
        console.print(table)
    for one in tuning.proposals:
        console.print(f"[bold]{one.node}[/]: {one.why}", highlight=False, soft_wrap=True)
    for node in cluster.worker_nodes:
        if node.name in tuning.unknown:
            why = _too_little(cluster, node, tuning)
            console.print(f"[yellow]{node.name}[/]: {why}", highlight=False, soft_wrap=True)
    for effect in tuning.effects:
        console.print(f"[yellow]note[/]      {effect}", highlight=False, soft_wrap=True)


def _too_little(cluster: Cluster, node: WorkerNode, tuning: Tuning) -> str:
    profile = cluster.profile_of(node)
    if not PROFILES[profile].events:
        return f"its profile `{profile}` sends no task events: nothing can be measured"
    return (
        f"{tuning.unknown[node.name]} tasks in {tuning.seconds:g} s say too little; look while there is work"
        " (SECONDS=), or send some (TASK= ARGS= N=)"
    )


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _change(before: int, after: int) -> str:
    return str(before) if before == after else f"{before} -> [bold]{after}[/]"
