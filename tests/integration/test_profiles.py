"""The profile `throughput` loses nothing: what runs twice is bounded by what a process had begun."""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from celery import Celery
from harness import LocalCluster, eventually

from clusterkit.ops.deployment import operator_app
from clusterkit.runtime.drill import DRILL, key
from clusterkit.runtime.profiles import PROFILES

#: Tasks of a test, of 2 ms each: enough to be in the middle of when something is killed.
MANY = 1_500
PROCESSES = 2
#: Tasks that may have begun and not be acknowledged when a worker node is killed: a batch in each process.
IN_BATCHES = PROCESSES * PROFILES["throughput"].batch


@pytest.fixture(scope="module", autouse=True)
def _throughput(cluster: LocalCluster) -> Iterator[None]:
    cluster.settings(
        queues={"default": {}, "cpu": {"profile": "throughput"}, "io": {"profile": "long-tasks"}},
        worker_nodes=[
            {"name": "cpu", "queues": ["cpu"], "concurrency": PROCESSES},
            {"name": "io", "queues": ["io"], "concurrency": 1, "time_limit": 3_600},
            {"name": "default", "queues": ["default"], "concurrency": 1},
        ],
    )
    cluster.up()
    yield
    cluster.settings()
    cluster.up()


class Run:
    """Numbered tasks, and the notes that their executions left apart from Celery."""

    def __init__(self, cluster: LocalCluster, app: Celery) -> None:
        self.cluster = cluster
        self.id = uuid.uuid4().hex
        self._store = operator_app(cluster.model).backend.client
        self.results = []
        for number in range(MANY):
            self.results.append(app.send_task(DRILL, [self.id, number, 2], queue="cpu"))

    def ended(self) -> Counter[int]:
        """How often each task ended."""
        notes = [json.loads(line) for line in self._store.lrange(key(self.id), 0, -1)]
        runs = {note["run"]: note["number"] for note in notes if note["what"] == "end"}
        return Counter(runs.values())

    def is_half_way(self) -> None:
        eventually(lambda: len(self.ended()) > MANY // 4, within=60, what="tasks run", cluster=self.cluster)

    def twice(self) -> int:
        """Wait until all have ended, and the queue is empty; return how many executions were too many."""
        eventually(
            lambda: len(self.ended()) == MANY,
            within=120,
            what="all tasks ended",
            cluster=self.cluster,
            every=1,
        )
        assert sorted(result.get(timeout=60) for result in self.results) == list(range(MANY))
        eventually(lambda: self._left() == 0, within=30, what="all are acknowledged", cluster=self.cluster)
        return self.ended().total() - MANY

    def _left(self) -> int:
        with self.cluster.broker() as broker:
            queue = broker.queues()["cpu"]
            return queue.ready + queue.unacknowledged


@pytest.fixture
def run(cluster: LocalCluster, app: Celery) -> Run:
    made = Run(cluster, app)
    made.is_half_way()
    return made


def worker(cluster: LocalCluster) -> psutil.Process:
    return psutil.Process(cluster.pid_of("worker-cpu"))


def test_without_a_fault_each_task_runs_once(run: Run) -> None:
    assert run.twice() == 0


def test_killed_pool_processes_cost_no_more_than_what_they_had_begun(cluster: LocalCluster, run: Run) -> None:
    killed = worker(cluster).children()
    for process in killed:
        os.kill(process.pid, signal.SIGKILL)
    assert run.twice() <= IN_BATCHES


def test_a_killed_worker_node_costs_no_more_than_what_its_processes_had_begun(
    cluster: LocalCluster, run: Run
) -> None:
    main = worker(cluster)
    for process in [main, *main.children(recursive=True)]:
        process.kill()
    assert run.twice() <= IN_BATCHES


def test_a_broker_that_restarts_loses_nothing(cluster: LocalCluster, run: Run) -> None:
    cluster.make("cluster-restart", "SERVICE=rabbitmq")
    assert run.twice() <= IN_BATCHES


def test_a_warm_stop_gives_back_what_has_not_begun_and_nothing_runs_twice(
    cluster: LocalCluster, run: Run
) -> None:
    before = worker(cluster).pid
    cluster.make("cluster-restart", "SERVICE=worker-cpu")
    assert worker(cluster).pid != before
    assert run.twice() == 0


def test_a_node_is_resized_while_it_runs_batches(cluster: LocalCluster, run: Run) -> None:
    cluster.make("cluster-scale", "NODE=cpu", "N=1")
    assert run.twice() == 0
    assert len(worker(cluster).children()) == 1
    cluster.make("cluster-scale", "NODE=cpu", f"N={PROCESSES}")


def test_a_task_that_kills_its_process_takes_no_other_with_it(cluster: LocalCluster, app: Celery) -> None:
    run = Run(cluster, app)
    crash = app.send_task("tasks.probes.crash", queue="cpu")
    assert "delivered again" in crash.get(timeout=60)
    assert run.twice() <= IN_BATCHES


def test_one_that_hangs_over_its_limit_is_ended_and_the_others_are_done(
    cluster: LocalCluster, app: Celery
) -> None:
    hanging = app.send_task("tasks.probes.sleep", [600], queue="cpu", time_limit=2)
    begin = time.monotonic()
    run = Run(cluster, app)
    assert run.twice() <= IN_BATCHES
    hanging.revoke(terminate=True)
    assert time.monotonic() - begin < 120


def settings_of(cluster: LocalCluster, node: str) -> dict[str, Any]:
    main = psutil.Process(cluster.pid_of(f"worker-{node}"))
    command = main.cmdline()
    return {
        "profile": main.environ()["CLUSTERKIT_PROFILE"],
        "prefetch": int(command[command.index("--prefetch-multiplier") + 1]),
    }


def test_each_node_runs_with_the_profile_of_its_queues(cluster: LocalCluster) -> None:
    assert settings_of(cluster, "cpu") == {"profile": "throughput", "prefetch": 60}
    assert settings_of(cluster, "io") == {"profile": "long-tasks", "prefetch": 1}
    assert settings_of(cluster, "default") == {"profile": "latency", "prefetch": 1}
