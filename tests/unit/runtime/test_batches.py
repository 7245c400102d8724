"""Batches of tasks: what goes together, and what becomes of each task when its process dies."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import bootsteps
from kombu.asynchronous.semaphore import LaxBoundedSemaphore

from clusterkit.runtime import batches
from clusterkit.runtime.batches import Batches
from clusterkit.runtime.task import exception_of


class Pool:
    """A pool that keeps its jobs until the test ends them."""

    def __init__(self) -> None:
        self.jobs: list[SimpleNamespace] = []
        self._pool = SimpleNamespace(timeout=60, soft_timeout=None, _cache={})
        self.closed = False

    def apply_async(self, target: Any, args: Any, **options: Any) -> Any:
        if self.closed:
            return None
        job = SimpleNamespace(_job=len(self.jobs), slot=args[0], ids=[each[1] for each in args[1]], **options)
        self.jobs.append(job)
        self._pool._cache[job._job] = job
        return job


def task(**more: Any) -> SimpleNamespace:
    """A task without limits of its own, acknowledged late."""
    return SimpleNamespace(**{"soft_time_limit": None, "time_limit": None, "acks_late": True, **more})


class Request:
    """What a batch asks of a task, and what it was told."""

    def __init__(self, id: str, name: str = "short", **more: Any) -> None:  # noqa: A002 - Celery's name
        self.id, self.name, self.type = id, name, name
        self.request_dict: dict[str, Any] = {}
        self.body = self.content_type = self.content_encoding = None
        self.task = task()
        self.time_limits = (None, None)
        self.acknowledged = self._already_cancelled = self._already_revoked = False
        self.is_revoked = False
        self.told: list[Any] = []
        self.__dict__.update(more)

    def revoked(self) -> bool:
        return self.is_revoked

    def on_accepted(self, pid: int, when: float) -> None:
        self.told.append("accepted")

    def on_success(self, outcome: Any) -> None:
        self.told.append(outcome)
        self.acknowledged = True

    def on_failure(self, why: ExceptionInfo) -> None:
        self.told.append(type(exception_of(why)))
        self.acknowledged = True

    def on_timeout(self, soft: bool, limit: float) -> None:
        self.told.append(("timeout", soft, limit))

    def reject(self, requeue: bool) -> None:
        self.told.append("given back")


class Worker:
    """The consumer of a worker with ``processes``, with all short tasks known to take a millisecond."""

    def __init__(self, processes: int = 1, most: int = 8) -> None:
        self.pool = Pool()
        self.alone: list[str] = []
        self.controller = SimpleNamespace(
            semaphore=LaxBoundedSemaphore(processes),
            _process_task=lambda request: self.alone.append(request.id),
        )
        self.blueprint = SimpleNamespace(state=bootsteps.RUN)
        self.connection_errors = (OSError,)
        self.batches = Batches(self, most)
        self.batches._seconds = {"short": 0.001, "long": 5.0}

    def take(self, *requests: Request) -> None:
        for request in requests:
            self.batches.take(request)

    def next_slot(self) -> None:
        self.controller.semaphore.release()

    def batch_of(self, *requests: Request) -> SimpleNamespace:
        """Have ``requests`` wait for the one process, and go into it together."""
        self.take(Request("first"), *requests)
        self.next_slot()
        return self.pool.jobs[-1]


def error(exception: Exception) -> ExceptionInfo:
    try:
        raise exception
    except Exception:  # noqa: BLE001 - whatever it was
        return ExceptionInfo()


def begun(job: SimpleNamespace, number: int) -> None:
    batches._COUNT.pack_into(batches._begun, job.slot * batches._COUNT.size, number)


def test_a_task_goes_at_once_and_alone_while_a_process_is_idle() -> None:
    worker = Worker(processes=2)
    worker.take(Request("a"), Request("b"))
    assert [job.ids for job in worker.pool.jobs] == [["a"], ["b"]]


def test_how_long_tasks_take_is_learnt_from_the_first() -> None:
    worker = Worker()
    worker.take(*(Request(each, name="new") for each in "abcd"))
    assert worker.pool.jobs[-1].ids == ["a"]
    worker.pool.jobs[-1].callback((0.001, [(True, (0, "", 0.001))]))
    worker.next_slot()
    assert worker.pool.jobs[-1].ids == ["b", "c", "d"]


def test_tasks_that_waited_go_together() -> None:
    worker = Worker()
    assert worker.batch_of(*(Request(each) for each in "abc")).ids == ["a", "b", "c"]


def test_no_more_go_together_than_the_profile_says() -> None:
    worker = Worker(most=2)
    assert worker.batch_of(*(Request(each) for each in "abc")).ids == ["a", "b"]


@pytest.mark.parametrize(
    "other",
    [
        Request("other", name="long"),
        Request("other", name="never seen"),
        Request("other", time_limits=(5, None)),
        Request("other", task=task(soft_time_limit=5)),
        Request("other", task=task(time_limit=5)),
        Request("other", task=task(acks_late=False)),
    ],
    ids=["long", "unknown", "own limit", "soft limit", "another limit", "acknowledged early"],
)
def test_a_task_that_is_different_goes_with_nobody(other: Request) -> None:
    worker = Worker()
    assert worker.batch_of(Request("a"), Request("b"), other, Request("c")).ids == ["a", "b"]
    worker.next_slot()
    assert worker.alone == ["other"] or worker.pool.jobs[-1].ids == ["other"]


def test_what_is_acknowledged_when_it_begins_is_never_acknowledged_for_others() -> None:
    """In a batch all would be at once; those that their process does not come to would be gone."""
    worker = Worker()
    early = [Request(each, task=task(acks_late=False)) for each in "abc"]
    worker.take(Request("first"), *early)
    for _ in early:
        worker.next_slot()
    assert worker.alone == ["a", "b", "c"]
    assert [job.ids for job in worker.pool.jobs] == [["first"]]


def test_a_revoked_task_is_left_out() -> None:
    worker = Worker()
    assert worker.batch_of(Request("a"), Request("b", is_revoked=True), Request("c")).ids == ["a", "c"]


def test_each_task_is_told_its_own_outcome() -> None:
    worker, a, b = Worker(), Request("a"), Request("b")
    worker.batch_of(a, b).callback((0.002, [(True, (0, "1", 0.1)), (False, error(ValueError()))]))
    assert (a.told, b.told) == ([(0, "1", 0.1)], [ValueError])


def test_what_its_process_did_not_begin_for_want_of_time_waits_again_in_front() -> None:
    worker, a, b = Worker(), Request("a"), Request("b")
    job = worker.batch_of(a, b)
    worker.take(Request("c"))
    job.callback((1.0, [(True, (0, "", 1.0))]))
    worker.next_slot()
    assert worker.pool.jobs[-1].ids == ["b"]  # tasks of its name are now taken for long ones


def test_of_a_process_that_died_only_what_had_begun_counts_as_lost() -> None:
    worker, requests = Worker(), [Request(each) for each in "abcd"]
    job = worker.batch_of(*requests)
    begun(job, 2)
    job.error_callback(error(WorkerLostError()))
    worker.next_slot()
    assert [request.told for request in requests] == [[WorkerLostError], [WorkerLostError], [], []]
    assert worker.pool.jobs[-1].ids == ["c", "d"]


def test_a_batch_that_kills_its_process_before_it_begins_is_lost_as_a_whole() -> None:
    worker, requests = Worker(), [Request(each) for each in "ab"]
    worker.batch_of(*requests).error_callback(error(WorkerLostError()))
    assert [request.told for request in requests] == [[WorkerLostError], [WorkerLostError]]


def test_only_the_task_over_its_limit_is_told_so() -> None:
    worker, requests = Worker(), [Request(each) for each in "abc"]
    job = worker.batch_of(*requests)
    begun(job, 2)
    job.error_callback(error(TimeLimitExceeded(60)))
    assert requests[0].told == [WorkerLostError]
    assert requests[1].told == [TimeLimitExceeded, ("timeout", False, 60)]
    assert requests[2].told == []
    assert job.timeout == 60 + batches.SPAN


@pytest.fixture
def few_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let two batches count at a time."""
    monkeypatch.setattr(batches, "_SLOTS", 2)


