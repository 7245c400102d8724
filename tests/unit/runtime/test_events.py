"""Events of greenlets leave one after the other, and nobody waits for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from clusterkit.runtime import events
from clusterkit.runtime.events import Dispatcher


class Producer:
    """Takes events, or is stuck, or fails."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.messages = 0
        self.go_on = threading.Event()
        self.go_on.set()
        self.failures = 0
        self.revived = 0

    def publish(self, event: Any, routing_key: str, **_: Any) -> None:
        self.go_on.wait(10)
        if self.failures:
            self.failures -= 1
            raise ConnectionError("gone")
        together = event if isinstance(event, list) else [event]
        assert (routing_key == "task.multi") == isinstance(event, list)
        self.sent += [each["type"] for each in together]
        self.messages += 1

    def revive(self, _: Any) -> None:
        self.revived += 1


@pytest.fixture
def producers(monkeypatch: pytest.MonkeyPatch) -> list[Producer]:
    made: list[Producer] = []

    def make(*_: Any, **__: Any) -> Producer:
        made.append(Producer())
        return made[-1]

    monkeypatch.setattr("celery.events.dispatcher.Producer", make)
    monkeypatch.setattr(events, "_PAUSE", 0.01)
    return made


def dispatcher(groups: tuple[str, ...] = ()) -> Dispatcher:
    app = Celery("unit", broker="memory://", set_as_current=False)
    return Dispatcher(app.connection_for_write(), app=app, hostname="io@h1", groups=groups)


def wait_for(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def test_events_leave_in_order(producers: list[Producer]) -> None:
    told = dispatcher()
    for number in range(100):
        told.send(f"task-{number}", uuid="1")
    wait_for(lambda: producers[0].sent == [f"task-{number}" for number in range(100)])


def test_events_of_tasks_leave_together_and_those_of_workers_alone(producers: list[Producer]) -> None:
    told = dispatcher()
    names = ["task-received", "task-started", "worker-heartbeat", "task-succeeded", "task-received"]
    for name in names:
        told.send(name)
    wait_for(lambda: producers[0].sent == names)
    assert producers[0].messages == 3


def test_no_message_has_too_many(producers: list[Producer]) -> None:
    told = dispatcher()
    for _ in range(250):
        told.send("task-received")
    wait_for(lambda: len(producers[0].sent) == 250)
    assert producers[0].messages == 3


def test_what_nobody_listens_to_is_not_sent(producers: list[Producer]) -> None:
    told = dispatcher(("worker",))
    told.send("task-started")
    told.send("worker-heartbeat")
    wait_for(lambda: producers[0].sent == ["worker-heartbeat"])


def test_nobody_waits_for_one_that_is_stuck_and_the_others_take_another_way(
    producers: list[Producer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_STUCK", 0.05)
    told = dispatcher()
    stuck = producers[0]
    stuck.go_on.clear()
    began = time.monotonic()
    told.send("worker-heartbeat")
    told.send("task-started")
    assert time.monotonic() - began < 1
    time.sleep(0.3)
    told.renew_if_stuck()
    wait_for(lambda: producers[-1].sent == ["task-started"])
    assert producers[-1] is not stuck
    stuck.go_on.set()


def test_what_could_not_be_sent_is_sent_over_the_connection_that_is_made_anew(
    producers: list[Producer],
) -> None:
    told = dispatcher()
    producers[0].failures = 2
    told.send("task-started")
    told.send("task-succeeded")
    wait_for(lambda: producers[0].sent == ["task-started", "task-succeeded"])
    assert producers[0].revived == 2


def test_the_next_dispatcher_sends_what_is_left(producers: list[Producer]) -> None:
    before = dispatcher()
    producers[0].go_on.clear()
    before.send("worker-heartbeat")  # on its way
    wait_for(lambda: not before.waiting)
    before.send("task-started")
    before.disable()
    after = dispatcher()
    after.extend_buffer(before)
    producers[0].go_on.set()
    wait_for(lambda: producers[1].sent == ["task-started"])


def test_an_ending_worker_sends_its_last_events(producers: list[Producer]) -> None:
    told = dispatcher()
    told.send("worker-offline")
    told.disable()
    wait_for(lambda: producers[0].sent == ["worker-offline"])
    told.send("worker-heartbeat")
    assert not told.waiting


def test_the_loop_has_no_connection_of_events_to_read(producers: list[Producer]) -> None:
    """It would take the sender's answers, and wait 0.1 s after each message."""
    assert dispatcher().connection is None
