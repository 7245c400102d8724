"""What the cluster needs of each host before it can come up: free ports and the distribution's packages."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from clusterkit.ops import network

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clusterkit.ops.model import Cluster, Group, Host

#: Packages by group: the first of `names` that the distribution has; any of `provides` will do.
_PACKAGES: Final[dict[Group, dict[str, list[str]]]] = {
    "brokers": {"names": ["rabbitmq-server"], "provides": ["/usr/lib/rabbitmq/bin/rabbitmq-server"]},
    "results": {
        "names": ["valkey-server", "redis-server"],
        "provides": ["/usr/bin/valkey-server", "/usr/bin/redis-server"],
    },
}
_PROXY: Final = {"names": ["nginx"], "provides": ["/usr/sbin/nginx"]}
_FIREWALL: Final = {"names": ["nftables"], "provides": ["/usr/sbin/nft"]}


#: The task of role preflight whose result has a host's facts.
PREFLIGHT_TASK: Final = "Find all problems of the host"


@dataclass(frozen=True)
class HostFacts:
    """What preflight found on a host that is fit."""

    python: str
    machine: str
    control_address: str
    """Where this host sees the control machine; empty when it is that machine."""
    programs: dict[str, str]
    """Path of what each package provides, by the package's first name; empty when it is not installed."""

    @classmethod
    def of(cls, result: dict[str, Any]) -> Self:
        """Take the facts from the task's result."""
        return cls(result["python"], result["machine"], result["control_address"], result["programs"])

    def to_ansible(self) -> dict[str, Any]:
        """Return the facts as playbooks get them."""
        return asdict(self)


def ports(cluster: Cluster) -> dict[str, list[dict[str, Any]]]:
    """Return host -> the ports it must have free, each with the variable that changes it."""
    numbers = cluster.ports.model_dump()
    return {
        name: [
            {
                "port": numbers[one.name],
                "address": one.address,
                "service": one.service,
                "variable": f"ports.{one.name}",
            }
            for one in network.listeners(cluster, host)
        ]
        for name, host in cluster.hosts.items()
    }


def packages(cluster: Cluster) -> dict[str, list[dict[str, list[str]]]]:
    """Return host -> the packages it must have, or be able to install."""
    return {name: list(_packages(cluster, host)) for name, host in cluster.hosts.items()}


def _packages(cluster: Cluster, host: Host) -> Iterator[dict[str, list[str]]]:
    yield from (_PACKAGES[group] for group in host.groups if group in _PACKAGES)
    if cluster.tls and "monitors" in host.groups:
        yield _PROXY
    if cluster.tls and cluster.firewall:
        yield _FIREWALL


def alternatives() -> list[list[str]]:
    """Return the packages any host may need: each a list of names, any of which will do."""
    return [package["names"] for package in (*_PACKAGES.values(), _PROXY, _FIREWALL)]
