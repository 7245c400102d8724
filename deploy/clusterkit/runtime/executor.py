"""``concurrent.futures`` over the cluster: code for ``ProcessPoolExecutor`` moves by changing one line.

    from clusterkit.runtime.executor import ClusterExecutor

    with ClusterExecutor() as executor:
        for page in executor.map(render, pages):
            ...

Functions travel by name, so they must be importable on the workers, and allowed there (``calls``); arguments
and results travel as JSON. Calls are sent in chunks, whose size follows from how long the calls take.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
import time
import weakref
from collections import deque
from concurrent.futures import CancelledError, Executor, Future
from typing import TYPE_CHECKING, Any, Final

from celery import Celery, current_app

from clusterkit.runtime import calls, client, results
from clusterkit.runtime.dispatch import Chunk, Dispatcher
from clusterkit.runtime.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

#: Seconds of work in a chunk; what a message costs besides (about 1 ms) is then one percent.
CHUNK_SECONDS: Final = 0.1
#: Seconds of work in a chunk at least, however few calls are left to share out.
SHORTEST_CHUNK: Final = 0.005
#: Calls in a chunk at most.
LONGEST_CHUNK: Final = 10_000
#: Chunks that each process should still get, so that all end at about the same time.
ROUNDS: Final = 4
#: How much the newest chunk counts for what a call is believed to take.
_NEWEST: Final = 0.3


class CallFuture(Future[Any]):
    """The future of a call; it runs when a worker process has begun it.

    ``cancel`` succeeds until then. A call that was sent together with others counts as begun.
    """

    #: How to cancel it at the cluster, once it was sent alone.
    revoke: Callable[[], bool] | None = None

    def cancel(self) -> bool:
        """Cancel the call unless a worker has begun it; tell whether it will not run."""
        if self.revoke is None or self.done() or self.running():
            return super().cancel()
        if not self.revoke() or not super().cancel():
            return False
        with contextlib.suppress(RuntimeError):  # another thread was here first
            self.set_running_or_notify_cancel()
        return True


class _Batch:
    """Calls of one function that wait to be sent; ``stop``: none runs after one of its chunk that failed."""

    def __init__(self, function: str, chunksize: int | None, *, stop: bool) -> None:
        self.function, self.chunksize, self.stop = function, chunksize, stop
        self.ended = False

    def __len__(self) -> int:
        raise NotImplementedError

    def take(self, count: int) -> Chunk | None:
        """Return a chunk of at most ``count`` calls; None: they were all cancelled."""
        raise NotImplementedError

    def fail(self, error: BaseException) -> None:
        """Let all that is not sent fail."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Cancel all that is not sent."""
        raise NotImplementedError


class _Submitted(_Batch):
    """Calls of ``submit``, each with its future."""

    def __init__(self, function: str) -> None:
        super().__init__(function, None, stop=False)
        #: The calls as JSON.
        self.waiting: deque[tuple[str, CallFuture]] = deque()

    def __len__(self) -> int:
        return len(self.waiting)

    def take(self, count: int) -> Chunk | None:
        taken = self._together(count)
        if len(taken) > 1:
            taken = [(call, future) for call, future in taken if future.set_running_or_notify_cancel()]
        elif taken and taken[0][1].cancelled():
            taken[0][1].set_running_or_notify_cancel()
            taken = []
        if not taken:
            return None
        futures = [future for _, future in taken]
        return Chunk(
            self.function,
            f"[{','.join(call for call, _ in taken)}]",
            len(taken),
            functools.partial(_settle, futures),
            claim=len(taken) == 1 and not futures[0].running(),
            future=futures[0] if len(taken) == 1 else None,
        )

    def _together(self, count: int) -> list[tuple[str, CallFuture]]:
        """Return the next calls, ``count`` at most, that a message has room for."""
        taken: list[tuple[str, CallFuture]] = []
        room = calls.CHUNK_SIZE
        while self.waiting and len(taken) < count:
            room -= len(self.waiting[0][0])
            if taken and room < 0:
                break
            taken.append(self.waiting.popleft())
        return taken

    def fail(self, error: BaseException) -> None:
        while self.waiting:
            future = self.waiting.popleft()[1]
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

    def cancel(self) -> None:
        while self.waiting:
            future = self.waiting.popleft()[1]
            future.cancel()
            future.set_running_or_notify_cancel()


