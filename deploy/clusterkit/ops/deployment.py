"""Brings a cluster up, stops it, takes it away: the order of things, told as it goes."""

from __future__ import annotations

import base64
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clusterkit.ops import (
    addresses,
    clusterfiles,
    flower,
    needs,
    network,
    pki,
    playbook,
    probing,
    release,
    releases,
    status,
    topology,
)
from clusterkit.ops import bundle as bundles
from clusterkit.ops import secrets as secret_store
from clusterkit.ops.broker import Broker
from clusterkit.ops.errors import ClusterUnhealthyError, PreflightError
from clusterkit.ops.lock import alone, note
from clusterkit.ops.needs import HostFacts
from clusterkit.ops.progress import Progress
from clusterkit.ops.result_acl import RESULT_MATRIX
from clusterkit.ops.status import NodeStatus, ServiceStatus, Status
from clusterkit.runtime import client
from clusterkit.runtime.clusterfile import ClusterFile
from clusterkit.runtime.errors import BadInputError, ClusterUnreachableError

if TYPE_CHECKING:
    from datetime import datetime

    from celery import Celery
    from rich.console import Console

    from clusterkit.ops.model import Cluster
    from clusterkit.ops.pki import Pki
    from clusterkit.ops.probing import Probes
    from clusterkit.ops.secrets import Role, Secrets
    from clusterkit.ops.times import Ran

PREFLIGHT, BUILD, PROBE = "Preflight", "App release", "Probe tasks"
#: Seconds within which every worker node has to answer a probe on each of its queues.
PROBE_DEADLINE = 60.0


@dataclass(frozen=True)
class Deployed:
    """What an ``up`` did: changes made, seconds taken and by what, the release and nodes that run, probes."""

    changes: int
    seconds: float
    release: str
    nodes: tuple[NodeStatus, ...]
    probes: Probes
    changed_hosts: tuple[str, ...]
    ran: tuple[Ran, ...]

    def to_json(self, cluster: Cluster) -> dict[str, Any]:
        """Return it as JSON-safe values."""
        return {
            "cluster": cluster.name,
            "changes": self.changes,
            "changed_hosts": self.changed_hosts,
            "seconds": round(self.seconds, 1),
            "release": self.release,
            "probes_ms": self.probes.answers,
            "urls": status.urls(cluster),
        }


def up(
    cluster: Cluster, console: Console, bundle: Path | None = None, *, keep_release: bool = False
) -> Deployed:
    """Make the hosts what the inventory says, and prove it with a probe per queue and worker node.

    ``bundle`` is an archive of the distribution's packages for hosts that reach no registry. With
    ``keep_release`` the release that all hosts got last is deployed, whatever the app's source holds by now.

    Raises:
        PreflightError: a host is not fit; nothing was changed.
        ReleaseError: the app could not be built or imported; no service was touched.
        DeployError: a step failed.
        ClusterUnhealthyError: a worker node did not answer its probes.
    """
    if bundle:
        bundles.read(bundle)
    cluster = addresses.resolved(cluster)
    phases = [PREFLIGHT, BUILD, *playbook.phases(cluster, "up"), PROBE]
    with alone(cluster), Progress(f"cluster {cluster.name}: up", phases, console) as progress:
        record = releases.Record.load(cluster)
        pinned = record.pinned(cluster)
        if pinned:
            console.print(f"[yellow]warning[/] {pinned.why_pinned()}", highlight=False, soft_wrap=True)
        kept = record.current if keep_release else pinned
        ready = prepare(cluster, progress, kept.id if kept else "")
        if bundle:
            ready.variables["cluster_bundle"] = str(bundle.resolve())
        outcome = playbook.run(cluster, "up", ready.variables, progress)
        note(release=ready.built.id)
        tasks = manifest(outcome)
        write_cluster_files(cluster, ready.keys, tasks)
        if kept:
            record.stayed()
        else:
            record.deployed(ready.built.id, "up", cluster.app_source, tasks)
        progress.start(PROBE)
        app = operator_app(cluster)
        probes = probing.probe(app, cluster, deadline=PROBE_DEADLINE, report=progress.doing)
        if not probes.complete:
            raise ClusterUnhealthyError(
                "not every worker node answered:\n  " + "\n  ".join(probes.describe_missing()),
                next_step=f"make cluster-status CLUSTER={cluster.name}; cluster-logs says why",
            )
        return Deployed(
            progress.changes,
            progress.seconds,
            ready.built.id,
            status.nodes(cluster, app),
            probes,
            outcome.changed_hosts(),
            tuple(outcome.ran),
        )


