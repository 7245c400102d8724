"""Who may connect to which port, and by which names hosts know each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from clusterkit.ops import network
from clusterkit.ops.model import GROUPS, Ports

if TYPE_CHECKING:
    from clusterkit.ops.model import Cluster
    from tests.unit.ops.conftest import Inventory

HOSTS = """\
brokers: {hosts: {h1: , h2: , h3: }}
results:
  hosts: {h1: {ansible_host: 192.0.2.1}, h2: {ansible_host: 192.0.2.2}, h3: {ansible_host: 192.0.2.3}}
workers: {hosts: {h4: {ansible_host: 192.0.2.4}, h5: {ansible_host: 192.0.2.5}}}
schedulers: {hosts: {h4: , h6: }}
monitors: {hosts: {h6: {ansible_host: 192.0.2.6}}}
"""
Load = Callable[..., "Cluster"]


@pytest.fixture
def load(inventory: Inventory) -> Load:
    """Return a function that loads an inventory of six hosts, or of others, with these settings."""

    def loaded(hosts: str = HOSTS, **settings: str) -> Cluster:
        inventory.hosts(hosts)
        inventory.settings(**{"service_backend": "service_backend: systemd", **settings})
        cluster: Cluster = inventory.load()
        return cluster

    return loaded


def opening(cluster: Cluster, host: str, name: str) -> dict[str, Any]:
    (found,) = [entry for entry in network.firewall(cluster)[host] if entry["name"] == name]
    return found


def test_the_broker_is_open_to_those_who_take_and_give_tasks(load: Load) -> None:
    cluster = load(client_networks="client_networks: [198.51.100.0/24]")
    assert opening(cluster, "h1", "amqp") == {
        "name": "amqp",
        "port": 5671,
        "sources": ["192.0.2.4", "192.0.2.5", "192.0.2.6", "198.51.100.0/24"],
        "control": True,
    }


@pytest.mark.parametrize("name", ["distribution", "epmd"])
def test_brokers_alone_reach_erlang(load: Load, name: str) -> None:
    cluster = load(client_networks="client_networks: [198.51.100.0/24]")
    found = opening(cluster, "h2", name)
    assert (found["sources"], found["control"]) == (["192.0.2.1", "192.0.2.3"], False)


def test_the_http_api_is_for_monitors_and_the_control_machine(load: Load) -> None:
    cluster = load(client_networks="client_networks: [198.51.100.0/24]")
    found = opening(cluster, "h1", "management")
    assert (found["sources"], found["control"]) == (["192.0.2.6"], True)


@pytest.mark.parametrize("name", ["results", "sentinel"])
def test_the_result_store_is_open_to_its_replicas_and_to_all_who_read_results(load: Load, name: str) -> None:
    found = opening(load(), "h1", name)
    assert found["sources"] == ["192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.6"]
    assert found["control"] is True


def test_flower_is_for_people_and_the_two_behind_the_proxy_for_nobody(load: Load) -> None:
    cluster = load(client_networks="client_networks: [198.51.100.0/24]")
    (found,) = network.firewall(cluster)["h6"]
    assert found == {"name": "flower", "port": 443, "sources": ["198.51.100.0/24"], "control": True}


def test_a_port_that_only_the_host_itself_uses_is_closed_to_all(load: Load) -> None:
    hosts = "\n".join(f"{group}: {{hosts: {{h1: {{ansible_host: 192.0.2.1}}}}}}" for group in GROUPS)
    found = opening(load(hosts), "h1", "epmd")
    assert (found["sources"], found["control"]) == ([], False)


def test_a_worker_host_listens_nowhere(load: Load) -> None:
    assert network.firewall(load())["h5"] == []


def test_there_is_no_firewall_where_it_is_not_wanted(load: Load) -> None:
    assert set(map(len, network.firewall(load(firewall="firewall: false")).values())) == {0}


def test_a_private_cluster_has_neither_firewall_nor_names(load: Load) -> None:
    hosts = "\n".join(f"{group}: {{hosts: {{h1: }}}}" for group in GROUPS)
    cluster = load(hosts, service_backend="service_backend: supervisor")
    assert network.firewall(cluster) == {"h1": []}
    assert network.names(cluster) == {"h1": []}


def lines(cluster: Cluster, host: str) -> list[str]:
    return [f"{line['address']} {line['name']}" for line in network.names(cluster)[host]]


def test_a_host_knows_itself_and_those_that_it_connects_to(load: Load) -> None:
    assert lines(load(), "h5") == [
        "192.0.2.1 h1.test.internal",
        "192.0.2.2 h2.test.internal",
        "192.0.2.3 h3.test.internal",
        "192.0.2.5 h5.test.internal",
        "192.0.2.6 h6.test.internal",
        "192.0.2.2 brokers.test.internal",
        "192.0.2.3 brokers.test.internal",
        "192.0.2.1 brokers.test.internal",
        "192.0.2.2 results.test.internal",
        "192.0.2.3 results.test.internal",
        "192.0.2.1 results.test.internal",
        "192.0.2.6 monitors.test.internal",
    ]


def addresses(cluster: Cluster, host: str, name: str) -> list[str]:
    return [line["address"] for line in network.names(cluster)[host] if line["name"] == name]


def test_a_broker_tries_itself_first(load: Load) -> None:
    assert addresses(load(), "h2", "brokers.test.internal") == ["192.0.2.2", "192.0.2.3", "192.0.2.1"]


def test_hosts_begin_with_different_brokers(load: Load) -> None:
    cluster = load()
    first = {addresses(cluster, host, "brokers.test.internal")[0] for host in ("h4", "h5", "h6")}
    assert len(first) == 3


def test_a_further_worker_changes_nobody_else_s_names(load: Load) -> None:
    before = network.names(load())
    more = HOSTS.replace("workers: {hosts: {", "workers: {hosts: {a0: {ansible_host: 192.0.2.7}, ")
    after = network.names(load(more))
    assert {host: after[host] for host in before} == before


def test_every_port_of_the_model_is_in_the_reference(load: Load) -> None:
    assert network.PORTS.keys() == Ports.model_fields.keys()
    text = network.document()
    assert all(f"| `{name}` |" in text for name in Ports.model_fields)


def test_what_is_behind_the_proxy_listens_on_loopback(load: Load) -> None:
    cluster = load()
    found = [(one.name, one.address) for one in network.listeners(cluster, cluster.hosts["h6"])]
    assert found == [
        ("flower", "192.0.2.6"),
        ("flower_viewer", "127.0.0.1"),
        ("flower_admin", "127.0.0.1"),
        ("flower", "127.0.0.1"),
    ]
