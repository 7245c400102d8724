"""Resizing under load, warm stops and long waits: nothing is lost, nothing runs twice at once."""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
from celery import Celery
from celery.result import AsyncResult
from harness import LocalCluster, eventually

from clusterkit.ops.deployment import operator_app
from clusterkit.runtime.drill import DRILL, key

NODES = [
    {"name": "cpu", "pool": "prefork", "queues": ["cpu"], "concurrency": 2},
    {"name": "io", "pool": "gevent", "queues": ["io"], "concurrency": 2},
    {
        "name": "default",
        "pool": "prefork",
        "queues": ["default"],
        "concurrency": 2,
        "prefetch_multiplier": 4,
        # With 4 x 900 s the broker's patience stays what it is with 1 x 3600 s: no restart.
        "time_limit": 900,
    },
]


@pytest.fixture(scope="module", autouse=True)
def _sized(cluster: LocalCluster) -> Iterator[None]:
    cluster.settings(worker_nodes=NODES, stop_timeout=60)
    file = cluster.directory / "group_vars" / "all.yml"
    file.write_text("# Kept.\n" + file.read_text())
    cluster.up()
    yield
    cluster.settings()
    cluster.up()


@dataclass
class Load:
    """Numbered tasks that note down, apart from Celery, when they began and ended."""

    cluster: LocalCluster
    app: Celery
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    results: list[AsyncResult] = field(default_factory=list)

    def send(self, number: int, seconds: float, queue: str, **options: Any) -> None:
        for _ in range(number):
            arguments = [self.id, len(self.results), int(seconds * 1000)]
            self.results.append(self.app.send_task(DRILL, arguments, queue=queue, **options))

    def notes(self, what: str) -> list[dict[str, Any]]:
        client = operator_app(self.cluster.model).backend.client
        found = [json.loads(line) for line in client.lrange(key(self.id), 0, -1)]
        return [note for note in found if note["what"] == what]

    def wait(self, within: float = 60) -> None:
        assert [result.get(timeout=within) for result in self.results] == list(range(len(self.results)))

    def ran_once(self) -> None:
        self.wait()
        for what in ("begin", "end"):
            counts = Counter(note["number"] for note in self.notes(what))
            assert counts == dict.fromkeys(range(len(self.results)), 1)

    def most_at_once(self) -> int:
        steps = [(note["at"], 1) for note in self.notes("begin")]
        steps += [(note["at"], -1) for note in self.notes("end")]
        most = now = 0
        for _, step in sorted(steps):
            now += step
            most = max(most, now)
        return most


@pytest.fixture
def load(cluster: LocalCluster, app: Celery) -> Load:
    return Load(cluster, app)


