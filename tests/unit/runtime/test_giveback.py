"""What waits for a slot goes back to its queue; what runs, and what is no task, stays where it is."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

from celery.worker.control import Panel

from clusterkit.runtime.giveback import give_back


class Request:
    """Stands in for a message that was received and has not begun."""

    def __init__(self, task_id: str) -> None:
        self.id = task_id
        self.rejected: list[bool] = []

    def reject(self, *, requeue: bool) -> None:
        self.rejected.append(requeue)


class Worker:
    """A worker whose pool is full; ``waiting`` is what the semaphore in front of it holds."""

    def __init__(self, semaphore: Any) -> None:
        self.semaphore = semaphore

    def _process_task(self, request: Request) -> None:
        raise AssertionError("a message that goes back is not run")


def state_of(worker: Worker) -> SimpleNamespace:
    return SimpleNamespace(consumer=SimpleNamespace(controller=worker))


def test_each_waiting_message_is_requeued_once_and_counted() -> None:
    worker = Worker(SimpleNamespace(_waiting=deque()))
    requests = [Request("a"), Request("b")]
    worker.semaphore._waiting.extend((worker._process_task, (request,), {}) for request in requests)
    assert give_back(state_of(worker)) == {"ok": 2}
    assert [request.rejected for request in requests] == [[True], [True]]
    assert give_back(state_of(worker)) == {"ok": 0}


def test_what_else_waits_there_is_left_alone() -> None:
    other: tuple[Any, ...] = (print, (), {})
    worker = Worker(SimpleNamespace(_waiting=deque([other])))
    assert give_back(state_of(worker)) == {"ok": 0}
    assert list(worker.semaphore._waiting) == [other]


def test_a_pool_without_slots_to_wait_for_gives_nothing_back() -> None:
    assert give_back(state_of(Worker(None))) == {"ok": 0}


def test_every_worker_knows_the_command() -> None:
    import clusterkit.runtime.consumer  # noqa: F401, PLC0415 - what every worker is started with

    assert "give_back" in Panel.data
