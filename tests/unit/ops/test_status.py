"""What the status makes of the answers it gets."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from clusterkit.ops import audit, inventory, lock, releases, status
from clusterkit.ops.broker import Node, Queue

ROOT = Path(__file__).resolve().parents[3]
CLUSTER = inventory.load("local", ROOT)
NODE = Node("rabbit@localhost", running=True, memory_alarm=False, disk_alarm=False, partitioned_from=())
QUEUES = {name: Queue(name, "quorum", 0, 0, 1) for name in ("default", "cpu", "io", "celery.dead")}


class Control:
    """Answers of a healthy cluster to Celery's control commands."""

    pools: dict[str, str] = {}  # noqa: RUF012 - replaced by each test that needs to

    def inspect(self, **_: Any) -> Control:
        return self

    def stats(self) -> dict[str, Any]:
        return {
            name: {
                "pool": {
                    "implementation": self.pools.get(name, "celery.concurrency.prefork:TaskPool"),
                    "max-concurrency": 2,
                    "processes": [1, 2],
                },
                "total": {"tasks.probes.echo": 5},
                "uptime": 61,
            }
            for name, _ in CLUSTER.expected_nodes()
        }

    def active_queues(self) -> dict[str, Any]:
        return {name: [{"name": queue} for queue in node.queues] for name, node in CLUSTER.expected_nodes()}

    def active(self) -> dict[str, Any]:
        return {name: [] for name, _ in CLUSTER.expected_nodes()}


class App:
    """An app with nothing but control."""

    def __init__(self, control: Control) -> None:
        self.control = control

    def connection_for_write(self) -> contextlib.nullcontext[None]:
        return contextlib.nullcontext()


class FakeBroker:
    """A broker's figures; the real one is asked in the integration tests."""

    def __init__(self, queues: dict[str, Queue], nodes: tuple[Node, ...]) -> None:
        self._queues, self._nodes = queues, nodes

    def queues(self) -> dict[str, Queue]:
        return self._queues

    def nodes(self) -> tuple[Node, ...]:
        return self._nodes

    def version(self) -> str:
        return "4.0.5"


def collect(
    control: Control | None = None,
    queues: dict[str, Queue] = QUEUES,
    nodes: tuple[Node, ...] = (NODE,),
    services: Any = (),
) -> status.Status:
    app: Any = App(control or Control())
    broker: Any = FakeBroker(queues, nodes)
    return status.collect(CLUSTER, app, broker, services)


def test_a_healthy_cluster_has_no_problem() -> None:
    found = collect()
    assert found.problems == ()
    cpu = found.nodes[0]
    assert (cpu.name, cpu.pool, cpu.done) == ("cpu@localhost", "prefork", 5)


def test_a_broker_node_that_is_down_or_missing_is_a_problem() -> None:
    (problem,) = collect(nodes=(replace(NODE, running=False),)).problems
    assert problem == "broker node rabbit@localhost is down, or cut off from the others"
    (problem,) = collect(nodes=()).problems
    assert problem == "the broker has 0 nodes (), the inventory 1"


def test_a_node_that_does_not_answer_is_a_problem() -> None:
    control = Control()
    control.stats = dict  # type: ignore[method-assign]
    assert "worker node cpu@localhost: does not answer" in collect(control).problems


def test_a_node_in_another_pool_than_the_inventory_s_is_a_problem() -> None:
    control = Control()
    control.pools = {"io@localhost": "celery.concurrency.gevent:TaskPool"}
    (problem,) = collect(control).problems
    assert "io@localhost: runs the pool gevent, the inventory says prefork" in problem


@pytest.mark.parametrize(
    ("queue", "said"),
    [
        (replace(QUEUES["cpu"], type="classic"), "queue cpu is a classic queue"),
        (None, "queue cpu is not declared"),
    ],
)
def test_a_queue_that_is_not_as_it_should_be_is_a_problem(queue: Queue | None, said: str) -> None:
    queues = {name: found for name, found in {**QUEUES, "cpu": queue}.items() if found}
    assert said in str(collect(queues=queues).problems)


def test_a_queue_that_neither_broker_nor_workers_see_consumed_is_a_problem() -> None:
    queues = {**QUEUES, "cpu": replace(QUEUES["cpu"], consumers=0)}
    assert collect(queues=queues).problems == (), "a worker says it consumes; the broker's figure is old"
    control = Control()
    control.active_queues = dict  # type: ignore[method-assign]
    assert "queue cpu has no consumer" in collect(control, queues=queues).problems