def _settle(futures: list[CallFuture], values: list[Any], errors: dict[int, BaseException]) -> None:
    for number, future in enumerate(futures):
        with contextlib.suppress(Exception):  # InvalidStateError: cancelled meanwhile
            if future.running() or future.set_running_or_notify_cancel():
                if number in errors:
                    future.set_exception(errors[number])
                else:
                    future.set_result(values[number])


class _Calls:
    """The calls of a ``map``: ``chunks`` of them are JSON already, ``items`` will be when they are sent.

    ``flat``: an item is the only argument of its call; ``common``: what all calls have besides, as JSON.
    """

    def __init__(
        self,
        items: list[Any],
        chunks: Iterable[tuple[str, int]] = (),
        *,
        flat: bool = False,
        common: str = "",
    ) -> None:
        self.flat, self.common = flat, common
        self._items, self._next = items, 0
        self._chunks = deque(chunks)
        self._ready = sum(count for _, count in self._chunks)

    def __len__(self) -> int:
        return len(self._items) - self._next + self._ready

    def take(self, count: int) -> tuple[str, int]:
        """Return ``count`` calls as JSON, or fewer if a message has no room for more, and how many they are.

        Raises:
            BadInputError: JSON cannot carry them any more, or a call is too much for a message.
        """
        if not self._chunks:
            taken = self._items[self._next : self._next + count]
            self._next += len(taken)
            if self._next == len(self._items):
                self._items, self._next = [], 0
            self._chunks.extend(calls.chunks(taken))
            self._ready = len(taken)
        text, size = self._chunks.popleft()
        self._ready -= size
        return text, size


class _Mapped(_Batch):
    """Calls of ``map``; one future for each chunk, in order."""

    def __init__(self, function: str, left: _Calls, chunksize: int | None) -> None:
        super().__init__(function, chunksize, stop=True)
        self._left = left
        self._changed = threading.Condition()
        self._chunks: deque[Future[tuple[list[Any], BaseException | None]]] = deque()

    def __len__(self) -> int:
        with self._changed:
            return len(self._left)

    def take(self, count: int) -> Chunk | None:
        future: Future[Any] = Future()
        with self._changed:
            left = self._left
            if not left:  # nobody wants the results any more
                return None
            try:
                text, size = left.take(count)
            except Exception as error:  # noqa: BLE001 - arguments were changed since they were checked
                self._end(error)
                return None
            self._chunks.append(future)
            self._changed.notify()

        def settle(values: list[Any], errors: dict[int, BaseException]) -> None:
            first = min(errors, default=len(values))
            future.set_result((values[:first], errors.get(first)))

        return Chunk(self.function, text, size, settle, stop=True, flat=left.flat, common=left.common)

    def fail(self, error: BaseException) -> None:
        with self._changed:
            self._end(error)

    def _end(self, error: BaseException) -> None:
        """Have the results end with ``error``."""
        future: Future[Any] = Future()
        future.set_result(([], error))
        self._left, self.ended = _Calls([]), True
        self._chunks.append(future)
        self._changed.notify()

    def cancel(self) -> None:
        self.fail(CancelledError())

    def results(self, timeout: float | None) -> Iterator[Any]:
        """Yield the results in order; ``timeout`` is in seconds from now, for all of them."""
        deadline = None if timeout is None else time.monotonic() + timeout
        return self._results(deadline)

    def _results(self, deadline: float | None) -> Iterator[Any]:
        try:
            while (future := self._chunk(deadline)) is not None:
                values, error = future.result(_left(deadline))
                del future
                values.reverse()
                while values:
                    yield values.pop()  # and keep no reference to it
                if error is not None:
                    raise error
        finally:
            with self._changed:
                self._left, self.ended = _Calls([]), True

    def _chunk(self, deadline: float | None) -> Future[Any] | None:
        """Return the next chunk's future as soon as there is one; None after the last."""
        with self._changed:
            while not self._chunks:
                if self.ended or not len(self):
                    return None
                if not self._changed.wait(_left(deadline)):
                    raise TimeoutError
            return self._chunks.popleft()


