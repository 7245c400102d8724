"""Submitting many tasks at once, to a real broker that is restarted, full, in an alarm."""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery, signature
from harness import BIN, ENVIRONMENT, ROOT, LocalCluster, eventually

from clusterkit.ops.deployment import operator_app
from clusterkit.runtime.bulk import (
    Refused,
    SubmissionRefusedError,
    SubmissionTimeoutError,
    arguments,
    submit_many,
)
from clusterkit.runtime.errors import PublishTimeoutError

QUEUE = "io"
ECHO = "tasks.probes.echo"
#: How AMQP's basic.publish begins: class and method.
PUBLISH = struct.pack(">HH", 60, 40)


@pytest.fixture(scope="module")
def _nobody_reads(cluster: LocalCluster) -> Iterator[None]:
    """The queue keeps what is sent to it: its worker node is stopped."""
    supervisorctl = str(cluster.home / "bin" / "supervisorctl")
    service = cluster.running_slot("worker-io")
    subprocess.run([supervisorctl, "stop", service], check=True, capture_output=True)
    yield
    subprocess.run([supervisorctl, "start", service], check=True, capture_output=True)
    eventually(lambda: cluster.status()["healthy"], within=60, what="healthy again", cluster=cluster, every=1)


@pytest.fixture
def operator(cluster: LocalCluster) -> Celery:
    """An app with the operator's rights, which may also send where no queue is."""
    return operator_app(cluster.model)


@pytest.fixture
def parked(_nobody_reads: None, operator: Celery) -> Iterator[Callable[[int], list[Any]]]:
    """Take messages out of the queue; empty before and after."""

    def empty() -> None:
        with operator.connection_for_write() as connection:
            connection.default_channel.queue_purge(QUEUE)

    def take(count: int) -> list[Any]:
        found: list[Any] = []
        with operator.connection_for_write() as connection:
            channel = connection.channel()

            def one() -> Any:
                return channel.basic_get(QUEUE, no_ack=True)

            while len(found) < count:
                found.append(eventually(one, within=20, what=f"{count} messages, {len(found)} so far"))
            found += iter(one, None)
        return found

    empty()
    yield take
    empty()


OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "priority and time limits": {"priority": 4, "time_limit": 30, "soft_time_limit": 20},
    "a result nobody wants": {"ignore_result": True, "shadow": "other name"},
    "links": {"link": [signature(ECHO, args=(1,), queue=QUEUE)], "link_error": signature(ECHO)},
    "a chord": {"chord": signature(ECHO, immutable=True), "group_id": "g", "headers": {"tenant": "a"}},
    "an expiry": {"expires": 600},
    "compression": {"compression": "zlib", "argsrepr": "(hidden)"},
    "a delay": {"countdown": 2},
    "a time": {"eta": datetime.now(UTC) + timedelta(seconds=2)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_message_is_the_one_that_apply_async_sends(
    options: dict[str, Any], app: Celery, parked: Callable[[int], list[Any]]
) -> None:
    items: list[tuple[Any, dict[str, Any]]] = [
        ((1,), {}),
        (("text \u20ac",), {}),
        ((), {"value": [1, {"a": None}]}),
    ]
    expected = [app.send_task(ECHO, args, kwargs, queue=QUEUE, **options).id for args, kwargs in items]
    submission = submit_many(
        ECHO, [arguments(*args, **kwargs) for args, kwargs in items], app=app, queue=QUEUE, **options
    )
    by_id = {message.headers["id"]: message for message in parked(2 * len(items))}
    for number, task_id in enumerate(expected):
        own = submission.id(number)
        assert fields(by_id[own], own) == fields(by_id[task_id], task_id)


def fields(message: Any, task_id: str) -> dict[str, Any]:
    """All there is in a message; the id is masked, times are rounded, the broker's headers left out."""
    headers = {name: value for name, value in message.headers.items() if not name.startswith("x-")}
    for name in ("eta", "expires"):
        if headers[name]:
            headers[name] = round(datetime.fromisoformat(headers[name]).timestamp() / 5)
    properties = {**message.properties, "application_headers": headers}
    if "expiration" in properties:
        properties["expiration"] = round(int(properties["expiration"]) / 1_000)
    where = {name: message.delivery_info[name] for name in ("exchange", "routing_key")}
    text: dict[str, Any] = json.loads(
        json.dumps({"properties": properties, "where": where}, default=str).replace(task_id, "ID")
    )
    return {**text, "body": message.body}


def test_results_are_there_when_they_are_asked_for(app: Celery) -> None:
    told: list[tuple[int, int]] = []
    submission = submit_many(
        ECHO, range(500), app=app, queue="default", progress=lambda *counts: told.append(counts)
    )
    assert (len(submission), submission.confirmed, submission.refused) == (500, 500, 0)
    assert told[-1] == (500, 500)
    assert [result.get(timeout=60) for result in submission] == list(range(500))


def test_a_killed_broker_loses_nothing_that_was_submitted(
    cluster: LocalCluster, app: Celery, parked: Callable[[int], list[Any]]
) -> None:
    killed: list[int] = []

    def kill_once(confirmed: int, _sent: int) -> None:
        if confirmed > 2_000 and not killed:
            beam = next(process for process in cluster.processes() if "beam" in process.name())
            beam.kill()
            killed.append(confirmed)

    submission = submit_many(
        ECHO, range(20_000), app=app, queue=QUEUE, timeout=90, window=500, progress=kill_once
    )
    assert killed
    assert submission.confirmed == 20_000
    found = [message.headers["id"] for message in parked(20_000)]
    assert set(found) == {submission.id(number) for number in range(20_000)}
    assert len(found) - 20_000 <= 500, "at most a window was sent twice"


def test_a_broker_of_the_list_that_is_dead_is_passed_by(
    operator: Celery, parked: Callable[[int], list[Any]]
) -> None:
    operator.conf.broker_url = f"amqp://127.0.0.1:1//;{operator.conf.broker_url}"
    submission = submit_many(ECHO, range(100), app=operator, queue=QUEUE, timeout=10)
    assert submission.confirmed == len(parked(100)) == 100


class Relay(socketserver.ThreadingTCPServer):
    """A broker node that can be cut off: then it takes what publishers send, and confirms nothing."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), RelayHandler)
        self.broker = ("127.0.0.1", port)
        self.is_cut_off = False
        threading.Thread(target=self.serve_forever, daemon=True).start()


class RelayHandler(socketserver.BaseRequestHandler):
    """One publisher's connection through a ``Relay``."""

    server: Relay

    def handle(self) -> None:
        with socket.create_connection(self.server.broker) as broker:
            threading.Thread(target=self._back, args=(broker,), daemon=True).start()
            silent = False
            while piece := self.request.recv(65_536):
                silent = silent or (self.server.is_cut_off and PUBLISH in piece)
                if not silent:
                    broker.sendall(piece)

    def _back(self, broker: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := broker.recv(65_536):
                self.request.sendall(piece)


@pytest.fixture
def relay(cluster: LocalCluster) -> Iterator[Relay]:
    """A node of the broker before the one there is."""
    with Relay(cluster.model.ports.amqp) as relay:
        yield relay
        relay.shutdown()


@pytest.fixture
def publisher(cluster: LocalCluster, relay: Relay) -> Celery:
    """An app that knows both nodes."""
    app = operator_app(cluster.model)
    url = app.conf.broker_url
    first = url.replace(f":{cluster.model.ports.amqp}", f":{relay.server_address[1]}")
    assert first != url
    app.conf.broker_url = f"{first};{url}"
    return app


def test_a_broker_node_that_is_cut_off_from_the_others_is_left(
    relay: Relay, publisher: Celery, parked: Callable[[int], list[Any]]
) -> None:
    def numbers() -> Iterator[int]:
        yield from range(1_500)
        relay.is_cut_off = True
        yield from range(1_500, 3_000)

    submission = submit_many(ECHO, numbers(), app=publisher, queue=QUEUE, timeout=15, window=100)
    assert submission.confirmed == 3_000
    found = {message.headers["id"] for message in parked(3_000)}
    assert found == {submission.id(number) for number in range(3_000)}


def test_after_a_publish_that_was_not_confirmed_the_next_goes_to_another_node(
    relay: Relay, publisher: Celery, parked: Callable[[int], list[Any]]
) -> None:
    publisher.send_task(ECHO, [0], queue=QUEUE, timeout=10)
    relay.is_cut_off = True
    with pytest.raises(PublishTimeoutError, match="did not confirm"):
        publisher.send_task(ECHO, [1], queue=QUEUE, timeout=1)
    publisher.send_task(ECHO, [2], queue=QUEUE, timeout=10)
    assert [json.loads(message.body)[0] for message in parked(2)] == [[0], [2]]


def test_each_task_that_no_queue_takes_is_told(operator: Celery, parked: Callable[[int], list[Any]]) -> None:
    operator.conf.task_routes = [
        lambda _name, args, *_, **__: {
            "exchange": "celery",
            "exchange_type": "topic",
            "routing_key": "nowhere" if args[0] % 10 == 3 else QUEUE,
        }
    ]
    operator.amqp.__dict__.pop("router", None)
    refused: list[Refused] = []
    submission = submit_many(ECHO, range(100), app=operator, on_refused=refused.append)
    assert [one.number for one in refused] == list(range(3, 100, 10))
    assert all("nowhere" in one.reason and one.id == submission.id(one.number) for one in refused)
    assert (submission.confirmed, submission.refused) == (90, 10)
    assert len(parked(90)) == 90
    with pytest.raises(SubmissionRefusedError, match="nowhere") as refusal:
        submit_many(ECHO, range(1_000_000), app=operator, window=20)
    assert refusal.value.first.number == 3
    assert refusal.value.submission.sent < 100, "it ended there"


def test_what_a_full_queue_refuses_is_sent_again_and_then_told(
    cluster: LocalCluster, app: Celery, parked: Callable[[int], list[Any]]
) -> None:
    control = cluster.home / "bin" / "rabbitmqctl"
    definition = '{"max-length": 100, "overflow": "reject-publish"}'
    vhost = app.connection_for_write().virtual_host or "/"
    subprocess.run(
        [control, "-q", "set_policy", "-p", vhost, "--priority", "99", "full", "^io$", definition], check=True
    )
    try:
        refused: list[Refused] = []
        began = time.monotonic()
        # A small window: what is under way when the queue gets full is taken all the same.
        submission = submit_many(
            ECHO, range(400), app=app, queue=QUEUE, window=20, timeout=2, on_refused=refused.append
        )
        assert time.monotonic() - began > 2
        assert refused
        assert {one.reason for one in refused} == {"the broker refused it (queue full, or not available)"}
        assert submission.confirmed + submission.refused == 400
        assert len(parked(submission.confirmed)) == submission.confirmed
    finally:
        subprocess.run([control, "-q", "clear_policy", "-p", vhost, "full"], check=True)


def test_while_the_broker_holds_publishers_back_there_is_an_error_in_time(
    cluster: LocalCluster, app: Celery, parked: Callable[[int], list[Any]]
) -> None:
    control = cluster.home / "bin" / "rabbitmqctl"
    normal = subprocess.run(
        [control, "-q", "environment", "--formatter", "json"], capture_output=True, text=True, check=True
    )
    watermark = json.loads(normal.stdout)["rabbit"]["vm_memory_high_watermark"]
    subprocess.run([control, "-q", "set_vm_memory_high_watermark", "absolute", "1MB"], check=True)
    try:
        eventually(
            lambda: "alarm" in str(cluster.status()["problems"]), within=20, what="an alarm", every=0.5
        )
        began = time.monotonic()
        with pytest.raises(SubmissionTimeoutError, match="alarm") as late:
            submit_many(ECHO, iter(range(1_000_000)), app=app, queue=QUEUE, window=50, timeout=3)
        assert time.monotonic() - began < 10
        submission = late.value.submission
        assert submission.confirmed == 0
        assert submission.unknown == tuple(range(50)), "it took no more than a window from the iterable"
    finally:
        value = watermark if isinstance(watermark, (int, float)) else watermark.get("absolute", watermark)
        arguments_ = [str(value)] if isinstance(watermark, float) else ["absolute", str(value)]
        subprocess.run([control, "-q", "set_vm_memory_high_watermark", *arguments_], check=True)
    eventually(
        lambda: submit_many(ECHO, [1], app=app, queue=QUEUE, timeout=20).confirmed,
        within=40,
        what="it goes on",
    )


MEMORY = """
import resource, sys
from clusterkit.runtime import client
from clusterkit.runtime.bulk import submit_many
app = client.connect(cluster=sys.argv[1])
peaks = []
def numbers():
    for n in range(100_000):
        if n in (10_000, 99_999):
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        yield n
submission = submit_many("tasks.probes.echo", numbers(), app=app, queue="io", ignore_result=True)
assert submission.confirmed == 100_000
print(*peaks)
"""


def test_a_lazy_iterable_of_any_length_takes_the_same_memory(
    cluster: LocalCluster, parked: Callable[[int], list[Any]]
) -> None:
    done = subprocess.run(
        [BIN / "python", "-c", MEMORY, cluster.name],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    early, late = map(int, done.stdout.split())
    assert late - early < 2_048, f"KiB: {early} after 10,000 tasks, {late} after 100,000"


def test_an_item_that_is_wrong_ends_it_and_what_was_before_is_sent(
    app: Celery, parked: Callable[[int], list[Any]]
) -> None:
    def items() -> Iterator[Any]:
        yield from range(10)
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        submit_many(ECHO, items(), app=app, queue=QUEUE)
    assert len(parked(10)) == 10


def test_the_script_submits_numbers(cluster: LocalCluster) -> None:
    done = cluster.run_client("bulk.py", "--count", "300", "--queue", "default", "--wait")
    assert done.returncode == 0, done.stderr
    assert "300 confirmed" in done.stdout
