"""One broker and one worker host: what restarting and draining them says and does; who did it is recorded."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest
from celery import Celery
from harness import LocalCluster, eventually

from clusterkit.ops import deployment

HOST = "HOST=localhost"
#: A task that still runs when the host's services have been asked for, which takes a while on a busy machine.
SECONDS = 20


@pytest.fixture
def _drained(cluster: LocalCluster) -> Iterator[None]:
    """Whatever a test does, the host works again afterwards."""
    yield
    if (cluster.home / "drained.json").exists() and "localhost" in (
        cluster.home / "drained.json"
    ).read_text():
        cluster.make("cluster-undrain", HOST)


def test_the_only_broker_is_restarted_with_a_word_that_clients_wait(
    cluster: LocalCluster, app: Celery
) -> None:
    before = cluster.pid_of("rabbitmq")
    done = cluster.make("broker-restart")
    assert "clients and workers wait meanwhile" in done.stderr
    assert "localhost" in done.stdout
    assert cluster.pid_of("rabbitmq") != before
    assert app.send_task("tasks.probes.echo", ["back"]).get(timeout=60) == "back"


def test_a_broker_that_does_not_exist_is_a_mistake(cluster: LocalCluster) -> None:
    assert "these have: localhost" in cluster.make("broker-restart", "HOST=h9", code=2).stderr


def test_a_broker_in_an_alarm_is_left_alone_and_the_alarm_named(cluster: LocalCluster) -> None:
    rabbitmqctl = str(cluster.home / "bin" / "rabbitmqctl")
    before = cluster.pid_of("rabbitmq")
    subprocess.run([rabbitmqctl, "set_vm_memory_high_watermark", "0.00001"], check=True, capture_output=True)
    try:
        eventually(
            lambda: any("memory alarm" in problem for problem in cluster.status()["problems"]),
            within=30,
            every=1,
            what="there is an alarm",
        )
        refused = cluster.make("broker-restart", "TIMEOUT=1", code=5)
        same_way = cluster.make("cluster-restart", "SERVICE=rabbitmq", "TIMEOUT=1", code=5)
    finally:
        subprocess.run([rabbitmqctl, "set_vm_memory_high_watermark", "0.4"], check=True, capture_output=True)
    for done in (refused, same_way):
        assert "memory alarm, publishers are held back (let the workers empty the queues" in done.stderr
    assert cluster.pid_of("rabbitmq") == before


@pytest.mark.parametrize(
    "command", [("cluster-up",), ("broker-restart",), ("cluster-restart", "SERVICE=rabbitmq")], ids=" ".join
)
def test_a_broker_that_an_interrupted_restart_drained_serves_again_after(
    cluster: LocalCluster, app: Celery, command: tuple[str, ...]
) -> None:
    before = cluster.pid_of("rabbitmq")
    subprocess.run([cluster.home / "bin" / "rabbitmq-upgrade", "drain"], check=True, capture_output=True)
    cluster.make(*command)
    assert app.send_task("tasks.probes.echo", ["back"]).get(timeout=60) == "back"
    assert (cluster.pid_of("rabbitmq") == before) == (command == ("cluster-up",)), "up need not restart it"


def test_the_last_host_of_a_queue_is_not_drained(cluster: LocalCluster) -> None:
    refused = cluster.make("cluster-drain", HOST, code=4)
    assert "without localhost nobody would consume: cpu, default, io; nothing was changed" in refused.stderr
    eventually(lambda: cluster.status()["healthy"], within=60, what="it is healthy", cluster=cluster, every=2)


@pytest.mark.usefixtures("_drained")
def test_what_runs_on_a_drained_host_ends_there_and_the_rest_waits(
    cluster: LocalCluster, app: Celery
) -> None:
    running = app.send_task("tasks.probes.sleep", [SECONDS], queue="cpu")
    eventually(lambda: running.id in _active(cluster), within=20, what="it runs", cluster=cluster)
    gave_up = cluster.make("cluster-drain", HOST, "FORCE=1", "TIMEOUT=0", "REASON=new disk", code=11)
    assert f"tasks.probes.sleep ({running.id}) on cpu@localhost for" in gave_up.stderr
    before = cluster.pid_of("worker-cpu")
    cluster.make("cluster-restart", "SERVICE=worker-cpu")
    assert cluster.pid_of("worker-cpu") == before, "it would consume again"
    later = app.send_task("tasks.probes.echo", ["later"])
    done = cluster.make("cluster-drain", HOST, "FORCE=1")
    assert running.ready(), "the drain waits for what runs"
    assert "scheduler" in done.stdout, "what stays is said"
    assert not [
        p for p in cluster.processes() if "celery" in " ".join(p.cmdline()) and "worker" in p.cmdline()
    ]
    status = cluster.status()
    assert [mark["reason"] for mark in status["drained"]] == ["new disk"]
    assert not [problem for problem in status["problems"] if "worker node" in problem]
    cluster.make("cluster-up")
    assert not [s for s in cluster.status()["services"] if s["name"].startswith("worker-")], "up keeps it so"
    assert not later.ready()
    cluster.make("cluster-undrain", HOST)
    assert later.get(timeout=30) == "later"
    assert cluster.status()["drained"] == []


def test_the_record_tells_what_was_done_and_how_it_ended(cluster: LocalCluster) -> None:
    said = cluster.make("cluster-audit", "LINES=200", "JSON=1").stdout
    entries = [(e["command"].partition(" --cluster")[0], e["outcome"], e["code"]) for e in json.loads(said)]
    assert ("broker restart --timeout 1", "failed", 5) in entries
    assert ("cluster undrain localhost", "ok", 0) in entries
    assert "Changes to cluster itest" in cluster.make("cluster-audit").stdout


def _active(cluster: LocalCluster) -> str:
    return str(deployment.operator_app(cluster.model).control.inspect(timeout=1).active())
