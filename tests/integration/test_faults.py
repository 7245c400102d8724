"""Nothing is lost: faults caused on purpose while tasks run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest
from celery import Celery, group
from celery.result import AsyncResult
from harness import ENVIRONMENT, ROOT, LocalCluster, eventually

from clusterkit.ops.deployment import operator_app
from clusterkit.runtime.errors import PublishTimeoutError

#: Tasks sent while the broker restarts, at least.
MANY = 300


def running_pid(cluster: LocalCluster, task_id: str) -> int:
    """The process that runs a task now, as its worker node says."""

    def find() -> int:
        nodes = operator_app(cluster.model).control.inspect(timeout=1).active() or {}
        tasks = [task for running in nodes.values() for task in running]
        return next(
            (int(task["worker_pid"]) for task in tasks if task["id"] == task_id and task["worker_pid"]), 0
        )

    return int(eventually(find, within=20, what=f"task {task_id} runs", cluster=cluster))


def dead_letters(cluster: LocalCluster) -> int:
    with cluster.broker() as broker:
        return broker.queues()["celery.dead"].ready


@pytest.fixture(autouse=True)
def _healthy_afterwards(cluster: LocalCluster) -> Iterator[None]:
    yield
    eventually(
        lambda: cluster.status()["healthy"],
        within=60,
        what="the cluster is healthy again",
        cluster=cluster,
        every=1,
    )


def test_a_task_whose_pool_process_is_killed_completes(cluster: LocalCluster, app: Celery) -> None:
    result = app.send_task("tasks.probes.sleep", [3], queue="default")
    os.kill(running_pid(cluster, result.id), signal.SIGKILL)
    assert result.get(timeout=30)


def test_a_task_that_kills_its_own_process_runs_again(app: Celery) -> None:
    assert "delivered again" in app.send_task("tasks.probes.crash", queue="default").get(timeout=30)


def test_a_task_whose_worker_node_is_killed_completes_and_the_node_comes_back(
    cluster: LocalCluster, app: Celery
) -> None:
    result = app.send_task("tasks.probes.sleep", [4], queue="cpu")
    running_pid(cluster, result.id)
    main = psutil.Process(cluster.pid_of("worker-cpu"))
    for process in [main, *main.children(recursive=True)]:
        process.kill()
    assert result.get(timeout=60)
    assert cluster.pid_of("worker-cpu") != main.pid


def test_a_broker_restart_under_load_loses_nothing(cluster: LocalCluster, app: Celery) -> None:
    results: list[AsyncResult] = []
    restart = subprocess.Popen(
        ["make", "cluster-restart", f"CLUSTER={cluster.directory}", "SERVICE=rabbitmq"],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    # While the broker is away a publish waits for it; afterwards there must be a good many tasks.
    while restart.poll() is None or len(results) < MANY:
        results.append(app.send_task("tasks.probes.echo", [len(results)], timeout=60))
    assert restart.returncode == 0
    assert [result.get(timeout=120) for result in results] == list(range(len(results)))


def test_a_killed_broker_loses_no_confirmed_task(cluster: LocalCluster, app: Celery) -> None:
    control = operator_app(cluster.model).control
    assert control.ping(timeout=10, limit=1), "a connection lies in the pool from here on"
    results = [app.send_task("tasks.probes.sleep", [0.05], queue="default") for _ in range(60)]
    beam = next(process for process in cluster.processes() if "beam" in process.name())
    beam.kill()
    assert all(result.get(timeout=120) for result in results)
    assert control.ping(timeout=10, limit=1), "which has died meanwhile, and is made anew"


def test_retries_and_delays_work_on_quorum_queues(cluster: LocalCluster, app: Celery) -> None:
    began = time.monotonic()
    delayed = app.send_task("tasks.probes.echo", ["later"], countdown=3)
    at_once = app.send_task("tasks.probes.echo", ["now"])
    assert at_once.get(timeout=10) == "now"
    assert time.monotonic() - began < 2.5, "a delayed task must not hold up another"
    assert delayed.get(timeout=20) == "later"
    assert time.monotonic() - began >= 3


UNREADABLE: dict[str, tuple[bytes, str, str, dict[str, Any]]] = {
    "a body that is no JSON": (
        b"{",
        "application/json",
        "utf-8",
        {"task": "tasks.probes.echo", "id": str(uuid.uuid4())},
    ),
    "a trusted content type with no task in it": (
        b"xx",
        "application/data",
        "binary",
        {"task": "tasks.probes.echo", "id": str(uuid.uuid4())},
    ),
    "a task without an id": (b"[[],{},{}]", "application/json", "utf-8", {"task": "tasks.probes.echo"}),
    "a body of another shape": (b'{"a":1}', "application/json", "utf-8", {}),
    "pickle": (
        b"\x80\x02.",
        "application/x-python-serialize",
        "binary",
        {"task": "tasks.probes.echo", "id": str(uuid.uuid4())},
    ),
    "an unknown task": (
        b"[[],{},{}]",
        "application/json",
        "utf-8",
        {"task": "tasks.nobody.knows", "id": str(uuid.uuid4())},
    ),
    "time limits that are none": (
        b"[[],{},{}]",
        "application/json",
        "utf-8",
        {"task": "tasks.probes.echo", "id": "1", "timelimit": 5},
    ),
    "an ETA that is none": (
        b"[[],{},{}]",
        "application/json",
        "utf-8",
        {"task": "tasks.probes.echo", "id": "1", "eta": "soon"},
    ),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_no_worker_can_run_goes_to_the_dead_letters_and_the_worker_lives(
    name: str, cluster: LocalCluster, app: Celery
) -> None:
    worker, dead = cluster.pid_of("worker-default"), dead_letters(cluster)
    body, content_type, encoding, headers = UNREADABLE[name]
    with app.producer_pool.acquire() as producer:
        producer.publish(
            body,
            exchange="celery",
            routing_key="default",
            content_type=content_type,
            content_encoding=encoding,
            headers=headers,
            mandatory=True,
        )
    eventually(
        lambda: dead_letters(cluster) == dead + 1,
        within=15,
        what="it is in the dead letters",
        cluster=cluster,
        every=0.5,
    )
    assert cluster.pid_of("worker-default") == worker
    assert app.send_task("tasks.probes.echo", [1]).get(timeout=20) == 1


def test_a_task_that_kills_its_process_each_time_ends_in_the_dead_letters(
    cluster: LocalCluster, app: Celery
) -> None:
    dead = dead_letters(cluster)
    app.send_task("tasks.probes.crash", kwargs={"again": True}, queue="io")
    eventually(
        lambda: dead_letters(cluster) == dead + 1,
        within=90,
        what="the poison task is in the dead letters",
        cluster=cluster,
        every=0.5,
    )
    assert app.send_task("tasks.probes.echo", [1], queue="io").get(timeout=20) == 1


def test_a_queue_nobody_declared_is_refused(app: Celery) -> None:
    with pytest.raises(Exception, match="missing from task_queues"):
        app.send_task("tasks.probes.echo", [1], queue="cpuu")


def test_a_publisher_gets_an_error_while_the_broker_holds_publishers_back(
    cluster: LocalCluster, app: Celery
) -> None:
    control = cluster.home / "bin" / "rabbitmqctl"
    normal = subprocess.run(
        [control, "-q", "environment", "--formatter", "json"], capture_output=True, text=True, check=True
    )
    watermark = json.loads(normal.stdout)["rabbit"]["vm_memory_high_watermark"]
    running = app.send_task("tasks.probes.sleep", [8], queue="default")
    subprocess.run([control, "-q", "set_vm_memory_high_watermark", "absolute", "1MB"], check=True)
    try:
        eventually(
            lambda: "alarm" in str(cluster.status()["problems"]),
            within=20,
            what="status tells of the alarm",
            every=0.5,
        )
        began = time.monotonic()
        with pytest.raises(PublishTimeoutError, match="alarm"):
            app.send_task("tasks.probes.echo", [1], timeout=3)
        assert time.monotonic() - began < 8
        assert running.get(timeout=30), "a worker goes on and its result arrives"
    finally:
        value = watermark if isinstance(watermark, (int, float)) else watermark.get("absolute", watermark)
        arguments = [str(value)] if isinstance(watermark, float) else ["absolute", str(value)]
        subprocess.run([control, "-q", "set_vm_memory_high_watermark", *arguments], check=True)
    eventually(
        lambda: app.send_task("tasks.probes.echo", [2]).get(timeout=20) == 2,
        within=40,
        what="tasks run again",
        cluster=cluster,
    )


def test_a_publisher_of_a_broker_that_is_down_gets_an_error_in_time(
    cluster: LocalCluster, app: Celery
) -> None:
    supervisorctl = str(cluster.home / "bin" / "supervisorctl")
    subprocess.run([supervisorctl, "stop", "rabbitmq"], check=True, capture_output=True)
    try:
        began = time.monotonic()
        with pytest.raises(PublishTimeoutError, match="cannot be reached"):
            app.send_task("tasks.probes.echo", [1], timeout=3)
        assert 2 < time.monotonic() - began < 8
    finally:
        subprocess.run([supervisorctl, "start", "rabbitmq"], check=True, capture_output=True)
    assert app.send_task("tasks.probes.echo", ["back"], timeout=60).get(timeout=60) == "back"


def test_a_chord_survives_the_death_of_its_workers(cluster: LocalCluster, app: Celery) -> None:
    header = group(app.signature("tasks.probes.sleep", [0.5], queue="cpu") for _ in range(8))
    result = (header | app.signature("tasks.probes.echo", queue="default")).apply_async()
    time.sleep(0.7)  # in the middle of the header
    for process in psutil.Process(cluster.pid_of("worker-cpu")).children():
        process.kill()
    assert len(result.get(timeout=60)) == 8


def test_a_warm_stop_lets_running_tasks_finish(cluster: LocalCluster, app: Celery) -> None:
    result = app.send_task("tasks.probes.sleep", [4], queue="io")
    running_pid(cluster, result.id)
    cluster.make("cluster-restart", "SERVICE=worker-io")
    assert result.ready(), "the restart waited for the running task"
    assert result.successful()


def test_the_scheduler_has_sent_its_task_and_missed_none_of_the_faults_above(cluster: LocalCluster) -> None:
    log = cluster.home / "log" / "scheduler.log"
    eventually(
        lambda: "Sending due task" in log.read_text(errors="replace"),
        within=90,
        what="the scheduler sent its task",
        cluster=cluster,
        every=1,
    )
    assert "SchedulingError" not in log.read_text(errors="replace")


def test_queues_can_be_seen_by_the_monitor_alone(cluster: LocalCluster) -> None:
    url = f"http://127.0.0.1:{cluster.model.ports.management}/api/overview"
    assert httpx.get(url, auth=("guest", "guest"), trust_env=False).status_code == 401
