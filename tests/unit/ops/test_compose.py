"""What the Compose project is made of, before there is a Docker engine."""

from __future__ import annotations

import ipaddress
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from clusterkit.ops import compose, compose_cli, composeplan, inventory, secrets
from clusterkit.ops.composeplan import Project, Service
from clusterkit.ops.errors import DeployError, InventoryError
from clusterkit.ops.model import Cluster
from clusterkit.ops.rolevalues import RoleValues
from clusterkit.ops.secrets import Secrets
from clusterkit.runtime.errors import BadInputError, NoClusterError

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "compose"
VARIANTS = sorted(path.stem for path in (FOLDER / "variants").glob("*.yaml"))
CORES = 4
IMAGES = {"broker": "broker:1", "results": "results:1", "worker": "worker:1"}


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return inventory.load("compose", ROOT)


@pytest.fixture(scope="module")
def passwords(tmp_path_factory: pytest.TempPathFactory) -> Secrets:
    return secrets.ensure(tmp_path_factory.mktemp("secrets") / "secrets.yml")


@pytest.fixture(scope="module")
def planned(cluster: Cluster, passwords: Secrets) -> dict[str, Service]:
    return plan(cluster, passwords)


def plan(cluster: Cluster, passwords: Secrets, *variants: str) -> dict[str, Service]:
    project = composeplan.project(cluster, list(variants))
    return {one.name: one for one in composeplan.services(project, passwords, "r1", CORES)}


def compose_services(*variants: str) -> dict[str, dict[str, Any]]:
    files = [FOLDER / "compose.yaml", *(FOLDER / "variants" / f"{name}.yaml" for name in variants)]
    merged: dict[str, dict[str, Any]] = {}
    for file in files:
        for name, service in yaml.safe_load(file.read_text())["services"].items():
            merged.setdefault(name, {}).update(service)
    return merged


def test_without_a_variant_there_is_one_broker_and_the_inventory_s_nodes(cluster: Cluster) -> None:
    project = composeplan.project(cluster, [])
    assert project.cluster.group("brokers") == ("broker1",)
    assert project.cluster.worker_nodes == cluster.worker_nodes
    assert [name for name, _ in project.cluster.expected_nodes()] == [
        "cpu@worker",
        "io@worker",
        "default@worker",
    ]


@pytest.mark.parametrize("pool", ["gevent", "eventlet", "threads"])
def test_a_variant_changes_the_pool_of_the_node_io_alone(pool: str, cluster: Cluster) -> None:
    varied = composeplan.project(cluster, [pool]).cluster
    changed = [
        (new.name, new.pool)
        for new, old in zip(varied.worker_nodes, cluster.worker_nodes, strict=True)
        if new != old
    ]
    assert changed == [("io", pool)]


def test_with_three_brokers_clients_and_services_know_of_all(cluster: Cluster, passwords: Secrets) -> None:
    project = composeplan.project(cluster, ["brokers-3"])
    assert project.cluster.group("brokers") == ("broker1", "broker2", "broker3")
    services = plan(cluster, passwords, "brokers-3")
    for name in ("broker1", "broker2", "broker3"):
        members = services[name].files["rabbitmq/conf.d/members.conf"]
        assert all(f"@{broker}.compose.internal" in members for broker in ("broker1", "broker2", "broker3"))


def test_an_unknown_variant_names_the_known_ones(cluster: Cluster) -> None:
    with pytest.raises(BadInputError, match="Did you mean 'gevent'"):
        composeplan.project(cluster, ["gvent"])


def test_a_node_without_a_service_is_told(cluster: Cluster) -> None:
    more = cluster.worker_nodes[0].model_copy(update={"name": "gpu"})
    changed = cluster.model_copy(update={"worker_nodes": (*cluster.worker_nodes[1:], more)})
    with pytest.raises(InventoryError) as caught:
        composeplan.project(changed, [])
    assert caught.value.problems == (
        "there is no service worker-gpu in compose/compose.yaml",
        "service worker-cpu: the inventory has no such worker node",
    )


@pytest.mark.parametrize("variants", [(), ("brokers-3",)])
def test_ports_are_published_on_loopback_where_the_inventory_says(
    variants: tuple[str, ...], cluster: Cluster
) -> None:
    for name, service in compose_services(*variants).items():
        for port in service.get("ports", ()):
            address = port.split(":")[0]
            assert ipaddress.ip_address(address).is_loopback
            assert address == cluster.listen_address(name)


