"""What a Compose project is made of: the inventory and the variants as one model, and what each service gets.

A service's files, environment and command are those of the Ansible role (``clusterkit.ops.rolevalues``).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from clusterkit.ops import clusterfiles, flower, result_acl, topology
from clusterkit.ops.errors import InventoryError
from clusterkit.ops.model import Host, WorkerNode
from clusterkit.ops.rolevalues import RoleValues
from clusterkit.ops.suggest import did_you_mean
from clusterkit.runtime.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clusterkit.ops.model import Cluster
    from clusterkit.ops.secrets import Secrets

#: What Compose fills into the Compose files and which these are, below the cluster's state directory.
ENVIRONMENT_FILE: Final = "compose.env"
_FILES_VARIABLE: Final = "COMPOSE_FILE"
#: Variants that change how many brokers there are, by that number; the others change the node `io`.
BROKER_VARIANTS: Final[dict[int, str]] = {1: "", 3: "brokers-3"}
#: What a variant's override file may set of a worker node; the container's command has these in it.
POOL_VARIABLE: Final = "CLUSTERKIT_POOL"
CONCURRENCY_VARIABLE: Final = "CLUSTERKIT_CONCURRENCY"
#: Where containers listen: on the address they have in the project's own network, whatever it is.
_EVERYWHERE: Final = "0.0.0.0"  # noqa: S104 - published on loopback only, by compose.yaml
#: Options of a worker node that only prefork knows; a variant with another pool goes without them.
_PREFORK_ONLY: Final = {"max_tasks_per_child", "max_memory_per_child", "soft_time_limit"}
#: Where a role has its services and files, if not in `__ROLE_services` and `__ROLE_files`.
_SERVICES: Final = {
    # What looks for partitions is for hosts: on one machine's own network there are none.
    "rabbitmq": "__rabbitmq_node_services",
    "worker": "lookup('ansible.builtin.template', 'services.yml.j2') | from_yaml",
    "flower": "__flower_made | map(attribute='service')",
}
_FILES: Final = {
    "rabbitmq": "__rabbitmq_files | difference(__rabbitmq_heal_files)",
    "worker": "[{'path': __worker_config, 'content': worker_cluster_file | to_nice_json}]",
    "scheduler": "[{'path': __scheduler_config, 'content': scheduler_cluster_file | to_nice_json}]",
    "flower": "[{'path': __flower_config, 'content': flower_cluster_file | to_nice_json}]"
    " + __flower_made | map(attribute='file')",
}
_CONTAINER_FILE_MODE: Final = 0o644
_OWNER_FILE_MODE: Final = 0o600
_UNQUOTABLE: Final = frozenset("'\\\n")


@dataclass(frozen=True)
class Project:
    """A Compose project: its cluster as the variants make it, and the Compose files in their order."""

    cluster: Cluster
    files: tuple[Path, ...]
    services: tuple[str, ...]
    """Names of its services, as the Compose files have them."""

    @property
    def name(self) -> str:
        """Name of the project, which no other checkout on this machine has."""
        place = hashlib.sha256(str(self.cluster.root).encode()).hexdigest()[:6]
        return f"{self.cluster.name}-{place}"

    @property
    def environment_file(self) -> Path:
        """What Compose fills into the Compose files, and which these are."""
        return self.cluster.state_dir / ENVIRONMENT_FILE

    @property
    def folder(self) -> Path:
        """Where the services' files are."""
        return self.cluster.state_dir / "files"


def project(cluster: Cluster, variants: list[str]) -> Project:
    """Return the project of ``cluster`` with the override files ``variants`` of `compose/variants/`.

    Raises:
        BadInputError: there is no such variant.
        InventoryError: the inventory has a worker node that the Compose files do not have.
    """
    folder = cluster.root / "compose"
    files = (folder / "compose.yaml", *(_variant(folder / "variants", name) for name in variants if name))
    merged: dict[str, dict[str, Any]] = {}
    for file in files:
        for name, service in yaml.safe_load(file.read_text(encoding="utf-8"))["services"].items():
            merged.setdefault(name, {}).update(service.get("environment", {}))
    result = Project(_as_varied(cluster, merged), files, tuple(merged))
    _check(result)
    return result


