"""A cluster on seven hosts: joined, encrypted, least privilege, the same clients; hosts come and go."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
from pathlib import Path

import pytest
import redis
import yaml
from celery import Celery
from harness import BIN, ENVIRONMENT, ROOT, eventually
from labcluster import FIGURES, LabCluster, up_result

from clusterkit.ops import secrets
from clusterkit.runtime import client

BROKERS = ("h1", "h2", "h3")
WORKERS = ("h4", "h5", "h6")
#: Where each kind of server listens, and what a client without TLS would say to it first.
SERVERS = {
    "amqp": (BROKERS, b"AMQP\x00\x00\x09\x01", b"AMQP"),
    "management": (BROKERS, b"GET /api/overview HTTP/1.0\r\n\r\n", b"rabbit"),
    "results": (BROKERS, b"PING\r\n", b"PONG"),
    "sentinel": (BROKERS, b"PING\r\n", b"PONG"),
    "flower": (("h7",), b"GET / HTTP/1.0\r\n\r\n", b"Flower"),
}
#: Seconds a client may notice that a host has gone.
DELAY = 90.0


def test_every_node_is_clustered_and_every_worker_node_answers(cluster: LabCluster) -> None:
    status = cluster.healthy()
    nodes = {node["name"] for node in status["nodes"]}
    assert nodes == {name for name, _ in cluster.model.expected_nodes()}
    with cluster.broker() as broker:
        assert len(broker.nodes()) == len(BROKERS)
        assert all(node.running for node in broker.nodes())


def test_every_quorum_queue_has_a_member_on_each_broker(cluster: LabCluster) -> None:
    with cluster.broker() as broker:
        for queue in broker.queues().values():
            if queue.type == "quorum":
                assert len(queue.members) == len(BROKERS), queue


def test_running_it_again_changes_nothing(cluster: LabCluster) -> None:
    cluster.up()  # other tests restarted brokers: this spreads the queues' leaders again
    result = up_result(cluster.make("cluster-up", "JSON=1"))
    FIGURES.append(f"no change: {result['seconds']} s")
    assert result["changes"] == 0, result


@pytest.mark.parametrize("server", SERVERS)
def test_who_does_not_speak_tls_gets_no_answer(cluster: LabCluster, server: str) -> None:
    hosts, greeting, answer = SERVERS[server]
    port = getattr(cluster.model.ports, server)
    for host in hosts:
        address = (cluster.model.listen_address(host), port)
        with socket.create_connection(address, timeout=5) as plain:
            plain.sendall(greeting)
            assert answer not in _read(plain)


@pytest.mark.parametrize("server", SERVERS)
def test_certificates_are_the_private_authoritys_and_for_this_server(
    cluster: LabCluster, server: str
) -> None:
    context = ssl.create_default_context(cafile=cluster.model.state_dir / "ca.pem")
    hosts, _, _ = SERVERS[server]
    port = getattr(cluster.model.ports, server)
    for host in hosts:
        address = cluster.model.listen_address(host)
        with (
            socket.create_connection((address, port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname=address) as encrypted,
        ):
            assert encrypted.version() in {"TLSv1.2", "TLSv1.3"}


def _read(plain: socket.socket) -> bytes:
    answer = b""
    plain.settimeout(3)
    try:
        while part := plain.recv(4096):
            answer += part
    except OSError:
        pass
    return answer


def test_the_firewall_keeps_brokers_talk_to_themselves(cluster: LabCluster) -> None:
    ports = cluster.model.ports
    reach = "timeout 3 python3 -c \"import socket; socket.create_connection(('{}', {}), timeout=2)\""
    broker = cluster.model.listen_address("h1")
    cluster.on("h4", reach.format(broker, ports.amqp))
    for port in (ports.distribution, ports.epmd, ports.management):
        assert "imed out" in cluster.on("h4", reach.format(broker, port), code=None)
    cluster.on("h2", reach.format(broker, ports.distribution))


@pytest.mark.parametrize(
    ("role", "command"),
    [
        ("producer", ["KEYS", "*"]),
        ("producer", ["FLUSHALL"]),
        ("worker", ["CONFIG", "GET", "*"]),
        ("worker", ["SET", "clusterkit:redbeat::schedule", "1"]),
        ("scheduler", ["SET", "celery-task-meta-x", "1"]),
        ("scheduler", ["ACL", "LIST"]),
    ],
)
def test_a_role_is_refused_what_it_should_not_do_at_the_result_store(
    cluster: LabCluster, role: str, command: list[str]
) -> None:
    password = secrets.ensure(cluster.model.state_dir / "secrets.yml").results[role]  # type: ignore[index]
    store = redis.Redis(
        host=cluster.model.listen_address("h1"),
        port=cluster.model.ports.results,
        username=role,
        password=password,
        ssl=True,
        ssl_ca_certs=str(cluster.model.state_dir / "ca.pem"),
    )
    with pytest.raises(redis.exceptions.NoPermissionError):
        store.execute_command(*command)  # type: ignore[no-untyped-call]


def test_no_default_user_is_left(cluster: LabCluster) -> None:
    store = redis.Redis(
        host=cluster.model.listen_address("h1"),
        port=cluster.model.ports.results,
        ssl=True,
        ssl_ca_certs=str(cluster.model.state_dir / "ca.pem"),
    )
    with pytest.raises(redis.exceptions.AuthenticationError):
        store.ping()


def test_secrets_are_in_no_argument_and_no_log_of_any_host(cluster: LabCluster) -> None:
    kept = yaml.safe_load((cluster.model.state_dir / "secrets.yml").read_text())
    passwords = [*kept["broker"].values(), *kept["results"].values(), *kept["flower"].values()]
    for host in cluster.model.hosts:
        seen = cluster.on(host, "ps axww -o args; journalctl --no-pager --quiet --boot")
        assert not [password for password in passwords if password in seen], host


def test_celery_itself_finds_every_worker_node_with_the_operators_identity(cluster: LabCluster) -> None:
    done = subprocess.run(
        [
            *(str(BIN / "celery"), "--app", "clusterkit.runtime.app:app"),
            *("inspect", "ping", "--json", "--timeout", "5"),
        ],
        env={**ENVIRONMENT, "CLUSTERKIT_CONFIG": str(cluster.model.state_dir / "operator.json")},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    answered = json.loads(done.stdout)
    assert set(answered) == {name for name, _ in cluster.model.expected_nodes()}


def test_the_clients_run_unchanged(cluster: LabCluster, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no task is lost no task is lost twice\n" * 100)
    counted = cluster.run_client("wordcount.py", str(text), "--json")
    assert counted.returncode == 0, counted.stderr
    words = json.loads(counted.stdout)
    assert words["task"] == words["lost"] == 200
    fibonacci = cluster.run_client("fibonacci.py", "30", "31")
    assert (fibonacci.returncode, "832040" in fibonacci.stdout) == (0, True), fibonacci.stderr


@pytest.mark.parametrize("host", [*BROKERS, *WORKERS, "h7"])
def test_any_one_host_may_be_lost(cluster: LabCluster, app: Celery, host: str) -> None:
    with cluster.stopped(host):
        sent = [app.send_task("tasks.compute.fibonacci", [number]) for number in range(1, 41)]
        values = [client.wait(result, timeout=DELAY) for result in sent]
    assert values[:8] == [1, 1, 2, 3, 5, 8, 13, 21]
    assert len(values) == len(sent)
    cluster.healthy()


def test_a_schedulers_lock_passes_to_the_other_host(cluster: LabCluster) -> None:
    active = _active_scheduler(cluster)
    with cluster.stopped(active):
        other = eventually(
            lambda: _active_scheduler(cluster, without=active),
            within=DELAY,
            every=2,
            what="another scheduler is active",
            cluster=cluster,
        )
    assert other != active
    cluster.healthy()


def _active_scheduler(cluster: LabCluster, without: str = "") -> str:
    """The scheduler whose lock was acquired last."""
    acquired: dict[str, str] = {}
    for host in cluster.model.group("schedulers"):
        if host != without:
            lines = cluster.on(
                host,
                "journalctl --no-pager --quiet --output=short-unix --unit clusterkit-scheduler"
                " | grep -E 'Acquired lock' | tail -1",
            )
            if lines.strip():
                acquired[host] = lines.split()[0]
    return max(acquired, key=lambda host: acquired[host], default="")


def test_certificates_are_replaced_without_a_restart(cluster: LabCluster, app: Celery) -> None:
    before = _processes(cluster)
    old = _serial(cluster, "h1", cluster.model.ports.amqp)
    cluster.make("cluster-rotate")
    assert _serial(cluster, "h1", cluster.model.ports.amqp) != old
    assert _processes(cluster) == before
    assert client.wait(app.send_task("tasks.compute.fibonacci", [10]), timeout=30) == 55


def _processes(cluster: LabCluster) -> dict[tuple[str, str], int]:
    """The services' processes but Sentinel's, which holds nothing and cannot take a certificate over."""
    return {
        (service["host"], service["name"]): service["pid"]
        for service in cluster.status()["services"]
        if service["name"] != "valkey-sentinel"
    }


def _serial(cluster: LabCluster, host: str, port: int) -> str:
    pem = ssl.get_server_certificate((cluster.model.listen_address(host), port))
    return subprocess.run(
        ["openssl", "x509", "-noout", "-serial"], input=pem, capture_output=True, text=True, check=True
    ).stdout


def test_an_eighth_host_is_added_and_only_who_must_know_it_changes(cluster: LabCluster) -> None:
    cluster.lab("lab-up", "HOSTS=8")
    result = up_result(cluster.make("cluster-up", "JSON=1"))
    FIGURES.append(f"an eighth host: {result['seconds']} s, changed: {', '.join(result['changed_hosts'])}")
    assert {"h8"} <= set(result["changed_hosts"]) <= {"h8", *BROKERS}
    assert "h8" in {answer.partition("@")[2] for answer in result["probes_ms"]["cpu"]}


def test_a_worker_host_is_removed(cluster: LabCluster) -> None:
    cluster.lab("lab-down", "HOST=h8")
    result = up_result(cluster.make("cluster-up", "JSON=1"))
    assert "cpu@h8" not in result["probes_ms"]["cpu"]
    cluster.healthy()


def test_a_broker_host_is_replaced_by_a_blank_one(cluster: LabCluster, app: Celery) -> None:
    waiting = [app.send_task("tasks.compute.fibonacci", [20]) for _ in range(20)]
    cluster.lab("lab-down", "HOST=h3")
    cluster.lab("lab-up")
    cluster.make("broker-replace", "HOST=h3")
    cluster.make("cluster-up")
    assert [client.wait(result, timeout=DELAY) for result in waiting] == [6765] * 20
    cluster.healthy()
    test_every_quorum_queue_has_a_member_on_each_broker(cluster)


def test_a_host_of_another_cluster_is_refused(cluster: LabCluster, tmp_path: Path) -> None:
    other = tmp_path / "other"
    subprocess.run(["cp", "-r", str(cluster.directory), str(other)], check=True)
    done = subprocess.run(
        ["make", "cluster-up", f"CLUSTER={other}"],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "Error 4" in done.stderr
    assert f"belongs to the cluster '{cluster.name}'" in done.stderr
