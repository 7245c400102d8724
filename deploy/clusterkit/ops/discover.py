"""What the hosts have, what is in use, and what the worker nodes of the inventory make of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from clusterkit.ops import deployment
from clusterkit.ops.tables import new_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from clusterkit.ops.model import Cluster, Pool

#: Seconds to look at what is in use.
SECONDS: Final = 3.0
#: Pools whose tasks run one to a process; those of others share one core.
_PROCESSES: Final[frozenset[Pool]] = frozenset({"prefork"})
#: MiB that a pool process has with the default app, and that more processes are taken to need: measured
#: 25 to 40 of its own once it has run tasks. An app's own may need more: `cluster tune` measures them.
PROCESS_MEMORY: Final = 64


@dataclass(frozen=True)
class NodeUse:
    """One worker node on one host: its slots, and what its processes used (cores; MiB of memory)."""

    name: str
    pool: Pool
    slots: int
    cores: float
    memory: int
    processes: int

    @property
    def wants(self) -> int:
        """Cores that it can keep busy."""
        return self.slots if self.pool in _PROCESSES else 1


@dataclass(frozen=True)
class HostResources:
    """One host: cores and MiB of memory for worker nodes, and cores that were busy with anything.

    ``begin`` and ``end`` are when it was looked at, in seconds since 1970 by its own clock.
    """

    name: str
    cores: int
    host_cores: int
    memory: int
    memory_available: int
    busy: float
    load: float
    nodes: tuple[NodeUse, ...]
    begin: float
    end: float

    @classmethod
    def of(cls, cluster: Cluster, name: str, found: dict[str, Any]) -> Self:
        """Take what the host said."""
        used = {service.partition(".")[0]: use for service, use in found["used"].items()}
        nodes = []
        for node in cluster.nodes_on(name):
            use = used.get(f"worker-{node.name}", {"cores": 0.0, "memory": 0, "processes": 0})
            nodes.append(NodeUse(node.name, node.pool, node.concurrency_on(found["cores"]), **use))
        return cls(
            name,
            found["cores"],
            found["host_cores"],
            found["memory"],
            found["memory_available"],
            found["busy"],
            found["load"][0],
            tuple(nodes),
            found["begin"],
            found["end"],
        )

    @property
    def seconds(self) -> float:
        """How long it was looked at."""
        return self.end - self.begin

    @property
    def unused(self) -> int:
        """Cores that the worker nodes could not keep busy, however much there is to do; negative: too few."""
        return self.cores - sum(node.wants for node in self.nodes)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-safe values."""
        return {**asdict(self), "unused": self.unused}


@dataclass(frozen=True)
class Found:
    """The hosts that answered, and why others did not."""

    hosts: tuple[HostResources, ...]
    away: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-safe values."""
        return {"hosts": [host.to_json() for host in self.hosts], "away": self.away}


def discover(cluster: Cluster, seconds: float = SECONDS) -> Found:
    """Look at all hosts for ``seconds``; the cluster need not be up."""
    running: dict[str, dict[str, int]] = {}
    for service in deployment.services(cluster):
        if service.state == "running" and service.name.startswith("worker-"):
            running.setdefault(service.host, {})[service.name] = service.pid
    variables = {"discover_seconds": seconds, "discover_processes": running}
    outcome = deployment.ask(cluster, "discover", variables)
    hosts = outcome.of("Look at the host's resources")
    return Found(
        tuple(HostResources.of(cluster, name, hosts[name]) for name in cluster.hosts if name in hosts),
        {failure.host: str(failure.result.get("msg") or "failed") for failure in outcome.failures},
    )


def advice(cluster: Cluster, found: Found) -> Iterator[str]:
    """Yield, in words, what of the hosts is left unused, and where too much is asked of them."""
    workers = cluster.group("workers")
    for host in found.hosts:
        if host.cores < host.host_cores:
            yield f"{host.name} has {host.host_cores} cores, and lets worker nodes use {host.cores} of them"
        if host.name not in workers:
            if host.busy < host.cores / 2:
                yield f"{host.name} runs no worker nodes, and has {host.cores - host.busy:.1f} cores to spare"
            continue
        if host.unused > 0:
            yield (
                f"{host.name}: the worker nodes have too few processes for {host.unused} of its cores"
                f" (make cluster-scale CLUSTER={cluster.name} NODE= N=)"
            )
        if host.unused < 0:
            yield (
                f"{host.name}: the worker nodes can keep {host.cores - host.unused} cores busy and there are"
                f" {host.cores}; right where tasks wait more than they compute"
            )
        if host.memory_available < PROCESS_MEMORY:
            yield f"{host.name} has {host.memory_available} MiB of memory left"
    for name, why in found.away.items():
        yield f"{name} does not answer: {why}"


def show(cluster: Cluster, found: Found, console: Console) -> None:
    """Print the hosts, their worker nodes, and what follows."""
    columns = ("cores", "busy", "memory, MiB", "available", "load", "unused cores")
    hosts = new_table(f"Hosts of cluster {cluster.name}", "host", *columns, right=columns)
    for host in found.hosts:
        unused = str(host.unused) if host.name in cluster.group("workers") else "-"
        hosts.add_row(
            host.name,
            str(host.cores),
            f"{host.busy:.1f}",
            str(host.memory),
            str(host.memory_available),
            f"{host.load:.1f}",
            unused,
        )
    console.print(hosts)
    numbers = ("slots", "processes", "cores used", "memory used, MiB")
    nodes = new_table("Worker nodes", "node", "pool", *numbers, right=numbers)
    for host in found.hosts:
        for node in host.nodes:
            nodes.add_row(
                f"{node.name}@{host.name}",
                node.pool,
                str(node.slots),
                str(node.processes),
                f"{node.cores:.2f}",
                str(node.memory),
            )
    console.print(nodes)
    for line in advice(cluster, found):
        console.print(f"[yellow]note[/]      {line}", highlight=False, soft_wrap=True)
