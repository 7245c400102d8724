"""Brokers restarted one by one, and a worker host drained, while tasks come and go: nothing is lost."""

from __future__ import annotations

import re
import subprocess
import time
from collections import Counter

from celery import Celery
from celery.result import AsyncResult
from harness import ENVIRONMENT, ROOT, eventually
from labcluster import FIGURES, LabCluster

from clusterkit.runtime import client

#: Seconds until a result is there: brokers come back, and their queues' leaders move.
DELAY = 90.0


def publish_during(
    cluster: LabCluster, app: Celery, target: str, *variables: str
) -> tuple[list[AsyncResult], float]:
    """Publish numbered tasks, each confirmed, while a make target runs; return them and the longest wait."""
    running = subprocess.Popen(
        ["make", target, f"CLUSTER={cluster.directory}", *variables],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    sent: list[AsyncResult] = []
    longest = 0.0
    while running.poll() is None:
        began = time.monotonic()
        sent.append(app.send_task("tasks.probes.echo", [len(sent)], queue="io", timeout=60))
        longest = max(longest, time.monotonic() - began)
    assert running.stdout
    assert running.returncode == 0, running.stdout.read()
    return sent, longest


def completions(cluster: LabCluster, results: list[AsyncResult]) -> Counter[int]:
    """How many of the tasks ended how many times, as the worker nodes logged it."""
    ended: Counter[str] = Counter()
    for host in cluster.model.group("workers"):
        log = cluster.on(host, "journalctl --no-pager --quiet --boot --unit 'clusterkit-worker-*'")
        ended.update(re.findall(r"\[([0-9a-f-]{36})\] succeeded", log))
    return Counter(ended[result.id] for result in results)


def test_all_brokers_are_restarted_and_no_confirmed_task_is_lost(cluster: LabCluster, app: Celery) -> None:
    before = brokers_processes(cluster)
    sent, longest = publish_during(cluster, app, "broker-restart")
    assert [client.wait(result, timeout=DELAY) for result in sent] == list(range(len(sent)))
    after = brokers_processes(cluster)
    assert all(after[host] != before[host] for host in before)
    FIGURES.append(f"brokers restarted: {len(sent)} tasks confirmed, 0 lost, longest publish {longest:.1f} s")


def brokers_processes(cluster: LabCluster) -> dict[str, int]:
    services = cluster.status()["services"]
    return {service["host"]: service["pid"] for service in services if service["name"] == "rabbitmq"}


def test_no_broker_is_restarted_while_another_is_down_or_in_an_alarm(cluster: LabCluster) -> None:
    before = brokers_processes(cluster)
    ctl = "/opt/clusterkit/bin/rabbitmqctl set_vm_memory_high_watermark"
    try:
        cluster.on("h3", f"{ctl} 0.00001")
        alarmed = cluster.make("broker-restart", "TIMEOUT=1", code=5)
    finally:
        cluster.on("h3", f"{ctl} 0.4")
    assert re.search(r"rabbit-\S+@h3\S+: memory alarm, publishers are held back", alarmed.stderr)
    cluster.on("h2", "systemctl stop clusterkit-rabbitmq")
    try:
        refused = cluster.make("broker-restart", "TIMEOUT=1", code=5)
    finally:
        cluster.on("h2", "systemctl start clusterkit-rabbitmq")
    assert re.search(r"rabbit-\S+@h2\S+ does not run \(make cluster-up", refused.stderr)
    cluster.healthy()
    after = brokers_processes(cluster)
    assert {host for host in before if before[host] != after[host]} == {"h2"}


def test_a_broker_node_that_the_others_lost_sight_of_comes_back_by_itself(cluster: LabCluster) -> None:
    """RabbitMQ 4.0 stays split for ever after a failure too short to be noticed."""
    before = brokers_processes(cluster)
    blip = "[erlang:disconnect_node(N) || N <- nodes()]."
    cluster.on("h3", f"/opt/clusterkit/bin/rabbitmqctl eval '{blip}'")
    eventually(
        lambda: brokers_processes(cluster).get("h3", 0) not in {before["h3"], 0},
        within=180,
        every=2,
        what="the node has been restarted",
    )
    cluster.healthy()
    log = cluster.on("h3", "journalctl --no-pager --quiet --boot --unit clusterkit-rabbitmq-heal")
    assert "a partition is left of rabbit-" in log
    after = brokers_processes(cluster)
    assert {host for host in before if before[host] != after[host]} == {"h3"}


def test_a_host_is_drained_under_load_and_no_task_is_lost_or_run_twice(
    cluster: LabCluster, app: Celery
) -> None:
    host = cluster.model.group("workers")[-1]
    long = [app.send_task("tasks.probes.sleep", [10], queue="cpu") for _ in range(8)]
    short = [app.send_task("tasks.probes.sleep", [0.2], queue="io") for _ in range(100)]
    began = time.monotonic()
    done = cluster.make("cluster-drain", f"HOST={host}", "REASON=a test")
    FIGURES.append(f"{host} drained under load: {time.monotonic() - began:.0f} s")
    assert f"cpu@{host}" in done.stdout
    try:
        assert [client.wait(result, timeout=DELAY) for result in long] == [10] * 8
        assert [client.wait(result, timeout=DELAY) for result in short] == [0.2] * 100
        assert completions(cluster, [*long, *short]) == {1: 108}
        assert not cluster.on(host, "pgrep --full '[c]elery.* worker '", code=None).strip()
        status = cluster.healthy()
        assert [mark["host"] for mark in status["drained"]] == [host]
        assert f"{host} is drained since" in cluster.make("cluster-status").stdout
    finally:
        cluster.make("cluster-undrain", f"HOST={host}")
    status = cluster.healthy()
    assert f"cpu@{host}" in {node["name"] for node in status["nodes"]}
    assert status["drained"] == []
