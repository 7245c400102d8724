"""pytest-celery on the kit's own images: a broker, a result store and worker nodes, new for each test.

The files, environment and commands in the containers are those of `make compose-up`; the names they know
each other by are put into each container's /etc/hosts. The plugin's own app and settings are not used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
from celery import Celery
from pytest_celery import (
    CeleryBackendCluster,
    CeleryBrokerCluster,
    CeleryTestWorker,
    CeleryWorkerCluster,
    CeleryWorkerContainer,
    RabbitMQContainer,
    RabbitMQTestBroker,
    RedisContainer,
    RedisTestBackend,
)
from pytest_docker_tools import container, fxtr, volume

from clusterkit.ops import (
    clusterfiles,
    composeimages,
    composeplan,
    images,
    inventory,
    release,
    secrets,
    topology,
)
from clusterkit.ops.composeplan import Project, Service
from clusterkit.ops.model import Cluster, Pool, WorkerNode
from clusterkit.ops.secrets import Role, Secrets
from clusterkit.runtime import client

ROOT = Path(__file__).resolve().parents[2]
AMQP, MANAGEMENT, RESULTS = 5672, 15672, 6379
#: The inventory's hosts and containers.
BROKER, STORE, NODE, SECOND = "broker1", "store", "all", "second"
CONFIG = {"bind": "/config", "mode": "ro"}


@dataclass(frozen=True)
class Kit:
    """The images and what is in them."""

    cluster: Cluster
    secrets: Secrets
    release: str
    images: dict[str, str]
    tasks: dict[str, str | None]

    def services(self, cluster: Cluster) -> dict[str, Service]:
        """What the containers get."""
        project = Project(cluster, (), ())
        planned = composeplan.services(project, self.secrets, self.release, composeimages.cores())
        return {service.name: service for service in planned}

    def with_pool(self, pool: Pool) -> Cluster:
        nodes = [
            WorkerNode(name=name, pool=pool, queues=tuple(self.cluster.queues), hosts=("worker",))
            for name in (NODE, SECOND)
        ]
        return self.cluster.model_copy(update={"worker_nodes": tuple(nodes)})


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    if problem := images.engine_problem():
        if os.environ.get("CI"):
            pytest.fail(f"no Docker engine: {problem}")
        pytest.skip(f"no Docker engine: {problem}")
    loaded = inventory.load("compose", ROOT)
    ports = loaded.ports.model_copy(update={"amqp": AMQP, "management": MANAGEMENT, "results": RESULTS})
    cluster = composeplan.project(loaded, []).cluster.model_copy(update={"ports": ports})
    made = secrets.ensure(tmp_path_factory.mktemp("secrets") / "secrets.yml")
    built = release.build(cluster, {composeimages.target()})
    tags = composeimages.ensure(cluster, built, print)
    return Kit(cluster, made, built.id, tags, composeimages.tasks(tags["worker"], built.id))


@pytest.fixture
def pool() -> Pool:
    """The nodes' pool; a test that is parametrized with `pool` has others."""
    return "prefork"


@pytest.fixture
def cluster(kit: Kit, pool: Pool) -> Cluster:
    """What the nodes should be."""
    return kit.with_pool(pool)


@pytest.fixture
def services(kit: Kit, cluster: Cluster) -> dict[str, Service]:
    return kit.services(cluster)


def _content(service: Service) -> dict[str, bytes]:
    return {name: text.encode() for name, text in service.files.items()}


@pytest.fixture
def broker_content(services: dict[str, Service]) -> dict[str, bytes]:
    return _content(services[BROKER])


@pytest.fixture
def store_content(services: dict[str, Service]) -> dict[str, bytes]:
    return _content(services[STORE])


@pytest.fixture
def node_content(services: dict[str, Service]) -> dict[str, bytes]:
    return _content(services[f"worker-{NODE}"])


broker_files = volume(initial_content=fxtr("broker_content"))
store_files = volume(initial_content=fxtr("store_content"))
node_files = volume(initial_content=fxtr("node_content"))


@pytest.fixture
def broker_environment(services: dict[str, Service]) -> dict[str, str]:
    return services[BROKER].environment


@pytest.fixture
def store_environment(services: dict[str, Service]) -> dict[str, str]:
    return services[STORE].environment


@pytest.fixture
def own_name(kit: Kit) -> dict[str, str]:
    """By which name the broker knows itself."""
    return {kit.cluster.internal_name(BROKER): "127.0.0.1"}


default_rabbitmq_broker = container(
    image="{kit.images[broker]}",
    environment=fxtr("broker_environment"),
    volumes={"{broker_files.name}": CONFIG},
    ports={f"{AMQP}/tcp": None, f"{MANAGEMENT}/tcp": None},
    network="{default_pytest_celery_network.name}",
    extra_hosts=fxtr("own_name"),
    wrapper_class=RabbitMQContainer,
    timeout=120,
)
default_redis_backend = container(
    image="{kit.images[results]}",
    environment=fxtr("store_environment"),
    volumes={"{store_files.name}": CONFIG},
    ports={f"{RESULTS}/tcp": None},
    network="{default_pytest_celery_network.name}",
    wrapper_class=RedisContainer,
    timeout=60,
)