def supervisorctl(cluster: LocalCluster, *arguments: str, code: int | None = 0) -> str:
    command = [str(cluster.home / "bin" / "supervisorctl"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert code is None or done.returncode == code, done.stdout
    return done.stdout


def service(cluster: LocalCluster, node: str) -> str:
    """The service of a worker node, in whichever slot it runs."""
    lines = supervisorctl(cluster, "status", code=None).splitlines()  # 3: not all of them run
    found = [line.split()[0] for line in lines if line.split()[1] == "RUNNING"]
    return next(name for name in found if name.partition(".")[0] == f"worker-{node}")


def pid(cluster: LocalCluster, node: str) -> int:
    return cluster.pid_of(service(cluster, node))


def stopping(cluster: LocalCluster, name: str) -> subprocess.Popen[bytes]:
    command = [str(cluster.home / "bin" / "supervisorctl"), "stop", name]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def rabbitmqctl(cluster: LocalCluster, *arguments: str) -> str:
    command = [str(cluster.home / "bin" / "rabbitmqctl"), "-q", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def children(cluster: LocalCluster, node: str) -> int:
    return len(psutil.Process(pid(cluster, node)).children())


def waiting(cluster: LocalCluster, queue: str) -> tuple[int, int]:
    """Messages ready and unacknowledged: what the queue itself says, not statistics."""
    said = rabbitmqctl(
        cluster, "list_queues", "--no-table-headers", "name", "messages_ready", "messages_unacknowledged"
    )
    found = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.strip()}
    return int(found[queue][0]), int(found[queue][1])


def begun(load: Load, number: int) -> None:
    eventually(
        lambda: len(load.notes("begin")) >= number,
        within=20,
        what=f"{number} tasks have begun",
        cluster=load.cluster,
    )


def scale(cluster: LocalCluster, node: str, size: int) -> dict[str, Any]:
    said = json.loads(cluster.make("cluster-scale", f"NODE={node}", f"N={size}", "JSON=1").stdout)
    (found,) = said["nodes"]
    assert said["complete"]
    result: dict[str, Any] = found
    return result


def test_two_processes_become_eight_become_one_under_load(cluster: LocalCluster, load: Load) -> None:
    main = pid(cluster, "cpu")
    load.send(260, 0.4, "cpu")
    up = scale(cluster, "cpu", 8)
    assert (up["before"], up["after"], up["processes"]) == (2, 8, 8)
    assert children(cluster, "cpu") == 8
    # What is left keeps all of them at work while seven are to go.
    load.send(30, 0.4, "cpu")
    down = scale(cluster, "cpu", 1)
    assert (down["before"], down["after"], down["processes"]) == (8, 1, 1)
    eventually(lambda: children(cluster, "cpu") == 1, within=10, what="seven processes have gone")
    load.ran_once()
    assert load.most_at_once() <= 8
    assert pid(cluster, "cpu") == main, "it was not restarted"
    assert (cluster.directory / "group_vars" / "all.yml").read_text().startswith("# Kept.\n")


def test_greenlets_and_their_prefetch_follow_as_well(cluster: LocalCluster, load: Load) -> None:
    assert scale(cluster, "io", 6)["after"] == 6
    load.send(12, 2, "io")
    load.ran_once()
    assert load.most_at_once() == 6
    more = Load(cluster, load.app)
    more.send(6, 6, "io")
    begun(more, 6)
    scale(cluster, "io", 1)
    more.send(3, 0.2, "io")
    more.ran_once()
    ends = sorted(note["at"] for note in more.notes("end") if note["number"] < 6)
    assert min(note["at"] for note in more.notes("begin") if note["number"] >= 6) >= ends[-1] - 0.5


def test_what_cannot_be_scaled_is_refused_with_the_way_out(cluster: LocalCluster) -> None:
    assert "Did you mean 'cpu'?" in cluster.make("cluster-scale", "NODE=cpuu", "N=2", code=2).stderr
    assert "Invalid value" in cluster.make("cluster-scale", "NODE=cpu", "N=0", code=2).stderr


def test_a_stopping_worker_gives_back_at_once_what_it_has_not_begun(
    cluster: LocalCluster, load: Load
) -> None:
    load.send(4, 15, "default")
    begun(load, 2)
    name = service(cluster, "default")
    stop = stopping(cluster, name)
    eventually(
        lambda: waiting(cluster, "default") == (2, 2),
        within=14,
        what="two messages are back in the queue",
        cluster=cluster,
    )
    assert stop.poll() is None, "two tasks run still"
    stop.wait(timeout=30)
    assert len(load.notes("end")) == 2
    supervisorctl(cluster, "start", name)
    load.ran_once()


@pytest.mark.parametrize("node", ["cpu", "io"])
def test_a_stopping_worker_that_loses_its_connection_ends_its_task_which_runs_again(
    node: str, cluster: LocalCluster, load: Load
) -> None:
    load.send(1, 12, node)
    begun(load, 1)
    name = service(cluster, node)
    log = cluster.home / "log" / f"{name}.log"
    before = log.read_text().count("1 tasks run")
    stop = stopping(cluster, name)
    eventually(
        lambda: log.read_text().count("1 tasks run") > before,
        within=10,
        what="the worker is stopping",
    )
    rabbitmqctl(cluster, "close_all_connections", "--global", "a test")
    stop.wait(timeout=8)  # not for the rest of the task
    assert load.notes("end") == []
    supervisorctl(cluster, "start", name)
    load.wait()
    assert len(load.notes("begin")) == 2
    assert len(load.notes("end")) == 1


def test_a_worker_whose_connection_is_cut_runs_its_tasks_again(cluster: LocalCluster, load: Load) -> None:
    load.send(2, 4, "io")
    begun(load, 1)
    rabbitmqctl(cluster, "close_all_connections", "--global", "a test")
    load.wait()
    assert Counter(note["number"] for note in load.notes("end")) == {0: 1, 1: 1}


def test_delayed_tasks_outlive_a_broker_restart_before_any_worker_is_there(
    cluster: LocalCluster, load: Load
) -> None:
    workers = [service(cluster, str(node["name"])) for node in NODES]
    supervisorctl(cluster, "stop", *workers)
    sent = time.time()
    load.send(10, 0.01, "cpu", countdown=9)
    load.send(10, 0.01, "io", countdown=12)
    supervisorctl(cluster, "restart", "rabbitmq")
    supervisorctl(cluster, "start", *workers)
    load.ran_once()
    assert min(note["at"] for note in load.notes("begin")) >= sent + 8


def test_delayed_tasks_whose_queue_was_away_when_they_were_due_come_soon_after(
    cluster: LocalCluster, load: Load
) -> None:
    """RabbitMQ's own patience with a queue that has no leader makes them 3 to 6 minutes late."""

    def queue_io(step: str) -> None:
        queue = (
            'amqqueue:get_pid(element(2, rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"io">>))))'
        )
        rabbitmqctl(cluster, "eval", f"ok = ra:{step}(quorum_queues, {queue}).")

    supervisorctl(cluster, "restart", "rabbitmq")  # the queue of delays then asks for the other anew
    rabbitmqctl(cluster, "await_startup")
    with cluster.broker() as broker:
        eventually(
            lambda: broker.queues()["io"].consumers, within=60, what="the worker is back", cluster=cluster
        )
    queue_io("stop_server")
    try:
        load.send(5, 0.01, "io", countdown=1)
        time.sleep(4)
    finally:
        queue_io("restart_server")
    load.wait(within=45)
    assert Counter(note["number"] for note in load.notes("begin")) == dict.fromkeys(range(5), 1)


def test_a_task_that_outlasts_the_brokers_patience_ends_in_the_dead_letters(
    cluster: LocalCluster, load: Load
) -> None:
    """The kit's consumer_timeout follows from time_limit, so that it takes a hand to get there."""

    def set_patience(milliseconds: int, tick: int) -> None:
        rabbitmqctl(cluster, "eval", f"application:set_env(rabbit, consumer_timeout, {milliseconds}).")
        rabbitmqctl(cluster, "eval", f"application:set_env(rabbit, channel_tick_interval, {tick}).")

    with cluster.broker() as broker:
        before = broker.queues()["celery.dead"].ready
    normal = int(rabbitmqctl(cluster, "eval", "element(2, application:get_env(rabbit, consumer_timeout))."))
    set_patience(500, 250)  # it is delivered 21 times before it is dead
    try:
        supervisorctl(cluster, "restart", service(cluster, "io"))  # a new channel has the new interval
        main = pid(cluster, "io")
        load.send(1, 30, "io")

        def dead() -> bool:
            with cluster.broker() as broker:
                return broker.queues()["celery.dead"].ready == before + 1

        eventually(dead, within=120, every=1, what="it is in the dead letters", cluster=cluster)
        assert pid(cluster, "io") == main
    finally:
        set_patience(normal, 60_000)
        supervisorctl(cluster, "restart", service(cluster, "io"))
    after = Load(cluster, load.app)
    after.send(1, 3, "io")
    after.ran_once()


def test_the_inventorys_size_comes_with_cluster_up_and_restarts_nothing(cluster: LocalCluster) -> None:
    main = pid(cluster, "cpu")
    nodes = [{**NODES[0], "concurrency": 3}, *NODES[1:]]
    cluster.settings(worker_nodes=nodes, stop_timeout=60)
    cluster.up()
    eventually(lambda: children(cluster, "cpu") == 3, within=10, what="three processes")
    assert pid(cluster, "cpu") == main