def _chunks(items: Iterator[Any], chunksize: int) -> Iterator[tuple[str, int]]:
    """Yield ``items`` in chunks, as JSON."""
    while chunk := list(itertools.islice(items, chunksize)):
        yield from calls.chunks(chunk)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(deadline - time.monotonic(), 0)


class _Work:
    """The batches that wait, and how large their chunks shall be; used by all threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.batches: deque[_Batch] = deque()
        self.closed = False
        #: Seconds a call takes, by function, as measured.
        self._seconds: dict[str, float] = {}

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be sent."""
        with self.lock:
            return not any(len(batch) for batch in self.batches)

    def close_if_idle(self) -> bool:
        """Take no more calls if nothing waits to be sent; tell whether that is so."""
        with self.lock:
            if any(len(batch) for batch in self.batches):
                return False
            self.closed = True
            return True

    def take_all(self) -> list[_Batch]:
        """Return all that waits, which is the caller's from now on."""
        with self.lock:
            taken = list(self.batches)
            self.batches.clear()
            return taken

    def measured(self, function: str, count: int, seconds: float) -> None:
        """Take note that ``count`` calls took ``seconds``."""
        each = max(seconds / count, 1e-7)
        before = self._seconds.get(function)
        self._seconds[function] = each if before is None else before + (each - before) * _NEWEST

    def next_chunk(self, in_flight: int, processes: int, patience: float) -> Chunk | None:
        """Return what to send next; None: nothing, for now.

        ``in_flight`` chunks are sent and have no result yet, the first of them for ``patience`` seconds;
        ``processes`` is how many were seen at work.
        """
        with self.lock:
            while self.batches:
                batch = self.batches[0]
                if not len(batch):
                    self.batches.popleft()
                    continue
                count, most = self._size(batch, processes, patience)
                if in_flight >= most:
                    return None
                chunk = batch.take(count)
                if chunk is not None:
                    return chunk
            return None

    def _size(self, batch: _Batch, processes: int, patience: float) -> tuple[int, int]:
        """Return how many calls a chunk shall have, and how many chunks may be in flight."""
        few, many = max(32, 8 * processes), 1_000
        seconds = self._seconds.get(batch.function)
        if batch.chunksize:
            return batch.chunksize, many
        if seconds is None:
            # A call each, to learn how long one takes. If that is long, chunks are of no use.
            return 1, many if patience > CHUNK_SECONDS else few
        fair = len(batch) / (ROUNDS * processes)
        count = min(max(fair, SHORTEST_CHUNK / seconds), CHUNK_SECONDS / seconds, LONGEST_CHUNK)
        size = max(int(count), 1)
        return size, many if size * seconds > CHUNK_SECONDS / 2 else few