@pytest.fixture
def celery_broker_cluster(
    kit: Kit, cluster: Cluster, celery_rabbitmq_broker: RabbitMQTestBroker
) -> Iterator[CeleryBrokerCluster]:
    """The kit's broker alone, with the queues and policies of `make compose-up`."""
    host, port = celery_rabbitmq_broker.container.get_addr(f"{MANAGEMENT}/tcp")
    answer = httpx.post(
        f"http://{host}:{port}/api/definitions",
        json=topology.definitions(cluster, kit.secrets),
        auth=("operator", kit.secrets.broker["operator"]),
        timeout=30,
        trust_env=False,
    )
    answer.raise_for_status()
    brokers = CeleryBrokerCluster(celery_rabbitmq_broker)
    yield brokers
    brokers.teardown()


@pytest.fixture
def celery_backend_cluster(celery_redis_backend: RedisTestBackend) -> Iterator[CeleryBackendCluster]:
    """The kit's result store alone."""
    cluster = CeleryBackendCluster(celery_redis_backend)
    yield cluster
    cluster.teardown()


@pytest.fixture
def addresses(
    kit: Kit, celery_broker_cluster: CeleryBrokerCluster, celery_backend_cluster: CeleryBackendCluster
) -> dict[str, str]:
    """Where the names in the nodes' cluster file are."""
    return {
        kit.cluster.internal_name("brokers"): celery_broker_cluster[0].container.ips.primary,
        kit.cluster.internal_name(STORE): celery_backend_cluster[0].container.ips.primary,
    }


class NodeContainer(CeleryWorkerContainer):
    """A worker node of the kit."""

    @classmethod
    def worker_name(cls) -> str:
        return NODE


class SecondNodeContainer(NodeContainer):
    """Another one, for the same queues."""

    @classmethod
    def worker_name(cls) -> str:
        return SECOND


@pytest.fixture
def node_environment(services: dict[str, Service]) -> dict[str, str]:
    return services[f"worker-{NODE}"].environment


@pytest.fixture
def second_environment(services: dict[str, Service]) -> dict[str, str]:
    return services[f"worker-{SECOND}"].environment


default_worker_container = container(
    image="{kit.images[worker]}",
    environment=fxtr("node_environment"),
    volumes={"{node_files.name}": CONFIG},
    network="{default_pytest_celery_network.name}",
    extra_hosts=fxtr("addresses"),
    wrapper_class=NodeContainer,
    timeout=60,
)
second_container = container(
    image="{kit.images[worker]}",
    environment=fxtr("second_environment"),
    volumes={"{node_files.name}": CONFIG},
    network="{default_pytest_celery_network.name}",
    extra_hosts=fxtr("addresses"),
    wrapper_class=SecondNodeContainer,
    timeout=60,
)


@pytest.fixture
def nodes() -> int:
    """How many worker nodes there are: 1 or 2."""
    return 1


@pytest.fixture
def celery_worker_cluster(
    nodes: int, celery_setup_app: Celery, request: pytest.FixtureRequest
) -> Iterator[CeleryWorkerCluster]:
    names = ("default_worker_container", "second_container")[:nodes]
    cluster = CeleryWorkerCluster(
        *(CeleryTestWorker(request.getfixturevalue(name), app=celery_setup_app) for name in names)
    )
    yield cluster
    cluster.teardown()


def _connect(kit: Kit, role: Role, path: Path, request: pytest.FixtureRequest) -> Celery:
    broker = request.getfixturevalue("celery_broker_cluster")[0].container
    store = request.getfixturevalue("celery_backend_cluster")[0].container
    file = clusterfiles.cluster_file(kit.cluster, kit.secrets, role, kit.tasks)
    reached = replace(
        file,
        broker_url=_moved(file.broker_url, *broker.get_addr(f"{AMQP}/tcp")),
        result_url=_moved(file.result_url, *store.get_addr(f"{RESULTS}/tcp")),
    )
    clusterfiles.write(reached, path / f"{role}.json")
    return client.connect(path=path / f"{role}.json")


def _moved(url: str, host: str, port: int) -> str:
    login, at, place = url.rpartition("@")
    return f"{login}{at}{host}:{port}{place[place.index('/') :]}"


@pytest.fixture
def celery_setup_app(kit: Kit, tmp_path: Path, request: pytest.FixtureRequest) -> Celery:
    """A client with a producer's rights, as scripts are; the plugin's own settings are not used."""
    return _connect(kit, "producer", tmp_path, request)


@pytest.fixture
def operator(kit: Kit, tmp_path: Path, request: pytest.FixtureRequest) -> Celery:
    """Who may ask worker nodes how they are."""
    return _connect(kit, "operator", tmp_path, request)
