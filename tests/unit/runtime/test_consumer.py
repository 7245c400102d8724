"""What the consumer refuses before Celery sees it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from amqp.exceptions import RecoverableConnectionError
from celery.worker import loops

from clusterkit.runtime.consumer import Consumer, MalformedTaskError, _check, _read_without_waiting

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


def looping(**connection: Any) -> Consumer:
    """A gevent worker's consumer in its loop, which began on the connection `first`."""
    consumer: Consumer = Consumer.__new__(Consumer)
    consumer.hub = None
    consumer._drain = None
    consumer._pending_operations = []
    consumer._begun_on = "first"
    consumer.connection = SimpleNamespace(**{"connected": True, "connection": "first", **connection})
    return consumer


def test_a_green_worker_goes_on_while_its_connection_is_the_one_it_began_on() -> None:
    looping().perform_pending_operations()


@pytest.mark.parametrize("lost", [{"connected": False}, {"connection": "made anew, without consumers"}])
def test_a_green_worker_whose_connection_was_replaced_begins_again(lost: dict[str, Any]) -> None:
    with pytest.raises(RecoverableConnectionError):
        looping(**lost).perform_pending_operations()


def test_a_greenlet_worker_does_not_wait_for_its_events_connection() -> None:
    """Celery's loop asks for 0.1 s after each message, which was ten tasks a second and no more."""
    waits: list[float] = []
    connection = SimpleNamespace(drain_events=lambda timeout: waits.append(timeout))  # noqa: PLW0108 - by name
    loops._quick_drain(_read_without_waiting(connection))
    assert waits == [0]