def variants_in(file: Path) -> list[str]:
    """Return the variants of the project whose environment file is ``file``."""
    line = next(
        line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith(_FILES_VARIABLE)
    )
    _, *overrides = line.partition("=")[2].strip("'").split(":")
    return [Path(name).stem for name in overrides]


def _variant(folder: Path, name: str) -> Path:
    file = folder / f"{name}.yaml"
    if not file.is_file():
        known = sorted(path.stem for path in folder.glob("*.yaml"))
        raise BadInputError(
            f"there is no variant {name!r} in {folder}. {did_you_mean(name, known, otherwise='Variants')}"
        )
    return file


def _as_varied(cluster: Cluster, services: dict[str, dict[str, Any]]) -> Cluster:
    """Return ``cluster`` with the brokers that the Compose files have, and the pools they say."""
    brokers = tuple(host for host in cluster.group("brokers") if host in services)
    nodes = tuple(_node(node, services.get(f"worker-{node.name}", {})) for node in cluster.worker_nodes)
    return cluster.model_copy(
        update={
            "members": {**cluster.members, "brokers": brokers},
            "hosts": {name: host for name, host in cluster.hosts.items() if _runs(name, host, brokers)},
            "worker_nodes": nodes,
        }
    )


def _runs(name: str, host: Host, brokers: tuple[str, ...]) -> bool:
    return "brokers" not in host.groups or name in brokers


def _node(node: WorkerNode, environment: dict[str, Any]) -> WorkerNode:
    if POOL_VARIABLE not in environment:
        return node
    changes = {"pool": environment[POOL_VARIABLE], "concurrency": environment[CONCURRENCY_VARIABLE]}
    kept = {key: value for key, value in node.model_dump().items() if key not in _PREFORK_ONLY}
    return WorkerNode.model_validate({**kept, **changes})


def _check(project: Project) -> None:
    wanted = {f"worker-{node.name}" for node in project.cluster.worker_nodes}
    has = {name for name in project.services if name.startswith("worker-")}
    problems = [
        *(f"there is no service {name} in compose/compose.yaml" for name in sorted(wanted - has)),
        *(f"service {name}: the inventory has no such worker node" for name in sorted(has - wanted)),
    ]
    if problems:
        raise InventoryError(
            "the worker nodes of the inventory and the services of compose/compose.yaml differ:",
            problems,
            next_step="add the service to compose/compose.yaml as the others are, or take it out",
        )


@dataclass(frozen=True)
class Service:
    """What one service gets: files by path below the home directory, and its environment with the command."""

    name: str
    files: dict[str, str]
    environment: dict[str, str]
    stop_timeout: int
    """Seconds it may take to stop."""


def services(project: Project, secrets: Secrets, release: str, cores: int) -> list[Service]:
    """Return what each service of ``project`` gets from the kit's roles.

    ``cores`` are the Docker engine's: `concurrency: auto` counts them.
    """
    return list(_Renderer(project.cluster, secrets, release, cores).services())


