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
    from clusterkit.ops.secrets import Role, Secrets

#: Roles whose cluster file goes to hosts; those of producer and operator stay on the control machine.
ROLES_ON_HOSTS: Final[tuple[Role, ...]] = ("worker", "scheduler", "flower")


def cluster_file(
    cluster: Cluster, secrets: Secrets, role: Role, tasks: dict[str, str | None] | None = None
) -> ClusterFile:
    """Return what a process of ``role`` needs to know, with that role's own credentials."""
    password = quote(secrets.broker[role], safe="")
    address, ports = cluster.bind_address, cluster.ports
    return ClusterFile(
        cluster=cluster.name,
        role=role,
        broker_url=f"amqp://{role}:{password}@{address}:{ports.amqp}//",
        result_url=f"redis://:{quote(secrets.results, safe='')}@{address}:{ports.results}/0",
        queues=tuple(cluster.queues),
        default_queue=cluster.default_queue,
        celery_app=cluster.celery_app,
        result_expires=cluster.result_expires,
        tasks=tasks or {},
    )


def to_json(file: ClusterFile) -> dict[str, Any]:
    """Return ``file`` as JSON-safe values."""
    return {**asdict(file), "queues": list(file.queues)}


def write(file: ClusterFile, path: Path) -> None:
    """Write ``file`` to ``path``, readable by its owner alone, in one step."""
    unfinished = path.with_suffix(".part")
    unfinished.touch(mode=0o600)
    unfinished.write_text(json.dumps(to_json(file), indent=1) + "\n", encoding="utf-8")
    unfinished.rename(path)
