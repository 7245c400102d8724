"""What a cluster is, as frozen typed objects; their descriptions become the variables' reference.

``clusterkit.ops.inventory`` makes a ``Cluster`` from an inventory directory. Rules that need more than
one value are in ``clusterkit.ops.rules``.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from clusterkit.ops.suggest import say
from clusterkit.runtime.profiles import PROFILES
from clusterkit.runtime.profiles import Name as ProfileName

Pool = Literal["prefork", "threads", "gevent", "eventlet", "solo"]
Backend = Literal["systemd", "supervisor", "compose"]
CelerySettings = Literal["no-loss", "stock"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
Group = Literal["brokers", "results", "workers", "schedulers", "monitors"]

GROUPS: Final[tuple[Group, ...]] = get_args(Group)
POOLS: Final[tuple[Pool, ...]] = get_args(Pool)

#: What each port is away from `port_base`; with a base of 5000 AMQP gets its usual 5672.
PORT_OFFSETS: Final[dict[str, int]] = {
    "amqp": 672,
    "distribution": 673,
    "management": 674,
    "epmd": 369,
    "results": 379,
    "sentinel": 380,
    "flower": 555,
    "flower_viewer": 556,
    "flower_admin": 557,
}
#: The ports that people and their tools know, with TLS; for hosts, unless `port_base` is given.
STANDARD_PORTS: Final[dict[str, int]] = {
    "amqp": 5_671,
    "distribution": 25_672,
    "management": 15_671,
    "epmd": 4_369,
    "results": 6_379,
    "sentinel": 26_379,
    "flower": 443,
    "flower_viewer": 5_555,
    "flower_admin": 5_556,
}
#: Seconds a worker has to stop, where a person waits for it at the terminal.
LOCAL_STOP_TIMEOUT: Final = 60
#: Seconds on top of a task's own time limit until its worker is ended by force.
STOP_MARGIN: Final = 30
#: The domain below which the hosts of a cluster know each other; reserved for private use (ICANN, 2024).
INTERNAL_DOMAIN: Final = "internal"
DEFAULT_PORT_BASE: Final = 24_000
HIGHEST_PORT: Final = 65_535
LOWEST_PORT_BASE: Final = 1_024
HIGHEST_PORT_BASE: Final = HIGHEST_PORT - max(PORT_OFFSETS.values())
#: Where a cluster under systemd has its files on every host; under supervisor it is `home`.
SYSTEM_HOME: Final = Path("/opt/clusterkit")

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
_APP = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_GIT_URL = re.compile(r"git\+(https?|ssh|file)://\S+")
_SIZE = re.compile(r"[1-9]\d*[KMG]")
_PERCENT = re.compile(r"[1-9]\d*%")
_CPU_LIST = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
#: Names the kit or Celery uses for something else on the same broker.
_RESERVED_QUEUES = re.compile(r"celeryev|celery_delayed_.*")


class Model(BaseModel):
    """A frozen object; values must have their type already, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


def _plain_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(
            f"{value!r} is no name: at most 40 lower-case letters, digits, - and _, beginning with a letter"
        )
    return value


def _queue_name(value: str) -> str:
    # A dot would let the delayed-delivery binding `#.name` of one queue match another's messages.
    _plain_name(value)
    if _RESERVED_QUEUES.fullmatch(value):
        raise ValueError(f"{value!r} is a name Celery uses itself")
    return value


def _app_name(value: str) -> str:
    if not _APP.fullmatch(value):
        raise ValueError(f"{value!r} is not of the form module:attribute, such as tasks.app:app")
    return value


def _app_source(value: str) -> str:
    if value.startswith("git+") or "://" in value:
        if not _GIT_URL.fullmatch(value):
            raise ValueError(f"{value!r} is no git URL: write git+https://server/project@tag (or git+ssh)")
    elif not value:
        raise ValueError("is empty: write a path, a wheel file or a git URL")
    return value


def _ip_address(value: str) -> str:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        raise ValueError(f"{value!r} is no IP address") from None
    return value


def _network(value: str) -> str:
    try:
        ipaddress.ip_network(value)
    except ValueError as error:
        raise ValueError(f"{error}: write an address range such as 10.0.0.0/24, or one address") from None
    return value


def _size(value: str) -> str:
    if not _SIZE.fullmatch(value):
        raise ValueError(f"{value!r} is no size: a number with K, M or G, such as 512M")
    return value