class ClusterExecutor(Executor):
    """Runs calls on the worker nodes of a cluster.

    ``app`` is an app of the cluster, such as ``client.connect()`` returns (default: the current one if it is
    one, or else what that returns); ``queue`` is where calls go (default: the cluster's default queue).
    ``max_workers`` changes nothing, for the inventory says how many processes there are.

    No call is lost: messages are confirmed and on quorum queues, and a call whose process dies runs again, so
    functions should be idempotent. A call that ends its process ten times fails with ``BrokenExecutor``.
    """

    def __init__(
        self, max_workers: int | None = None, *, app: Celery | None = None, queue: str | None = None
    ) -> None:
        if isinstance(max_workers, Celery):
            raise TypeError("max_workers is a number; ClusterExecutor(app=...) takes an app")
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        self._app = _connected(app)
        self._work = _Work()
        self._dispatcher = Dispatcher(self._app, self._work, queue=queue)
        # Without a reference to this object: what nobody uses any more ends by itself.
        weakref.finalize(self, self._dispatcher.close)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> CallFuture:
        """Have ``fn(*args, **kwargs)`` called, and return its future.

        Raises:
            NotCallableError: ``fn`` cannot be imported on the workers, or they must not call it.
            BadInputError: JSON cannot carry the arguments.
            RuntimeError: the executor was shut down.
        """
        function, args, kwargs = self._unwrapped(fn, args, kwargs)
        call = calls.to_json({"a": args, "k": kwargs} if kwargs else args)
        calls.check_size(call)
        future = CallFuture()
        with self._work.lock:
            self._check_open()
            batches = self._work.batches
            last = batches[-1] if batches else None
            if not isinstance(last, _Submitted) or last.function != function:
                last = _Submitted(function)
                batches.append(last)
            last.waiting.append((call, future))
        self._dispatcher.wake()
        return future

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
    ) -> Iterator[Any]:
        """Call ``fn`` with the items of ``iterables``, side by side, and return an iterator over the results.

        ``chunksize`` calls go together; without it as many as take a tenth of a second. ``timeout`` is in
        seconds from now, for all results.

        Raises:
            NotCallableError, BadInputError, RuntimeError: as ``submit``; nothing was sent then.
            ValueError: ``chunksize`` is below 1.
            TimeoutError: from the iterator, when a result is not there in time.
        """
        if chunksize is not None and chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        function, first, keywords = self._unwrapped(fn, (), {})
        common = calls.to_json([first, keywords]) if first or keywords else ""
        calls.check_size(common)
        flat = len(iterables) == 1
        items = iter(iterables[0] if flat else zip(*iterables, strict=False))
        if chunksize is None:
            listed, chunks = list(items), []
            calls.check_json(listed)
        else:
            listed, chunks = [], list(_chunks(items, chunksize))
        batch = _Mapped(function, _Calls(listed, chunks, flat=flat, common=common), chunksize)
        with self._work.lock:
            self._check_open()
            self._work.batches.append(batch)
        self._dispatcher.wake()
        return batch.results(timeout)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Take no more calls; ``wait`` until all have ended, ``cancel_futures`` that no worker has begun."""
        with self._work.lock:
            self._work.closed = True
        if cancel_futures:
            for batch in self._work.take_all():
                batch.cancel()
            self._dispatcher.cancel_sent()
        self._dispatcher.close()
        if wait:
            self._dispatcher.join()

    def _check_open(self) -> None:
        if self._work.closed:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def _unwrapped(
        self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        while isinstance(fn, functools.partial):
            fn, args, kwargs = fn.func, (*fn.args, *args), {**fn.keywords, **kwargs}
        function = calls.reference(fn)
        if calls.knows(self._app):
            calls.check(self._app, function)
        return function, args, kwargs


def _connected(app: Celery | None) -> Celery:
    """Return ``app``; without one the current app, or a new one if that has no cluster.

    Raises:
        BadInputError: ``app`` is not connected to a cluster.
        NoClusterError, ClusterUnreachableError: as ``client.connect``.
    """
    found: Celery = app or current_app._get_current_object()  # noqa: SLF001
    if isinstance(found.backend, results.Backend):
        return found
    if app is None:
        return client.connect()
    raise BadInputError(
        "ClusterExecutor needs an app that is connected to a cluster",
        next_step="clusterkit.runtime.client.connect() returns one",
    )