class _Renderer:
    """Asks the roles what they would do on each host."""

    def __init__(self, cluster: Cluster, secrets: Secrets, release: str, cores: int) -> None:
        self.cluster = cluster
        self.cores = cores
        login, brokers = f"flower:{secrets.broker['flower']}", cluster.internal_name("brokers")
        self.broker_api = f"http://{login}@{brokers}:{cluster.ports.management}/api/"
        self.definitions = topology.definitions(cluster, secrets)
        self.roles = RoleValues(cluster.root, _variables(cluster, secrets, release))

    def services(self) -> Iterator[Service]:
        for host in self.cluster.group("brokers"):
            own = {
                "rabbitmq_members": self._members(),
                "rabbitmq_server": "/usr/lib/rabbitmq/bin/rabbitmq-server",
                "rabbitmq_definitions": self.definitions,
            }
            yield self._service(host, "rabbitmq", host, **own)
        for host in self.cluster.group("results"):
            own = {
                "valkey_address": _EVERYWHERE,
                "valkey_addresses": [_EVERYWHERE],
                "valkey_server": "/usr/bin/valkey-server",
            }
            yield self._service(host, "valkey", host, **own)
        given = self.cluster.to_ansible()["worker_nodes"]
        for node, values in zip(self.cluster.worker_nodes, given, strict=True):
            for host in node.hosts:
                yield self._worker(node, values, host)
        for host in self.cluster.group("schedulers"):
            yield self._service(host, "scheduler", host)
        for host in self.cluster.group("monitors"):
            made = "{{ lookup('ansible.builtin.template', 'instances.yml.j2') | from_yaml }}"
            own = {"flower_address": _EVERYWHERE, "flower_broker_api": self.broker_api, "__flower_made": made}
            yield self._service(host, "flower", host, **own)

    def _members(self) -> list[dict[str, str]]:
        cluster = self.cluster
        return [
            {
                "name": host,
                "node": f"rabbit-{cluster.name}@{cluster.internal_name(host)}",
                "address": _EVERYWHERE,
            }
            for host in cluster.group("brokers")
        ]

    def _worker(self, node: WorkerNode, values: dict[str, Any], host: str) -> Service:
        # The command leaves pool and concurrency open: the environment has them, so that an override file
        # of Compose can say others.
        left_open = {"pool": f"${{{POOL_VARIABLE}}}", "concurrency": f"${{{CONCURRENCY_VARIABLE}}}"}
        service = self._service(
            f"worker-{node.name}",
            "worker",
            host,
            worker_nodes=[values | left_open],
            __worker_resources={"cores": self.cores},
            __worker_slot="",
        )
        slots = str(node.concurrency_on(self.cores))
        chosen = {POOL_VARIABLE: node.pool, CONCURRENCY_VARIABLE: slots}
        return replace(service, environment=service.environment | chosen)

    def _service(self, name: str, role: str, host: str, **own: Any) -> Service:
        services = _SERVICES.get(role, f"__{role}_services")
        files_there = _FILES.get(role, f"__{role}_files")
        # Both at once: working out a template costs more than what is in it.
        found = self.roles.value(role, f"{{{{ [{services} | list, {files_there} | list] }}}}", host, **own)
        (*beside, main), files = found
        home, directory = self.cluster.home, Path(main["working_directory"])
        environment = {
            **{key: str(value) for key, value in main.get("environment", {}).items()},
            "CLUSTERKIT_COMMAND": main["command"].strip(),
            "CLUSTERKIT_DIRECTORY": str(directory),
        }
        if beside:
            # Everywhere is what epmd does when nothing is said; told so, it fails on loopback, which it adds.
            commands = (item["command"].replace(f"-address {_EVERYWHERE} ", "") for item in beside)
            environment["CLUSTERKIT_BESIDE"] = " & ".join(commands)
        own_files = {
            str(path.relative_to(home)): file["content"]
            for file in files
            if (path := Path(file["path"])).is_relative_to(home / directory.relative_to(home).parts[0])
        }
        # Another text makes Compose replace the container, which reads its files when it starts.
        environment["CLUSTERKIT_FINGERPRINT"] = _digest(own_files)
        return Service(name, own_files, environment, main["stop_timeout"])


def _digest(files: dict[str, str]) -> str:
    """Return what changes with ``files``, but the broker's definitions: those are applied while it runs."""
    counted = sorted(item for item in files.items() if not item[0].endswith("definitions.json"))
    return hashlib.sha256(repr(counted).encode()).hexdigest()


