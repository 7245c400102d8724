"""The task base class and its request."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import celery
import pytest
from billiard.einfo import ExceptionInfo
from celery import Celery
from celery.worker.request import create_request_cls
from celery.worker.state import successful_requests
from greenlet import GreenletExit

from clusterkit.runtime import configure
from clusterkit.runtime.task import Request, TaskMemoryError, _without_memory_error


def exc_info(error: Exception) -> ExceptionInfo:
    try:
        raise error
    except type(error):
        return ExceptionInfo()


def test_a_memory_error_becomes_one_that_celery_takes_for_a_failure() -> None:
    changed = _without_memory_error(exc_info(MemoryError("no room")))
    assert isinstance(getattr(changed.exception, "exc", changed.exception), TaskMemoryError)
    assert "no room" in str(changed.exception)
    assert "MemoryError" in changed.traceback


def test_other_errors_stay_as_they_are() -> None:
    original = exc_info(ValueError("x"))
    assert _without_memory_error(original) is original


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(
        celery.Task, "apply_async", lambda self, args, kwargs, **options: calls.append(options)
    )
    return calls


@pytest.mark.parametrize(("asked", "given"), [(0.2, 1), (1, 1), (1.2, 2), (60, 60), (0, 0), (None, None)])
def test_a_countdown_is_whole_seconds_and_never_shorter(
    asked: float | None, given: int | None, sent: list[dict[str, Any]]
) -> None:
    app = configure(Celery("unit", set_as_current=False))

    @app.task
    def own() -> None:
        """Do nothing."""

    own.apply_async(countdown=asked)
    assert sent[0]["countdown"] == given


def test_an_eta_within_the_second_becomes_one_second(sent: list[dict[str, Any]]) -> None:
    app = configure(Celery("unit", set_as_current=False))

    @app.task
    def own() -> None:
        """Do nothing."""

    own.apply_async(eta=datetime.now(UTC) + timedelta(milliseconds=300))
    assert (sent[0]["eta"], sent[0]["countdown"]) == (None, 1)
    far = datetime.now(UTC) + timedelta(minutes=1)
    own.apply_async(eta=far)
    assert sent[1]["eta"] == far


class Greenlets:
    """A pool whose greenlets report their end as they are ended, as gevent's and eventlet's do."""

    is_green = True

    def __init__(self, request: Request | None) -> None:
        self.request = request
        self.ended: list[int] = []

    def terminate_job(self, pid: int, signal: int) -> None:
        self.ended.append(pid)
        assert self.request
        self.request.on_success((False, None, None))

    def apply_async(self, *_: Any, **__: Any) -> None:
        """Run nothing."""


def running(monkeypatch: pytest.MonkeyPatch, acknowledged: list[object]) -> Request:
    """A request whose task runs."""
    app = configure(Celery("unit", set_as_current=False))

    @app.task
    def own() -> None:
        """Do nothing."""

    message = SimpleNamespace(
        headers={"id": "1", "task": own.name},
        body=([], {}, {}),
        delivery_info={},
        properties={},
        acknowledged=False,
    )
    # As Celery makes it for each task: with an on_success of its own.
    made = create_request_cls(Request, own, Greenlets(None), "io@h1", None, app=app)
    request: Request = made(
        message, app=app, task=own, decoded=True, on_ack=lambda *arguments: acknowledged.append(arguments)
    )
    monkeypatch.setattr(request, "_announce_cancelled", lambda **_: None)
    request.worker_pid, request.time_start = 1, 1.0
    return request


def test_a_greenlet_that_was_ended_has_not_succeeded(monkeypatch: pytest.MonkeyPatch) -> None:
    acknowledged: list[object] = []
    request = running(monkeypatch, acknowledged)
    request.cancel(Greenlets(request))
    assert acknowledged == []
    assert request.id not in successful_requests


def test_a_greenlet_that_sends_an_event_ends_itself_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    request = running(monkeypatch, [])
    pool = Greenlets(request)

    class Canceller(threading.Thread):
        """Cancels the request while its event is on the way."""

        def run(self) -> None:
            request.cancel(pool)

    def sending(*_: Any, **__: Any) -> None:
        canceller = Canceller()
        canceller.start()
        canceller.join()

    monkeypatch.setattr("celery.worker.request.Request.send_event", sending)
    with pytest.raises(GreenletExit):
        request.send_event("task-started")
    assert pool.ended == [], "killed, it could take the turn to send along"
