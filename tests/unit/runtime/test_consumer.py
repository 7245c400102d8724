"""What the consumer refuses before Celery sees it."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from amqp.exceptions import RecoverableConnectionError
from celery import Celery
from celery.concurrency import solo, thread
from kombu.asynchronous import Hub
from kombu.asynchronous.timer import Timer

from clusterkit.runtime import configure
from clusterkit.runtime.consumer import Consumer, MalformedTaskError, _check
from clusterkit.runtime.events import GATHER

HEADERS = {"task": "shop.ping", "id": "1"}


def message(payload: Any, **headers: Any) -> SimpleNamespace:
    return SimpleNamespace(headers=headers, payload=payload)


@pytest.mark.parametrize(
    "good",
    [
        message([[], {}, {}], **HEADERS),
        message(([1], {"a": 1}, None), **HEADERS),
        message([[], {}, {"chord": None}], **HEADERS, timelimit=[None, None]),
        message({"args": [], "kwargs": {}}, **HEADERS),
        message(b"not looked at", other="no task: Celery's own business"),
    ],
)
def test_tasks_pass(good: Any) -> None:
    _check(good)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (message(b"xx", **HEADERS), "bytes"),
        (message("text", **HEADERS), "str"),
        (message([[], {}], **HEADERS), "args, kwargs, embed"),
        (message([{}, {}, {}], **HEADERS), "args is not a list"),
        (message([[], [], {}], **HEADERS), "kwargs is not an object"),
        (message([[], {}, "embed"], **HEADERS), "embed"),
        (message([[], {}, {}], task="shop.ping"), "no task id"),
        (message([[], {}, {}], **HEADERS, timelimit=5), "timelimit"),
    ],
)
def test_what_would_end_the_worker_is_refused_with_the_reason(bad: Any, reason: str) -> None:
    with pytest.raises(MalformedTaskError, match=reason):
        _check(bad)


@pytest.mark.parametrize(("pool", "expected"), [(solo.TaskPool, 0), (thread.TaskPool, 30)])
def test_only_a_pool_that_keeps_the_loop_from_its_heartbeats_has_none(
    pool: Any, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = configure(Celery("unit", broker="memory://", set_as_current=False))
    hub, controller = Hub(timer=Timer()), SimpleNamespace(use_eventloop=True)
    consumer = Consumer(None, app=app, pool=pool(app=app), hub=hub, timer=hub.timer, controller=controller)
    asked: list[Any] = []

    def connection_for_read(heartbeat: float) -> Any:
        asked.append(heartbeat)
        return app.connection()

    monkeypatch.setattr(app, "connection_for_read", connection_for_read)
    consumer.connect()
    assert asked == [expected]
    hub.close()


def looping(**connection: Any) -> Consumer:
    """A gevent worker's consumer in its loop, which began on the connection `first`."""
    consumer: Consumer = Consumer.__new__(Consumer)
    consumer.hub = None
    consumer._drain = None
    consumer._pending_operations = []
    consumer._begun_on = "first"
    consumer.event_dispatcher = None
    consumer.connection = SimpleNamespace(**{"connected": True, "connection": "first", **connection})
    return consumer


def test_a_green_worker_goes_on_while_its_connection_is_the_one_it_began_on() -> None:
    looping().perform_pending_operations()


@pytest.mark.parametrize("lost", [{"connected": False}, {"connection": "made anew, without consumers"}])
def test_a_green_worker_whose_connection_was_replaced_begins_again(lost: dict[str, Any]) -> None:
    with pytest.raises(RecoverableConnectionError):
        looping(**lost).perform_pending_operations()


def gathering(hub: Hub, flushed: list[str]) -> Consumer:
    """A prefork worker's consumer in the loop of ``hub``, whose events leave into ``flushed``."""
    consumer: Consumer = Consumer.__new__(Consumer)
    consumer._drain, consumer._gathers_events = None, False
    consumer.hub, consumer.timer, consumer.batches = hub, hub.timer, None
    consumer.controller = consumer.pool = None
    consumer.task_buckets = {}
    consumer.event_dispatcher = SimpleNamespace(flush=lambda: flushed.append("all"))
    return consumer


def turn(hub: Hub) -> None:
    """Have ``hub`` do what one turn of its loop does: what was to be called soon, then the timers due."""
    next(hub.create_loop())


def test_events_leave_again_after_a_connection_was_lost_at_the_worst_moment() -> None:
    """An acknowledgement finds the broker dead, just before the flush of events would have been planned."""
    hub, flushed = Hub(timer=Timer()), list[str]()
    consumer = gathering(hub, flushed)

    def acknowledge(number: int) -> None:
        raise ConnectionResetError(number)

    for number in range(99):  # the hub calls them in any order: one of these is the first
        hub.call_soon(acknowledge, number)
    consumer.on_send_event_buffered()
    with pytest.raises(ConnectionResetError):
        turn(hub)
    consumer.on_close()
    consumer.on_send_event_buffered()
    turn(hub)
    time.sleep(GATHER * 2)
    turn(hub)
    assert flushed == ["all"]
    hub.close()


def test_events_of_tasks_are_sent_together_a_moment_after_the_first() -> None:
    consumer: Consumer = Consumer.__new__(Consumer)
    soon: list[Any] = []
    flushed: list[str] = []
    consumer._drain, consumer._gathers_events = None, False
    consumer.call_soon = lambda act, *args: act(*args)
    consumer.timer = SimpleNamespace(call_after=lambda seconds, act: soon.append((seconds, act)))
    consumer.event_dispatcher = SimpleNamespace(flush=lambda: flushed.append("all"))
    for _ in range(3):
        consumer.on_send_event_buffered()
    [(seconds, flush)] = soon
    assert seconds == GATHER
    flush()
    assert flushed == ["all"]
    consumer.on_send_event_buffered()
    assert len(soon) == 2
