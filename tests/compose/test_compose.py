"""The Compose project, driven as a person drives it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LICENCES = Path("/usr/share/common-licenses")


def eventually(condition: Callable[[], bool], *, within: float, what: str) -> None:
    """Wait until ``condition`` holds; fail when it does not in time."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {within:g} s: {what}")
        time.sleep(0.2)


def starts(compose: Any) -> dict[str, str]:
    names = [service["name"] for service in compose.status()["services"]]
    return {name: compose.container(name)["State"]["StartedAt"] for name in names}


def test_a_second_up_changes_nothing(compose: Any) -> None:
    before = starts(compose)
    again = compose.up()
    assert again["changes"] == 0
    assert {queue: list(nodes) for queue, nodes in again["probes_ms"].items()} == {
        name: [f"{name}@worker"] for name in ("cpu", "io", "default")
    }
    assert starts(compose) == before


def test_status_shows_containers_nodes_and_queues(compose: Any) -> None:
    status = compose.status()
    assert status["healthy"], status["problems"]
    assert {service["state"] for service in status["services"]} == {"running"}
    pools = {node["name"]: node["pool"] for node in status["nodes"]}
    assert pools == dict.fromkeys(("cpu@worker", "io@worker", "default@worker"), "prefork")
    assert {queue["type"] for queue in status["queues"]} == {"quorum"}
    said = compose.command("status").stdout
    assert "worker-io" in said
    assert "healthy" in said


def test_clients_run_unchanged(compose: Any) -> None:
    assert json.loads(compose.client("submit.py", "tasks.compute.fibonacci", "[30]", "--wait")) == 832040
    files = sorted(str(path) for path in LICENCES.iterdir() if path.is_file() and not path.is_symlink())
    words = sum(json.loads(compose.client("wordcount.py", "--json", *files)).values())
    counted = "cat \"$@\" | tr -cs 'A-Za-z' '\\n' | sed '/^$/d' | wc -l"
    done = subprocess.run(
        ["bash", "-c", counted, "-", *files],
        capture_output=True,
        text=True,
        check=True,
        env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
    )
    assert words == int(done.stdout)


def test_a_delayed_task_comes_when_it_is_due(compose: Any) -> None:
    began = time.monotonic()
    compose.client("submit.py", "tasks.probes.echo", '["later"]', "--countdown", "2", "--wait")
    assert time.monotonic() - began >= 2


def test_files_with_secrets_are_for_their_owner(compose: Any) -> None:
    assert compose.home.stat().st_mode & 0o077 == 0
    for name in ("secrets.yml", "client.json", "operator.json", "compose.env"):
        assert (compose.home / name).stat().st_mode & 0o077 == 0, name


def test_containers_are_confined_and_reachable_on_loopback_only(compose: Any) -> None:
    for service in ("broker1", "store", "worker-io", "scheduler", "flower"):
        container = compose.container(service)
        host = container["HostConfig"]
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert container["Config"]["User"].startswith("clusterkit-"), service
        published = [one for many in container["NetworkSettings"]["Ports"].values() for one in many or ()]
        assert {one["HostIp"] for one in published} <= {"127.0.0.1"}, service


def test_a_service_that_dies_is_started_again(compose: Any) -> None:
    def restarts() -> int:
        count: int = compose.container("worker-io")["RestartCount"]
        return count

    before = restarts()
    subprocess.run(
        ["docker", "exec", compose.container("worker-io")["Id"], "sh", "-c", "kill -9 -1"], check=False
    )
    eventually(lambda: restarts() > before, within=30, what="the container of worker-io is started again")
    assert (
        json.loads(compose.client("submit.py", "tasks.probes.echo", '["back"]', "--queue", "io", "--wait"))
        == "back"
    )
    eventually(
        lambda: compose.container("worker-io")["State"]["Health"]["Status"] == "healthy",
        within=30,
        what="healthy",
    )


def test_a_variant_changes_one_node_s_pool_and_touches_nothing_else(compose: Any) -> None:
    before = starts(compose)
    compose.up("--variant", "gevent")
    after = starts(compose)
    assert {name for name in before if before[name] != after[name]} == {"worker-io"}
    status = compose.status()
    assert status["healthy"], status["problems"]
    io = next(node for node in status["nodes"] if node["name"] == "io@worker")
    assert (io["pool"], io["concurrency"]) == ("gevent", 100)
    compose.up()


def test_one_of_three_brokers_may_stop(compose: Any) -> None:
    compose.up("--brokers", "3")
    status = compose.status()
    assert status["healthy"], status["problems"]
    assert {len(queue["members"]) for queue in status["queues"]} == {3}
    subprocess.run(["docker", "stop", compose.container("broker1")["Id"]], check=True, capture_output=True)
    for queue in ("cpu", "io", "default"):
        said = compose.client("submit.py", "tasks.probes.echo", '["still"]', "--queue", queue, "--wait")
        assert json.loads(said) == "still"
    problems = compose.status(code=7)["problems"]
    assert "service broker1 on broker1: exited" in problems
    assert compose.up("--brokers", "3")["changes"] == 1
    assert "broker2 and broker3" in compose.command("up", code=4).stderr


def test_down_keeps_messages_and_results(compose: Any) -> None:
    result = compose.client("submit.py", "tasks.compute.fibonacci", "[20]").strip()
    eventually(
        lambda: "6765" in compose.client("result.py", result, "--wait"), within=30, what="the task's result"
    )
    compose.command("down")
    compose.up("--brokers", "3")
    assert "6765" in compose.client("result.py", result, "--wait")