@dataclass(frozen=True)
class Prepared:
    """What a deployment goes by: the control machine's secrets, the release, and the playbooks' variables."""

    keys: Keys
    built: release.Release
    variables: dict[str, Any]


def prepare(cluster: Cluster, progress: Progress, release_id: str = "") -> Prepared:
    """Look at the hosts and build the release of ``cluster``'s app, or find the one called ``release_id``.

    Raises:
        PreflightError, ReleaseError: nothing was changed.
    """
    hosts = _preflight(cluster, progress)
    progress.start(BUILD)
    keys = _keys(cluster)
    targets = {_target(host) for host in hosts.values()}
    if release_id:
        built = release.kept(cluster, release_id, targets)
    else:
        built = release.build(cluster, targets, progress.doing)
    _write_operator_file(cluster, keys)
    return Prepared(keys, built, _variables(cluster, keys, built, hosts))


def preflight(cluster: Cluster, console: Console) -> dict[str, HostFacts]:
    """Look for everything that would keep the cluster from coming up; change nothing.

    Raises:
        PreflightError: has every problem of every host, each with the way out.
    """
    cluster = addresses.resolved(cluster)
    with Progress(f"cluster {cluster.name}: preflight", [PREFLIGHT], console) as progress:
        return _preflight(cluster, progress)


def _preflight(cluster: Cluster, progress: Progress) -> dict[str, HostFacts]:
    variables = {
        **base_variables(cluster),
        "cluster_ports": needs.ports(cluster),
        "cluster_packages": needs.packages(cluster),
        "cluster_variables_file": cluster.ports_place,
    }
    outcome = playbook.run(cluster, "preflight", variables, progress)
    return {name: HostFacts.of(result) for name, result in outcome.of(needs.PREFLIGHT_TASK).items()}


def _target(facts: HostFacts) -> release.Target:
    return release.Target(python=facts.python, machine=facts.machine)


def rotate(cluster: Cluster, console: Console, *, authority: bool = False) -> dict[str, datetime]:
    """Replace every host's certificate, or with ``authority`` the authority too; return when they end.

    Servers take new certificates while they run, so no connection is cut. Another authority is trusted by
    every host before the first certificate of it is shown; interrupted, a rerun goes on with its steps.

    Raises:
        PreflightError: the cluster is private to this machine and has no certificates.
        DeployError: a step failed.
    """
    if not cluster.tls:
        raise PreflightError(
            f"cluster {cluster.name!r} is private to this machine and has no certificates",
            next_step="CLUSTER= names another cluster",
        )
    cluster = addresses.resolved(cluster)
    directory, wanted = cluster.state_dir / "pki", addresses.identities(cluster)
    names = [PREFLIGHT, *playbook.phases(cluster, "rotate")]
    with alone(cluster), Progress(f"cluster {cluster.name}: rotate", names, console) as progress:
        hosts = _preflight(cluster, progress)
        secrets = secret_store.ensure(cluster.state_dir / "secrets.yml")
        certificates = pki.rotate(directory, wanted, ca=authority)
        while True:
            variables = _server_variables(cluster, Keys(secrets, certificates), hosts)
            playbook.run(cluster, "rotate", variables, progress)
            _write_authority(cluster, certificates)
            if certificates.step == "settled":
                break
            certificates = pki.advance(directory, wanted, certificates)
        if authority:
            # Flower reads whom to trust when it starts; nothing waits for it.
            variables = {**broker_variables(cluster), "cluster_services": flower.services(cluster)}
            playbook.run(cluster, "restart", variables, progress)
    return certificates.expires()


def remove_broker(cluster: Cluster, host: str, console: Console) -> None:
    """Take ``host`` out of the brokers' cluster: its queues' members, its membership, its data.

    The host may be dead, and may have left the inventory already. To replace it under its own name,
    ``up`` has it join again without data.

    Raises:
        BadInputError: there is no such host, or it is the only broker.
        DeployError: the others would lose a queue's quorum; nothing was changed.
    """
    cluster = addresses.resolved(cluster)
    others = [name for name in cluster.group("brokers") if name != host]
    if not others:
        raise BadInputError(
            f"{host!r} is the only broker of cluster {cluster.name!r}", next_step="make cluster-destroy"
        )
    with (
        alone(cluster),
        Progress(
            f"cluster {cluster.name}: remove broker {host}",
            playbook.phases(cluster, "broker_remove"),
            console,
        ) as progress,
    ):
        variables = {**broker_variables(cluster), "broker_host": host}
        playbook.run(cluster, "broker_remove", variables, progress)


