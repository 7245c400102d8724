"""Finds how many tasks a worker node should run at once and take in advance, from what its tasks really do.

It looks at the cluster for a while: how long tasks run, by their events, and what the worker nodes' processes
use of the processors and the memory meanwhile, by the hosts. What comes of it is arithmetic, and printed with
its figures.
"""

from __future__ import annotations

import json
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from clusterkit.ops import discover, inventoryedit
from clusterkit.ops.lock import alone
from clusterkit.ops.tables import new_table
from clusterkit.runtime.errors import BadInputError
from clusterkit.runtime.nodename import logical

if TYPE_CHECKING:
    from celery import Celery
    from rich.console import Console

    from clusterkit.ops.discover import HostResources, NodeUse
    from clusterkit.ops.model import Cluster, WorkerNode

#: Fewer tasks than this say little about a worker node.
ENOUGH: Final = 20
#: Seconds of work that each slot should have in advance, so that it need not wait for the broker: a few dozen
#: round trips.
AHEAD: Final = 0.1
#: Beyond this, messages in advance gained nothing (docs/howto/tune.md).
MOST_AHEAD: Final = 64
#: Share of a core that a task uses while it runs, below which processes are not what it needs.
WAITS: Final = 0.2
#: Processes per core at most, for tasks that wait.
MOST_PER_CORE: Final = 8
#: Share of the available memory that more processes may take.
MEMORY_SHARE: Final = 0.8
#: Share of its slots in use from which a node of threads or greenlets is full, and share of a core from which
#: more slots would not help it.
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
    """The proposals, the worker nodes that ran too few tasks to say anything, and how long it looked."""

    proposals: tuple[Proposal, ...]
    unknown: dict[str, int]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-safe values."""
        return asdict(self)


@dataclass(frozen=True)
class Sample:
    """Tasks to send while looking, for a cluster that has nothing to do: ``number`` times the same."""

    task: str
    arguments: str
    number: int

    def send(self, app: Celery) -> None:
        """Send them.

        Raises:
            BadInputError: the arguments are no JSON list.
        """
        try:
            arguments = json.loads(self.arguments)
        except ValueError as error:
            raise BadInputError(f"ARGS is no JSON: {error}: {self.arguments}") from error
        if not isinstance(arguments, list):
            raise BadInputError(f"ARGS has to be a JSON list of the task's arguments, not {self.arguments}")
        for _ in range(self.number):
            app.send_task(self.task, arguments, ignore_result=True)


def tune(cluster: Cluster, app: Celery, *, seconds: float, sample: Sample | None = None) -> Tuning:
    """Look at ``cluster`` for ``seconds`` and propose; ``app`` has the operator's identity.

    Raises:
        BadInputError: the sample's arguments are not right.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(2, thread_name_prefix="tune") as pool:
        listening = pool.submit(listen, app, stop)
        try:
            if sample:
                sample.send(app)
            began = time.monotonic()
            found = discover.discover(cluster, seconds)
        finally:
            stop.set()
        durations, heard = listening.result()
    heard = min(heard, time.monotonic() - began)
    proposals, unknown = [], {}
    for node in cluster.worker_nodes:
        measured = [
            (durations.get(f"{node.name}@{host.name}", Durations()), use, host)
            for host in found.hosts
            for use in host.nodes
            if use.name == node.name
        ]
        count = sum(one.count for one, _, _ in measured)
        if count < ENOUGH:
            unknown[node.name] = count
        else:
            proposals.append(propose(node, measured, heard))
    return Tuning(tuple(proposals), unknown, round(heard, 1))


def listen(app: Celery, stop: threading.Event) -> tuple[dict[str, Durations], float]:
    """Return how long tasks ran by worker node, by the events until ``stop``; and for how many seconds."""
    durations: dict[str, Durations] = {}

    def succeeded(event: dict[str, Any]) -> None:
        durations.setdefault(logical(event["hostname"]), Durations()).add(event["runtime"])

    began = time.monotonic()
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"task-succeeded": succeeded})
        while not stop.is_set():
            try:
                receiver.capture(limit=None, timeout=0.5, wakeup=False)
            except TimeoutError:
                continue
    return durations, time.monotonic() - began


def propose(
    node: WorkerNode, measured: list[tuple[Durations, NodeUse, HostResources]], seconds: float
) -> Proposal:
    """Say what ``node`` should have, from its tasks and its use on each of its hosts in ``seconds``."""
    count = sum(one.count for one, _, _ in measured)
    total = sum(one.total for one, _, _ in measured)
    mean = total / count
    share = min(sum(use.cores for _, use, _ in measured) * seconds / max(total, 0.001), 1.0)
    slots = min(use.slots for _, use, _ in measured)
    if node.pool == "prefork":
        better, why = _processes(share, measured)
    elif node.pool == "solo":
        better, why = 1, "the pool solo runs one task"
    else:
        better, why = _slots(measured, seconds)
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


def _processes(share: float, measured: list[tuple[Durations, NodeUse, HostResources]]) -> tuple[int, str]:
    """Return how many processes keep the node's cores busy, on the host that has the fewest for it."""
    per_core = min(1 / max(share, 1 / MOST_PER_CORE), MOST_PER_CORE)
    found = []
    for _, use, host in measured:
        others = sum(other.cores for other in host.nodes if other.name != use.name)
        cores = max(host.cores - round(others), 1)
        memory = use.memory / max(use.processes, 1)
        room = use.slots + int(host.memory_available * MEMORY_SHARE / max(memory, 1))
        wanted = max(round(cores * per_core), 1)
        found.append((min(wanted, room), cores, wanted > room, memory))
    better, cores, tight, memory = min(found)
    why = f"a task uses {share:.0%} of a core while it runs; {cores} cores"
    if tight:
        why += f"; memory for no more, at {memory:.0f} MiB a process"
    elif share < WAITS:
        why += "; it mostly waits, which gevent or threads do for less memory"
    return better, why


def _slots(measured: list[tuple[Durations, NodeUse, HostResources]], seconds: float) -> tuple[int, str]:
    """Return how many tasks a node of threads or greenlets should run: more when it is full and not busy."""
    slots = min(use.slots for _, use, _ in measured)
    busiest = max(one.total / seconds / use.slots for one, use, _ in measured)
    cores = max(use.cores for _, use, _ in measured)
    if cores >= FULL:
        return (
            slots,
            f"its one process keeps {cores:.1f} cores busy: more slots would not help, another node would",
        )
    if busiest >= FULL:
        return slots * 2, f"{busiest:.0%} of its slots were in use, and {cores:.1f} cores"
    return slots, f"{busiest:.0%} of its slots were in use"


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
    for node, count in tuning.unknown.items():
        console.print(
            f"[yellow]{node}[/]: {count} tasks in {tuning.seconds:g} s say too little; look while there is"
            " work (SECONDS=), or send some (TASK= ARGS= N=)",
            highlight=False,
            soft_wrap=True,
        )


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _change(before: int, after: int) -> str:
    return str(before) if before == after else f"{before} -> [bold]{after}[/]"
