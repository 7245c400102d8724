"""Brings the Compose project up, stops it, tells its state: a cluster as containers on this machine."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx

from clusterkit.ops import (
    clusterfiles,
    composeimages,
    composeplan,
    deployment,
    images,
    probing,
    release,
    status,
    topology,
)
from clusterkit.ops import secrets as secret_store
from clusterkit.ops.errors import ClusterUnhealthyError, DeployError, PreflightError
from clusterkit.ops.lock import alone
from clusterkit.ops.progress import Progress
from clusterkit.ops.status import NodeStatus, ServiceStatus, Status
from clusterkit.runtime.errors import ClusterUnreachableError, NoClusterError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from clusterkit.ops.composeplan import Project
    from clusterkit.ops.model import Cluster
    from clusterkit.ops.probing import Probes
    from clusterkit.ops.secrets import Role, Secrets

_BUILD, _IMAGES, _SERVERS, _WORKERS, _PROBE = "App release", "Images", "Servers", "Workers", "Probe tasks"
#: Seconds within which every worker node has to answer a probe on each of its queues.
PROBE_DEADLINE: Final = 60.0
#: Seconds until containers that were started have to be healthy; on two cores it takes 10 to 30.
_HEALTHY_DEADLINE: Final = 180
#: Seconds the broker may take to apply its definitions.
_DEFINITIONS_DEADLINE: Final = 60
#: Seconds until a broker that joined has a member of each queue; RabbitMQ looks once a minute at most.
_MEMBERS_DEADLINE: Final = 120
#: The cluster files of those who come from this machine.
_FILES_HERE: Final[dict[Role, str]] = {"producer": "client.json", "operator": "operator.json"}
#: Lines of what failed that are shown.
_TAIL: Final = 20


@dataclass(frozen=True)
class Up:
    """What an ``up`` did: containers started, seconds, the release, the nodes that run, their probes."""

    changes: int
    seconds: float
    release: str
    nodes: tuple[NodeStatus, ...]
    probes: Probes


def up(project: Project, console: Console) -> Up:
    """Build what is missing, start what is down, replace what changed, and prove that it works.

    Raises:
        PreflightError: no Docker engine or Compose to be had, or the data are those of another broker count.
        ReleaseError: the app could not be built or imported; no container was touched.
        DeployError: a container did not come up; the message has its log.
        ClusterUnhealthyError: a worker node did not answer its probes.
    """
    cluster = project.cluster
    phases = [_BUILD, _IMAGES, _SERVERS, _WORKERS, _PROBE]
    with alone(cluster), Progress(f"{project.name}: up", phases, console) as progress:
        progress.start(_BUILD)
        images.ensure_engine(cluster.root / ".cluster" / "dockerd.log", progress.doing)
        compose = _Compose(project, composeimages.compose_command(cluster.root, progress.doing), progress)
        compose.refuse_to_lose_brokers()
        secrets = secret_store.ensure(cluster.state_dir / "secrets.yml")
        built = release.build(cluster, {composeimages.target()}, progress.doing)
        progress.start(_IMAGES)
        tags = composeimages.ensure(cluster, built, progress.doing)
        planned = composeplan.services(project, secrets, built.id, composeimages.cores())
        composeplan.write(project, planned, tags)
        _write_cluster_files(cluster, secrets, composeimages.tasks(tags["worker"], built.id))
        progress.start(_SERVERS)
        compose.up_brokers()
        compose.up(*cluster.group("results"))
        _apply_definitions(cluster, secrets)
        _wait_for_members(cluster)
        progress.start(_WORKERS)
        compose.up()
        progress.start(_PROBE)
        app = deployment.operator_app(cluster)
        probes = probing.probe(app, cluster, deadline=PROBE_DEADLINE, report=progress.doing)
        if not probes.complete:
            raise ClusterUnhealthyError(
                "not every worker node answered:\n  " + "\n  ".join(probes.describe_missing()),
                next_step=f"make compose-status; {compose.by_hand('logs')}",
            )
        return Up(progress.changes, progress.seconds, built.id, status.nodes(cluster, app), probes)


def down(cluster: Cluster, console: Console, *, volumes: bool) -> None:
    """Remove the project's containers; with ``volumes`` also messages, results and the schedule.

    Raises:
        NoClusterError: it was never brought up.
    """
    _environment_file(cluster)
    # As the last `up` left it, whatever inventory and Compose files say by now.
    project = composeplan.Project(cluster, (), ())
    with alone(cluster), Progress(f"{project.name}: down", ["Stop"], console) as progress:
        progress.start("Stop")
        compose = _Compose(project, composeimages.compose_command(cluster.root, progress.doing), progress)
        compose.run("down", "--remove-orphans", *(["--volumes"] if volumes else []))


def status_of(cluster: Cluster) -> Status:
    """Return the state of the project; of its containers alone, when broker or result store do not answer.

    Raises:
        NoClusterError: it was never brought up.
    """
    project = current(cluster)
    found = services(project)
    try:
        with deployment.monitor(project.cluster) as broker:
            return status.collect(project.cluster, deployment.operator_app(project.cluster), broker, found)
    except ClusterUnreachableError as error:
        return status.unreachable(project.cluster, found, error)


def current(cluster: Cluster) -> Project:
    """Return the project as the last ``up`` made it, with its variants.

    Raises:
        NoClusterError: there was none.
    """
    return composeplan.project(cluster, composeplan.variants_in(_environment_file(cluster)))


def _environment_file(cluster: Cluster) -> Path:
    file = composeplan.Project(cluster, (), ()).environment_file
    if not file.exists():
        raise NoClusterError(
            f"the Compose project of cluster {cluster.name!r} was never brought up from this checkout",
            next_step="make compose-up",
        )
    return file


def services(project: Project) -> tuple[ServiceStatus, ...]:
    """Return every service of ``project`` with the state of its container; without one it is `missing`."""
    found = {one["Config"]["Labels"][_SERVICE_LABEL]: one for one in _containers(project)}
    return tuple(
        _service(name, _host(project, name), found[name])
        if name in found
        else ServiceStatus(_host(project, name), name, "missing", 0, 0)
        for name in project.services
    )


_SERVICE_LABEL: Final = "com.docker.compose.service"
_PROJECT_LABEL: Final = "com.docker.compose.project"


def _containers(project: Project) -> list[dict[str, Any]]:
    label = f"label={_PROJECT_LABEL}={project.name}"
    ids = images.docker("ps", "--all", "--quiet", "--filter", label).split()
    found: list[dict[str, Any]] = json.loads(images.docker("inspect", *ids)) if ids else []
    return found


def _host(project: Project, service: str) -> str:
    return service if service in project.cluster.hosts else project.cluster.group("workers")[0]


def _service(name: str, host: str, container: dict[str, Any]) -> ServiceStatus:
    state = container["State"]
    health = state.get("Health", {}).get("Status", "healthy")
    shown = state["Status"] if state["Status"] != "running" or health == "healthy" else health
    uptime = dt.timedelta()
    if state["Running"]:
        # Docker writes nanoseconds, which Python does not read.
        started = dt.datetime.fromisoformat(f"{state['StartedAt'][:19]}+00:00")
        uptime = dt.datetime.now(tz=dt.UTC) - started
    return ServiceStatus(host, name, shown, state["Pid"], max(int(uptime.total_seconds()), 0))


class _Compose:
    """Docker Compose on one project."""

    def __init__(self, project: Project, command: list[str], progress: Progress) -> None:
        self._project = project
        self._command = command
        self._progress = progress

    def refuse_to_lose_brokers(self) -> None:
        """Raise if brokers that have messages would be left out: two of three keep nobody's majority."""
        left_out = sorted(
            name
            for name in self._with_data()
            if name.startswith("broker") and name not in self._project.services
        )
        if left_out:
            raise PreflightError(
                f"{' and '.join(left_out)} hold messages of this project, and would not run",
                next_step="make compose-up BROKERS=3; or make compose-down VOLUMES=1, which removes all data",
            )

    def up_brokers(self) -> None:
        """Start the brokers in an order in which none forms a cluster of its own.

        Those that run are replaced one after the other, if at all. Those that were stopped come back
        together, for each waits for the one that stopped last. New ones come when there is one to join.
        """
        names = self._project.cluster.group("brokers")
        with_data = self._with_data()
        running = [one.name for one in services(self._project) if one.pid and one.name in names]
        stopped = [name for name in names if name in with_data and name not in running]
        new = [name for name in names if name not in with_data]
        for together in (*([name] for name in running), stopped, new):
            if together:
                self.up(*together)

    def _with_data(self) -> set[str]:
        """Return the services that have a volume."""
        label = f"label={_PROJECT_LABEL}={self._project.name}"
        volumes = images.docker("volume", "ls", "--quiet", "--filter", label).split()
        return {volume.removeprefix(f"{self._project.name}_") for volume in volumes}

    def up(self, *names: str) -> None:
        """Start the services ``names`` (all without any), and wait until they are healthy."""
        before = self._starts()
        self._progress.doing("starting containers" if not before else "comparing containers")
        orphans = [] if names else ["--remove-orphans"]
        self.run("up", "--detach", "--wait", f"--wait-timeout={_HEALTHY_DEADLINE}", *orphans, *names)
        for name, start in self._starts().items():
            if before.get(name) != start:
                self._progress.done(f"{name}: started", changed=True)

    def run(self, *arguments: str) -> None:
        """Run Compose, and show the last lines of the logs if it fails.

        Raises:
            DeployError: it failed.
        """
        done = self._call(*arguments)
        if done.returncode:
            logs = self._call("logs", "--no-color", f"--tail={_TAIL}")
            lines = [*done.stderr.strip().splitlines()[-_TAIL:], *self._of_the_unwell(logs.stdout)]
            said = "\n".join(f"  {line}" for line in lines)
            raise DeployError(
                f"docker compose {arguments[0]} failed:\n{said}", next_step=self._way_out(done.stderr)
            )

    def _way_out(self, said: str) -> str:
        if "address already in use" in said:
            return f"another port_base at {self._project.cluster.ports_place} moves all ports"
        return f"run it again to go on; {self.by_hand('logs')}"

    def by_hand(self, verb: str) -> str:
        """Return how a person runs Compose on the project."""
        return f"{' '.join(self._command)} --env-file {self._project.environment_file} {verb}"

    def _call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._command, "--ansi=never", "--env-file", str(self._project.environment_file), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def _starts(self) -> dict[str, tuple[str, str]]:
        """Return by service which container it has, and when that was started."""
        return {
            one["Config"]["Labels"][_SERVICE_LABEL]: (one["Id"], one["State"]["StartedAt"])
            for one in _containers(self._project)
        }

    def _of_the_unwell(self, logs: str) -> list[str]:
        """Return the lines of ``logs`` that are of services that do not run or are not healthy."""
        unwell = tuple(one.name for one in services(self._project) if one.state != "running")
        return [line for line in logs.splitlines() if line.startswith(unwell)]


