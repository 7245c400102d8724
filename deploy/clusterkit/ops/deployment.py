"""Brings a cluster up, stops it, takes it away: the order of things, told as it goes."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clusterkit.ops import clusterfiles, needs, playbook, probing, release, status, topology
from clusterkit.ops import secrets as secret_store
from clusterkit.ops.broker import Broker
from clusterkit.ops.errors import ClusterUnhealthyError, PreflightError
from clusterkit.ops.progress import Progress
from clusterkit.ops.status import NodeStatus, ServiceStatus, Status
from clusterkit.runtime import client
from clusterkit.runtime.errors import ClusterUnreachableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celery import Celery
    from rich.console import Console

    from clusterkit.ops.model import Cluster
    from clusterkit.ops.probing import Probes
    from clusterkit.ops.secrets import Secrets

_BUILD, _PROBE = "App release", "Probe tasks"
#: Seconds within which every worker node has to answer a probe on each of its queues.
PROBE_DEADLINE = 60.0


@dataclass(frozen=True)
class Deployed:
    """What an ``up`` did: changes made, seconds taken, the release and the nodes that run, their probes."""

    changes: int
    seconds: float
    release: str
    nodes: tuple[NodeStatus, ...]
    probes: Probes


def up(cluster: Cluster, console: Console) -> Deployed:
    """Make the hosts what the inventory says, and prove it with a probe per queue and worker node.

    Raises:
        ReleaseError: the app could not be built or imported; no service was touched.
        PreflightError: a host is not fit; nothing was changed.
        DeployError: a step failed.
        ClusterUnhealthyError: a worker node did not answer its probes.
    """
    secrets = secret_store.ensure(cluster.state_dir / "secrets.yml")
    phases = [_BUILD, *playbook.phases(cluster, "up"), _PROBE]
    with _alone(cluster), Progress(f"cluster {cluster.name}: up", phases, console) as progress:
        progress.start(_BUILD)
        built = release.build(cluster, progress.doing)
        outcome = playbook.run(cluster, "up", _variables(cluster, secrets, built), progress)
        _write_cluster_files(cluster, secrets, _manifest(outcome))
        progress.start(_PROBE)
        app = operator_app(cluster)
        probes = probing.probe(app, cluster, deadline=PROBE_DEADLINE, report=progress.doing)
        if not probes.complete:
            raise ClusterUnhealthyError(
                "not every worker node answered:\n  " + "\n  ".join(probes.describe_missing()),
                next_step=f"make cluster-status CLUSTER={cluster.name}; cluster-logs says why",
            )
        return Deployed(progress.changes, progress.seconds, built.id, status.nodes(cluster, app), probes)


def down(cluster: Cluster, console: Console) -> None:
    """Stop every service; what they have on disk stays."""
    with (
        _alone(cluster),
        Progress(f"cluster {cluster.name}: down", playbook.phases(cluster, "down"), console) as progress,
    ):
        playbook.run(cluster, "down", _base_variables(cluster), progress)


def destroy(cluster: Cluster, console: Console) -> None:
    """Stop every service and remove all that was made for the cluster, its messages and secrets too."""
    if cluster.state_dir.exists() or cluster.home.exists():
        down(cluster, console)
    for directory in (cluster.home, cluster.state_dir):
        shutil.rmtree(directory, ignore_errors=True)


def restart(cluster: Cluster, services: list[str], console: Console) -> list[str]:
    """Restart ``services`` (all, when the list is empty) one after the other; return their names."""
    with (
        _alone(cluster),
        Progress(
            f"cluster {cluster.name}: restart", playbook.phases(cluster, "restart"), console
        ) as progress,
    ):
        outcome = playbook.run(
            cluster, "restart", {**_base_variables(cluster), "service_names": services}, progress
        )
    return [name for result in outcome.all() for name in result.get("affected", ())]


def services(cluster: Cluster) -> tuple[ServiceStatus, ...]:
    """Return the services of every host as its service manager sees them."""
    outcome = playbook.run(cluster, "status", _base_variables(cluster))
    return tuple(
        ServiceStatus(host, service["name"], service["state"].lower(), service["pid"], service["uptime"])
        for host, result in outcome.of("Keep the status").items()
        for service in result["ansible_facts"]["service_status"]
    )


def operator_app(cluster: Cluster) -> Celery:
    """Return a bare Celery app with the operator's identity.

    Raises:
        NoClusterError, ClusterUnreachableError: not brought up, or it does not answer.
    """
    return client.connect(path=cluster.state_dir / "operator.json")


def status_of(cluster: Cluster) -> Status:
    """Return the state of ``cluster``; of its services alone, when broker or result store do not answer."""
    secrets = secret_store.ensure(cluster.state_dir / "secrets.yml")
    found = services(cluster)
    try:
        with Broker(status.urls(cluster)["rabbitmq"], "monitor", secrets.broker["monitor"]) as broker:
            return status.collect(cluster, operator_app(cluster), broker, found)
    except ClusterUnreachableError as error:
        return status.unreachable(cluster, found, error)


def check(cluster: Cluster, deadline: float) -> Probes:
    """Probe every queue of every worker node; each has ``deadline`` seconds to answer."""
    return probing.probe(operator_app(cluster), cluster, deadline=deadline)


@contextlib.contextmanager
def _alone(cluster: Cluster) -> Iterator[None]:
    """Keep two commands from changing a cluster at the same time.

    Raises:
        PreflightError: another one is at it.
    """
    cluster.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (cluster.state_dir / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise PreflightError(
                f"another command is changing cluster {cluster.name!r}: {file.read().strip()}",
                next_step="wait for it to end",
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} since {time.strftime('%H:%M:%S')}: {' '.join(sys.argv[1:])}\n")
        file.flush()
        yield


def _variables(cluster: Cluster, secrets: Secrets, built: release.Release) -> dict[str, Any]:
    files = {
        role: clusterfiles.to_json(clusterfiles.cluster_file(cluster, secrets, role))
        for role in clusterfiles.ROLES_ON_HOSTS
    }
    return {
        **_base_variables(cluster),
        "cluster_files": files,
        "cluster_secrets": secrets.to_ansible(),
        "cluster_definitions": topology.definitions(cluster, secrets),
        "cluster_consumer_timeout": topology.consumer_timeout_ms(cluster),
        "cluster_ports": needs.ports(cluster),
        "cluster_packages": needs.packages(cluster),
        "cluster_variables_file": cluster.ports_place,
        "cluster_release": {"id": built.id, "archive": str(built.archive)},
    }


def _base_variables(cluster: Cluster) -> dict[str, Any]:
    variables: dict[str, Any] = {
        "cluster": cluster.to_ansible(),
        "service_backend": cluster.service_backend,
        "service_home": str(cluster.home),
        "service_log_directory": str(cluster.home / "log"),
        "service_supervisor_bin": str(Path(sys.executable).parent),
    }
    if cluster.service_backend == "supervisor":
        # Private to the checkout means Ansible's scratch files too.
        variables["ansible_remote_tmp"] = str(cluster.state_dir / "ansible" / "tmp")
    return variables


def _manifest(outcome: playbook.Outcome) -> dict[str, str | None]:
    contents = [result["content"] for result in outcome.of("Read the release's task names").values()]
    tasks: dict[str, str | None] = json.loads(base64.b64decode(contents[0]))["tasks"]
    return tasks


def _write_cluster_files(cluster: Cluster, secrets: Secrets, tasks: dict[str, str | None]) -> None:
    producer = clusterfiles.cluster_file(cluster, secrets, "producer", tasks)
    operator = clusterfiles.cluster_file(cluster, secrets, "operator", tasks)
    clusterfiles.write(producer, cluster.state_dir / "client.json")
    clusterfiles.write(operator, cluster.state_dir / "operator.json")
