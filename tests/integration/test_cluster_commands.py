"""The commands of the front door, on a cluster that runs."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from pathlib import Path

from harness import PORT_BASE, ROOT, LocalCluster, new_cluster

from clusterkit.ops import network


def test_a_second_up_changes_nothing_and_says_so(cluster: LocalCluster) -> None:
    again = cluster.make("cluster-up")
    assert "no change" in again.stdout
    assert "changed:" not in again.stderr


def test_status_lists_every_worker_node_with_its_pool(cluster: LocalCluster) -> None:
    status = json.loads(cluster.make("cluster-status", "JSON=1").stdout)
    assert status["healthy"], status["problems"]
    assert {node["name"]: node["pool"] for node in status["nodes"]} == {
        "cpu@localhost": "prefork",
        "io@localhost": "prefork",
        "default@localhost": "prefork",
    }
    assert {service["state"] for service in status["services"]} == {"running"}
    assert {"default", "cpu", "io", "celery.dead"} <= {queue["name"] for queue in status["queues"]}
    assert {queue["type"] for queue in status["queues"]} == {"quorum"}


def test_status_is_a_table_for_people(cluster: LocalCluster) -> None:
    said = cluster.make("cluster-status").stdout
    for word in (
        "Services",
        "Worker nodes",
        "cpu@localhost",
        "Queues",
        "healthy",
        f"http://127.0.0.1:{PORT_BASE + 555}/",
    ):
        assert word in said


def test_status_shows_the_services_even_when_the_broker_is_down(cluster: LocalCluster) -> None:
    supervisorctl = str(cluster.home / "bin" / "supervisorctl")
    subprocess.run([supervisorctl, "stop", "rabbitmq"], check=True, capture_output=True)
    try:
        said = cluster.make("cluster-status", code=6)
        assert "service rabbitmq on localhost: stopped" in said.stdout
        assert "did not answer" in said.stdout
        assert cluster.run_client("submit.py", "tasks.probes.echo").returncode == 6
    finally:
        cluster.up()  # starts what is down
    assert cluster.status()["healthy"]


def test_check_has_an_answer_from_every_node_on_each_of_its_queues(cluster: LocalCluster) -> None:
    answers = json.loads(cluster.make("cluster-check", "JSON=1").stdout)
    assert answers["complete"]
    assert {queue: list(nodes) for queue, nodes in answers["answers_ms"].items()} == {
        name: [f"{name}@localhost"] for name in ("default", "cpu", "io")
    }


def test_logs_show_one_service_or_all(cluster: LocalCluster) -> None:
    assert "worker-cpu" in cluster.make("cluster-logs").stdout
    only = cluster.make("cluster-logs", "SERVICE=flower", "LINES=3").stdout.splitlines()
    assert only
    assert all(line.startswith("flower") for line in only)
    misspelt = cluster.make("cluster-logs", "SERVICE=flowr", code=2)
    assert "Did you mean 'flower'?" in misspelt.stderr


def test_restart_of_one_service_leaves_the_others_alone(cluster: LocalCluster) -> None:
    before = {service["name"]: service["pid"] for service in cluster.status()["services"]}
    cluster.make("cluster-restart", "SERVICE=worker-io")
    after = {service["name"]: service["pid"] for service in cluster.status()["services"]}
    assert {name for name in before if before[name] != after[name]} == {"worker-io"}
    cluster.make("cluster-check")


def test_flower_says_where_it_is_but_not_its_password(cluster: LocalCluster) -> None:
    said = cluster.make("flower").stdout
    assert f"http://127.0.0.1:{PORT_BASE + 555}/" in said
    assert "secrets.yml" in said


def test_everything_listens_on_loopback_only(cluster: LocalCluster) -> None:
    listening = [
        connection.laddr
        for process in cluster.processes()
        for connection in process.net_connections("inet")
        if connection.status == "LISTEN"
    ]
    expected = list(network.listeners(cluster.model, cluster.model.hosts["localhost"]))
    assert len(listening) >= len(expected) >= 6
    assert {address.ip for address in listening} <= {"127.0.0.1", "::1"}


def test_secrets_are_in_no_argument_and_no_readable_file(cluster: LocalCluster) -> None:
    secrets = (cluster.home / "secrets.yml").read_text()
    passwords = [
        line.rpartition(" ")[2] for line in secrets.splitlines() if ": " in line and not line.startswith("#")
    ]
    assert len(passwords) >= 8
    for process in cluster.processes():
        command = " ".join(process.cmdline())
        assert not [password for password in passwords if password in command]
    readable = [
        path
        for path in cluster.home.rglob("*")
        if path.is_file()
        and path.stat().st_mode & 0o077
        and "releases" not in path.parts
        and path.stat().st_size < 1_000_000
    ]
    assert not [
        path
        for path in readable
        if any(password in path.read_text(errors="replace") for password in passwords)
    ]


def test_down_keeps_messages_and_results_for_the_next_up(cluster: LocalCluster) -> None:
    sent = cluster.run_client("submit.py", "tasks.probes.echo", '["kept"]', "--countdown", "20")
    assert sent.returncode == 0, sent.stderr
    task_id = sent.stdout.split()[-1]
    cluster.make("cluster-down")
    assert cluster.processes() == []
    stopped = cluster.run_client("submit.py", "tasks.probes.echo", '["x"]')
    assert stopped.returncode == 6, "the broker is down"
    cluster.up()
    result = cluster.run_client("result.py", task_id, "--wait")
    assert result.returncode == 0, result.stderr
    assert "kept" in result.stdout


def test_a_taken_port_is_named_with_its_variable_before_anything_is_changed(tmp_path: Path) -> None:
    other = new_cluster("itest-taken", tmp_path, port_base=PORT_BASE + 1000)
    with socket.create_server(("127.0.0.1", PORT_BASE + 1000 + 379)):
        refused = other.make("cluster-up", code=4)
    assert str(PORT_BASE + 1000 + 379) in refused.stderr
    assert "ports.results" in refused.stderr
    assert re.search(r"group_vars/all\.yml:\d+", refused.stderr)
    assert not (other.home / "data").exists()
    other.make("cluster-destroy", "YES=1")


def test_two_clusters_run_side_by_side_and_one_can_be_destroyed(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    node = {"name": "only", "pool": "solo", "queues": ["default", "cpu", "io"]}
    other = new_cluster("itest-two", tmp_path, port_base=PORT_BASE + 1000, worker_nodes=[node])
    other.up()
    assert cluster.status()["healthy"]
    assert other.status()["healthy"]
    socket_directories = set(Path("/tmp").glob("clusterkit-*"))  # noqa: S108
    other.make("cluster-destroy", "YES=1")
    assert other.processes() == []
    assert not other.home.exists()
    for port in other.model.ports.model_dump().values():
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
    assert cluster.status()["healthy"]
    assert all(path.exists() for path in socket_directories if str(cluster.home) in str(path))


def test_destroy_asks_first(cluster: LocalCluster) -> None:
    unasked = cluster.make("cluster-destroy", code=2)
    assert "YES=1" in unasked.stderr
    assert cluster.status()["healthy"]


def test_the_command_works_as_a_module_and_has_help_with_examples() -> None:
    for arguments in (["--help"], ["cluster", "up", "--help"], ["cluster", "status", "--help"]):
        done = subprocess.run(
            [ROOT / ".venv/bin/python", "-m", "clusterkit", *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "Examples" in done.stdout or arguments == ["--help"]