def done(job: SimpleNamespace) -> None:
    job.callback((0.001, [(True, (0, "", 0.001))] * len(job.ids)))


@pytest.mark.usefixtures("few_slots")
def test_no_batch_counts_where_an_older_one_still_does() -> None:
    worker = Worker(processes=2)
    worker.take(Request("slow"))
    slow = worker.pool.jobs[0]
    for number in range(10):
        worker.take(Request(str(number)))
        assert worker.pool.jobs[-1].slot != slow.slot
        done(worker.pool.jobs[-1])
        worker.next_slot()


@pytest.mark.usefixtures("few_slots")
@pytest.mark.parametrize("end", [done, lambda job: job.error_callback(error(WorkerLostError()))])
def test_a_batch_gives_its_count_back_once_however_it_ends(end: Any) -> None:
    worker = Worker()
    for number in range(10):
        worker.take(Request(str(number)))
        end(worker.pool.jobs[-1])
        end(worker.pool.jobs[-1])
        worker.next_slot()
    assert len(worker.pool.jobs) == 10
    assert sorted(worker.batches._free) == [0, 1]


@pytest.mark.usefixtures("few_slots")
def test_a_pool_that_takes_no_job_takes_no_count() -> None:
    worker = Worker()
    worker.pool.closed = True
    worker.take(Request("a"))
    assert sorted(worker.batches._free) == [0, 1]