def test_no_service_may_more_than_it_needs() -> None:
    common = yaml.safe_load((FOLDER / "services.yaml").read_text())["services"]
    for name, service in compose_services("brokers-3").items():
        inherited = common[service["extends"]["service"]]
        assert (inherited["read_only"], inherited["cap_drop"]) == (True, ["ALL"]), name
        assert inherited["security_opt"] == ["no-new-privileges:true"], name
        assert inherited["restart"] == "unless-stopped", name
        assert inherited["healthcheck"], name
        assert inherited["stop_grace_period"], name
        assert not {"privileged", "cap_add", "network_mode", "pid"} & service.keys(), name


@pytest.mark.parametrize("image", ["broker", "results", "worker"])
def test_no_image_runs_as_root(image: str) -> None:
    users = [
        line.split()[1]
        for line in (FOLDER / "images" / image / "Dockerfile").read_text().splitlines()
        if line.startswith("USER")
    ]
    assert len(users) == 1
    assert users[0].startswith("clusterkit-")


def test_every_service_has_what_its_role_writes_and_runs(planned: dict[str, Service]) -> None:
    assert planned.keys() == compose_services().keys()
    broker, store = planned["broker1"], planned["store"]
    assert broker.environment["CLUSTERKIT_COMMAND"].endswith("/rabbitmq-server")
    assert broker.environment["CLUSTERKIT_BESIDE"].startswith("/usr/bin/epmd")
    assert "listeners.tcp.1 = 0.0.0.0:26672" in broker.files["rabbitmq/rabbitmq.conf"]
    assert "port 26379" in store.files["valkey/settings.conf"]
    command = planned["worker-cpu"].environment["CLUSTERKIT_COMMAND"]
    assert command.startswith("/opt/clusterkit/releases/r1/venv/bin/celery --app tasks.app:app worker")
    assert (
        "--hostname cpu@worker --pool ${CLUSTERKIT_POOL} --concurrency ${CLUSTERKIT_CONCURRENCY}" in command
    )
    assert planned["worker-cpu"].environment["CLUSTERKIT_CONCURRENCY"] == str(CORES)
    assert " beat " in planned["scheduler"].environment["CLUSTERKIT_COMMAND"]
    assert " flower " in planned["flower"].environment["CLUSTERKIT_COMMAND"]


def test_a_pool_goes_without_the_options_of_prefork(cluster: Cluster, passwords: Secrets) -> None:
    assert "--max-tasks-per-child" in plan(cluster, passwords)["worker-io"].environment["CLUSTERKIT_COMMAND"]
    varied = plan(cluster, passwords, "gevent")["worker-io"].environment
    assert "--max-tasks-per-child" not in varied["CLUSTERKIT_COMMAND"]
    assert (varied["CLUSTERKIT_POOL"], varied["CLUSTERKIT_CONCURRENCY"]) == ("gevent", "100")


def test_services_know_each_other_by_name_and_all_brokers_by_one(planned: dict[str, Service]) -> None:
    for name, role in (("worker-io", "worker"), ("scheduler", "scheduler"), ("flower", "flower")):
        file = planned[name].files[f"{role}/cluster.json"]
        assert "@brokers.compose.internal:26672//" in file
        assert "@store.compose.internal:26379/0" in file
        assert "127.0.0.1" not in file
    assert "@brokers.compose.internal:26674/api/" in planned["flower"].files["flower/flower.py"]


def test_no_password_is_in_an_environment_or_a_command(
    planned: dict[str, Service], passwords: Secrets
) -> None:
    known = {*passwords.broker.values(), *passwords.results.values(), *passwords.flower.values()}
    known.add(passwords.erlang_cookie)
    for service in planned.values():
        for value in service.environment.values():
            assert not [secret for secret in known if secret in value], service.name


def test_another_file_is_another_fingerprint_but_the_definitions_are_not_counted(
    cluster: Cluster, passwords: Secrets, planned: dict[str, Service]
) -> None:
    limit = cluster.queues["cpu"].model_copy(update={"delivery_limit": 5})
    longer = cluster.worker_nodes[0].model_copy(update={"time_limit": 90_000})
    queues = plan(cluster.model_copy(update={"queues": {**cluster.queues, "cpu": limit}}), passwords)
    nodes = plan(cluster.model_copy(update={"worker_nodes": (longer, *cluster.worker_nodes[1:])}), passwords)

    def fingerprint(services: dict[str, Service]) -> str:
        return services["broker1"].environment["CLUSTERKIT_FINGERPRINT"]

    assert queues["broker1"].files != planned["broker1"].files
    assert fingerprint(queues) == fingerprint(planned)
    assert fingerprint(nodes) != fingerprint(planned)  # consumer_timeout follows the longest task


