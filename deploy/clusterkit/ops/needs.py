"""What the cluster needs of each host before it can come up: free ports and the distribution's packages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from clusterkit.ops.model import Cluster, Group

#: Which group's hosts listen on which ports, with what a message calls the service.
_PORTS: Final[dict[Group, dict[str, str]]] = {
    "brokers": {
        "epmd": "Erlang's port mapper",
        "distribution": "RabbitMQ between nodes",
        "amqp": "RabbitMQ (AMQP)",
        "management": "RabbitMQ's HTTP API",
    },
    "results": {"results": "the result store"},
    "monitors": {"flower": "Flower"},
}
#: Packages by group: the first of `names` that the distribution has; any of `provides` will do.
_PACKAGES: Final[dict[Group, dict[str, list[str]]]] = {
    "brokers": {"names": ["rabbitmq-server"], "provides": ["/usr/lib/rabbitmq/bin/rabbitmq-server"]},
    "results": {
        "names": ["valkey-server", "redis-server"],
        "provides": ["/usr/bin/valkey-server", "/usr/bin/redis-server"],
    },
}


def ports(cluster: Cluster) -> dict[str, list[dict[str, Any]]]:
    """Return host -> the ports it must have free, each with the variable that changes it."""
    numbers = cluster.ports.model_dump()
    return {
        name: [
            {
                "port": numbers[port],
                "address": cluster.bind_address,
                "service": service,
                "variable": f"ports.{port}",
            }
            for group in host.groups
            for port, service in _PORTS.get(group, {}).items()
        ]
        for name, host in cluster.hosts.items()
    }


def packages(cluster: Cluster) -> dict[str, list[dict[str, list[str]]]]:
    """Return host -> the packages it must have, or be able to install."""
    return {
        name: [_PACKAGES[group] for group in host.groups if group in _PACKAGES]
        for name, host in cluster.hosts.items()
    }
