"""What the hosts have is found, and what the worker nodes should have is measured and written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from harness import LocalCluster, eventually

from clusterkit.ops import tune

NODES = [
    {"name": "work", "pool": "prefork", "queues": ["default", "cpu"], "concurrency": 1},
    {"name": "io", "pool": "gevent", "queues": ["io"], "concurrency": 4},
]


@pytest.fixture(scope="module", autouse=True)
def _nodes(cluster: LocalCluster) -> Iterator[None]:
    cluster.settings(worker_nodes=NODES)
    cluster.up()
    yield
    cluster.settings()
    cluster.up()


def said(cluster: LocalCluster, target: str, *variables: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cluster.make(target, *variables, "JSON=1").stdout)
    return found


def test_the_host_and_what_its_worker_nodes_use_are_found(cluster: LocalCluster) -> None:
    (host,) = said(cluster, "cluster-discover")["hosts"]
    assert host["cores"] == len(psutil.Process().cpu_affinity())
    assert 0 < host["memory_available"] <= host["memory"] <= psutil.virtual_memory().total // 2**20
    nodes = {node["name"]: node for node in host["nodes"]}
    assert (nodes["work"]["slots"], nodes["work"]["processes"]) == (1, 2)
    assert nodes["io"]["slots"] == 4
    assert all(node["memory"] > 10 for node in nodes.values())
    assert "Worker nodes" in cluster.make("cluster-discover").stdout


def test_tasks_that_compute_are_recognised(cluster: LocalCluster) -> None:
    sample = ("TASK=tasks.compute.monte_carlo_pi", "ARGS=[100000]", "N=20", "SECONDS=8")
    (found,) = said(cluster, "cluster-tune", *sample)["proposals"]
    assert found["node"] == "work"
    assert found["share"] > 0.5, found  # all of a core, on a machine that does nothing else
    assert found["better_concurrency"] < tune.MOST_PER_CORE, found


def test_a_node_whose_tasks_wait_gets_more_processes_and_short_ones_in_advance(
    cluster: LocalCluster,
) -> None:
    sample = ("TASK=tasks.probes.sleep", 'ARGS={"seconds": 0.02}', "N=50", "SECONDS=8")
    tuned = said(cluster, "cluster-tune", *sample, "APPLY=1")
    assert set(tuned["unknown"]) == {"io"}, tuned
    (found,) = tuned["proposals"]
    assert found["node"] == "work"
    assert found["better_concurrency"] > 1, found
    assert 1 < found["better_prefetch"] <= 5, found
    nodes = {node.name: node for node in cluster.model.worker_nodes}
    assert nodes["work"].concurrency == found["better_concurrency"]
    assert nodes["work"].prefetch_multiplier == found["better_prefetch"]
    cluster.up()

    def sizes() -> dict[str, int]:
        return {node["name"]: node["concurrency"] for node in cluster.status()["nodes"]}

    eventually(
        lambda: sizes().get("work@localhost") == found["better_concurrency"],
        within=60,
        what=f"work has {found['better_concurrency']} processes",
        cluster=cluster,
        every=1,
    )


def test_without_tasks_nothing_is_said(cluster: LocalCluster) -> None:
    idle = cluster.make("cluster-tune", "SECONDS=1").stdout
    assert "say too little" in idle


def test_a_task_that_there_is_not_and_arguments_that_are_none_are_refused(cluster: LocalCluster) -> None:
    refused = cluster.make("cluster-tune", "TASK=tasks.probes.slep", "ARGS=[1]", code=10)
    assert "did you mean tasks.probes.sleep" in refused.stderr
    refused = cluster.make("cluster-tune", "TASK=tasks.probes.sleep", "ARGS=1", code=2)
    assert "neither a list nor an object" in refused.stderr