def test_files_are_for_their_containers_and_for_nobody_else_here(
    cluster: Cluster, planned: dict[str, Service], tmp_path: Path
) -> None:
    project = composeplan.project(cluster, ["gevent"])
    moved = Project(cluster.model_copy(update={"root": tmp_path}), project.files, project.services)
    composeplan.write(moved, list(planned.values()), IMAGES)
    assert stat.S_IMODE(moved.folder.stat().st_mode) == 0o700
    cookie = moved.folder / "broker1" / "rabbitmq" / ".erlang.cookie"
    assert stat.S_IMODE(cookie.stat().st_mode) == 0o644
    assert stat.S_IMODE((moved.folder / "worker-io.env").stat().st_mode) == 0o600
    text = moved.environment_file.read_text()
    assert "WORKER_IMAGE='worker:1'" in text
    assert "DOMAIN='compose.internal'" in text
    assert "WORKER_STOP='60s'" in text
    assert composeplan.variants_in(moved.environment_file) == ["gevent"]


def test_every_variable_of_the_compose_files_is_given(
    cluster: Cluster, planned: dict[str, Service], tmp_path: Path
) -> None:
    project = composeplan.project(cluster, ["brokers-3"])
    moved = Project(cluster.model_copy(update={"root": tmp_path}), project.files, project.services)
    composeplan.write(moved, list(planned.values()), IMAGES)
    given = {line.partition("=")[0] for line in moved.environment_file.read_text().splitlines()}
    for file in (FOLDER / "services.yaml", *FOLDER.glob("*.yaml"), *FOLDER.glob("variants/*.yaml")):
        used = {part.split("}")[0].split(":")[0] for part in file.read_text().split("${")[1:]}
        assert used <= given, file.name


def test_what_compose_could_not_read_is_refused(
    cluster: Cluster, planned: dict[str, Service], tmp_path: Path
) -> None:
    quoted = Service("worker-io", {}, {"CLUSTERKIT_COMMAND": "it's"}, 1)
    moved = Project(cluster.model_copy(update={"root": tmp_path}), (), ())
    with pytest.raises(BadInputError, match="CLUSTERKIT_COMMAND"):
        composeplan.write(moved, [quoted], IMAGES)


def test_two_checkouts_have_two_projects(cluster: Cluster, tmp_path: Path) -> None:
    here, there = Project(cluster, (), ()), Project(cluster.model_copy(update={"root": tmp_path}), (), ())
    assert here.name.startswith("compose-")
    assert here.name != there.name


def test_what_was_never_up_has_no_state(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(NoClusterError, match="never brought up"):
        compose.current(cluster.model_copy(update={"root": tmp_path}))


@pytest.mark.parametrize(
    ("container", "shown"),
    [
        ({"Status": "running", "Running": True, "Health": {"Status": "healthy"}}, "running"),
        ({"Status": "running", "Running": True, "Health": {"Status": "unhealthy"}}, "unhealthy"),
        ({"Status": "running", "Running": True, "Health": {"Status": "starting"}}, "starting"),
        ({"Status": "exited", "Running": False, "Health": {"Status": "unhealthy"}}, "exited"),
    ],
)
def test_a_service_runs_when_its_container_is_healthy(
    container: dict[str, Any], shown: str, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"Pid": 7, "StartedAt": "2026-01-02T03:04:05.123456789Z", **container}
    labels = {"com.docker.compose.service": "worker-io"}
    monkeypatch.setattr(compose, "_containers", lambda _: [{"Config": {"Labels": labels}, "State": state}])
    found = {one.name: one for one in compose.services(composeplan.project(cluster, []))}
    assert (found["worker-io"].host, found["worker-io"].state) == ("worker", shown)
    assert found["broker1"].state == "missing"


def test_other_clusters_are_sent_to_their_own_commands() -> None:
    with pytest.raises(BadInputError, match="no Compose project") as caught:
        compose_cli._load("local")
    assert "make cluster-up CLUSTER=local" in str(caught.value.next_step)


def test_a_role_that_lacks_a_variable_says_which() -> None:
    with pytest.raises(DeployError, match="role valkey"):
        RoleValues(ROOT, {}).value("valkey", "{{ __valkey_files }}", "store")
