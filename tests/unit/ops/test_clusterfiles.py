"""Where each role finds broker and result store, as whom, and whom it trusts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from clusterkit.ops import clusterfiles, inventory
from clusterkit.ops.secrets import FLOWER_ROLES, RESULT_ROLES, ROLES, Secrets

if TYPE_CHECKING:
    from tests.unit.ops.conftest import Inventory

ROOT = Path(__file__).resolve().parents[3]
SECRETS = Secrets(
    broker={role: f"b-{role}" for role in ROLES},
    results={role: f"r-{role}" for role in RESULT_ROLES},
    flower=dict.fromkeys(FLOWER_ROLES, "f"),
    erlang_cookie="c",
)


def test_a_private_cluster_is_reached_on_loopback_without_tls() -> None:
    file = clusterfiles.cluster_file(inventory.load("local", ROOT), SECRETS, "worker")
    assert file.broker_url == "amqp://worker:b-worker@127.0.0.1:24672//"
    assert file.result_url == "redis://worker:r-worker@127.0.0.1:24379/0"
    assert (file.ca_file, file.broker_name, file.result_master) == ("", "", "")


def test_hosts_find_the_brokers_under_one_name_and_the_store_through_sentinel() -> None:
    file = clusterfiles.cluster_file(inventory.load("example", ROOT), SECRETS, "worker")
    assert file.broker_url == "amqps://worker:b-worker@brokers.example.internal:5671//"
    assert file.result_url == ";".join(
        f"sentinel://worker:r-worker@192.0.2.{number}:26379/0" for number in (1, 2, 3)
    )
    assert (file.broker_name, file.result_master) == ("brokers.example.internal", "results")
    assert file.ca_file == "/opt/clusterkit/ca.pem"


def test_the_control_machine_knows_no_such_name_and_has_every_address() -> None:
    cluster = inventory.load("example", ROOT)
    file = clusterfiles.cluster_file(cluster, SECRETS, "producer")
    assert file.broker_url.split(";") == [
        f"amqps://producer:b-producer@192.0.2.{number}:5671//" for number in (1, 2, 3)
    ]
    assert file.ca_file == str(cluster.state_dir / "ca.pem")


def test_one_result_host_needs_no_sentinel(inventory: Inventory) -> None:
    file = clusterfiles.cluster_file(inventory.load(), SECRETS, "scheduler")
    assert file.result_url == "rediss://scheduler:r-scheduler@h1:6379/0"
    assert file.result_master == ""


@pytest.mark.parametrize("role", clusterfiles.ROLES_ON_HOSTS)
def test_no_role_on_a_host_has_the_operators_password(role: str) -> None:
    file = clusterfiles.cluster_file(inventory.load("example", ROOT), SECRETS, role)  # type: ignore[arg-type]
    text = str(clusterfiles.to_json(file))
    assert "operator" not in text