def _variables(cluster: Cluster, secrets: Secrets, release: str) -> dict[str, Any]:
    """Return what `playbooks/up.yml` gets on hosts, as it is inside the project's network."""
    named = _by_name(cluster)
    one_broker = _with_one_broker(named)
    files = {
        role: clusterfiles.to_json(clusterfiles.cluster_file(one_broker, secrets, role))
        for role in clusterfiles.ROLES_ON_HOSTS
    }
    return {
        "cluster": named.to_ansible(),
        "cluster_files": files,
        "cluster_secrets": secrets.to_ansible(),
        "cluster_pki": {"ca": "", "hosts": {}},
        "cluster_consumer_timeout": topology.consumer_timeout_ms(cluster),
        "cluster_result_users": [rights.to_ansible() for rights in result_acl.RESULT_MATRIX],
        "cluster_flower": flower.to_ansible(cluster, secrets),
        "cluster_release": {"id": release},
        "service_home": str(cluster.home),
        "service_backend": cluster.service_backend,
        # Logs go to Docker; what else a service leaves there (Erlang's crash dump) does not outlive it.
        "service_log_directory": "/tmp",  # noqa: S108 - the container's own
    }


def _by_name(cluster: Cluster) -> Cluster:
    """Return ``cluster`` with the names its containers have for each other instead of addresses."""
    hosts = {
        name: host.model_copy(update={"address": cluster.internal_name(name)})
        for name, host in cluster.hosts.items()
    }
    return cluster.model_copy(update={"hosts": hosts})


def _with_one_broker(cluster: Cluster) -> Cluster:
    """Return ``cluster`` with all brokers under their common name.

    Of a list of brokers a worker tries each in turn, and stalls on one that is down.
    """
    brokers = Host(name="brokers", groups=("brokers",), address=cluster.internal_name("brokers"))
    return cluster.model_copy(
        update={
            "hosts": {**cluster.hosts, "brokers": brokers},
            "members": {**cluster.members, "brokers": ("brokers",)},
        }
    )


def write(project: Project, planned: list[Service], images: dict[str, str]) -> None:
    """Write the services' files and environments, and what Compose itself needs to know.

    Containers run as users that do not own these files, so each is readable by all, below a directory that
    only its owner may enter. A directory, not a file, is mounted: a changed file is seen at once.
    """
    project.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for service in planned:
        folder = project.folder / service.name
        for name, content in service.files.items():
            _write(folder / name, content, _CONTAINER_FILE_MODE)
        _write(project.folder / f"{service.name}.env", _env_file(service.environment), _OWNER_FILE_MODE)
    _write(project.environment_file, _env_file(_settings(project, planned, images)), _OWNER_FILE_MODE)


def _settings(project: Project, planned: list[Service], images: dict[str, str]) -> dict[str, str]:
    cluster = project.cluster
    stops: dict[str, int] = {}
    for service in planned:
        kind = _kind(service.name)
        stops[kind] = max(stops.get(kind, 0), service.stop_timeout)
    return {
        _FILES_VARIABLE: ":".join(map(str, project.files)),
        "PROJECT": project.name,
        "DOMAIN": cluster.internal_name("").lstrip("."),
        "FILES": str(project.folder),
        **{f"{name.upper()}_IMAGE": tag for name, tag in images.items()},
        **{f"{kind.upper()}_STOP": f"{seconds}s" for kind, seconds in stops.items()},
        **{f"{name.upper()}_PORT": str(port) for name, port in cluster.ports.model_dump().items()},
    }


def _kind(service: str) -> str:
    """Return which service of `compose/services.yaml` it is: broker1 is a broker, worker-io a worker."""
    return service.partition("-")[0].rstrip("0123456789")


def _env_file(values: dict[str, str]) -> str:
    """Return a file of variables as Compose reads it.

    Raises:
        BadInputError: a value has what cannot be quoted there.
    """
    for name, value in values.items():
        if set(value) & _UNQUOTABLE:
            raise BadInputError(
                f"{name}: Compose could not read {value!r}: it has a quote, backslash or new line"
            )
    return "".join(f"{name}='{value}'\n" for name, value in values.items())


def _write(path: Path, content: str, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.touch(mode=mode)
    unfinished.write_text(content, encoding="utf-8")
    unfinished.chmod(mode)
    unfinished.rename(path)