def down(cluster: Cluster, console: Console) -> None:
    """Stop every service; what they have on disk stays."""
    with (
        alone(cluster),
        Progress(f"cluster {cluster.name}: down", playbook.phases(cluster, "down"), console) as progress,
    ):
        playbook.run(cluster, "down", base_variables(cluster), progress)


def destroy(cluster: Cluster, console: Console) -> None:
    """Stop every service and remove all that was made for the cluster, its messages and secrets too."""
    if cluster.state_dir.exists() or cluster.home.exists():
        with (
            alone(cluster),
            Progress(
                f"cluster {cluster.name}: destroy", playbook.phases(cluster, "destroy"), console
            ) as progress,
        ):
            playbook.run(cluster, "destroy", base_variables(cluster), progress)
    if not cluster.tls:  # on hosts the playbook has removed it; here it is also where Ansible worked
        shutil.rmtree(cluster.home, ignore_errors=True)
    shutil.rmtree(cluster.state_dir, ignore_errors=True)


def restart(
    cluster: Cluster, services: list[str], console: Console, gate_timeout: int | None = None
) -> list[str]:
    """Restart ``services`` (all, when the list is empty) one after the other; return their names.

    A broker goes through the gate of ``clusterkit.ops.brokers``, for which ``gate_timeout`` is.
    """
    cluster = addresses.resolved(cluster)
    with (
        alone(cluster),
        Progress(
            f"cluster {cluster.name}: restart", playbook.phases(cluster, "restart"), console
        ) as progress,
    ):
        variables = {**broker_variables(cluster), "cluster_services": services}
        if gate_timeout is not None:
            variables["broker_gate_timeout"] = gate_timeout
        outcome = playbook.run(cluster, "restart", variables, progress)
    return [name for result in outcome.all() for name in result.get("affected", ())]


def restart_services(cluster: Cluster, services: list[str]) -> None:
    """Restart ``services`` one after the other, for a command that has the cluster for itself already."""
    variables = broker_variables(addresses.resolved(cluster))
    playbook.run(cluster, "restart", {**variables, "cluster_services": services})


def ask(cluster: Cluster, name: str, variables: dict[str, Any]) -> playbook.Outcome:
    """Run a playbook that only looks; hosts that cannot be reached are in the outcome's failures."""
    return playbook.run(cluster, name, {**base_variables(cluster), **variables}, partial=True)


def services(cluster: Cluster) -> tuple[ServiceStatus, ...]:
    """Return the services of every host as its service manager sees them; a host that is away is one line."""
    outcome = ask(cluster, "status", {})
    found = [
        ServiceStatus(host, service["name"], service["state"].lower(), service["pid"], service["uptime"])
        for host, result in outcome.of("Keep the status").items()
        for service in result["ansible_facts"]["service_status"]
    ]
    away = [ServiceStatus(failure.host, "host", "unreachable", 0, 0) for failure in outcome.failures]
    order = list(cluster.hosts)
    return tuple(sorted([*found, *away], key=lambda service: order.index(service.host)))


def operator_app(cluster: Cluster) -> Celery:
    """Return a bare Celery app with the operator's identity.

    Raises:
        NoClusterError, ClusterUnreachableError: not brought up, or it does not answer.
    """
    return client.connect(path=cluster.state_dir / "operator.json")


def status_of(cluster: Cluster) -> Status:
    """Return the state of ``cluster``; of its services alone, when broker or result store do not answer."""
    found = services(cluster)
    try:
        with monitor(cluster) as broker:
            return status.collect(cluster, operator_app(cluster), broker, found)
    except ClusterUnreachableError as error:
        return status.unreachable(cluster, found, error)


def monitor(cluster: Cluster) -> Broker:
    """Return RabbitMQ's HTTP API as the user that may look and change nothing."""
    return _broker(cluster, "monitor")


def administrator(cluster: Cluster) -> Broker:
    """Return RabbitMQ's HTTP API as the user that may change everything."""
    return _broker(cluster, "operator")


def _broker(cluster: Cluster, role: Role) -> Broker:
    password = secret_store.ensure(cluster.state_dir / "secrets.yml").broker[role]
    ca_file = str(cluster.state_dir / clusterfiles.CA_FILE) if cluster.tls else ""
    return Broker(status.broker_urls(cluster), role, password, ca_file)


