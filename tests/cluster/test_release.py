"""A rolling release over three worker hosts under load: nothing lost, nothing twice, no gap in capacity."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import BIN, ENVIRONMENT, ROOT, eventually
from labcluster import FIGURES, LabCluster
from load import SOURCE, Execution, Load, began, new_version

#: Seconds of the long tasks, two on each host, among those of 10 ms.
LONG = 60.0
SETTINGS: dict[str, Any] = {
    "celery_app": "ledger.app:app",
    "worker_nodes": [
        {"name": "cpu", "pool": "prefork", "queues": ["cpu", "default"], "concurrency": 4},
        {"name": "io", "pool": "gevent", "queues": ["io"], "concurrency": 10},
    ],
}


@pytest.fixture(scope="module")
def source(cluster: LabCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The source of the app that the cluster runs."""
    folder = Path(shutil.copytree(SOURCE, tmp_path_factory.mktemp("ledger") / "source"))
    file = cluster.directory / "group_vars" / "all.yml"
    before = file.read_text()
    file.write_text(yaml.safe_dump(yaml.safe_load(before) | SETTINGS | {"app_source": str(folder)}))
    cluster.up()
    yield folder
    file.write_text(before)
    cluster.make("cluster-release", "ALLOW_MISSING=1")


def test_a_rolling_release_leaves_no_gap(cluster: LabCluster, source: Path) -> None:
    new_version(source, "two")
    workers = cluster.model.group("workers")
    with Load(cluster, queue="cpu", long=(LONG,) * (2 * len(workers))) as load:
        eventually(lambda: began(load, 50), within=60, what="tasks run", cluster=cluster)
        released = subprocess.Popen(
            [BIN / "clusterkit", "cluster", "release", "--json", "--cluster", cluster.directory],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        said, log = released.communicate(timeout=550)
        assert released.returncode == 0, log
        through = load.sent
        eventually(lambda: began(load, through + 50), within=60, what="tasks run on", cluster=cluster)
    eventually(load.done, within=LONG + 60, what=f"all end, but {load.lost()}", cluster=cluster)
    executions = load.executions()
    lowest, of = capacity(executions, len(workers))
    FIGURES.append(
        f"a rolling release of {of} worker hosts in {json.loads(said)['seconds']:.0f} s: {load.sent} tasks,"
        f" {len(load.lost())} lost, {len(load.twice())} run twice, {longest_pause(executions):.1f} s"
        f" the longest time without a task begun, at least {lowest} of {of} hosts at work in any 5 s"
    )
    assert (load.lost(), load.twice()) == ([], [])
    assert lowest >= of - 1, FIGURES[-1]
    assert {one.version for one in executions if one.number > through} == {"two"}
    status = cluster.status()
    assert status["healthy"], status["problems"]


def test_a_release_that_does_not_come_up_stays_on_the_canary(cluster: LabCluster, source: Path) -> None:
    before = running(cluster)
    new_version(
        source,
        "broken",
        "from celery.signals import worker_init",
        "worker_init.connect(lambda **_: exit(3), weak=False)",
    )
    canary = cluster.model.group("workers")[-1]
    refused = cluster.make("cluster-release", f"CANARY={canary}", code=8)
    assert f"does not serve on the canary {canary}" in refused.stderr
    assert running(cluster) == before


def running(cluster: LabCluster) -> dict[tuple[str, str], int]:
    """The processes of the worker nodes that serve."""
    return {
        (service["host"], service["name"]): service["pid"]
        for service in cluster.status()["services"]
        if service["name"].startswith("worker-") and service["state"] == "running"
    }


def capacity(executions: list[Execution], hosts: int) -> tuple[int, int]:
    """The least number of hosts that began a task in any 5 s, and how many there are."""
    begins = [(one.at, one.node.partition("@")[2]) for one in executions if one.what == "begin"]
    last = max(at for at, _ in begins)
    windows = [{host for when, host in begins if at <= when < at + 5} for at, _ in begins if at + 5 <= last]
    return min(map(len, windows)), hosts


def longest_pause(executions: list[Execution]) -> float:
    """The longest time without a task begun, in seconds."""
    begins = sorted(one.at for one in executions if one.what == "begin")
    return max(later - earlier for earlier, later in itertools.pairwise(begins))