def _cpu_quota(value: str) -> str:
    if not _PERCENT.fullmatch(value):
        raise ValueError(f"{value!r} is no share of processor time: write a percentage; 200% are two cores")
    return value


def _cpu_list(value: str) -> str:
    if not _CPU_LIST.fullmatch(value):
        raise ValueError(f"{value!r} is no list of processor cores: write 0-3 or 0,2")
    return value


def _concurrency(value: Any) -> Any:
    if value == "auto":
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"must be auto or a whole number of at least 1, not {say(value)}")
    return value


def _nothing_as_empty(value: Any) -> Any:
    return {} if value is None else value


Name = Annotated[str, AfterValidator(_plain_name)]
QueueName = Annotated[str, AfterValidator(_queue_name)]
Names = Annotated[tuple[str, ...], Field(strict=False)]
Concurrency = Annotated[Literal["auto"] | int, BeforeValidator(_concurrency)]
Port = Annotated[int, Field(ge=1, le=HIGHEST_PORT)]


#: The profile of a queue that names none.
DEFAULT_PROFILE: Final[ProfileName] = "latency"


class QueueSettings(Model):
    """What one queue's tasks are like, and its limits.

    The limits are policies, so that they can be changed while messages wait.
    """

    profile: ProfileName = DEFAULT_PROFILE
    """How worker nodes run the queue's tasks. `latency`: each as soon as a slot is free. `throughput`, for
    many tasks of milliseconds: 60 messages taken per slot, several tasks given to a process in one go, no
    task events, no log lines of tasks that succeed. `long-tasks`: nothing taken in advance, and a day's
    `time_limit`. The queues of one worker node have the same."""

    delivery_limit: int = Field(default=20, ge=1)
    """How often a message is delivered again (its worker died, or its time limit ended it) before it
    goes to the dead letters."""

    max_length: int = Field(default=1_000_000, ge=1)
    """Messages the queue takes; publishers get an error beyond it."""


class AutoConcurrency(Model):
    """What `concurrency: auto` means on a host: ``per_core`` x cores + ``plus``."""

    per_core: int
    """Slots per processor core."""
    plus: int
    """Slots besides."""

    def on(self, cores: int) -> int:
        """Return the concurrency on a host with ``cores`` processor cores."""
        return self.per_core * cores + self.plus


#: Prefork runs Python on one core per process. Threads share one core between waits: five per core was
#: the default of Python's own ThreadPoolExecutor (3.5 to 3.7). Greenlets only wait, whatever the cores.
AUTO_CONCURRENCY: Final[dict[Pool, AutoConcurrency]] = {
    "prefork": AutoConcurrency(per_core=1, plus=0),
    "threads": AutoConcurrency(per_core=5, plus=0),
    "gevent": AutoConcurrency(per_core=0, plus=100),
    "eventlet": AutoConcurrency(per_core=0, plus=100),
    "solo": AutoConcurrency(per_core=0, plus=1),
}

#: Tasks after which a prefork pool's process is replaced unless the inventory says otherwise.
DEFAULT_TASKS_PER_CHILD: Final = 1_000


