"""How many calls go into a chunk."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
from celery import Celery

from clusterkit.runtime import client, configure, results
from clusterkit.runtime.bulk import Submission, submit_many
from clusterkit.runtime.dispatch import Dispatcher
from clusterkit.runtime.errors import BadInputError
from clusterkit.runtime.executor import CallFuture, ClusterExecutor, _Calls, _Mapped, _Submitted, _Work
from tasks import compute


def sizes(work: _Work, *, processes: int = 2) -> list[int]:
    chunks = iter(lambda: work.next_chunk(0, processes, 0.0), None)
    return [chunk.count for chunk in itertools.islice(chunks, 10_000)]


def work_with(calls: int, chunksize: int | None = None, seconds: float | None = None) -> _Work:
    work = _Work()
    work.batches.append(_Mapped("m:f", _Calls(list(range(calls)), flat=True), chunksize))
    if seconds is not None:
        work.measured("m:f", 1, seconds)
    return work


def test_a_chunk_size_that_is_given_is_exact() -> None:
    assert sizes(work_with(10, chunksize=4, seconds=1e-6)) == [4, 4, 2]


def test_long_calls_go_alone() -> None:
    assert sizes(work_with(20, seconds=0.5)) == [1] * 20


def test_short_calls_share_a_message_and_the_last_chunks_are_small() -> None:
    found = sizes(work_with(100_000, seconds=1e-4))
    assert sum(found) == 100_000
    assert max(found) == 1_000, "a tenth of a second"
    assert found[-2] == 50, "5 ms"
    assert found == sorted(found, reverse=True)


def test_tiny_calls_do_not_pay_a_message_each() -> None:
    assert len(sizes(work_with(100_000, seconds=1e-6))) <= 25


def test_while_nothing_is_known_few_calls_are_sent_and_many_when_they_take_long() -> None:
    work = work_with(5_000)
    assert work.next_chunk(32, 1, patience=0.0) is None
    assert work.next_chunk(32, 1, patience=0.2) is not None


def test_calls_of_a_map_with_a_size_are_json_from_the_begin() -> None:
    left = _Calls([], [("[0, 1]", 2), ("[2]", 1)], flat=True)
    batch = _Mapped("m:f", left, 2)
    assert len(batch) == 3
    first, second = batch.take(2), batch.take(2)
    assert first
    assert second
    assert (first.calls, first.count, second.calls, len(batch)) == ("[0, 1]", 2, "[2]", 0)


def test_large_calls_go_in_small_chunks_whatever_the_size_asked_for() -> None:
    work = _Work()
    work.batches.append(_Mapped("m:f", _Calls(["x" * 2**18] * 10, flat=True), 10))
    assert sizes(work) == [3, 3, 3, 1]
    submitted = _Submitted("m:f")
    submitted.waiting.extend((f'["{"x" * 2**18}"]', CallFuture()) for _ in range(5))
    work.batches.append(submitted)
    work.measured("m:f", 1, 1e-6)
    assert sizes(work) == [3, 2]


def test_arguments_that_changed_since_they_were_checked_end_the_map_alone() -> None:
    work = work_with(0)
    bad = _Mapped("m:f", _Calls([{1, 2}], flat=True), None)
    work.batches.extend([bad, _Mapped("m:f", _Calls([1], flat=True), None)])
    assert sizes(work) == [1]
    with pytest.raises(BadInputError, match="JSON"):
        next(bad.results(timeout=1))


def test_ids_of_a_submission_are_computed() -> None:
    submission = Submission(Celery("unit", set_as_current=False), lambda task_id: task_id)
    submission.sent = 1_000_000
    assert submission[41] == submission.id(41)
    assert submission[-1] == submission.id(999_999)
    assert len({submission.id(n) for n in range(1_000)}) == 1_000
    assert all(len(submission.id(n)) == 36 for n in (0, 999_999))
    with pytest.raises(IndexError):
        submission[1_000_000]


def test_mistakes_are_told_before_anything_is_sent() -> None:
    app = configure(Celery("unit", broker="memory://", set_as_current=False))
    with pytest.raises(BadInputError, match="task_id"):
        submit_many("a.task", [1], app=app, task_id="x")
    with pytest.raises(BadInputError, match="window"):
        submit_many("a.task", [1], app=app, window=0)
    with pytest.raises(BadInputError, match="connected to a cluster"):
        ClusterExecutor(app=app)


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> Celery:
    """An app that is connected to a cluster, as far as an executor can tell before it sends anything."""

    class Connected(results.Backend):
        def __init__(self) -> None:
            self.key_prefix = b"k"

        def get_key_for_task(self, task_id: str, key: str = "") -> bytes:
            return task_id.encode()

    app = configure(Celery("unit", broker="memory://", set_as_current=False))
    monkeypatch.setattr(Celery, "backend", property(lambda one: Connected() if one is app else None))
    monkeypatch.setattr(Dispatcher, "wake", lambda _: None)
    return app


def test_the_constructor_takes_what_that_of_processes_does(
    connected: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "connect", lambda: connected)
    assert ClusterExecutor(4)._app is connected
    assert ClusterExecutor(max_workers=4, app=connected)._app is connected
    with pytest.raises(ValueError, match="greater than 0"):
        ClusterExecutor(max_workers=0)
    with pytest.raises(TypeError, match="app="):
        ClusterExecutor(connected)


@pytest.mark.parametrize("chunksize", [None, 2])
def test_a_map_sends_what_all_its_calls_have_in_common_once(connected: Celery, chunksize: int | None) -> None:
    executor = ClusterExecutor(app=connected)
    tile: Any = compute.tile_pixels
    function = functools.partial(tile, 1, zoom=2)
    executor.map(function, range(2), chunksize=chunksize)
    executor.map(function, range(2), "ab", chunksize=chunksize)
    executor.map(tile, [{"a": 1}, (2,)], chunksize=chunksize)
    executor._work.measured("tasks.compute:tile_pixels", 1, 1e-6)
    chunks = iter(lambda: executor._work.next_chunk(0, 1, 0.0), None)
    assert [(chunk.calls, chunk.flat, chunk.common) for chunk in chunks] == [
        ("[0, 1]", True, '[[1], {"zoom": 2}]'),
        ('[[0, "a"], [1, "b"]]', False, '[[1], {"zoom": 2}]'),
        ('[{"a": 1}, [2]]', True, ""),
    ]


@pytest.mark.parametrize("chunksize", [None, 1])
@pytest.mark.parametrize("items", [[1, object()], [1, {2}]])
def test_a_map_that_json_cannot_carry_is_refused_before_anything_is_sent(
    connected: Celery, items: list[Any], chunksize: int | None
) -> None:
    executor = ClusterExecutor(app=connected)
    with pytest.raises(BadInputError, match="JSON"):
        executor.map(compute.tile_pixels, items, chunksize=chunksize)
    assert executor._work.idle
