"""Writes, per role, which cluster it belongs to and who it is there (``clusterkit.runtime.clusterfile``)."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from clusterkit.runtime.clusterfile import ClusterFile

if TYPE_CHECKING:
    from pathlib import Path

    from clusterkit.ops.model import Cluster
    from clusterkit.ops.secrets import ResultRole, Role, Secrets

#: Roles whose cluster file goes to hosts; those of producer and operator stay on the control machine.
ROLES_ON_HOSTS: Final[tuple[Role, ...]] = ("worker", "scheduler", "flower")
#: What Sentinel calls the replicated result store.
RESULT_MASTER: Final = "results"
#: As whom each role comes to the result store; Flower reads only what tasks returned, as clients do.
RESULT_USERS: Final[dict[Role, ResultRole]] = {
    "operator": "operator",
    "worker": "worker",
    "producer": "producer",
    "scheduler": "scheduler",
    "flower": "producer",
    "monitor": "operator",
}
#: The certificate authority's file, in a host's home and in the state directory of the control machine.
CA_FILE: Final = "ca.pem"


def cluster_file(
    cluster: Cluster, secrets: Secrets, role: Role, tasks: dict[str, str | None] | None = None
) -> ClusterFile:
    """Return what a process of ``role`` needs to know, with that role's own credentials."""
    return ClusterFile(
        cluster=cluster.name,
        role=role,
        broker_url=_broker_url(cluster, secrets, role),
        result_url=_result_url(cluster, secrets, role),
        queues=tuple(cluster.queues),
        default_queue=cluster.default_queue,
        celery_app=cluster.celery_app,
        ca_file=_ca_file(cluster, role) if cluster.tls else "",
        broker_name=cluster.internal_name("brokers") if cluster.tls else "",
        result_master=RESULT_MASTER if cluster.sentinel else "",
        result_expires=cluster.result_expires,
        stock=cluster.stock,
        tasks=tasks or {},
    )


def _broker_url(cluster: Cluster, secrets: Secrets, role: Role) -> str:
    scheme = "amqps" if cluster.tls else "amqp"
    login = f"{role}:{quote(secrets.broker[role], safe='')}"
    return ";".join(
        f"{scheme}://{login}@{address}:{cluster.ports.amqp}//" for address in _broker_addresses(cluster, role)
    )


def _broker_addresses(cluster: Cluster, role: Role) -> list[str]:
    """Return where ``role`` finds the brokers.

    On hosts it is one name with all their addresses, for py-amqp tries each in milliseconds, while
    Celery's workers go through a list of URLs one by one and stall on a dead one (facts/rabbitmq.md).
    The control machine does not know the name; what runs there has no such step, and takes the list.
    """
    if cluster.tls and role in ROLES_ON_HOSTS:
        return [cluster.internal_name("brokers")]
    return [cluster.listen_address(host) for host in cluster.group("brokers")]


def _result_url(cluster: Cluster, secrets: Secrets, role: Role) -> str:
    user = RESULT_USERS[role]
    login = f"{user}:{quote(secrets.results[user], safe='')}"
    scheme, port = ("rediss" if cluster.tls else "redis"), cluster.ports.results
    if cluster.sentinel:
        scheme, port = "sentinel", cluster.ports.sentinel
    return ";".join(
        f"{scheme}://{login}@{cluster.listen_address(host)}:{port}/0" for host in cluster.group("results")
    )


def _ca_file(cluster: Cluster, role: Role) -> str:
    return str((cluster.home if role in ROLES_ON_HOSTS else cluster.state_dir) / CA_FILE)


def to_json(file: ClusterFile) -> dict[str, Any]:
    """Return ``file`` as JSON-safe values."""
    return {**asdict(file), "queues": list(file.queues)}


def write(file: ClusterFile, path: Path) -> None:
    """Write ``file`` to ``path``, readable by its owner alone, in one step."""
    unfinished = path.with_suffix(".part")
    unfinished.touch(mode=0o600)
    unfinished.write_text(json.dumps(to_json(file), indent=1) + "\n", encoding="utf-8")
    unfinished.rename(path)
