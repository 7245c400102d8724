"""A broker gets what it lacks of its definitions, and is told apart from one that has them."""

from __future__ import annotations

import copy
import http.server
import importlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import pytest

rabbitmq_definitions = importlib.import_module("rabbitmq_definitions")
clusterkit_rabbitmq = importlib.import_module("ansible.module_utils.clusterkit_rabbitmq")

Call = Callable[..., dict[str, Any]]

QUORUM = {"x-queue-type": "quorum"}


def permission(user: str, read: str = ".*") -> dict[str, Any]:
    return {"user": user, "vhost": "/", "configure": "", "write": "", "read": read}


def user(name: str, *tags: str, password_hash: str = "hash") -> dict[str, Any]:
    return {"name": name, "tags": list(tags), "password_hash": password_hash}


def queue(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "vhost": "/", "durable": True, "arguments": {**QUORUM, **arguments}}


def binding(key: str) -> dict[str, Any]:
    return {
        "source": "celery",
        "vhost": "/",
        "destination": key,
        "destination_type": "queue",
        "routing_key": key,
        "arguments": {},
    }


def definitions() -> dict[str, list[dict[str, Any]]]:
    return {
        "vhosts": [{"name": "/"}],
        "users": [user("operator", "administrator"), user("worker")],
        "permissions": [permission("operator"), permission("worker")],
        "policies": [{"vhost": "/", "name": "tasks", "pattern": ".*", "definition": {"delivery-limit": 20}}],
        "exchanges": [{"name": "celery", "vhost": "/", "type": "topic", "durable": True, "arguments": {}}],
        "queues": [queue("cpu"), queue("io")],
        "bindings": [binding("cpu"), binding("io")],
    }


def as_exported(content: dict[str, Any]) -> dict[str, Any]:
    """Return what a broker exports that has imported `content`: it adds fields and sections."""
    exported = copy.deepcopy(content)
    exported.update(rabbit_version="4.0.5", product_name="RabbitMQ", topic_permissions=[], parameters=[])
    for item in exported["users"]:
        item.update(hashing_algorithm="rabbit_password_hashing_sha256", limits={})
    for item in exported["queues"]:
        item.update(auto_delete=False, type="quorum")
    return exported


def changes(change: Callable[[dict[str, Any]], object]) -> Any:
    """Return the difference to a broker that has what is wanted, but for `change`."""
    actual = as_exported(definitions())
    change(actual)
    return rabbitmq_definitions.Difference(definitions(), actual, "operator")


def test_a_broker_that_has_it_all_and_more_fields_differs_in_nothing() -> None:
    difference = changes(lambda _: None)
    assert (difference.changes, difference.missing, difference.surplus) == ([], {}, [])


def test_what_is_missing_is_named_and_imported_alone() -> None:
    def change(actual: dict[str, Any]) -> None:
        del actual["queues"][1]
        del actual["bindings"][1]

    difference = changes(change)
    assert difference.changes == [
        "queue io in / is missing",
        "binding celery -> io with key 'io' is missing",
    ]
    assert difference.missing == {"queues": [queue("io")], "bindings": [binding("io")]}


def test_another_password_permission_or_policy_is_a_difference() -> None:
    def change(actual: dict[str, Any]) -> None:
        actual["users"][1]["password_hash"] = "other"
        actual["permissions"][1]["read"] = "^$"
        actual["policies"][0]["definition"] = {"delivery-limit": 20, "max-length": 1}

    assert changes(change).changes == [
        "user worker has another password_hash",
        "permission worker in / has another read",
        "policy tasks in / has another definition",
    ]


def test_users_permissions_and_policies_that_are_not_wanted_go_and_queues_stay() -> None:
    def change(actual: dict[str, Any]) -> None:
        actual["users"].append(user("guest", "administrator"))
        actual["permissions"].append(permission("guest"))
        actual["permissions"].append({**permission("worker"), "vhost": "other"})
        actual["policies"].append({"vhost": "/", "name": "foreign"})
        actual["queues"].append(queue("of-somebody"))

    assert changes(change).changes == [
        "policy foreign in / is not wanted",
        "permission worker in other is not wanted",
        "user guest is not wanted",
    ]


def test_the_user_that_asks_is_never_removed() -> None:
    actual = as_exported(definitions())
    wanted = definitions()
    wanted["users"] = wanted["users"][1:]
    wanted["permissions"] = wanted["permissions"][1:]
    assert rabbitmq_definitions.Difference(wanted, actual, "operator").surplus == []


def test_tags_are_compared_in_any_order_and_in_the_old_form() -> None:
    def change(actual: dict[str, Any]) -> None:
        actual["users"][0]["tags"] = "administrator"
        actual["users"][1]["tags"] = ""

    assert changes(change).changes == []


def test_a_queue_with_other_properties_is_a_conflict_that_names_them() -> None:
    def change(actual: dict[str, Any]) -> None:
        actual["queues"][0]["arguments"] = {"x-queue-type": "classic", "x-max-priority": 5}
        actual["queues"][1]["durable"] = False

    difference = changes(change)
    assert difference.conflicts == [
        "queue cpu in /: x-max-priority is 5, wanted absent; x-queue-type is classic, wanted quorum",
        "queue io in /: durable is False, wanted True",
    ]
    assert difference.changes == []


