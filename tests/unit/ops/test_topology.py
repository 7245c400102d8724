"""The broker's definitions say what Celery will declare, and each user's rights hold no more than its names.

That they work is shown against a real broker: tests/integration/test_permissions.py.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import pytest
from kombu.transport.native_delayed_delivery import (
    bind_queue_to_native_delayed_delivery_exchange,
    declare_native_delayed_delivery_exchanges_and_queues,
)

from clusterkit.ops.secrets import ROLES, Secrets
from clusterkit.ops.topology import consumer_timeout_ms, definitions, matrix, password_hash
from clusterkit.runtime.queues import EXCHANGE, queues

if TYPE_CHECKING:
    from clusterkit.ops.inventory import Cluster
    from tests.unit.ops.conftest import Inventory

SECRETS = Secrets(
    broker={role: f"password-of-{role}" for role in ROLES}, results={}, flower={}, erlang_cookie="c"
)
UUID = "0b6c7fd2-3a44-3f0e-9f3a-1d2c3b4a5e6f"


@pytest.fixture
def cluster(inventory: Inventory) -> Cluster:
    inventory.settings(queues="queues: {default: {}, cpu: {delivery_limit: 3, max_length: 7}, io: {}}")
    return inventory.load()


@pytest.fixture
def document(cluster: Cluster) -> dict[str, Any]:
    return definitions(cluster, SECRETS)


def declared_by_celery(names: list[str]) -> dict[str, set[Any]]:
    """Return what a worker with queues ``names`` asks the broker for."""
    channel = MagicMock()
    channel.prepare_queue_arguments = lambda arguments, **_: arguments
    connection = MagicMock()
    connection.channel.return_value = channel
    declare_native_delayed_delivery_exchanges_and_queues(connection, "quorum")
    for queue in queues(names, declare=True):
        queue(channel).declare()
        bind_queue_to_native_delayed_delivery_exchange(connection, queue)
    return {
        "exchanges": {
            (call.kwargs["exchange"], call.kwargs["type"], call.kwargs["durable"])
            for call in channel.exchange_declare.call_args_list
        },
        "queues": {
            (
                call.kwargs["queue"],
                call.kwargs["durable"],
                json.dumps(call.kwargs["arguments"], sort_keys=True),
            )
            for call in channel.queue_declare.call_args_list
        },
        "bindings": {
            ("queue", call.kwargs["exchange"], call.kwargs["queue"], call.kwargs["routing_key"])
            for call in channel.queue_bind.call_args_list
        }
        | {
            ("exchange", call.kwargs["source"], call.kwargs["destination"], call.kwargs["routing_key"])
            for call in channel.exchange_bind.call_args_list
        },
    }


def test_everything_is_as_celery_declares_it_plus_the_dead_letters(document: dict[str, Any]) -> None:
    ours: dict[str, set[Any]] = {
        "exchanges": {(one["name"], one["type"], one["durable"]) for one in document["exchanges"]},
        "queues": {
            (one["name"], one["durable"], json.dumps(one["arguments"], sort_keys=True))
            for one in document["queues"]
        },
        "bindings": {
            (one["destination_type"], one["source"], one["destination"], one["routing_key"])
            for one in document["bindings"]
        },
    }
    celery = declared_by_celery(["default", "cpu", "io"])
    assert {kind: celery[kind] - ours[kind] for kind in celery} == {kind: set() for kind in celery}
    assert {kind: ours[kind] - celery[kind] for kind in celery} == {
        "exchanges": {("celery.dead", "topic", True)},
        "queues": {("celery.dead", True, '{"x-queue-type": "quorum"}')},
        "bindings": {("queue", "celery.dead", "celery.dead", "#")},
    }
    assert EXCHANGE in {one["name"] for one in document["exchanges"]}


def test_nothing_is_there_twice(document: dict[str, Any]) -> None:
    for name, entries in document.items():
        texts = [json.dumps(entry, sort_keys=True) for entry in entries]
        assert len(set(texts)) == len(texts), name


def test_the_same_cluster_gives_the_same_document(cluster: Cluster, document: dict[str, Any]) -> None:
    assert json.dumps(definitions(cluster, SECRETS)) == json.dumps(document)


def test_each_task_queue_has_one_policy_with_its_limits(document: dict[str, Any]) -> None:
    policies = {policy["name"]: policy for policy in document["policies"]}
    assert set(policies) == {"default", "cpu", "io", "celery.dead"}
    assert policies["cpu"]["definition"] == {
        "dead-letter-exchange": "celery.dead",
        "dead-letter-strategy": "at-least-once",
        "overflow": "reject-publish",
        "delivery-limit": 3,
        "max-length": 7,
    }
    assert policies["io"]["definition"]["delivery-limit"] == 20
    assert "dead-letter-exchange" not in policies["celery.dead"]["definition"]
    matches = {
        queue["name"]: [
            name for name, policy in policies.items() if re.search(policy["pattern"], queue["name"])
        ]
        for queue in document["queues"]
    }
    for queue, names in matches.items():
        assert names == ([] if queue.startswith("celery_delayed_") else [queue])


def test_no_password_stands_in_the_document(document: dict[str, Any]) -> None:
    assert "password-of" not in json.dumps(document)
    assert {user["name"] for user in document["users"]} == set(ROLES)
    assert "guest" not in json.dumps(document)


def test_a_password_hash_is_what_rabbitmq_computes() -> None:
    hashed = base64.b64decode(password_hash("worker", "secret"))
    assert hashed[4:] == hashlib.sha256(hashed[:4] + b"secret").digest()
    assert password_hash("worker", "secret") == password_hash("worker", "secret")
    assert password_hash("worker", "secret") != password_hash("producer", "secret")
    assert password_hash("worker", "secret")[:6] != password_hash("worker", "other")[:6]


ALLOWED = {
    ("worker", "configure"): ["celery", "cpu", "celeryev", "celery.pidbox", "cpu.b@h1.celery.pidbox"],
    ("worker", "write"): [
        "celery",
        "celery_delayed_27",
        "celeryev",
        "reply.celery.pidbox",
        "cpu@a.b-c.celery.pidbox",
    ],
    ("worker", "read"): ["cpu", "celery_delayed_delivery", "celery_delayed_0", "celery.pidbox"],
    ("producer", "write"): ["celery", "celery_delayed_27"],
    ("scheduler", "write"): ["celery", "celery_delayed_27"],
    ("flower", "configure"): ["celeryev", f"celeryev.{UUID}", "celery.pidbox", f"{UUID}.reply.celery.pidbox"],
    ("flower", "write"): ["celery.pidbox", f"celeryev.{UUID}"],
    ("flower", "read"): ["celeryev", "reply.celery.pidbox", f"{UUID}.reply.celery.pidbox"],
    ("operator", "configure"): ["anything"],
}
FORBIDDEN = {
    ("worker", "configure"): [
        "celery.dead",
        "amq.default",
        "other",
        "celery_delayed_28",
        "other@h1.celery.pidbox",
        "cpu.bc@h1.celery.pidbox",
        "other.b@h1.celery.pidbox",
    ],
    ("worker", "write"): ["celery.dead", "celery.pidbox", "amq.default", "amq.topic"],
    ("worker", "read"): ["celery.dead", "celeryev", "xcpu", "cpux", "evil@h1.celery.pidbox"],
    ("producer", "configure"): ["celery", "cpu", "amq.gen-1"],
    ("producer", "write"): ["amq.default", "celery.pidbox", "celery.dead", "cpu", "celery_delayed_2"],
    ("producer", "read"): ["cpu", "celery", "amq.gen-1"],
    ("scheduler", "read"): ["cpu"],
    ("flower", "configure"): ["cpu", "celery", "celery.dead"],
    ("flower", "write"): ["celery", "celery_delayed_27", "celeryev", "amq.default", "reply.celery.pidbox"],
    ("flower", "read"): ["cpu", "celery.dead", "celery.pidbox"],
    ("monitor", "configure"): ["cpu", "amq.gen-1"],
    ("monitor", "write"): ["celery", "amq.default"],
    ("monitor", "read"): ["cpu", "celery.dead"],
}


@pytest.mark.parametrize(("role", "act"), [*dict.fromkeys([*ALLOWED, *FORBIDDEN])])
def test_rights_hold_the_names_a_role_needs_and_no_other(cluster: Cluster, role: str, act: str) -> None:
    (rights,) = [rights for rights in matrix(cluster) if rights.role == role]
    pattern = getattr(rights, act)
    assert pattern.startswith("^") or role == "operator"
    assert [name for name in ALLOWED.get((role, act), []) if not re.search(pattern, name)] == []
    assert [name for name in FORBIDDEN.get((role, act), []) if re.search(pattern, name)] == []


def test_publishers_are_held_to_the_queues_names(cluster: Cluster) -> None:
    for rights in matrix(cluster):
        if rights.role not in {"producer", "scheduler"}:
            assert rights.routing_keys == {}
            continue
        now, later = rights.routing_keys["celery"], rights.routing_keys["celery_delayed_27"]
        assert re.search(now, "cpu")
        assert re.search(later, "0." * 25 + "1.0.1.cpu")
        for key in ("", "spare", "x.cpu", "cpu.x", "celery.pidbox"):
            assert not re.search(now, key)
            assert not re.search(later, "0." * 28 + key)
        assert not re.search(later, "0." * 27 + "cpu")


def test_only_administrators_and_watchers_may_use_the_http_api(cluster: Cluster) -> None:
    assert {rights.role: rights.tags for rights in matrix(cluster)} == {
        "operator": ("administrator",),
        "worker": (),
        "producer": (),
        "scheduler": (),
        "flower": ("monitoring",),
        "monitor": ("monitoring",),
    }


@pytest.mark.parametrize(
    ("node", "milliseconds"),
    [
        ("time_limit: 60", 1_800_000),  # RabbitMQ's default
        ("time_limit: 3600", 3_900_000),
        ("time_limit: 3600, prefetch_multiplier: 4", 14_700_000),
    ],
)
def test_the_broker_waits_for_the_longest_task_behind_its_prefetched_ones(
    inventory: Inventory, node: str, milliseconds: int
) -> None:
    inventory.nodes(
        f"name: long, queues: [cpu, io, default], {node}", "name: short, queues: [io], time_limit: 1"
    )
    assert consumer_timeout_ms(inventory.load()) == milliseconds


def test_a_cluster_has_its_own_name_at_the_broker(document: dict[str, Any]) -> None:
    assert document["global_parameters"] == [{"name": "cluster_name", "value": "test"}]