@pytest.mark.usefixtures("few_slots")
def test_tasks_go_alone_while_each_count_is_taken_and_what_the_pool_forgot_gives_its_own_back() -> None:
    worker = Worker(processes=4)
    worker.take(Request("a"), Request("b"), Request("c"))
    assert worker.alone == ["c"]
    worker.pool._pool._cache.clear()  # as Celery's does when the connection is lost
    worker.take(Request("d"))
    assert worker.pool.jobs[-1].ids == ["d"]


def test_a_task_that_is_terminated_takes_none_of_its_batch_with_it() -> None:
    worker, a, b = Worker(), Request("a"), Request("b")
    job = worker.batch_of(a, b)
    begun(job, 2)
    a._already_revoked = True
    job.error_callback(error(RuntimeError("terminated")))
    assert (a.told, b.told) == ([], [WorkerLostError])


def test_a_worker_that_stops_gives_back_what_its_process_did_not_begin() -> None:
    worker, a, b = Worker(), Request("a"), Request("b")
    job = worker.batch_of(a, b)
    worker.blueprint.state = bootsteps.CLOSE
    job.callback((1.0, [(True, (0, "", 1.0))]))
    assert b.told == ["given back"]


def test_trouble_with_the_end_of_one_task_keeps_no_other_from_its_own() -> None:
    worker, a, b = Worker(), Request("a"), Request("b")
    a.on_success = lambda _: 1 / 0  # type: ignore[assignment, method-assign]
    worker.batch_of(a, b).callback((0.002, [(True, (0, "", 0.1)), (True, (0, "", 0.1))]))
    assert b.told == [(0, "", 0.1)]


def test_a_pool_process_runs_no_task_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "fast_trace_task", lambda name, *_: (0, name, 0.0))
    monkeypatch.setattr(batches, "SPAN", -1.0)
    _, outcomes = batches.run(5, [("a",), ("b",)])
    assert outcomes == [(True, (0, "a", 0.0))]
    assert batches._COUNT.unpack_from(batches._begun, 5 * batches._COUNT.size) == (1,)
