"""A correct inventory becomes a typed cluster; each mistake is refused with file, line and what was meant."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import BaseModel, ValidationError

from clusterkit.ops.errors import InventoryError
from clusterkit.ops.inventory import Cluster, clusters, load
from clusterkit.ops.model import AutoConcurrency, Host, Ports, QueueSettings, WorkerNode
from clusterkit.runtime.errors import NoClusterError

if TYPE_CHECKING:
    from tests.unit.ops.conftest import Inventory

ROOT = Path(__file__).parents[3]


# A correct inventory


def test_defaults_are_filled_in(inventory: Inventory) -> None:
    cluster = inventory.load()
    assert cluster.name == "test"
    assert cluster.directory == inventory.directory
    assert cluster.home == Path("/opt/clusterkit")
    assert cluster.state_dir == inventory.root / ".cluster" / "test"
    assert (cluster.result_expires, cluster.log_level) == (86_400, "INFO")
    assert (cluster.tls, cluster.sentinel, cluster.firewall) == (True, False, True)
    assert cluster.default_queue == "default"
    assert cluster.queues["cpu"] == QueueSettings(delivery_limit=20, max_length=1_000_000)
    cpu, io = cluster.worker_nodes
    assert (cpu.pool, cpu.concurrency, cpu.prefetch_multiplier, cpu.time_limit) == (
        "prefork",
        "auto",
        1,
        3_600,
    )
    assert (cpu.max_tasks_per_child, io.max_tasks_per_child) == (1_000, None)
    assert cluster.warnings == ()


ONE_HOST = "".join(
    f"{group}: {{hosts: {{h1: }}}}\n" for group in ("brokers", "results", "workers", "schedulers", "monitors")
)
PRIVATE = {"service_backend": "service_backend: supervisor"}


def test_a_private_cluster_is_one_host_without_tls(inventory: Inventory) -> None:
    inventory.hosts(ONE_HOST)
    inventory.settings(**PRIVATE)
    cluster = inventory.load()
    assert cluster.home == inventory.root / ".cluster" / "test"
    assert not cluster.tls
    assert cluster.listen_address("h1") == "127.0.0.1"
    assert cluster.ports == Ports(
        amqp=24_672,
        distribution=24_673,
        management=24_674,
        epmd=24_369,
        results=24_379,
        sentinel=24_380,
        flower=24_555,
        flower_viewer=24_556,
        flower_admin=24_557,
    )


def test_a_private_cluster_of_two_hosts_is_refused(inventory: Inventory) -> None:
    inventory.settings(**PRIVATE)
    assert inventory.problems == [
        (
            "group_vars/all.yml:2: service_backend: supervisor runs a private cluster on one host, not on"
            " h1, h2: use systemd"
        )
    ]


def test_hosts_know_each_other_by_internal_names_and_listen_on_their_own_address(
    inventory: Inventory,
) -> None:
    cluster = inventory.load()
    assert cluster.internal_name("h2") == "h2.test.internal"
    assert cluster.listen_address("h2") == "192.0.2.2"


def test_the_address_between_hosts_can_differ_from_the_one_ansible_uses(inventory: Inventory) -> None:
    inventory.hosts(ONE_HOST.replace("h1: ", "h1: {ansible_host: 192.0.2.1, cluster_address: 10.0.0.1}", 1))
    assert inventory.load().hosts["h1"].address == "10.0.0.1"


@pytest.mark.parametrize(
    ("limits", "most", "auto"),
    [
        ("", None, 8),
        (", cpu_affinity: 0-2", 3, 3),
        (", cpu_affinity: '0,2,4-5'", 4, 4),
        (", cpu_quota: 250%", 2, 2),
        (", cpu_quota: 50%", 1, 1),
        (", cpu_quota: 600%, cpu_affinity: 0-3", 4, 4),
    ],
)
def test_auto_concurrency_counts_the_cores_a_node_may_use(
    inventory: Inventory, limits: str, most: int | None, auto: int
) -> None:
    inventory.nodes(f"name: n, queues: [cpu, io, default]{limits}")
    node = inventory.load().worker_nodes[0]
    assert node.most_cores == most
    assert node.concurrency_on(8) == auto


def test_a_node_may_take_as_long_to_stop_as_its_longest_task(inventory: Inventory) -> None:
    inventory.nodes("name: n, queues: [cpu, io, default], time_limit: 600")
    cluster = inventory.load()
    assert cluster.stop_timeout_of(cluster.worker_nodes[0]) == 630
    inventory.settings(stop_timeout="stop_timeout: 5")
    cluster = inventory.load()
    assert cluster.stop_timeout_of(cluster.worker_nodes[0]) == 5


def test_ports_are_the_well_known_ones_or_follow_from_the_base_unless_set(inventory: Inventory) -> None:
    ports = inventory.load().ports
    assert (ports.amqp, ports.management, ports.results, ports.flower) == (5_671, 15_671, 6_379, 443)
    inventory.settings(port_base="port_base: 5000", ports="ports: {flower: 8080}")
    ports = inventory.load().ports
    assert (ports.amqp, ports.flower) == (5_672, 8_080)


def test_hosts_know_their_groups_and_groups_their_hosts(inventory: Inventory) -> None:
    cluster = inventory.load()
    assert cluster.group("workers") == ("h1", "h2")
    assert cluster.hosts["h2"] == Host(name="h2", groups=("workers",), address="192.0.2.2")
    assert cluster.hosts["h1"].groups == ("brokers", "results", "workers", "schedulers", "monitors")
    assert cluster.hosts["h1"].address == "h1"


def test_a_node_runs_on_all_workers_or_on_the_hosts_it_names(inventory: Inventory) -> None:
    inventory.nodes("name: cpu, queues: [cpu, default]", "name: io, queues: [io], hosts: [h2]")
    cluster = inventory.load()
    assert [name for name, _ in cluster.expected_nodes()] == ["cpu@h1", "cpu@h2", "io@h2"]
    assert [node.name for node in cluster.nodes_on("h1")] == ["cpu"]
    assert [node.name for node in cluster.nodes_on("h2")] == ["cpu", "io"]


def test_groups_can_be_children_of_others_and_ranges_stand_for_hosts(inventory: Inventory) -> None:
    inventory.hosts(
        "all:\n"
        "  vars: {ansible_user: admin}\n"
        "  children:\n"
        "    brokers: {hosts: {b1: }}\n"
        "    results: {children: {brokers: }}\n"
        "    workers: {hosts: {'w[08:10]': , 'x[1:5:2]': }}\n"
        "    schedulers: {children: {brokers: }}\n"
        "monitors: {hosts: {b1: }}\n"
    )
    cluster = inventory.load()
    assert cluster.group("workers") == ("w08", "w09", "w10", "x1", "x3", "x5")
    assert cluster.group("results") == cluster.group("schedulers") == ("b1",)


def test_later_files_replace_whole_keys_as_ansible_does(inventory: Inventory) -> None:
    (inventory.directory / "group_vars" / "all.yml").rename(inventory.directory / "group_vars" / "x")
    (inventory.directory / "group_vars" / "all").mkdir()
    (inventory.directory / "group_vars" / "x").rename(inventory.directory / "group_vars" / "all" / "10.yml")
    inventory.write("queues: {default: {}, io: {}, cpu: {delivery_limit: 3}}\n", "group_vars/all/20.yml")
    inventory.write("ansible_user: admin\n", "group_vars/all/30.yml")
    assert inventory.load().queues["cpu"].delivery_limit == 3
    inventory.write("queues: {default: {}, io: {}, cpu: {delivery_limit: 0}}\n", "group_vars/all/20.yml")
    assert inventory.problems == [
        "group_vars/all/20.yml:1: queues.cpu.delivery_limit: must be at least 1, is 0"
    ]


def test_an_empty_mapping_may_be_left_out(inventory: Inventory) -> None:
    inventory.settings(queues="queues: {default: , cpu: , io: }", ports="ports:")
    assert inventory.load().queues["io"].delivery_limit == 20


def test_anchors_and_merges_are_yaml_too(inventory: Inventory) -> None:
    inventory.write(
        "celery_app: a:b\n"
        "queues: {default: &limits {delivery_limit: 5}, io: {<<: *limits, max_length: 9}}\n"
        "worker_nodes: [{name: n, queues: [default, io]}]\n"
    )
    assert inventory.load().queues["io"] == QueueSettings(delivery_limit=5, max_length=9)


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        (".", "path"),
        ("app-1-py3-none-any.whl", "wheel"),
        ("git+https://git.example/app@v1", "git"),
        ("git+ssh://git@git.example/app", "git"),
    ],
)
def test_an_app_comes_from_a_path_a_wheel_or_git(inventory: Inventory, source: str, kind: str) -> None:
    (inventory.root / "app-1-py3-none-any.whl").touch()
    inventory.settings(app_source=f"app_source: {source}")
    app = inventory.load().app
    assert app.kind == kind
    assert app.location == source if kind == "git" else Path(app.location).is_absolute()


def test_home_is_relative_to_the_checkout(inventory: Inventory) -> None:
    inventory.hosts(ONE_HOST)
    inventory.settings(**PRIVATE, home="home: .cluster/elsewhere")
    assert inventory.load().home == inventory.root / ".cluster" / "elsewhere"
    inventory.settings(**PRIVATE, home="home: /srv/celery")
    assert inventory.load().home == Path("/srv/celery")


@pytest.mark.parametrize(
    ("pool", "auto"), [("prefork", 4), ("threads", 20), ("gevent", 100), ("eventlet", 100), ("solo", 1)]
)
def test_auto_concurrency_depends_on_the_pool(inventory: Inventory, pool: str, auto: int) -> None:
    inventory.nodes(f"name: n, pool: {pool}, queues: [cpu, io, default], concurrency: auto")
    node = inventory.load().worker_nodes[0]
    assert node.concurrency == "auto"
    assert node.concurrency_on(4) == auto
    assert node.auto_concurrency.on(4) == auto


def test_a_stated_concurrency_is_the_same_on_every_host(inventory: Inventory) -> None:
    inventory.nodes("name: n, pool: gevent, queues: [cpu, io, default], concurrency: 7")
    assert inventory.load().worker_nodes[0].concurrency_on(64) == 7


def test_playbooks_get_everything_as_json(inventory: Inventory) -> None:
    dumped = json.loads(json.dumps(inventory.load().to_ansible()))
    assert dumped["ports"]["amqp"] == 5_671
    assert dumped["home"] == "/opt/clusterkit"
    assert dumped["addresses"] == {"h1": "h1", "h2": "192.0.2.2"}
    assert dumped["internal_names"]["brokers"] == "brokers.test.internal"
    assert dumped["worker_nodes"][0]["stop_timeout"] == 3_630
    assert dumped["groups"]["workers"] == ["h1", "h2"]
    assert dumped["worker_nodes"][1]["hosts"] == ["h1", "h2"]
    assert dumped["worker_nodes"][1]["auto_concurrency"] == {"per_core": 5, "plus": 0}
    assert dumped["expected_nodes"] == ["cpu@h1", "cpu@h2", "io@h1", "io@h2"]
    assert dumped["app"] == {"kind": "path", "location": str(inventory.root)}


def test_a_cluster_cannot_be_changed(inventory: Inventory) -> None:
    with pytest.raises(ValidationError):
        inventory.load().stop_timeout = 1  # type: ignore[misc]


def test_every_field_is_described() -> None:
    models: list[type[BaseModel]] = [Cluster, WorkerNode, QueueSettings, Ports, Host, AutoConcurrency]
    assert not [
        f"{model.__name__}.{name}"
        for model in models
        for name, field in model.model_fields.items()
        if not field.description
    ]


# Which inventory


def test_an_inventory_can_be_named_by_its_path(inventory: Inventory) -> None:
    for cluster in (inventory.directory, str(inventory.directory), "deploy/clusters/test"):
        assert load(cluster, inventory.root) == inventory.load()


def test_a_cluster_that_is_not_there_is_named_with_the_likely_one(inventory: Inventory) -> None:
    assert clusters(inventory.root) == ["test"]
    with pytest.raises(NoClusterError, match=r"no cluster 'tset' .*Did you mean 'test'\?"):
        load("tset", inventory.root)
    with pytest.raises(NoClusterError, match="Clusters: test"):
        load("nowhere/at/all", inventory.root)


def test_the_cluster_is_named_after_its_directory(inventory: Inventory) -> None:
    renamed = inventory.directory.rename(inventory.directory.parent / "My Cluster")
    with pytest.raises(InventoryError, match="the directory's name is the cluster's"):
        load(renamed, inventory.root)


# Mistakes in group_vars


MISTAKES = {
    "a misspelt key at the top": (
        {"stop_timeout": "stop_timout: 5"},
        "7: stop_timout: unknown key. Did you mean 'stop_timeout'?",
    ),
    "a key like nothing known": (
        {"x": "zzz: 5"},
        (
            "7: zzz: unknown key. Keys: celery_app, app_source, service_backend, home, bind_address,"
            " port_base, ports, default_queue, queues, worker_nodes, stop_timeout, result_expires, log_level,"
            " client_networks, firewall, drills, celery_settings"
        ),
    ),
    "a misspelt key of a queue": (
        {"queues": "queues:\n  default: {}\n  cpu: {delivery_limt: 3}\n  io: {}"},
        "5: queues.cpu.delivery_limt: unknown key. Did you mean 'delivery_limit'?",
    ),
    "a misspelt port": (
        {"ports": "ports: {amqpp: 5000}"},
        "7: ports.amqpp: unknown key. Did you mean 'amqp'?",
    ),
    "the wrong type": (
        {"stop_timeout": "stop_timeout: soon"},
        "7: stop_timeout: must be a whole number, not the text 'soon'",
    ),
    "a number in quotes": (
        {"stop_timeout": 'stop_timeout: "60"'},
        "7: stop_timeout: must be a whole number, not the text '60': remove the quotes",
    ),
    "true for a number": (
        {"stop_timeout": "stop_timeout: yes"},
        "7: stop_timeout: must be a whole number, not true",
    ),
    "nothing for a number": (
        {"result_expires": "result_expires:"},
        "7: result_expires: must be a whole number, not empty",
    ),
    "a list for a mapping": (
        {"queues": "queues: [default]"},
        "3: queues: must be a mapping, not a list",
    ),
    "a number for text": (
        {"default_queue": "default_queue: 5"},
        "7: default_queue: must be text, not the number 5",
    ),
    "too small a number": (
        {"result_expires": "result_expires: 0"},
        "7: result_expires: must be at least 1, is 0",
    ),
    "a port base that leaves no room": (
        {"port_base": "port_base: 65000"},
        "7: port_base: must be at most 64861, is 65000",
    ),
    "a port out of range": (
        {"ports": "ports: {flower: 70000}"},
        "7: ports.flower: must be at most 65535, is 70000",
    ),
    "a port that another service has": (
        {"ports": "ports: {flower: 5671}"},
        "7: ports.flower: 5671 is the port of amqp too",
    ),
    "an app without attribute": (
        {"celery_app": "celery_app: tasks.app"},
        "1: celery_app: 'tasks.app' is not of the form module:attribute, such as tasks.app:app",
    ),
    "an app that is not there": (
        {"app_source": "app_source: nowhere"},
        "7: app_source: 'nowhere': there is no {root}/nowhere",
    ),
    "a file that is no wheel": (
        {"app_source": "app_source: deploy/clusters/test/hosts.yml"},
        "7: app_source: 'deploy/clusters/test/hosts.yml' is a file but no wheel (.whl)",
    ),
    "a URL that is not git's": (
        {"app_source": "app_source: https://git.example/app"},
        (
            "7: app_source: 'https://git.example/app' is no git URL: write git+https://server/project@tag"
            " (or git+ssh)"
        ),
    ),
    "a misspelt back end": (
        {"service_backend": "service_backend: systmd"},
        (
            "2: service_backend: must be one of systemd, supervisor, compose; is 'systmd'."
            " Did you mean 'systemd'?"
        ),
    ),
    "an address range that is none": (
        {"client_networks": "client_networks: [10.0.0.1/8]"},
        (
            "7: client_networks[0]: 10.0.0.1/8 has host bits set: write an address range such as 10.0.0.0/24,"
            " or one address"
        ),
    ),
    "a listening address under systemd": (
        {"bind_address": "bind_address: 127.0.0.1"},
        (
            "7: bind_address: only works with service_backend: supervisor; hosts listen on their own address"
            " (cluster_address in hosts.yml)"
        ),
    ),
    "a home under systemd": (
        {"service_backend": "service_backend: systemd", "home": "home: here"},
        "7: home: only works with service_backend: supervisor; elsewhere everything has its usual place",
    ),
    "a log level in small letters": (
        {"log_level": "log_level: info"},
        "7: log_level: must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL; is 'info'",
    ),
    "no IP address": (
        {"bind_address": "bind_address: everywhere"},
        "7: bind_address: 'everywhere' is no IP address",
    ),
    "an unknown default queue": (
        {"default_queue": "default_queue: defualt"},
        "7: default_queue: unknown queue 'defualt'. Did you mean 'default'?",
    ),
    "a queue that nobody consumes": (
        {"queues": "queues: {default: {}, cpu: {}, io: {}, spare: {}}"},
        (
            "3: queues.spare: no worker node takes tasks from this queue."
            " Add it to the `queues` of one, or remove it"
        ),
    ),
    "a template": (
        {"log_level": 'log_level: "{{ level }}"'},
        "7: log_level: is a template; the kit's settings are read as they stand, write the value itself",
    ),
    "an encrypted value": (
        {"log_level": "log_level: !vault secret"},
        (
            "7: log_level: must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL;"
            " is a value tagged !vault (it is not read here)"
        ),
    ),
    "a key twice": (
        {"log_level": "log_level: INFO\nlog_level: DEBUG"},
        "8: log_level: is there twice; the first is on line 7",
    ),
    "a key that is no text": (
        {"x": "on: 5"},
        "7: the key on is not text; put it in quotes",
    ),
    "a date that is none": (
        {"log_level": "log_level: 2025-02-30"},
        "7: log_level: cannot be read as timestamp: day is out of range for month",
    ),
}


@pytest.mark.parametrize(("replaced", "problem"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_settings(inventory: Inventory, replaced: dict[str, str], problem: str) -> None:
    inventory.settings(**replaced)
    assert inventory.problems == [f"group_vars/all.yml:{problem.format(root=inventory.root)}"]


@pytest.mark.parametrize("name", ["CPU", "a.b", "1st", "a b", "x" * 41, ""])
def test_a_bad_queue_name(inventory: Inventory, name: str) -> None:
    inventory.settings(queues=f"queues: {{default: {{}}, cpu: {{}}, io: {{}}, '{name}': {{}}}}")
    assert inventory.problems[0] == (
        f"group_vars/all.yml:3: queues.{name}: {name!r} is no name: at most 40 lower-case letters,"
        " digits, - and _, beginning with a letter"
    )


@pytest.mark.parametrize("name", ["celeryev", "celery_delayed_3", "celery_delayed_delivery"])
def test_a_queue_name_that_celery_uses_itself(inventory: Inventory, name: str) -> None:
    inventory.settings(queues=f"queues: {{default: {{}}, cpu: {{}}, io: {{}}, {name}: {{}}}}")
    assert f"group_vars/all.yml:3: queues.{name}: {name!r} is a name Celery uses itself" in inventory.problems


def test_what_is_required_is_named(inventory: Inventory) -> None:
    inventory.write("stop_timeout: 5\n")
    assert inventory.problems == [
        "group_vars/all.yml: celery_app: is required and missing",
        "group_vars/all.yml: queues: is required and missing",
        "group_vars/all.yml: worker_nodes: is required and missing",
    ]


def test_a_default_queue_that_is_only_implied_is_checked_too(inventory: Inventory) -> None:
    inventory.write("celery_app: a:b\nqueues: {cpu: {}}\nworker_nodes: [{name: n, queues: [cpu]}]\n")
    assert inventory.problems == [
        (
            "group_vars/all.yml:2: queues: default_queue is 'default' unless set, and there is no such queue."
            " Queues: cpu"
        )
    ]


# Mistakes in worker_nodes


NODE = "queues: [cpu, io, default]"
NODE_MISTAKES = {
    "a misspelt key": (
        f"name: n, {NODE}, concurrncy: 5",
        "concurrncy: unknown key. Did you mean 'concurrency'?",
    ),
    "a negative concurrency": (
        f"name: n, {NODE}, concurrency: -1",
        "concurrency: must be auto or a whole number of at least 1, not the number -1",
    ),
    "a concurrency that is neither": (
        f"name: n, {NODE}, concurrency: all",
        "concurrency: must be auto or a whole number of at least 1, not the text 'all'",
    ),
    "an unknown queue": (
        "name: n, queues: [cpuu, io, default]",
        "queues[0]: unknown queue 'cpuu'. Did you mean 'cpu'?",
    ),
    "a queue like no other": (
        "name: n, queues: [cpu, io, default, zzz]",
        "queues[3]: unknown queue 'zzz'. Queues: default, cpu, io",
    ),
    "a queue twice": (
        "name: n, queues: [cpu, io, default, io]",
        "queues[3]: 'io' is there twice",
    ),
    "a misspelt pool": (
        f"name: n, {NODE}, pool: geven",
        "pool: must be one of prefork, threads, gevent, eventlet, solo; is 'geven'. Did you mean 'gevent'?",
    ),
    "a pool that Celery does not have": (
        f"name: n, {NODE}, pool: xyz",
        "pool: must be one of prefork, threads, gevent, eventlet, solo; is 'xyz'",
    ),
    "a bad name": (
        f"name: my node, {NODE}",
        "name: 'my node' is no name: at most 40 lower-case letters, digits, - and _, beginning with a letter",
    ),
    "a name that is a number": (f"name: 5, {NODE}", "name: must be text, not the number 5"),
    "an unknown host": (
        f"name: n, {NODE}, hosts: [h3]",
        "hosts[0]: unknown host 'h3'. Hosts in workers: h1, h2",
    ),
    "a host twice": (f"name: n, {NODE}, hosts: [h1, h1]", "hosts[1]: 'h1' is there twice"),
    "no hosts": (f"name: n, {NODE}, hosts: []", "hosts: is empty; it needs at least one entry"),
    "a soft limit above the hard one": (
        f"name: n, {NODE}, time_limit: 60, soft_time_limit: 60",
        "soft_time_limit: 60 s must be below time_limit (60 s)",
    ),
    "a soft limit above the default": (
        f"name: n, {NODE}, soft_time_limit: 4000",
        "soft_time_limit: 4000 s must be below time_limit (3600 s, the default)",
    ),
    "a number of seconds with a unit": (
        f"name: n, {NODE}, time_limit: 1h",
        "time_limit: must be a whole number, not the text '1h'",
    ),
    "an option of prefork for threads": (
        f"name: n, {NODE}, pool: threads, max_tasks_per_child: 10",
        "max_tasks_per_child: only works with the pool prefork, and this node's is threads",
    ),
    "another option of prefork for gevent": (
        f"name: n, {NODE}, pool: gevent, max_memory_per_child: 10",
        "max_memory_per_child: only works with the pool prefork, and this node's is gevent",
    ),
    "a concurrency for solo": (
        f"name: n, {NODE}, pool: solo, concurrency: 2",
        "concurrency: the pool solo runs one task at a time: 1 or auto",
    ),
    "no prefetching at all": (
        f"name: n, {NODE}, prefetch_multiplier: 0",
        "prefetch_multiplier: must be at least 1, is 0",
    ),
}


@pytest.mark.parametrize(("node", "problem"), NODE_MISTAKES.values(), ids=NODE_MISTAKES)
def test_a_mistake_in_a_worker_node(inventory: Inventory, node: str, problem: str) -> None:
    inventory.nodes(node)
    assert inventory.problems == [f"group_vars/all.yml:5: worker_nodes[0].{problem}"]


def test_a_node_gets_what_the_profile_of_its_queues_says(inventory: Inventory) -> None:
    inventory.profiled("name: a, queues: [cpu]", "name: b, queues: [io]", "name: c, queues: [default]")
    cluster = inventory.load()
    found = [
        (cluster.profile_of(node), node.prefetch_multiplier, node.time_limit) for node in cluster.worker_nodes
    ]
    assert found == [("throughput", 60, 60), ("long-tasks", 1, 86_400), ("latency", 1, 3_600)]
    assert [node["profile"] for node in cluster.to_ansible()["worker_nodes"]] == [name for name, *_ in found]


def test_what_the_inventory_says_of_a_node_is_more_than_its_profile(inventory: Inventory) -> None:
    inventory.profiled(
        "name: a, queues: [cpu], prefetch_multiplier: 8, time_limit: 7", "name: b, queues: [io, default]"
    )
    assert "worker_nodes[1].queues: have different profiles (long-tasks, latency)" in inventory.problems[0]


@pytest.mark.parametrize(
    ("cpu", "io", "problem"),
    [
        (
            "queues: [cpu, default]",
            "queues: [io]",
            "queues: have different profiles (throughput, latency): give each a node of its own",
        ),
        (
            "queues: [cpu]",
            "queues: [io], prefetch_multiplier: 2",
            "prefetch_multiplier: 2 lets tasks wait behind long ones; the profile long-tasks takes just 1",
        ),
        (
            "queues: [cpu], soft_time_limit: 60",
            "queues: [io]",
            "soft_time_limit: 60 s must be below time_limit (60 s, the default)",
        ),
    ],
)
def test_what_contradicts_a_profile_is_refused(inventory: Inventory, cpu: str, io: str, problem: str) -> None:
    inventory.profiled(f"name: a, {cpu}", f"name: b, {io}", "name: c, queues: [default]")
    assert len(inventory.problems) == 1
    assert inventory.problems[0].endswith(problem)


def test_two_nodes_of_one_name(inventory: Inventory) -> None:
    inventory.nodes(f"name: n, {NODE}", "name: n, queues: [io]")
    assert inventory.problems == [
        "group_vars/all.yml:6: worker_nodes[1].name: 'n' is taken by worker_nodes[0]; each needs its own"
    ]


def test_a_misspelt_host(inventory: Inventory) -> None:
    inventory.hosts((inventory.directory / "hosts.yml").read_text().replace("h2:", "worker-2:"))
    inventory.nodes(f"name: n, {NODE}, hosts: [worker2]")
    assert inventory.problems == [
        "group_vars/all.yml:5: worker_nodes[0].hosts[0]: unknown host 'worker2'. Did you mean 'worker-2'?"
    ]


def test_a_host_that_is_no_worker(inventory: Inventory) -> None:
    hosts = (inventory.directory / "hosts.yml").read_text()
    inventory.hosts(hosts.replace("monitors: {hosts: {h1", "monitors: {hosts: {m1"))
    inventory.nodes(f"name: n, {NODE}, hosts: [m1]")
    assert inventory.problems == [
        "group_vars/all.yml:5: worker_nodes[0].hosts[0]: 'm1' is not in the group workers"
    ]


def test_a_cluster_without_worker_nodes(inventory: Inventory) -> None:
    inventory.write("celery_app: a:b\nqueues: {default: {}}\nworker_nodes: []\n")
    assert inventory.problems == ["group_vars/all.yml:3: worker_nodes: is empty; it needs at least one entry"]


def test_worker_nodes_that_are_no_list(inventory: Inventory) -> None:
    inventory.write("celery_app: a:b\nqueues: {default: {}}\nworker_nodes: {name: cpu}\n")
    assert inventory.problems == ["group_vars/all.yml:3: worker_nodes: must be a list, not a mapping"]


def test_a_node_without_queues(inventory: Inventory) -> None:
    inventory.nodes(f"name: a, {NODE}", "name: b, queues: []", "name: c")
    assert inventory.problems == [
        "group_vars/all.yml:6: worker_nodes[1].queues: is empty; it needs at least one entry",
        "group_vars/all.yml:7: worker_nodes[2].queues: is required and missing",
    ]


def test_a_node_that_is_no_mapping_is_told_once(inventory: Inventory) -> None:
    inventory.write("celery_app: a:b\nqueues: {default: {}}\nworker_nodes:\n  - cpu\n")
    assert inventory.problems == [
        "group_vars/all.yml:4: worker_nodes[0]: must be a mapping, not the text 'cpu'"
    ]


def test_all_problems_of_all_files_are_told_at_once(inventory: Inventory) -> None:
    inventory.hosts((inventory.directory / "hosts.yml").read_text().replace("workers:", "worker:"))
    inventory.nodes("name: n, queues: [cpuu], concurrncy: 4", "name: n, pool: x, queues: [io], time_limit: 0")
    assert [problem.split(": ")[:2] for problem in inventory.problems] == [
        ["group_vars/all.yml:5", "worker_nodes[0].concurrncy"],
        ["group_vars/all.yml:5", "worker_nodes[0].queues[0]"],
        ["group_vars/all.yml:6", "worker_nodes[1].pool"],
        ["group_vars/all.yml:6", "worker_nodes[1].time_limit"],
        ["group_vars/all.yml:6", "worker_nodes[1].name"],
        [
            "hosts.yml",
            "the group workers is missing; a cluster has brokers, results, workers, schedulers, monitors",
        ],
        ["hosts.yml:3", "worker"],
    ]


def test_the_message_counts_the_problems_and_says_that_nothing_changed(inventory: Inventory) -> None:
    inventory.settings(stop_timeout="stop_timout: 5")
    with pytest.raises(InventoryError) as caught:
        inventory.load()
    assert str(caught.value) == (
        "the inventory of the cluster 'test' has a problem:\n"
        "  deploy/clusters/test/group_vars/all.yml:7: stop_timout: unknown key. Did you mean 'stop_timeout'?"
    )
    assert caught.value.exit_code == 3
    assert "nothing was changed" in caught.value.next_step


def test_paths_are_shown_from_where_one_stands(inventory: Inventory, monkeypatch: pytest.MonkeyPatch) -> None:
    inventory.settings(stop_timeout="stop_timout: 5")
    monkeypatch.chdir(inventory.directory)
    assert inventory.problems[0].startswith("group_vars/all.yml:7: ")
    monkeypatch.chdir("/")
    with pytest.raises(InventoryError) as caught:
        inventory.load()
    assert str(caught.value.problems[0]).startswith(str(inventory.directory).lstrip("/"))


# Settings without effect


@pytest.mark.parametrize(
    ("node", "keys"),
    [
        ("pool: prefork, time_limit: 60, soft_time_limit: 50", []),
        ("pool: gevent, time_limit: 60", []),
        ("pool: gevent, time_limit: 60, soft_time_limit: 50", ["soft_time_limit"]),
        ("pool: threads, time_limit: 60, soft_time_limit: 50", ["time_limit", "soft_time_limit"]),
        ("pool: eventlet, time_limit: 60", ["time_limit"]),
        ("pool: solo, time_limit: 60", ["time_limit"]),
        ("pool: solo", []),
    ],
)
def test_a_limit_that_the_pool_does_not_enforce_is_a_warning(
    inventory: Inventory, node: str, keys: list[str]
) -> None:
    inventory.nodes(f"name: n, {NODE}, {node}")
    place = "deploy/clusters/test/group_vars/all.yml:5: worker_nodes[0]."
    warnings = inventory.load().warnings
    assert [warning.removeprefix(place).partition(":")[0] for warning in warnings] == keys


# Mistakes in hosts.yml and around it


NO_WORKERS = "the group workers is missing; a cluster has brokers, results, workers, schedulers, monitors"
HOSTS_MISTAKES = {
    "a misspelt group": (
        ("workers:", "wrokers:"),
        [
            f"hosts.yml: {NO_WORKERS}",
            "hosts.yml:3: wrokers: unknown group. Did you mean 'workers'?",
        ],
    ),
    "a group of one's own": (
        ("monitors: {hosts: {h1: }}", "monitors: {hosts: {h1: }}\nzzz: {hosts: {h1: }}"),
        ["hosts.yml:6: zzz: unknown group. Groups: brokers, results, workers, schedulers, monitors"],
    ),
    "an empty group": (
        ("monitors: {hosts: {h1: }}", "monitors:"),
        ["hosts.yml:5: monitors: the group has no hosts"],
    ),
    "a list of hosts": (
        ("monitors: {hosts: {h1: }}", "monitors: {hosts: [h1]}"),
        [
            (
                "hosts.yml:5: monitors.hosts: must be a mapping:"
                " each of the hosts is a key (`name:`, without a dash)"
            )
        ],
    ),
    "a misspelt section": (
        ("monitors: {hosts:", "monitors: {host:"),
        ["hosts.yml:5: monitors.host: unknown key. Did you mean 'hosts'?"],
    ),
    "a group that is a list": (
        ("monitors: {hosts: {h1: }}", "monitors: [h1]"),
        ["hosts.yml:5: monitors: must be a mapping with hosts, children or vars"],
    ),
    "an even number of brokers": (
        ("brokers: {hosts: {h1: }}", "brokers: {hosts: {h1: , h2: }}"),
        ["hosts.yml:1: brokers: has 2 hosts (h1, h2), must have 1 or 3 or 5 or 7: they decide by majority"],
    ),
    "an even number of result stores": (
        ("results: {hosts: {h1: }}", "results: {hosts: {'h[1:2]': }}"),
        ["hosts.yml:2: results: has 2 hosts (h1, h2), must have 1 or 3 or 5: they decide by majority"],
    ),
    "a bad host name": (
        ("monitors: {hosts: {h1: }}", "monitors: {hosts: {'h1:22': }}"),
        [
            (
                "hosts.yml:5: monitors.hosts.h1:22: is no host name: letters, digits, dots, - and _"
                " (a range is written h[1:3])"
            )
        ],
    ),
    "a range backwards": (
        ("monitors: {hosts: {h1: }}", "monitors: {hosts: {'h[3:1]': }}"),
        [
            (
                "hosts.yml:5: monitors.hosts.h[3:1]: stands for 0 hosts; a range is written h[1:3],"
                " the lower end first"
            )
        ],
    ),
    "a range of letters": (
        ("monitors: {hosts: {h1: }}", "monitors: {hosts: {'h[a:c]': }}"),
        [
            (
                "hosts.yml:5: monitors.hosts.h[a:c]: is no host name: letters, digits, dots, - and _"
                " (a range is written h[1:3])"
            )
        ],
    ),
    "a setting of the kit at a host": (
        ("h2: {ansible_host: 192.0.2.2}", "h2: {concurrency: 5}"),
        [
            (
                "hosts.yml:3: workers.hosts.h2.concurrency: has no effect in hosts.yml: the kit's settings"
                " belong in group_vars/all.yml, only ansible_* variables may stand here"
            )
        ],
    ),
    "a host in no group": (
        ("monitors: {hosts: {h1: }}", "monitors: {hosts: {h1: }}\nall: {hosts: {spare: }}"),
        [
            (
                "hosts.yml:6: all.hosts.spare: is in none of the groups brokers, results, workers,"
                " schedulers, monitors: nothing would run on it"
            )
        ],
    ),
    "a group inside itself": (
        ("monitors: {hosts: {h1: }}", "monitors: {children: {monitors: }, hosts: {h1: }}"),
        ["hosts.yml:5: monitors: is a child of itself"],
    ),
    "not YAML": (
        ("monitors: {hosts: {h1: }}", "monitors: {hosts: {h1: }"),
        ["hosts.yml:6: not valid YAML: did not find expected ',' or '}' (while parsing a flow mapping)"],
    ),
}


@pytest.mark.parametrize(("change", "problems"), HOSTS_MISTAKES.values(), ids=HOSTS_MISTAKES)
def test_a_mistake_in_the_hosts(inventory: Inventory, change: tuple[str, str], problems: list[str]) -> None:
    text = (inventory.directory / "hosts.yml").read_text()
    assert change[0] in text
    inventory.hosts(text.replace(*change))
    assert inventory.problems == problems


def test_an_inventory_without_hosts(inventory: Inventory) -> None:
    inventory.hosts("")
    assert inventory.problems == ["hosts.yml: names no groups"]
    inventory.hosts("- a\n")
    assert inventory.problems == ["hosts.yml: must be a mapping of groups"]
    (inventory.directory / "hosts.yml").unlink()
    assert inventory.problems == ["hosts.yml: cannot be read: No such file or directory"]


def test_an_inventory_without_settings(inventory: Inventory) -> None:
    (inventory.directory / "group_vars" / "all.yml").unlink()
    assert inventory.problems == ["group_vars/all.yml: there is no such file"]
    inventory.write("- a\n")
    assert inventory.problems == ["group_vars/all.yml: must be a mapping: `key: value` lines"]


def test_settings_that_are_not_yaml(inventory: Inventory) -> None:
    inventory.settings(queues="queues:\n\t- default")
    assert inventory.problems == [
        (
            "group_vars/all.yml:4: not valid YAML: found character that cannot start any token"
            " (while scanning for the next token)"
        )
    ]


def test_settings_in_a_place_the_kit_does_not_read(inventory: Inventory) -> None:
    inventory.write("ansible_user: admin\nstop_timeout: 5\n", "group_vars/workers.yml")
    inventory.write("port_base: 5000\n", "host_vars/h1/main.yml")
    effect = (
        "has no effect in this file: the kit's settings belong in group_vars/all.yml,"
        " only ansible_* variables may stand here"
    )
    assert inventory.problems == [
        f"group_vars/workers.yml:2: stop_timeout: {effect}",
        f"host_vars/h1/main.yml:1: port_base: {effect}",
    ]


def test_a_second_inventory_file_that_only_ansible_would_read(inventory: Inventory) -> None:
    inventory.write("# notes\n", "README.md")
    inventory.write("", ".hidden")
    assert inventory.load()
    inventory.write("workers: {}\n", "more.yml")
    assert inventory.problems == [
        "more.yml: Ansible would read this as part of the inventory, the kit reads only hosts.yml"
    ]


def test_settings_of_which_ansible_would_read_only_half(inventory: Inventory) -> None:
    inventory.write("log_level: DEBUG\n", "group_vars/all/main.yml")
    assert (
        "group_vars/all.yml: Ansible reads only all of the two: move the settings together"
        in inventory.problems
    )


def test_a_vault_is_passed_over_with_a_warning(inventory: Inventory) -> None:
    settings = (inventory.directory / "group_vars" / "all.yml").read_text()
    (inventory.directory / "group_vars" / "all.yml").unlink()
    inventory.write(settings, "group_vars/all/main.yml")
    inventory.write("$ANSIBLE_VAULT;1.1;AES256\n6162\n", "group_vars/all/vault.yml")
    assert inventory.load().warnings == (
        (
            "deploy/clusters/test/group_vars/all/vault.yml: is encrypted and not read;"
            " the kit's settings must not be in it"
        ),
    )


def test_loading_needs_no_ansible() -> None:
    code = "import sys, clusterkit.ops.inventory; print([m for m in sys.modules if m.startswith('ansible')])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT / "deploy")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
