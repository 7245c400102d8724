"""Releases under load: nothing lost, nothing twice; what is broken never gets past the first host."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import ENVIRONMENT, ROOT, LocalCluster, eventually
from load import SOURCE, Load, began, new_version

SETTINGS: dict[str, Any] = {
    "celery_app": "ledger.app:app",
    "queues": {"default": {}},
    "worker_nodes": [{"name": "work", "pool": "prefork", "queues": ["default"], "concurrency": 4}],
}
#: Seconds of the long task: longer than a roll-out takes to hand over.
LONG = 20


@pytest.fixture(scope="module")
def source(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The source of the app that the cluster runs."""
    folder = Path(shutil.copytree(SOURCE, tmp_path_factory.mktemp("ledger") / "source"))
    cluster.settings(app_source=str(folder), **SETTINGS)
    cluster.up()
    yield folder
    cluster.settings()
    (cluster.home / "releases.json").unlink()  # or an up would keep what was gone back to
    cluster.up()  # not a release: that declares no queues, and gives no rights to other worker nodes


def processes(cluster: LocalCluster) -> dict[str, int]:
    return {service["name"]: service["pid"] for service in cluster.status()["services"]}


def release(cluster: LocalCluster, *variables: str) -> dict[str, Any]:
    rolled: dict[str, Any] = json.loads(cluster.make("cluster-release", "JSON=1", *variables).stdout)
    return rolled


def current(cluster: LocalCluster) -> dict[str, Any]:
    listed = json.loads(cluster.make("cluster-releases", "JSON=1").stdout)
    return next(one for one in listed if one["current"])


def test_a_release_under_load_loses_no_task_and_runs_none_twice(cluster: LocalCluster, source: Path) -> None:
    new_version(source, "two")
    with Load(cluster, long=(LONG,)) as load:
        eventually(lambda: began(load, 20), within=20, what="tasks run", cluster=cluster)
        rolled = release(cluster)
        after = load.sent
        eventually(lambda: began(load, after + 20), within=30, what="tasks run on", cluster=cluster)
    eventually(load.done, within=LONG + 30, what=f"all end, but {load.lost()}", cluster=cluster)
    assert (load.lost(), load.twice()) == ([], [])
    executions = load.executions()
    assert {execution.version for execution in executions if execution.number > after} == {"two"}
    assert next(e for e in executions if (e.number, e.what) == (0, "end")).version == "one"
    assert current(cluster)["entry"]["id"] == rolled["release"] != rolled["before"]
    assert cluster.status()["healthy"]


def test_a_retry_that_waits_outlives_a_restart_of_the_broker(cluster: LocalCluster, source: Path) -> None:
    load = Load(cluster)
    load.send(10, task="ledger.app.again")
    eventually(lambda: began(load, 1), within=20, what="it begins", cluster=cluster)
    cluster.make("cluster-restart", "SERVICE=rabbitmq")
    eventually(load.done, within=60, what="it is tried again", cluster=cluster)
    assert (load.count("begin"), load.count("end")) == ({0: 2}, {0: 1})


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (("import no_such_module",), "no_such_module"),
        (('app.tasks.unregister("ledger.app.spare")',), "ledger.app.spare: queue default holds"),
        (
            (
                "from celery.signals import worker_init",
                "worker_init.connect(lambda **_: exit(3), weak=False)",
            ),
            "does not stay up",
        ),
    ],
    ids=["cannot be imported", "lacks a task", "has workers that do not come up"],
)
def test_a_release_is_refused_and_the_old_one_goes_on_if_it(
    cluster: LocalCluster, source: Path, lines: tuple[str, ...], said: str
) -> None:
    before, deployed = processes(cluster), current(cluster)["entry"]["id"]
    new_version(source, "broken", *lines)
    refused = cluster.make("cluster-release", code=8)
    assert said in refused.stderr
    assert processes(cluster) == before
    assert current(cluster)["entry"]["id"] == deployed


def test_a_release_to_a_queue_that_was_never_declared_is_refused(cluster: LocalCluster, source: Path) -> None:
    before = processes(cluster)
    settings = {**SETTINGS, "app_source": str(source)}
    nodes = [{**SETTINGS["worker_nodes"][0], "queues": ["default", "later"]}]
    cluster.settings(**{**settings, "queues": {"default": {}, "later": {}}, "worker_nodes": nodes})
    try:
        assert "later" in cluster.make("cluster-release", code=8).stderr
        assert processes(cluster) == before
    finally:
        cluster.settings(**settings)


def test_a_rollback_goes_back_and_an_up_leaves_it_there(cluster: LocalCluster) -> None:
    deployed = current(cluster)["entry"]["id"]
    rolled = json.loads(cluster.make("cluster-rollback", "JSON=1").stdout)
    assert (rolled["before"], rolled["release"] != deployed) == (deployed, True)
    again = cluster.make("cluster-up", "JSON=1")  # clears away what the hand-over left
    assert json.loads(again.stdout)["release"] == rolled["release"]
    assert "the release stays" in again.stderr
    assert cluster.up()["changes"] == 0


def test_a_release_that_was_killed_half_way_is_finished_by_the_next(
    cluster: LocalCluster, source: Path
) -> None:
    new_version(source, "three")
    killed = subprocess.Popen(
        ["make", "cluster-release", f"CLUSTER={cluster.directory}"],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    before = set(processes(cluster))
    sets = cluster.home / "supervisor" / "sets" / "workers.conf"
    eventually(
        lambda: "clusterkit_slot = new" in sets.read_text(), within=120, what="it hands over", cluster=cluster
    )
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    release(cluster)
    status = cluster.status()
    assert status["healthy"], status["problems"]
    assert len({service["name"].partition(".")[0] for service in status["services"]}) == len(before)
