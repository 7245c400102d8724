"""Dead letters and queues' files, on a real broker: seen with the reason, put back, never lost on the way."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from harness import BIN, ENVIRONMENT, ROOT, LocalCluster, eventually

from clusterkit.ops import audit, messaging
from clusterkit.ops.deployment import operator_app
from clusterkit.ops.letters import DEATHS
from clusterkit.ops.topology import DEAD_LETTERS

#: Letters that take a look some time.
MANY = 1_500


def clusterkit(cluster: LocalCluster, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command on the cluster; fail with what it printed unless it ends with ``code``."""
    done = subprocess.run(
        [BIN / "clusterkit", *arguments, "--cluster", cluster.directory],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode != code:
        pytest.fail(f"{arguments} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def listed(cluster: LocalCluster, *arguments: str) -> list[dict[str, Any]]:
    done = clusterkit(cluster, "dlq", "list", "--limit", "0", "--json", *arguments)
    letters: list[dict[str, Any]] = json.loads(done.stdout)["letters"]
    return letters


def letter(cluster: LocalCluster, name: str) -> dict[str, Any]:
    """Wait for the letter of this name."""

    def find() -> dict[str, Any] | None:
        return next((one for one in listed(cluster) if one["name"] == name), None)

    found: dict[str, Any] = eventually(find, within=20, what=f"letter {name}", cluster=cluster, every=0.5)
    return found


def put(cluster: LocalCluster, queue: str, *bodies: bytes, **headers: Any) -> None:
    """Put messages into a queue, past every exchange."""
    with messaging.connected(cluster.model) as connection:
        publisher = messaging.Publisher(connection, cluster.model)
        for body in bodies:
            properties = {
                "content_type": "application/json",
                "content_encoding": "utf-8",
                "delivery_mode": 2,
                "correlation_id": headers.get("id", ""),
            }
            publisher.publish(messaging.Message(body, properties, headers), queue)


def waiting(cluster: LocalCluster, queue: str) -> list[messaging.Message]:
    """The messages of a queue, left where they are."""
    with messaging.connected(cluster.model) as connection, messaging.Reader(connection, queue) as reader:
        return list(reader.messages(reader.ready))


@contextlib.contextmanager
def nobody_takes(cluster: LocalCluster, queue: str) -> Iterator[None]:
    """Let messages stay in a queue."""
    app = operator_app(cluster.model)
    # A connection of its own: one of the pool may be from before the broker was restarted.
    with app.connection_for_write() as connection:
        app.control.cancel_consumer(queue, reply=True, connection=connection)
        try:
            yield
        finally:
            app.control.add_consumer(
                queue, reply=True, destination=[f"{queue}@localhost"], connection=connection
            )


@pytest.fixture(autouse=True)
def _no_letters(cluster: LocalCluster) -> None:
    clusterkit(cluster, "dlq", "drop", "--all", "--yes")


BAD: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "a body that is no JSON": (b"{", {"task": "tasks.probes.echo"}, "DecodeError"),
    "no task at all": (b'{"a": 1}', {}, "MalformedTaskError"),
    "no task and no JSON": (b"\xff", {}, "DecodeError"),
    "an unknown task": (b"[[],{},{}]", {"task": "tasks.nobody.knows"}, "NotRegistered"),
    "a task of the old protocol": (
        b'{"task": "tasks.nobody.knows", "id": "old", "args": [], "kwargs": {}}',
        {},
        "NotRegistered",
    ),
    "limits that are none": (
        b"[[],{},{}]",
        {"task": "tasks.probes.echo", "timelimit": 5},
        "MalformedTaskError",
    ),
}


def test_what_no_worker_can_run_is_listed_with_the_workers_own_reason(cluster: LocalCluster) -> None:
    for body, headers, _ in BAD.values():
        put(cluster, "default", body, **headers, **({"id": str(uuid.uuid4())} if headers else {}))
    eventually(lambda: len(listed(cluster)) == len(BAD), within=20, what="all are dead", every=0.5)
    found = listed(cluster)
    assert {one["worker"]["node"] for one in found} == {"default@localhost"}
    assert sorted(one["worker"]["kind"] for one in found) == sorted(kind for *_, kind in BAD.values())
    assert {(one["queue"], one["reason"]) for one in found} == {("default", "rejected")}
    shown = clusterkit(cluster, "dlq", "show", "old", "--redact")
    assert "MalformedTaskError" not in shown.stdout
    assert "tasks.nobody.knows" in shown.stdout
    eventually(  # what the broker counts is some seconds old
        lambda: "6 dead letters" in cluster.make("cluster-status").stdout,
        within=30,
        what="status tells of them",
    )


class NoText(str):
    """A property as another client may send it."""

    __slots__ = ()

    def encode(self, *_: Any) -> bytes:
        return b"\xff\xfe"


def test_a_property_that_is_no_text_ends_no_worker(cluster: LocalCluster, app: Celery) -> None:
    worker = cluster.pid_of("worker-default")
    headers = {"task": "tasks.probes.echo", "id": str(uuid.uuid4())}
    for content_type in ("application/json", NoText("?")):
        found = {"content_type": content_type, "correlation_id": NoText("?"), "content_encoding": "utf-8"}
        with messaging.connected(cluster.model) as connection:
            message = messaging.Message(b"[[],{},{}]", found, headers)
            messaging.Publisher(connection, cluster.model).publish(message, "default")
    assert letter(cluster, headers["id"])["worker"]["kind"] == "ContentDisallowed"
    assert app.send_task("tasks.probes.echo", [1], queue="default").get(timeout=20) == 1
    assert cluster.pid_of("worker-default") == worker


def test_a_delayed_unknown_task_dies_in_its_own_queue_not_in_the_delays(
    cluster: LocalCluster, app: Celery
) -> None:
    sent = app.send_task("tasks.nobody.knows", [1], queue="cpu", countdown=1)
    found = letter(cluster, sent.id)
    assert (found["queue"], found["times"], found["arguments"]) == ("cpu", 1, "[1]")
    error = clusterkit(cluster, "dlq", "replay", sent.id[:8], code=10).stderr
    assert "has no task 'tasks.nobody.knows'" in error
    clusterkit(cluster, "dlq", "replay", sent.id[:8], "--force")
    assert letter(cluster, sent.id)["times"] == 2


def test_a_task_that_expired_is_kept_and_runs_when_it_is_forced_to(
    cluster: LocalCluster, app: Celery
) -> None:
    with nobody_takes(cluster, "io"):
        sent = app.send_task("tasks.probes.echo", ["late"], queue="io", expires=1)
        assert letter(cluster, sent.id)["reason"] == "expired"
    clusterkit(cluster, "dlq", "replay", sent.id, code=10)
    clusterkit(cluster, "dlq", "replay", sent.id, "--force")
    assert sent.get(timeout=20) == "late"
    assert listed(cluster) == []


def test_a_replayed_message_is_what_it_was(cluster: LocalCluster) -> None:
    death = [{"queue": "io", "reason": "delivery_limit", "count": 1}]
    headers = {"task": "tasks.probes.echo", "id": str(uuid.uuid4()), "mine": {"deep": [1, "two", None]}}
    put(cluster, DEAD_LETTERS, b'[["x"],{},{}]', **headers, **{"x-death": death})
    with nobody_takes(cluster, "io"):
        clusterkit(cluster, "dlq", "replay", "--task", "tasks.probes.echo")
        (message,) = waiting(cluster, "io")
    assert message.body == b'[["x"],{},{}]'
    kept = {key: value for key, value in message.headers.items() if not key.startswith("x-delivery")}
    assert kept == {**headers, DEATHS: 1}
    assert message.properties["correlation_id"] == headers["id"]


def test_names_are_refused_unless_they_mean_one_letter(cluster: LocalCluster) -> None:
    for name in ("twin-1", "twin-2"):
        put(cluster, DEAD_LETTERS, b"{}", task="tasks.probes.echo", id=name)
    assert "twin-1, twin-2" in clusterkit(cluster, "dlq", "replay", "twin", code=2).stderr
    assert "no dead letter" in clusterkit(cluster, "dlq", "show", "none", code=2).stderr
    assert "which dead letters" in clusterkit(cluster, "dlq", "drop", code=2).stderr
    missing = clusterkit(cluster, "dlq", "replay", "twin-1", "--to", "nowhere", code=2)
    assert "no queue 'nowhere'" in missing.stderr
    assert len(listed(cluster)) == 2, "nothing was lost by the refusals"


def test_a_look_that_is_killed_loses_nothing_and_keeps_the_order(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    put(cluster, DEAD_LETTERS, *(b"[[%d],{},{}]" % number for number in range(MANY)))
    before = [one["arguments"] for one in listed(cluster)]
    assert before == [f"[{number}]" for number in range(MANY)]
    output = tmp_path / "letters"
    with output.open("w") as file:
        arguments = ("dlq", "list", "--limit", "0", "--json", "--cluster", str(cluster.directory))
        looking = subprocess.Popen(
            [str(BIN / "clusterkit"), *arguments], cwd=ROOT, env=ENVIRONMENT, stdout=file
        )
    eventually(lambda: output.stat().st_size > 0, within=20, what="it looks", every=0.01)
    looking.send_signal(signal.SIGKILL)
    looking.wait()
    put(cluster, DEAD_LETTERS, b'[["new"],{},{}]')
    assert [one["arguments"] for one in listed(cluster)] == [*before, '["new"]']


def test_what_is_dropped_can_be_had_back(cluster: LocalCluster) -> None:
    put(cluster, "default", b"{", task="tasks.probes.echo", id="dropped-1")
    before = letter(cluster, "dropped-1")
    assert "Drop 1 of 1" in clusterkit(cluster, "dlq", "drop", "dropped-1", code=2).stderr
    done = json.loads(clusterkit(cluster, "dlq", "drop", "dropped-1", "--yes", "--json").stdout)
    assert listed(cluster) == []
    clusterkit(cluster, "queue", "load", done["file"])
    assert letter(cluster, "dropped-1") == before
    commands = [entry.command.split()[:2] for entry in audit.entries(cluster.model, 2)]
    assert commands == [["dlq", "drop"], ["queue", "load"]]


def test_a_queue_goes_to_a_file_and_back(cluster: LocalCluster, app: Celery, tmp_path: Path) -> None:
    file = tmp_path / "io.jsonl"
    with nobody_takes(cluster, "io"):
        results = [app.send_task("tasks.probes.echo", [number], queue="io") for number in range(20)]
        cluster.make("queue-dump", "QUEUE=io", f"FILE={file}")
        assert waiting(cluster, "io") == []
        assert file.stat().st_mode & 0o777 == 0o600
        again = clusterkit(cluster, "queue", "dump", "io", str(file), code=2)
        assert "is there already" in again.stderr
        assert (
            "no queue 'nowhere'"
            in clusterkit(cluster, "queue", "load", str(file), "--queue", "nowhere", code=2).stderr
        )
        cluster.make("queue-load", f"FILE={file}")
        assert [message.properties["correlation_id"] for message in waiting(cluster, "io")] == [
            result.id for result in results
        ]
        twice = clusterkit(cluster, "queue", "load", str(file), code=2)
        assert "were put into io already" in twice.stderr
    assert [result.get(timeout=30) for result in results] == list(range(20))


def test_a_load_that_was_killed_goes_on_where_it_was(cluster: LocalCluster, tmp_path: Path) -> None:
    file = tmp_path / "many.jsonl"
    put(cluster, DEAD_LETTERS, *(b"[[%d],{},{}]" % number for number in range(MANY)))
    clusterkit(cluster, "queue", "dump", DEAD_LETTERS, str(file))
    assert listed(cluster) == []
    command = [str(BIN / "clusterkit"), "queue", "load", str(file), "--cluster", str(cluster.directory)]
    loading = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    mark = file.with_name(f"{file.name}.loaded")
    eventually(lambda: mark.exists() and mark.stat().st_size > 0, within=20, what="it loads", every=0.01)
    loading.send_signal(signal.SIGKILL)
    loading.wait()
    done = json.loads(clusterkit(cluster, "queue", "load", str(file), "--json").stdout)
    assert 0 < done["before"] < MANY
    assert done["before"] + done["messages"] == MANY
    loaded = [one["arguments"] for one in listed(cluster)]
    assert set(loaded) == {f"[{number}]" for number in range(MANY)}, "none is lost"
    assert len(loaded) - MANY in (0, 1), "only the one under way may be there twice"