class HandedOver(Control):
    """The node cpu runs in its second slot, and the first still finishes what it has."""

    def _moved(self, answers: dict[str, Any], old: Any) -> dict[str, Any]:
        return {**answers, "cpu.b@localhost": answers["cpu@localhost"], "cpu@localhost": old}

    def stats(self) -> dict[str, Any]:
        answers = super().stats()
        return self._moved(answers, answers["cpu@localhost"])

    def active_queues(self) -> dict[str, Any]:
        return self._moved(super().active_queues(), [])

    def active(self) -> dict[str, Any]:
        return self._moved(super().active(), [{"id": "1"}, {"id": "2"}])


def test_the_node_is_the_slot_that_consumes_and_one_that_retires_is_no_problem() -> None:
    services = (status.ServiceStatus("localhost", "worker-cpu", "retiring", 1, 9),)
    found = collect(HandedOver(), services=services)
    assert found.problems == ()
    assert (found.nodes[0].name, found.nodes[0].celery_name) == ("cpu@localhost", "cpu.b@localhost")
    last = found.nodes[-1]
    assert (last.name, last.celery_name, last.retiring, last.running) == (
        "cpu@localhost",
        "cpu@localhost",
        True,
        2,
    )
    output = io.StringIO()
    status.show(found, Console(file=output, width=140))
    assert "retiring as cpu@localhost, 2 tasks running" in output.getvalue()


def test_messages_in_a_queue_the_inventory_no_longer_has_are_a_problem() -> None:
    queues = {
        **QUEUES,
        "invoices": Queue("invoices", "quorum", 3, 0, 0),
        "celery_delayed_3": Queue("celery_delayed_3", "quorum", 9, 0, 0),
    }
    (problem,) = collect(queues=queues).problems
    assert "queue invoices is not in the inventory any more and holds 3 messages" in problem


def test_a_release_that_got_stuck_is_a_problem_and_one_that_is_under_way_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = releases.Record(tmp_path / "releases.json", [])
    monkeypatch.setattr(releases.Record, "load", lambda _: record)
    record.begin(releases.new_entry("two", "release", ".", {}))
    (problem,) = collect().problems
    assert "release two did not get to all worker hosts" in problem
    assert "make cluster-rollback" in problem
    monkeypatch.setattr(lock, "holder", lambda _: audit.Entry("now", "alice@control", 1, "cluster release"))
    assert collect().problems == ()


def test_in_an_alarm_nobody_is_asked_who_could_not_answer() -> None:
    found = collect(nodes=(replace(NODE, memory_alarm=True),))
    assert found.problems == ("the broker holds publishers back: rabbit@localhost: memory alarm",)
    assert found.nodes == ()


def test_a_service_that_does_not_run_is_a_problem() -> None:
    services = (status.ServiceStatus("localhost", "flower", "fatal", 0, 0),)
    assert collect(services=services).problems == ("service flower on localhost: fatal",)


@pytest.mark.parametrize(
    ("implementation", "pool"),
    [
        ("celery.concurrency.prefork:TaskPool", "prefork"),
        ("celery.concurrency.thread:TaskPool", "threads"),
        ("celery.concurrency.gevent:TaskPool", "gevent"),
        ("celery.concurrency.eventlet:TaskPool", "eventlet"),
        ("celery.concurrency.solo:TaskPool", "solo"),
    ],
)
def test_celerys_pool_classes_have_the_inventorys_names(implementation: str, pool: str) -> None:
    assert status._pool_kind(implementation) == pool


@pytest.mark.parametrize(("seconds", "said"), [(5, "5s"), (61, "1m"), (3700, "1h 1m"), (200_000, "2d 7h")])
def test_durations_read_as_a_person_says_them(seconds: int, said: str) -> None:
    assert status.duration(seconds) == said


def test_the_tables_show_nodes_queues_and_problems() -> None:
    output = io.StringIO()
    status.show(collect(nodes=(replace(NODE, disk_alarm=True),)), Console(file=output, width=120))
    for words in ("Queues", "celery.dead", "problem", "disk alarm", "http://127.0.0.1:24555/"):
        assert words in output.getvalue()
