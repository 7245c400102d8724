"""What goes wrong in an executor's thread stays with the calls it is about."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import resource
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import redis.exceptions
from celery import Celery
from celery.backends.base import Backend

from clusterkit.runtime import configure
from clusterkit.runtime.dispatch import Chunk, Dispatcher
from clusterkit.runtime.errors import BadInputError
from clusterkit.runtime.executor import CallFuture, _Work


class Store:
    """A result store that has nothing, in the place of the kit's backend."""

    def __init__(self, app: Celery) -> None:
        self.exception_to_python = Backend(app).exception_to_python
        self.deleted: list[set[Any]] = []
        self.hasty_client = SimpleNamespace(
            pubsub=self.away, delete=lambda *keys: self.deleted.append(set(keys))
        )

    def get_key_for_task(self, task_id: str) -> bytes:
        return f"celery-task-meta-{task_id}".encode()

    def away(self, **_: Any) -> Any:
        raise redis.exceptions.ConnectionError("the store is away")

    def mget(self, keys: list[bytes]) -> list[None]:
        return [None for _ in keys]


@pytest.fixture
def dispatcher(monkeypatch: pytest.MonkeyPatch) -> Dispatcher:
    app = configure(Celery("unit", broker="memory://", set_as_current=False))
    monkeypatch.setattr(Celery, "backend", Store(app))
    made = Dispatcher(app, _Work(), queue=None)
    made._listen_at = time.monotonic() + 3_600
    return made


Told = list[tuple[list[Any], dict[int, BaseException]]]


def chunk(calls: list[Any], told: Told) -> Chunk:
    return Chunk("m:f", json.dumps(calls), len(calls), lambda values, errors: told.append((values, errors)))


def outcome(task_id: str, values: list[Any]) -> bytes:
    result = {"values": values, "errors": {}, "seconds": 0.1, "by": "node/1"}
    return json.dumps({"status": "SUCCESS", "task_id": task_id, "result": result}).encode()


def test_calls_wait_while_the_store_is_away(dispatcher: Dispatcher) -> None:
    told: Told = []
    dispatcher._sent["id"] = chunk([[1]], told)
    dispatcher._listener = SimpleNamespace(
        connection=SimpleNamespace(can_read=dispatcher._app.backend.away), close=lambda: None
    )
    dispatcher._looked_at = time.monotonic()
    dispatcher._round()
    assert dispatcher._listener is None
    assert not told
    assert not dispatcher._work.closed


def test_a_value_of_a_type_that_is_not_known_here_fails_its_chunk_alone(dispatcher: Dispatcher) -> None:
    first: Told = []
    second: Told = []
    dispatcher._sent |= {"a": chunk([[1], [2]], first), "b": chunk([[3]], second)}
    dispatcher._take(outcome("a", [1, {"__type__": "money", "__value__": 2}]))
    dispatcher._take(b"no json")
    dispatcher._take(outcome("b", [3]))
    assert list(first[0][1]) == [0, 1]
    assert "Unsupported type" in str(first[0][1][0])
    assert second == [([3], {})]


def test_an_outcome_of_another_form_fails_its_chunk_alone(dispatcher: Dispatcher) -> None:
    told: Told = []
    dispatcher._sent["a"] = chunk([[1]], told)
    dispatcher._take(b'{"status": "SUCCESS", "task_id": "a", "result": 5}')
    assert list(told[0][1]) == [0]
    assert not dispatcher._sent


def test_what_fails_before_it_is_sent_is_told(dispatcher: Dispatcher) -> None:
    told: Told = []
    dispatcher._app.conf.task_always_eager = True
    dispatcher._publish(dispatcher._dispatch, chunk([[1]], told))
    assert isinstance(told[0][1][0], BadInputError)
    assert not dispatcher._sent


@pytest.fixture
def _many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(2_048, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("_many_descriptors")
def test_it_waits_in_a_process_with_more_than_1024_open_files(dispatcher: Dispatcher) -> None:
    high = fcntl.fcntl(dispatcher._wakened.fileno(), fcntl.F_DUPFD, 1_100)
    dispatcher._pipeline = SimpleNamespace(socket=high)  # type: ignore[assignment]
    dispatcher._waker.send(b".")
    dispatcher._wait(10)
    os.close(high)
    with pytest.raises(BlockingIOError):
        dispatcher._wakened.recv(1)


def test_after_the_program_has_ended_no_call_is_taken_that_nobody_would_send(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not dispatcher._finished()
    monkeypatch.setattr(threading, "main_thread", lambda: SimpleNamespace(is_alive=lambda: False))
    assert dispatcher._finished()
    assert dispatcher._work.closed


def test_a_cancelled_chunk_is_forgotten_by_the_thread(dispatcher: Dispatcher) -> None:
    dispatcher._app.backend.claim = lambda *_: True
    dispatcher._sent["a"] = chunk([[1]], [])
    future = CallFuture()
    future.revoke = lambda: dispatcher._revoke("a")
    dispatcher._thread = threading.current_thread()
    assert future.cancel()
    assert list(dispatcher._sent) == ["a"]
    dispatcher._looked_at = time.monotonic()
    dispatcher._round()
    assert not dispatcher._sent


def test_results_and_claims_are_deleted_when_they_were_heard(dispatcher: Dispatcher) -> None:
    for name in ("a", "b"):
        dispatcher._sent[name] = chunk([[1]], [])
        dispatcher._sent[name].claim = True
    dispatcher._take(outcome("a", [1]))
    cancelled = {"error": {"exc_module": "m", "exc_type": "E", "traceback": ""}, "by": "n", "cancelled": True}
    for name in ("b", "cancelled and forgotten"):
        said = {"status": "SUCCESS", "task_id": name, "result": cancelled}
        dispatcher._take(json.dumps(said).encode())
    dispatcher._forget_received()
    results = {f"celery-task-meta-{name}".encode() for name in ("a", "b", "cancelled and forgotten")}
    assert dispatcher._app.backend.deleted == [results, {"celery-taskset-meta-claim-a"}]


def test_cancelling_stops_at_the_first_error_of_the_store(dispatcher: Dispatcher) -> None:
    asked = []

    def away(key: str, *_: Any) -> bool:
        asked.append(key)
        raise redis.exceptions.ConnectionError

    dispatcher._app.backend.claim = away
    for name in ("a", "b"):
        dispatcher._sent[name] = chunk([[1]], [])
        dispatcher._sent[name].future = future = CallFuture()
        future.revoke = functools.partial(dispatcher._revoke, name)
    dispatcher.cancel_sent()
    assert len(asked) == 1


def test_a_process_that_is_not_heard_from_for_a_minute_counts_no_more(dispatcher: Dispatcher) -> None:
    dispatcher._processes = {"old/1": time.monotonic() - 61, "new/2": time.monotonic() - 59}
    dispatcher._look()
    assert list(dispatcher._processes) == ["new/2"]
