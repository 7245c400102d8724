"""What Parallel Python can do, the kit can: its five abilities, each seen here and there side by side.

Only the kit's side is asserted; what Parallel Python did is put down in the table at the end of the run.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import parallelpython
import psutil
import pytest
from celery import Celery, group
from celery.result import GroupResult
from harness import LocalCluster, eventually
from labcluster import FIGURES

from clusterkit.ops import deployment
from clusterkit.runtime import client

#: Seconds after which an experiment with Parallel Python counts as hung.
DEADLINE = 45.0
CORES = sorted(os.sched_getaffinity(0))

NODES: list[dict[str, Any]] = [
    {"name": "cpu", "pool": "prefork", "queues": ["cpu"], "concurrency": "auto"},
    {"name": "large", "pool": "prefork", "queues": ["io"], "concurrency": 3},
    {"name": "small", "pool": "prefork", "queues": ["io"], "concurrency": 1},
    {"name": "default", "pool": "prefork", "queues": ["default"], "concurrency": 2},
]


@pytest.fixture(scope="module", autouse=True)
def _two_unequal_nodes_deployed_on_one_core(cluster: LocalCluster) -> Iterator[None]:
    cluster.settings(worker_nodes=NODES)
    with on_one_core():
        cluster.up()
    yield
    cluster.settings()
    cluster.up()


@pytest.fixture(scope="module")
def table() -> Iterator[list[tuple[str, str, str]]]:
    """Rows of ability, the kit, Parallel Python; printed with the other figures."""
    rows = [("", "the kit", f"Parallel Python (ppft {version('ppft')})")]
    yield rows
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        FIGURES.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@contextlib.contextmanager
def on_one_core() -> Iterator[None]:
    """What is started meanwhile may use one core only, as under taskset or in a container's cpuset."""
    os.sched_setaffinity(0, CORES[:1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, CORES)


def pool(cluster: LocalCluster, node: str) -> list[psutil.Process]:
    """The processes in which a worker node runs tasks."""
    return psutil.Process(cluster.pid_of(f"worker-{node}")).children()


def naps(app: Celery, seconds: float, number: int) -> GroupResult:
    tasks = group(app.signature("tasks.probes.sleep", [seconds], queue="io") for _ in range(number))
    sent: GroupResult = tasks.apply_async()
    return sent


def by_node(result: GroupResult) -> Counter[str]:
    """Count the tasks of each node, in whichever of its slots it runs (`large@host`, `large.b@host`)."""
    return Counter(task.worker.partition("@")[0].partition(".")[0] for task in result.results)


def hung(seen: dict[str, Any]) -> str:
    verdict = f"{seen.get('done', 0)} of {seen.get('jobs', '?')} jobs done"
    return f"{verdict}, then it hung" if seen["hung"] else verdict


def test_the_configuration_is_found_where_only_one_core_may_be_used(
    cluster: LocalCluster, table: list[tuple[str, str, str]]
) -> None:
    node = next(node for node in cluster.status()["nodes"] if node["name"] == "cpu@localhost")
    eventually(lambda: len(pool(cluster, "cpu")) == 1, within=30, what="one process", cluster=cluster)
    seen = parallelpython.observe("configuration", DEADLINE, set(CORES[:1]))
    ability = f"configuration found: 1 of {len(CORES)} cores allowed"
    table.append((ability, f"{node['concurrency']} process", f"{seen.get('workers')} processes"))
    assert node["concurrency"] == 1


def test_workers_change_while_they_run_and_those_that_go_are_gone(
    cluster: LocalCluster, table: list[tuple[str, str, str]]
) -> None:
    cluster.make("cluster-scale", "NODE=cpu", "N=4")
    eventually(lambda: len(pool(cluster, "cpu")) == 4, within=30, what="four processes", cluster=cluster)
    cluster.make("cluster-scale", "NODE=cpu", "N=1")
    eventually(lambda: len(pool(cluster, "cpu")) == 1, within=30, what="one process", cluster=cluster)
    seen = parallelpython.observe("fewer", DEADLINE)
    there = f"{seen.get('before')}, then {seen.get('after')} (it says {seen.get('said')})"
    table.append(("processes, 4 and then 1 wanted", "4, then 1", there))


def test_unequal_nodes_get_tasks_by_what_they_can_do(
    cluster: LocalCluster, app: Celery, table: list[tuple[str, str, str]]
) -> None:
    result = naps(app, 0.25, 40)
    client.wait(result, timeout=60)
    done = by_node(result)
    seen = parallelpython.observe("balance", DEADLINE)
    table.append(
        (
            "load balanced: 40 tasks, nodes of 3 and 1",
            f"{done['large']} and {done['small']}",
            f"{seen.get('large')} and {seen.get('small')}",
        )
    )
    assert done["large"] > done["small"] > 0


def test_tasks_survive_a_kill_of_a_process_at_work(
    cluster: LocalCluster, app: Celery, table: list[tuple[str, str, str]]
) -> None:
    result = naps(app, 2.0, 6)
    eventually(lambda: running(cluster), within=30, what="tasks that run", cluster=cluster)
    pool(cluster, "large")[0].send_signal(signal.SIGKILL)
    done = len(client.wait(result, timeout=90))
    seen = parallelpython.observe("killed", DEADLINE)
    table.append(("kill -9 of a process at work, 6 tasks", f"{done} of 6 done", hung(seen)))
    assert done == 6


def test_a_node_that_was_killed_comes_back_and_works(
    cluster: LocalCluster, app: Celery, table: list[tuple[str, str, str]]
) -> None:
    before = cluster.pid_of("worker-large")
    result = naps(app, 3.0, 6)
    eventually(lambda: running(cluster), within=30, what="tasks that run", cluster=cluster)
    os.kill(before, signal.SIGKILL)
    done = len(client.wait(result, timeout=120))

    def works_again() -> bool:
        more = naps(app, 0.25, 8)
        client.wait(more, timeout=60)
        return by_node(more)["large"] > 0

    eventually(works_again, within=90, what="work on the node that was killed", cluster=cluster, every=1)
    assert cluster.pid_of("worker-large") != before
    for how in ("listed", "discovered"):
        seen = parallelpython.observe(f"restarted_{how}", DEADLINE)
        there = hung(seen) if seen.get("before") else "was never found"
        kit = f"{done} of 6 done, works again" if how == "listed" else ""
        table.append((f"node killed and started again ({how})", kit, there))
    assert done == 6


def running(cluster: LocalCluster) -> bool:
    """Whether the large node runs as many tasks as it can."""
    control = deployment.operator_app(cluster.model).control
    active = control.inspect(destination=["large@localhost"], timeout=2).active() or {}
    return sum(len(tasks) for tasks in active.values()) == 3
