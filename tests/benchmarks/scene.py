"""Where the systems are measured: the cluster `bench`, one broker for all, and what of it may run."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import httpx
import kombu
import psutil
from amqp.exceptions import NotFound
from benchwork.marks import DIRECTORY, Marks
from supervisor.xmlrpc import SupervisorTransport

from clusterkit.ops import deployment, inventory, topology
from clusterkit.ops.model import Cluster
from clusterkit.runtime.clusterfile import CONFIG_VARIABLE, ClusterFile
from tests.benchmarks.processes import Measured, MeasureError, in_turn, running, until_told

ROOT: Final = Path(__file__).resolve().parents[2]
_APP: Final = Path(__file__).parent / "app"
#: Virtual host and user of the systems that the kit is measured against.
_PEERS: Final = "bench"
#: Seconds within which a queue must hold what it should, and tasks must have run.
_SETTLED_WITHIN, _DONE_WITHIN = 20.0, 120.0


@dataclass(frozen=True)
class Place:
    """A queue on the broker; ``peers``: in the virtual host of all systems but the kit."""

    queue: str
    peers: bool = True


class Scene:
    """The cluster while it is measured on; ``cores`` is how many worker processes every system gets."""

    def __init__(self, cluster: Cluster, peers_url: str) -> None:
        peer = kombu.Connection(peers_url)
        self._monitor = (peer.userid, peer.password)
        self._api = f"http://127.0.0.1:{cluster.ports.management}"
        self.cores = len(os.sched_getaffinity(0))
        self.directory = cluster.home / "bench"
        self.log = self.directory / "log"
        self.directory.mkdir(exist_ok=True)
        self._operator_file = str(cluster.state_dir / "operator.json")
        self._operator_url = ClusterFile.load(self._operator_file).broker_url
        self._peers_url = peers_url
        socket = cluster.home / "supervisor" / "supervisor.sock"
        transport = SupervisorTransport(None, None, f"unix://{socket}")
        self._supervisor: Any = xmlrpc.client.ServerProxy("http://localhost", transport).supervisor
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("BENCH_")},
            "PYTHONPATH": str(_APP),
            "BENCH_BROKER": peers_url,
            DIRECTORY: str(self.directory),
            CONFIG_VARIABLE: str(cluster.state_dir / "client.json"),
        }

    def quiet(self) -> None:
        """Stop all of the cluster but broker and result store."""
        for service in self._services("worker-.*|scheduler|flower"):
            with contextlib.suppress(xmlrpc.client.Fault):  # it does not run
                self._supervisor.stopProcess(service)

    def _services(self, pattern: str) -> list[str]:
        names = [info["name"] for info in self._supervisor.getAllProcessInfo()]
        return [name for name in names if re.fullmatch(pattern, name)]

    def _process(self, service: str) -> psutil.Process:
        return psutil.Process(self._supervisor.getProcessInfo(service)["pid"])

    @property
    def broker(self) -> list[psutil.Process]:
        """The broker and the result store."""
        return [self._process("rabbitmq"), self._process("valkey")]

    @contextlib.contextmanager
    def nodes(self, *names: str) -> Iterator[list[psutil.Process]]:
        """Run worker nodes of the kit meanwhile, as it deployed them."""
        services = [service for name in names for service in self._services(rf"worker-{name}(\.[b-z])?")]
        try:
            for service in services:
                self._supervisor.startProcess(service, False)
            yield [self._process(service) for service in services]
        finally:
            for service in services:
                with contextlib.suppress(xmlrpc.client.Fault):
                    self._supervisor.stopProcess(service)

    @contextlib.contextmanager
    def processes(self, *commands: Sequence[str], **environment: str) -> Iterator[list[psutil.Process]]:
        """Run commands of the checkout's environment meanwhile."""
        each = [_command(*command) for command in commands]
        with running(each, [{**self.environment, **environment}] * len(each), self.log) as started:
            yield started

    def _deployed(self, name: str) -> tuple[list[str], dict[str, str]]:
        """Return the command and the environment that a worker node of the kit was deployed with."""
        with self.nodes(name) as [node]:
            while "--hostname" not in node.cmdline():  # it is still the supervisor's own
                time.sleep(0.01)
            return node.cmdline(), node.environ()

    @contextlib.contextmanager
    def copies(self, name: str, count: int) -> Iterator[list[psutil.Process]]:
        """Run ``count`` worker nodes meanwhile, each as the kit deployed ``name`` but for its one process."""
        command, environment = self._deployed(name)
        size = self.directory / "one.json"
        size.write_text('{"concurrency": 1}', encoding="utf-8")
        commands, environments = [], []
        for number in range(count):
            own = {"--hostname": f"{name}@idle-{number}", "--statedb": str(self.directory / f"idle-{number}")}
            commands.append(
                [own.get(before, word) for before, word in zip(["", *command], command, strict=False)]
            )
            environments.append(
                {**environment, "CLUSTERKIT_SERVICE": f"idle-{number}", "CLUSTERKIT_NODE_FILE": str(size)}
            )
        with running(commands, environments, self.log) as started:
            yield started

    @contextlib.contextmanager
    def fleet(self, module: str, nodes: int, *options: str) -> Iterator[None]:
        """Simulate ``nodes`` idle worker nodes meanwhile, and have a reader of all events."""
        command = _command("python", "-m", "benchwork.fleet", module, str(nodes), *options)
        environment = self.environment
        if module == "kit":  # whose users may do what their role needs: nodes are workers, the reader is not
            worker = self._deployed("steady")[1][CONFIG_VARIABLE]
            environment = {**environment, CONFIG_VARIABLE: worker, "BENCH_READER": self._operator_file}
        with until_told(command, environment, self.log):
            yield

    def measure(
        self,
        *command: str,
        workers: Sequence[psutil.Process] = (),
        itself: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> Measured:
        """Run a module of `benchwork` that measures, and watch the broker and ``workers`` meanwhile."""
        watched = {"broker": self.broker, "workers": workers}
        return in_turn(
            _command("python", "-m", *command),
            {**self.environment, **(environment or {})},
            watched,
            self.log,
            itself,
        )

    def marks(self, count: int) -> Marks:
        """Forget which tasks ran; the next ones are numbered from 0 to ``count`` - 1."""
        return Marks.new(self.directory, count)

    def purge(self, place: Place) -> None:
        """Throw away what is in a queue."""
        with self._channel(place) as channel, contextlib.suppress(NotFound):
            channel.queue_purge(place.queue)

    def ready(self, place: Place) -> int:
        """Return how many messages are in a queue, without those that a consumer has."""
        with self._channel(place) as channel:
            return int(channel.queue_declare(place.queue, passive=True).message_count)

    def consumers(self, place: Place) -> int:
        """Return how many consume from a queue."""
        with self._channel(place) as channel:
            return int(channel.queue_declare(place.queue, passive=True).consumer_count)

    def traffic(self) -> tuple[int, int]:
        """Return how many messages the broker has taken and delivered since it began; a few seconds old."""
        answer = httpx.get(f"{self._api}/api/overview", auth=self._monitor, timeout=60, trust_env=False)
        counted = answer.raise_for_status().json().get("message_stats", {})
        return counted.get("publish", 0), counted.get("deliver_get", 0)

    @contextlib.contextmanager
    def _channel(self, place: Place) -> Iterator[Any]:
        with kombu.Connection(self._peers_url if place.peers else self._operator_url) as connection:
            yield connection.channel()

    def lost(self, what: str) -> NoReturn:
        """Fail, because ``what`` makes the measurement void."""
        raise MeasureError(what)

    def all_ran(self, marks: Marks, least: int) -> None:
        """Wait until ``least`` tasks have run.

        Raises:
            MeasureError: they did not within two minutes.
        """
        deadline = time.monotonic() + _DONE_WITHIN
        while marks.done() < least:
            if time.monotonic() > deadline:
                raise MeasureError(f"{marks.done()} of {marks.count} tasks ran; {self.log} may say why")
            time.sleep(0.002)

    def holds(self, place: Place, count: int) -> None:
        """Wait until ``count`` messages are in a queue: all that were published, or none that are left.

        Raises:
            MeasureError: there are more or fewer for 20 s.
        """
        deadline = time.monotonic() + _SETTLED_WITHIN
        while (there := self.ready(place)) != count:
            if time.monotonic() > deadline:
                raise MeasureError(f"{there} messages are in the queue {place.queue}, and not {count}")
            time.sleep(0.1)


def _command(name: str, *arguments: str) -> list[str]:
    return [str(Path(sys.executable).parent / name), *arguments]


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[Scene]:
    """Bring the cluster of ``directory`` up, keep it quiet meanwhile, and stop it at the end."""
    _make("cluster-up", directory)
    try:
        cluster = inventory.load(str(directory), ROOT)
        scene = Scene(cluster, _peers(cluster))
        scene.quiet()
        yield scene
    finally:
        _make("cluster-down", directory)


def _make(target: str, directory: Path) -> None:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "CLUSTER"}
    }
    command = ["make", target, f"CLUSTER={directory}"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    if done.returncode:
        raise MeasureError(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")


def _peers(cluster: Cluster) -> str:
    """Give the other systems a virtual host and a user on the broker; return its URL."""
    password = secrets.token_hex(16)
    user = {
        "name": _PEERS,
        "password_hash": topology.password_hash(_PEERS, password),
        "hashing_algorithm": "rabbit_password_hashing_sha256",
        "tags": ["monitoring"],
    }
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    deployment.administrator(cluster).add_definitions(
        {
            "vhosts": [{"name": _PEERS}],
            "users": [user],
            "permissions": [{"user": _PEERS, "vhost": _PEERS, **everything}],
        }
    )
    return f"amqp://{_PEERS}:{password}@127.0.0.1:{cluster.ports.amqp}/{_PEERS}"
