"""What of a broker's definitions is given back to a new one."""

from __future__ import annotations

from typing import Any

from clusterkit.ops.definitions import additions

OWN: dict[str, list[dict[str, Any]]] = {
    "users": [{"name": "worker"}],
    "queues": [{"vhost": "/", "name": "cpu"}],
    "exchanges": [{"vhost": "/", "name": "celery"}],
    "bindings": [
        {
            "vhost": "/",
            "source": "celery",
            "destination": "cpu",
            "destination_type": "queue",
            "routing_key": "cpu",
            "arguments": {},
        }
    ],
    "policies": [{"vhost": "/", "name": "cpu", "definition": {"max-length": 5}}],
}
AUDIT = {"vhost": "/", "name": "audit", "durable": True, "auto_delete": False}


def test_a_broker_with_nothing_but_the_kits_own_needs_nothing() -> None:
    changed = {**OWN, "policies": [{"vhost": "/", "name": "cpu", "definition": {"max-length": 9}}]}
    assert additions(changed, OWN) == ({}, [])


def test_queues_that_somebody_added_come_back_and_users_do_not() -> None:
    found = {
        **OWN,
        "queues": [*OWN["queues"], AUDIT],
        "users": [*OWN["users"], {"name": "eve"}],
        "permissions": [{"vhost": "/", "user": "eve"}],
    }
    assert additions(found, OWN) == ({"queues": [AUDIT]}, ["user eve", "permission eve"])


def test_what_rabbitmq_and_workers_make_themselves_is_theirs() -> None:
    theirs = [
        {"vhost": "/", "name": name}
        for name in ("amq.gen-1", "celeryev", "celeryev.123", "cpu@h1.celery.pidbox", "reply.celery.pidbox")
    ]
    temporary = {"vhost": "/", "name": "mine", "auto_delete": True}
    binding = {**OWN["bindings"][0], "source": "celery.pidbox", "destination": "cpu@h1.celery.pidbox"}
    found = {**OWN, "queues": [*OWN["queues"], *theirs, temporary], "bindings": [*OWN["bindings"], binding]}
    assert additions(found, OWN) == ({}, [])