def check(cluster: Cluster, deadline: float) -> Probes:
    """Probe every queue of every worker node; each has ``deadline`` seconds to answer."""
    return probing.probe(operator_app(cluster), cluster, deadline=deadline)


@dataclass(frozen=True)
class Keys:
    """What a deployment needs of the control machine's secrets: passwords, and certificates on hosts."""

    secrets: Secrets
    pki: Pki | None


def _keys(cluster: Cluster) -> Keys:
    secrets = secret_store.ensure(cluster.state_dir / "secrets.yml")
    certificates = (
        pki.ensure(cluster.state_dir / "pki", addresses.identities(cluster)) if cluster.tls else None
    )
    return Keys(secrets, certificates)


def _variables(
    cluster: Cluster, keys: Keys, built: release.Release, hosts: dict[str, HostFacts]
) -> dict[str, Any]:
    files = {
        role: clusterfiles.to_json(clusterfiles.cluster_file(cluster, keys.secrets, role))
        for role in clusterfiles.ROLES_ON_HOSTS
    }
    return {
        **_server_variables(cluster, keys, hosts),
        "cluster_files": files,
        "cluster_release": {
            "id": built.id,
            "archives": {name: str(built.archives[_target(facts)]) for name, facts in hosts.items()},
        },
        "cluster_handover": [
            sys.executable,
            "-m",
            "clusterkit.ops.handover",
            str(cluster.state_dir / "operator.json"),
        ],
    }


def broker_variables(cluster: Cluster) -> dict[str, Any]:
    """Return what playbooks on brokers that run already need; the addresses are resolved."""
    return _server_variables(cluster, _keys(cluster), {})


def _server_variables(cluster: Cluster, keys: Keys, hosts: dict[str, HostFacts]) -> dict[str, Any]:
    return {
        **base_variables(cluster),
        "cluster_secrets": keys.secrets.to_ansible(),
        "cluster_pki": keys.pki.to_ansible() if keys.pki else {"ca": "", "hosts": {}},
        "cluster_definitions": topology.definitions(cluster, keys.secrets),
        "cluster_consumer_timeout": topology.consumer_timeout_ms(cluster),
        "cluster_broker_members": topology.members(cluster),
        "cluster_result_users": [rights.to_ansible() for rights in RESULT_MATRIX],
        "cluster_flower": flower.to_ansible(cluster, keys.secrets),
        "cluster_control_addresses": {name: facts.control_address for name, facts in hosts.items()},
        "cluster_names": network.names(cluster),
        "cluster_openings": network.firewall(cluster),
        "cluster_packages": needs.packages(cluster),
        "cluster_bundle": "",
    }


def base_variables(cluster: Cluster) -> dict[str, Any]:
    """Return the variables that every playbook needs."""
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
    else:
        variables["ansible_become"] = True
    return variables


def manifest(outcome: playbook.Outcome) -> dict[str, str | None]:
    """Return the release's task names, name -> queue, from a run that installed it or found it installed."""
    contents = [result["content"] for result in outcome.of("Read the release's task names").values()]
    tasks: dict[str, str | None] = json.loads(base64.b64decode(contents[0]))["tasks"]
    return tasks


def _write_operator_file(cluster: Cluster, keys: Keys) -> None:
    """Write the operator's file anew: new workers are asked with it before the deployment has ended."""
    path = cluster.state_dir / "operator.json"
    tasks = ClusterFile.load(path).tasks if path.exists() else {}
    if keys.pki:
        _write_authority(cluster, keys.pki)
    clusterfiles.write(clusterfiles.cluster_file(cluster, keys.secrets, "operator", tasks), path)


def write_cluster_files(cluster: Cluster, keys: Keys, tasks: dict[str, str | None]) -> None:
    """Write what clients and the operator's command connect with; from now on clients know ``tasks``."""
    if keys.pki:
        _write_authority(cluster, keys.pki)
    producer = clusterfiles.cluster_file(cluster, keys.secrets, "producer", tasks)
    operator = clusterfiles.cluster_file(cluster, keys.secrets, "operator", tasks)
    clusterfiles.write(producer, cluster.state_dir / "client.json")
    clusterfiles.write(operator, cluster.state_dir / "operator.json")


def _write_authority(cluster: Cluster, certificates: Pki) -> None:
    (cluster.state_dir / clusterfiles.CA_FILE).write_text(certificates.ca, encoding="utf-8")
