"""What a fault has at hand: the cluster, its hosts, chance, the producer, and where it says what it did."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final

from clusterkit.ops import deployment, images, labhosts
from clusterkit.ops.images import docker
from clusterkit.ops.labhosts import Lab
from clusterkit.runtime.errors import ClusterkitError

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from celery import Celery

    from clusterkit.ops.drills.load import Sender
    from clusterkit.ops.drills.onhosts import Blow, Hosts
    from clusterkit.ops.drills.producer import Producer
    from clusterkit.ops.model import Cluster, WorkerNode


#: Seconds a host has to shut down.
_SHUTDOWN: Final = 60


@dataclass
class Scene:
    """One fault's surroundings. ``begin`` and ``end`` are seconds since the epoch, set by the fault."""

    cluster: Cluster
    drill: str
    chance: random.Random
    hosts: Hosts
    producer: Producer
    sender: Sender
    tell: Callable[[str], None]
    done: list[str] = field(default_factory=list)
    begin: float | None = None
    end: float | None = None

    def say(self, what: str) -> None:
        """Note down what was done, for the report."""
        self.done.append(what)
        self.tell(what)

    def began(self, blow: Blow | None = None) -> None:
        """Note down that the fault is there."""
        if self.begin is None:
            self.begin = blow.begin if blow else time.time()

    def ended(self, blow: Blow | None = None) -> None:
        """Note down that the fault is over."""
        self.end = blow.end if blow else time.time()

    @cached_property
    def app(self) -> Celery:
        """A Celery app as the operator."""
        return deployment.operator_app(self.cluster)

    @cached_property
    def lab(self) -> Lab:
        """The lab that the hosts are."""
        return Lab(self.cluster.name, self.cluster.root)

    def node(self) -> tuple[str, WorkerNode]:
        """Choose a prefork worker node: its host and the node."""
        return self.chance.choice(prefork_nodes(self.cluster))

    def broker(self) -> str:
        """Choose a broker host."""
        return self.chance.choice(self.cluster.group("brokers"))

    def worker_host(self) -> str:
        """Choose a host that runs worker nodes, and no server where there are such."""
        servers = {*self.cluster.group("brokers"), *self.cluster.group("results")}
        workers = self.cluster.group("workers")
        return self.chance.choice([host for host in workers if host not in servers] or list(workers))

    def switch_off(self, host: str, *, politely: bool) -> None:
        """Stop a lab's host, or cut its power."""
        name = self.lab.container(host)
        if politely:
            docker("stop", "--time", str(_SHUTDOWN), name, deadline=_SHUTDOWN + 30)
        else:
            # Off the network first: the kernel goes on, and would close its processes' connections.
            docker("network", "disconnect", "--force", self.lab.network, name)
            docker("kill", name)

    def switch_on(self, host: str) -> None:
        """Start a lab's host that was stopped."""
        container = labhosts.containers(self.lab)[host]
        labhosts.revive(self.lab, container, self.cluster.hosts[host].address)


def prefork_nodes(cluster: Cluster) -> list[tuple[str, WorkerNode]]:
    """Return the cluster's worker nodes with pool processes, each with its host."""
    return [(host, node) for node in cluster.worker_nodes if node.pool == "prefork" for host in node.hosts]


def prefork_queue(cluster: Cluster) -> str | None:
    """Return a queue that nodes with pool processes alone consume."""
    for queue in cluster.queues:
        pools = {node.pool for node in cluster.worker_nodes if queue in node.queues}
        if pools == {"prefork"}:
            return queue
    return None


def is_lab(cluster: Cluster) -> bool:
    """Whether the cluster's hosts are a lab's, which this machine can stop and start."""
    try:
        if images.engine_problem():
            return False
        there = labhosts.containers(Lab(cluster.name, cluster.root))
    except ClusterkitError:
        return False
    return set(there) >= set(cluster.hosts)