class Broker(http.server.ThreadingHTTPServer):
    """Has definitions and lets them be changed, as the management plugin does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = as_exported(definitions())
        self.requests: list[str] = []
        self.unready = 0
        self.deaf = False

    def take(self, posted: dict[str, list[dict[str, Any]]]) -> None:
        for section, items in posted.items():
            for item in items:
                key = rabbitmq_definitions.identity(section, item)
                there = self.content[section]
                there[:] = [old for old in there if rabbitmq_definitions.identity(section, old) != key] + [
                    item
                ]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request."""

    server: Broker
    plain: ClassVar[dict[str, Any]] = {"overview": {"rabbitmq_version": "4.0.5"}}

    def log_message(self, *_: Any) -> None: ...

    def answer(self, code: int, content: Any = None) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode() if content is not None else b"")

    def do_GET(self) -> None:
        path = self.path.removeprefix("/api/")
        if not self.headers["Authorization"].startswith("Basic b3BlcmF0b3I6"):
            self.answer(401, {"error": "not_authorised", "reason": "Login failed"})
        elif path.startswith("health") and self.server.unready > 0:
            self.server.unready -= 1
            self.answer(503, {"status": "failed", "reason": "no listener"})
        elif path == "definitions":
            self.answer(200, self.server.content)
        else:
            self.answer(200, self.plain.get(path, {"status": "ok"}))

    def do_POST(self) -> None:
        posted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(f"POST {sorted(posted)}")
        if not self.server.deaf:
            self.server.take(posted)
        self.answer(204)

    def do_DELETE(self) -> None:
        kind, *names = [unquote(part) for part in self.path.removeprefix("/api/").split("/")]
        self.server.requests.append(f"DELETE {kind} {names}")
        fields = {"users": ("name",), "permissions": ("vhost", "user"), "policies": ("vhost", "name")}[kind]
        there = self.server.content[kind]
        there[:] = [item for item in there if [item[field] for field in fields] != names]
        self.answer(204)


@pytest.fixture
def broker() -> Iterator[Broker]:
    """Return a running broker that has the definitions."""
    with Broker() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def apply(call: Call, broker: Broker, tmp_path: Path, **more: Any) -> dict[str, Any]:
    (tmp_path / "definitions.json").write_text(json.dumps(definitions()))
    (tmp_path / "rabbitmq.log").write_text("what the broker says\n")
    arguments = {
        "url": f"http://127.0.0.1:{broker.server_address[1]}",
        "username": "operator",
        "password": "open-sesame",
        "definitions_file": str(tmp_path / "definitions.json"),
        "port": 24672,
        "timeout": 10,
        "log_file": str(tmp_path / "rabbitmq.log"),
    }
    return call("rabbitmq_definitions", **{**arguments, **more})


def test_a_second_run_changes_nothing(call: Call, broker: Broker, tmp_path: Path) -> None:
    del broker.content["queues"][0]
    first = apply(call, broker, tmp_path)
    assert (first["changed"], first["changes"], first["version"]) == (
        True,
        ["queue cpu in / is missing"],
        "4.0.5",
    )
    assert apply(call, broker, tmp_path)["changed"] is False
    assert broker.requests == ["POST ['queues']"]


def test_what_is_not_wanted_is_deleted(call: Call, broker: Broker, tmp_path: Path) -> None:
    broker.content["users"].append(user("guest"))
    broker.content["policies"].append({"vhost": "/", "name": "foreign one"})
    assert apply(call, broker, tmp_path)["changed"] is True
    assert broker.requests == ["DELETE policies ['/', 'foreign one']", "DELETE users ['guest']"]


def test_check_mode_asks_and_changes_nothing(call: Call, broker: Broker, tmp_path: Path) -> None:
    del broker.content["queues"][0]
    broker.content["users"].append(user("guest"))
    result = apply(call, broker, tmp_path, check_mode=True)
    assert result["changes"] == ["queue cpu in / is missing", "user guest is not wanted"]
    assert broker.requests == []


def test_a_conflict_fails_before_anything_is_changed(call: Call, broker: Broker, tmp_path: Path) -> None:
    broker.content["queues"][0]["arguments"] = {}
    broker.content["users"].append(user("guest"))
    result = apply(call, broker, tmp_path)
    assert result["failed"]
    assert "queue cpu in /: x-queue-type is absent, wanted quorum" in result["msg"]
    assert broker.requests == []


def test_an_import_that_did_not_take_is_noticed(call: Call, broker: Broker, tmp_path: Path) -> None:
    del broker.content["queues"][0]
    broker.deaf = True
    assert "but still: queue cpu in / is missing" in apply(call, broker, tmp_path)["msg"]


def test_a_node_that_is_not_up_yet_is_waited_for(call: Call, broker: Broker, tmp_path: Path) -> None:
    broker.unready = 3
    assert apply(call, broker, tmp_path)["failed"] is False


def test_a_node_that_does_not_come_up_fails_with_its_log(call: Call, broker: Broker, tmp_path: Path) -> None:
    broker.unready = 10**6
    message = apply(call, broker, tmp_path, timeout=0)["msg"]
    assert "the broker is not up after 0 s: 503 no listener" in message
    assert "what the broker says" in message


def test_a_refused_password_is_told_apart_from_a_node_that_boots(
    call: Call, broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusterkit_rabbitmq, "_REFUSED", 0.0)
    message = apply(call, broker, tmp_path, username="nobody")["msg"]
    assert "the broker refuses this user and password" in message
    assert "401 Login failed" in message


def test_a_section_that_is_misspelt_is_refused(call: Call, broker: Broker, tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text('{"queue": []}')
    result = apply(call, broker, tmp_path, definitions_file=str(file))
    assert "has unknown sections: queue" in result["msg"]