class WorkerNode(Model):
    """One entry of `worker_nodes`: a Celery worker node of this name on each of its hosts."""

    name: Name
    """Name of the node; Celery knows it as `name@host`."""

    pool: Pool = "prefork"
    """How tasks run side by side: processes (`prefork`), `threads`, greenlets (`gevent`, `eventlet`), or
    one at a time in the worker's own process (`solo`)."""

    queues: Names = Field(min_length=1)
    """Queues the node takes tasks from; each is a key of `queues`."""

    concurrency: Concurrency = "auto"
    """Tasks running at once on each host. `auto` is one per core for prefork, five per core for threads,
    100 for gevent and eventlet; solo runs one whatever is said. Memory is not counted."""

    hosts: Names = Field(default=(), min_length=1)
    """Hosts of the group `workers` the node runs on. Default: all of them."""

    prefetch_multiplier: int = Field(default=1, ge=1)
    """Messages taken from the broker per slot, the running one included. The default is that of its queues'
    profile: 1, or 60 for `throughput`."""

    time_limit: int = Field(default=3_600, ge=1)
    """Seconds after which a task is ended by force. The broker's patience (`consumer_timeout`) follows
    from it. Only prefork and gevent enforce it. The default is that of its queues' profile: 3600, 60
    for `throughput`, 86400 for `long-tasks`."""

    soft_time_limit: int | None = Field(default=None, ge=1)
    """Seconds after which SoftTimeLimitExceeded is raised inside a task, so that it can clean up; below
    `time_limit`. Only prefork enforces it."""

    max_tasks_per_child: int | None = Field(default=None, ge=1)
    """Tasks after which a pool process is replaced by a fresh one. Only for prefork, where the default
    is 1000."""

    max_memory_per_child: int | None = Field(default=None, ge=1)
    """KiB of memory above which a pool process is replaced after its task. Only for prefork."""

    cpu_affinity: Annotated[str, AfterValidator(_cpu_list)] | None = None
    """Processor cores the node may use, such as `0-3` or `0,2`; `concurrency: auto` counts these. Only with
    systemd."""

    cpu_quota: Annotated[str, AfterValidator(_cpu_quota)] | None = None
    """Share of processor time the node may use; `200%` are two cores, and `concurrency: auto` counts two.
    Only with systemd."""

    memory_max: Annotated[str, AfterValidator(_size)] | None = None
    """Memory of the whole node, such as `2G`; the kernel ends a process beyond it, and its task runs again.
    Only with systemd."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("pool", "prefork") == "prefork":
            return {"max_tasks_per_child": DEFAULT_TASKS_PER_CHILD, **data}
        return data

    @property
    def auto_concurrency(self) -> AutoConcurrency:
        """What `concurrency: auto` means for this node's pool."""
        return AUTO_CONCURRENCY[self.pool]

    @property
    def most_cores(self) -> int | None:
        """Processor cores the node may use at most; None: all of its host's."""
        limits = []
        if self.cpu_affinity:
            ranges = [part.partition("-") for part in self.cpu_affinity.split(",")]
            limits.append(
                len({core for low, _, high in ranges for core in range(int(low), int(high or low) + 1)})
            )
        if self.cpu_quota:
            limits.append(max(int(self.cpu_quota.removesuffix("%")) // 100, 1))
        return min(limits, default=None)

    def concurrency_on(self, cores: int) -> int:
        """Return the number of tasks that run at once on a host with ``cores`` processor cores."""
        cores = min(cores, self.most_cores or cores)
        return self.auto_concurrency.on(cores) if self.concurrency == "auto" else self.concurrency


class Ports(Model):
    """TCP ports of the cluster; each is `port_base` plus a fixed offset unless set here.

    On hosts, without a `port_base`, they are the well-known ones.
    """

    amqp: Port
    """AMQP, where workers and clients connect."""
    distribution: Port
    """Erlang distribution between broker nodes and their command line tools."""
    management: Port
    """RabbitMQ's HTTP API and web pages."""
    epmd: Port
    """Erlang's port mapper."""
    results: Port
    """The result store."""
    sentinel: Port
    """Sentinel, which knows the result store's master; only with several result hosts."""
    flower: Port
    """Flower's web pages; on hosts nginx with TLS."""
    flower_viewer: Port
    """The read-only Flower behind nginx, on loopback; only on hosts."""
    flower_admin: Port
    """The administrators' Flower behind nginx, on loopback; only on hosts."""


class Settings(Model):
    """The keys of `group_vars/all.yml`."""

    celery_app: Annotated[str, AfterValidator(_app_name)]
    """The Celery app to run, as `module:attribute`."""

    app_source: Annotated[str, AfterValidator(_app_source)] = "."
    """Where the app comes from: a path (relative to the checkout), a wheel file, or a git URL
    (`git+https://server/project@tag`)."""

    service_backend: Backend = "systemd"
    """What keeps the processes running: `systemd` on hosts that boot it, `supervisor` for a cluster that
    is private to one user, `compose` for containers (`make compose-up`)."""

    home: Path = Field(default=SYSTEM_HOME, strict=False)
    """Directory everything of the cluster lives in, relative to the checkout. Only with supervisor;
    default `.cluster/` and the cluster's name."""

    bind_address: Annotated[str, AfterValidator(_ip_address)] = "127.0.0.1"
    """IP address the services listen on. Only with supervisor; hosts listen on their own address."""

    port_base: int | None = Field(default=None, ge=LOWEST_PORT_BASE, le=HIGHEST_PORT_BASE)
    """Every port is this plus a fixed offset. Default with supervisor: 24000; on hosts the well-known ports.
    Change it when a second cluster runs on the same machine."""

    ports: Annotated[Ports, BeforeValidator(_nothing_as_empty)]
    """Single ports that differ from `port_base` plus their offset."""

    default_queue: str = "default"
    """Queue of tasks that nothing else was said about; a key of `queues`."""

    queues: dict[QueueName, Annotated[QueueSettings, BeforeValidator(_nothing_as_empty)]] = Field(
        min_length=1
    )
    """Every queue, by name. They are declared when the cluster is deployed, never by a misspelt name."""

    worker_nodes: tuple[WorkerNode, ...] = Field(min_length=1, strict=False)
    """The worker nodes."""

    stop_timeout: int | None = Field(default=None, ge=1)
    """Seconds a stopping worker may go on with its running tasks; after that they go back to their queues.
    Default with supervisor: 60; on hosts the node's `time_limit` and half a minute."""

    result_expires: int = Field(default=86_400, ge=1)
    """Seconds a task's result is kept."""

    log_level: LogLevel = "INFO"
    """Least severe messages the services log."""

    client_networks: Annotated[tuple[Annotated[str, AfterValidator(_network)], ...], Field(strict=False)] = ()
    """Address ranges from which clients may reach the broker, the result store and Flower, besides the
    machine that runs `make`. Only on hosts, where a firewall keeps everybody else out."""

    firewall: bool = True
    """Whether hosts get firewall rules for the cluster's ports (nftables). Only on hosts."""

    drills: bool = False
    """Whether `make drill` may hurt this cluster: kill its processes, stop its hosts, cut its network. Labs
    have it."""

    celery_settings: CelerySettings = "no-loss"
    """`stock` runs the app with Celery's own defaults on classic queues without dead letters, to compare
    with: it loses tasks. Only where `drills` is true."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_ports(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        ports = data.get("ports")
        if ports is None or isinstance(ports, dict):
            data = {**data, "ports": default_ports(data) | (ports or {})}
        return data

    @model_validator(mode="before")
    @classmethod
    def _fill_in_profiles(cls, data: Any) -> Any:
        nodes = data.get("worker_nodes") if isinstance(data, dict) else None
        if not isinstance(nodes, list):
            return data
        filled = [profile_defaults(data, node) | node if isinstance(node, dict) else node for node in nodes]
        return {**data, "worker_nodes": filled}

    def profile_of(self, node: WorkerNode) -> ProfileName:
        """Return the profile of the queues of ``node``."""
        return self.queues[node.queues[0]].profile


def default_ports(settings: dict[str, Any]) -> dict[str, int]:
    """Return every port as ``settings``, as written, place them without their own key `ports`."""
    base = settings.get("port_base")
    if base is None and settings.get("service_backend", "systemd") == "systemd":
        return STANDARD_PORTS
    if not isinstance(base, int) or not LOWEST_PORT_BASE <= base <= HIGHEST_PORT_BASE:
        base = DEFAULT_PORT_BASE  # a wrong one is complained about as port_base, not once more as each port
    return {name: base + offset for name, offset in PORT_OFFSETS.items()}


def profiles_of(settings: dict[str, Any], node: Any) -> list[str]:
    """Return the profiles of the queues of ``node``, as written in ``settings``; none that are wrong."""
    queues, names = settings.get("queues"), node.get("queues") if isinstance(node, dict) else None
    if not isinstance(queues, dict) or not isinstance(names, list):
        return []
    written = [queues.get(name) or {} for name in names if isinstance(name, str) and name in queues]
    found = [queue.get("profile", DEFAULT_PROFILE) for queue in written if isinstance(queue, dict)]
    return [profile for profile in dict.fromkeys(map(str, found)) if profile in PROFILES]


def profile_defaults(settings: dict[str, Any], node: Any) -> dict[str, Any]:
    """Return what the profile of the queues of ``node``, as written, gives it unless it has its own."""
    for name, profile in PROFILES.items():
        if [name] == profiles_of(settings, node):
            return {"prefetch_multiplier": profile.prefetch_multiplier, "time_limit": profile.time_limit}
    return {}


class AppSource(Model):
    """Where the app comes from, sorted out."""

    kind: Literal["path", "wheel", "git"]
    """What ``location`` is."""
    location: str
    """Absolute path of a project or a wheel file, or a git URL."""


class Host(Model):
    """One machine of the inventory."""

    name: str
    """The inventory's name of it."""
    groups: tuple[Group, ...]
    """Groups the host belongs to."""
    address: str
    """Where the other hosts and clients reach it: `cluster_address`, or `ansible_host`, or the name."""


class Cluster(Settings):
    """A validated cluster: its settings with defaults filled in, its hosts, and what follows from both."""

    name: str
    """Name of the cluster: the inventory directory's."""
    directory: Path
    """The inventory directory."""
    root: Path
    """The checkout."""
    members: dict[Group, tuple[str, ...]]
    """Names of the hosts in each group."""
    hosts: dict[str, Host]
    """Every host by name."""
    ports_place: str = ""
    """File and line of the inventory where ports are chosen."""
    warnings: tuple[str, ...] = ()
    """Settings that are allowed but have no effect, with file and line."""

    @property
    def state_dir(self) -> Path:
        """Directory on the control machine with the cluster's secrets and client file."""
        return self.root / ".cluster" / self.name

    @property
    def app(self) -> AppSource:
        """Where the app comes from."""
        return app_source(self.app_source, self.root)

    @property
    def tls(self) -> bool:
        """Whether everything that goes over the network is encrypted: on hosts, not on one's own loopback."""
        return self.service_backend == "systemd"

    @property
    def stock(self) -> bool:
        """Whether the app runs with Celery's own defaults, to compare with: tasks get lost."""
        return self.celery_settings == "stock"

    @property
    def sentinel(self) -> bool:
        """Whether the result store is replicated, and Sentinel says which of its servers is the master."""
        return len(self.group("results")) > 1

    def internal_name(self, name: str) -> str:
        """Return the name a host, or a group as a whole (`brokers`), has for the cluster's other hosts."""
        return f"{name}.{self.name.replace('_', '-')}.{INTERNAL_DOMAIN}"

    def listen_address(self, host: str) -> str:
        """Return the IP address on which the services of ``host`` listen."""
        return self.bind_address if self.service_backend == "supervisor" else self.hosts[host].address

    def group(self, name: Group) -> tuple[str, ...]:
        """Return the names of the hosts in the group ``name``."""
        return self.members[name]

    def stop_timeout_of(self, node: WorkerNode) -> int:
        """Return the seconds ``node`` may take to stop."""
        return self.stop_timeout or (node.time_limit + STOP_MARGIN if self.tls else LOCAL_STOP_TIMEOUT)

    def nodes_on(self, host: str) -> tuple[WorkerNode, ...]:
        """Return the worker nodes that run on ``host``."""
        return tuple(node for node in self.worker_nodes if host in node.hosts)

    def expected_nodes(self) -> list[tuple[str, WorkerNode]]:
        """Return what Celery should see: (`node@host`, its node) for each node on each of its hosts."""
        return [(f"{node.name}@{host}", node) for node in self.worker_nodes for host in node.hosts]

    def to_ansible(self) -> dict[str, Any]:
        """Return the whole model as JSON-safe values, with what playbooks would otherwise work out."""
        return {
            **self.model_dump(mode="json", exclude={"warnings", "members", "ports_place"}),
            "state_dir": str(self.state_dir),
            "app": self.app.model_dump(mode="json"),
            "tls": self.tls,
            "sentinel": self.sentinel,
            "addresses": {name: self.listen_address(name) for name in self.hosts},
            "internal_names": {name: self.internal_name(name) for name in (*self.hosts, *GROUPS)},
            "groups": {name: list(hosts) for name, hosts in self.members.items()},
            "worker_nodes": [
                {
                    **node.model_dump(mode="json"),
                    "auto_concurrency": node.auto_concurrency.model_dump(),
                    "most_cores": node.most_cores,
                    "profile": self.profile_of(node),
                    "stop_timeout": self.stop_timeout_of(node),
                }
                for node in self.worker_nodes
            ],
            "expected_nodes": [name for name, _ in self.expected_nodes()],
        }


def app_source(source: str, root: Path) -> AppSource:
    """Sort out an `app_source`; a path is taken from ``root`` and need not exist."""
    if source.startswith("git+"):
        return AppSource(kind="git", location=source)
    path = (root / Path(source).expanduser()).resolve()
    return AppSource(kind="wheel" if path.suffix == ".whl" else "path", location=str(path))