def _apply_definitions(cluster: Cluster, secrets: Secrets) -> None:
    """Give the broker users, queues and policies as the inventory has them; it imported them when it was new.

    Raises:
        DeployError: it refused them, or did not answer.
    """
    url = f"{status.broker_urls(cluster)[0]}api/definitions"
    problems: list[str] = []

    def applied() -> bool:
        try:
            answer = httpx.post(
                url,
                json=topology.definitions(cluster, secrets),
                auth=("operator", secrets.broker["operator"]),
                timeout=_DEFINITIONS_DEADLINE,
                trust_env=False,
            )
        except httpx.HTTPError as error:
            problems.append(str(error))
            return False
        if answer.is_error:
            raise DeployError(f"RabbitMQ refused its definitions: {answer.status_code} {answer.text}")
        return True

    if not images.until(applied, _DEFINITIONS_DEADLINE, pause=0.5):
        raise DeployError(f"RabbitMQ's HTTP API at {url} does not answer: {problems[-1]}")


def _wait_for_members(cluster: Cluster) -> None:
    """Wait until every queue has a member on every broker; RabbitMQ gives them to one that joined.

    Raises:
        DeployError: some have not, in time.
    """
    wanted = len(cluster.group("brokers"))

    def lacking() -> list[str]:
        with deployment.monitor(cluster) as broker:
            queues = broker.queues().values()
        return [queue.name for queue in queues if queue.type == "quorum" and len(queue.members) < wanted]

    if wanted > 1 and not images.until(lambda: not lacking(), _MEMBERS_DEADLINE, pause=1):
        raise DeployError(f"queues have no member on each of the {wanted} brokers: {', '.join(lacking())}")


def _write_cluster_files(cluster: Cluster, secrets: Secrets, tasks: dict[str, str | None]) -> None:
    for role, name in _FILES_HERE.items():
        clusterfiles.write(clusterfiles.cluster_file(cluster, secrets, role, tasks), cluster.state_dir / name)
