"""The thread of a ``ClusterExecutor``: sends chunks of calls, and hears what became of them.

Workers tell the outcomes of all chunks on one channel of the result store, so a chunk costs no subscription.
Should the channel be lost for a while, every result that is waited for is looked up.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import selectors
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import redis.exceptions
from celery import uuid
from celery.states import READY_STATES
from celery.utils.log import get_logger
from kombu.utils import json as kombu_json

from clusterkit.runtime import calls, results
from clusterkit.runtime.errors import PublishTimeoutError, RefusedError
from clusterkit.runtime.messages import Maker
from clusterkit.runtime.pipeline import WINDOW, Message, Pipeline

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from celery import Celery

logger: logging.Logger = get_logger(__name__)

#: Seconds between two looks at all results, in case that one was told and not heard.
_LOOK_INTERVAL: Final = 5.0
#: Seconds after which a process that was not heard from counts no more: another has its place.
_SILENCE: Final = 60.0
#: Seconds between two tries to reach the result store.
_RETRY_INTERVAL: Final = 0.5
#: Seconds without anything to do after which it looks whether the program has ended.
_TICK: Final = 0.5
#: Results that are deleted at a time, when they were received.
_DELETE_AT_ONCE: Final = 100
_STORE_ERRORS: Final = (redis.exceptions.RedisError, OSError)

#: What calls returned, and what those raised that failed, by number.
Outcomes = tuple[list[Any], dict[int, BaseException]]


class RemoteTraceback(Exception):  # noqa: N818 - as in concurrent.futures
    """The cause of an exception from a worker: where it was raised there."""

    def __init__(self, tb: str) -> None:
        super().__init__(tb)
        self.tb = tb

    def __str__(self) -> str:
        return f'\n"""\n{self.tb}"""'


@dataclass(eq=False)
class Chunk:
    """``count`` calls that travel in one message; their arguments are JSON, as the task describes it.

    ``settle(values, errors)`` is called with their outcomes, the errors by the call's number. ``future`` is
    that of a chunk of one call, which can be cancelled until a worker has begun it (``claim``).
    """

    function: str
    calls: str
    count: int
    settle: Callable[[list[Any], dict[int, BaseException]], None]
    stop: bool = False
    claim: bool = False
    flat: bool = False
    common: str = ""
    future: Any = None
    sent_at: float = 0.0

    def fail(self, error: BaseException) -> None:
        """Let all its calls fail."""
        self.settle(*self.failed(error))

    def failed(self, error: BaseException) -> Outcomes:
        """Return the outcomes of its calls when all have failed."""
        return [None] * self.count, dict.fromkeys(range(self.count), error)


class Work(Protocol):
    """Where chunks come from."""

    closed: bool

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be sent."""

    def close_if_idle(self) -> bool:
        """Take no more calls if nothing waits to be sent; tell whether that is so."""

    def take_all(self) -> list[Any]:
        """Return all that waits: each can ``fail``."""

    def next_chunk(self, in_flight: int, processes: int, patience: float) -> Chunk | None:
        """Return what to send next."""

    def measured(self, function: str, count: int, seconds: float) -> None:
        """Take note of how long calls took."""


class Dispatcher:
    """Sends what a ``Work`` has, from a thread that begins with the first call."""

    def __init__(self, app: Celery, work: Work, *, queue: str | None) -> None:
        self._app, self._work = app, work
        self._backend: results.Backend = app.backend
        self._options: dict[str, Any] = {"queue": queue} if queue else {}
        self._channel = self._backend.get_key_for_task(uuid()).decode()
        self._makers: dict[str, Maker] = {}
        self._pipeline: Pipeline | None = None
        self._numbers = itertools.count()
        #: Task id -> chunk without a result; only the thread changes it.
        self._sent: dict[str, Chunk] = {}
        #: Ids of chunks that were cancelled.
        self._revoked: deque[str] = deque()
        #: Whether the store did not answer the newest cancellation.
        self._unanswered = False
        self._lock = threading.Lock()
        #: Keys of results that were received, and of the claims of their chunks.
        self._received: list[Any] = []
        self._claims: list[str] = []
        #: Process of a worker node -> when it was heard from, by the monotonic clock.
        self._processes: dict[str, float] = {}
        self._listener: Any = None
        self._looked_at = self._listen_at = 0.0
        self._thread: threading.Thread | None = None
        self._waker, self._wakened = socket.socketpair()
        self._waker.setblocking(False)  # noqa: FBT003 - the standard library's signature
        self._wakened.setblocking(False)  # noqa: FBT003
        self._awake = False

    # -- for other threads

    def wake(self) -> None:
        """Have the thread look for work; begin it."""
        with self._lock:
            if self._thread is None:
                # No daemon: a program that ends waits for its calls, as the standard library's executors do.
                self._thread = threading.Thread(target=self._run, name="ClusterExecutor", daemon=False)
                self._thread.start()
            if self._awake:
                return
            self._awake = True
        with contextlib.suppress(BlockingIOError):
            self._waker.send(b".")

    def close(self) -> None:
        """Have the thread end when all calls have."""
        self._work.closed = True
        if self._thread is not None:
            self.wake()

    def join(self) -> None:
        """Wait for the thread's end."""
        if self._thread is not None:
            self._thread.join()

    def cancel_sent(self) -> None:
        """Cancel the calls that are sent, and that no worker has begun; without the store, none."""
        for chunk in list(self._sent.values()):
            if chunk.future is not None and not chunk.future.cancel() and self._unanswered:
                break  # each of the others would wait as long for it
        if self._thread is not None:
            self.wake()

    def _revoke(self, task_id: str) -> bool:
        """Cancel a chunk at the cluster; tell whether no worker will begin it."""
        try:
            revoked = self._backend.claim(calls.CLAIM + task_id, calls.CANCELLED, task_id, "")
        except _STORE_ERRORS:
            self._unanswered = True
            return False
        self._unanswered = False
        if revoked:
            self._revoked.append(task_id)
            self.wake()
        return revoked

    # -- the thread

    def _run(self) -> None:
        try:
            while not self._finished():
                self._round()
        except BaseException as error:
            self._fail_all(error)
            raise
        finally:
            self._forget_received()
            if self._pipeline is not None:
                self._pipeline.close()
            self._stop_listening()

    def _finished(self) -> bool:
        over = self._work.closed or not threading.main_thread().is_alive()
        return over and not self._sent and self._work.close_if_idle()

    def _round(self) -> None:
        self._listen()
        self._send()
        try:
            self._wait(_TICK)
            self._hear()
        except _STORE_ERRORS as error:
            self._lose(error)
        while self._revoked:
            self._sent.pop(self._revoked.popleft(), None)
        if self._pipeline is not None:
            self._publish(self._pipeline.poll)
        if time.monotonic() - self._looked_at > _LOOK_INTERVAL:
            self._look()

    def _wait(self, seconds: float) -> None:
        """Wait for something to do."""
        sockets: list[Any] = [self._wakened]
        if self._listener is not None:
            if self._listener.connection.can_read(timeout=0):
                return
            sockets.append(self._listener.connection._sock)  # noqa: SLF001 - redis-py has no other way
        if self._pipeline is not None and self._pipeline.socket is not None:
            sockets.append(self._pipeline.socket)
        # Not select(), which takes no descriptor above 1023.
        with selectors.DefaultSelector() as selector:
            for one in sockets:
                selector.register(one, selectors.EVENT_READ)
            selector.select(seconds)
        with self._lock:
            # In this order: who wakes it in between sends nothing, and the flag would stay.
            with contextlib.suppress(BlockingIOError):
                self._wakened.recv(1024)
            self._awake = False

    # -- sending

    def _send(self) -> None:
        while True:
            oldest = next(iter(self._sent.values()), None)
            patience = time.monotonic() - oldest.sent_at if oldest else 0.0
            chunk = self._work.next_chunk(len(self._sent), max(len(self._processes), 1), patience)
            if chunk is None:
                return
            self._publish(self._dispatch, chunk)

    def _dispatch(self, chunk: Chunk) -> None:
        task_id, function = uuid(), chunk.function
        chunk.sent_at = time.monotonic()
        self._sent[task_id] = chunk  # first: whatever goes wrong, it is found there
        maker = self._makers.get(function)
        if maker is None:
            options = {**self._options, "argsrepr": f"({function}, ...)"}
            maker = self._makers[function] = Maker(self._app, self._app.tasks[calls.CALL], options)
        if self._pipeline is None:
            deadline = self._app.conf.get("clusterkit_publish_deadline")
            self._pipeline = Pipeline(self._app, self, window=WINDOW, timeout=deadline)
        args = (
            function,
            chunk.calls,
            self._channel,
            chunk.stop,
            chunk.claim,
            chunk.flat,
            chunk.common,
        )
        message = maker.message(next(self._numbers), task_id, args, {})
        if chunk.claim:
            chunk.future.revoke = lambda: self._revoke(task_id)
            if chunk.future.cancelled():  # just before
                chunk.future.set_running_or_notify_cancel()
                del self._sent[task_id]
                return
        self._pipeline.declare(maker.declare)
        self._pipeline.send(message)
        if self._work.idle:
            self._pipeline.poll()

    def _publish(self, act: Callable[..., Any], *args: Any) -> None:
        """Publish; what cannot be published fails, and the executor goes on."""
        try:
            act(*args)
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait are told
            unconfirmed = [message.id for message in self._pipeline.unconfirmed] if self._pipeline else []
            unsent = [] if isinstance(error, PublishTimeoutError) else list(args)
            if self._pipeline is not None:
                self._pipeline.close()
                self._pipeline = None
            chunks = [self._sent.pop(task_id, None) for task_id in unconfirmed]
            mine = [task_id for task_id, chunk in list(self._sent.items()) if chunk in unsent]
            chunks += [self._sent.pop(task_id, None) for task_id in mine]
            for chunk in chunks:
                if chunk is not None:
                    chunk.fail(error)
            if isinstance(error, PublishTimeoutError):
                self._fail_waiting(error)

    def confirmed(self, message: Message) -> None:
        """Nothing to do: the result tells more."""

    def refused(self, message: Message, reason: str) -> None:
        """Let the calls fail."""
        chunk = self._sent.pop(message.id, None)
        if chunk is not None:
            chunk.fail(RefusedError(f"the broker refused {chunk.function}: {reason}"))

    def _fail_waiting(self, error: BaseException) -> None:
        for batch in self._work.take_all():
            batch.fail(error)

    def _fail_all(self, error: BaseException) -> None:
        self._work.closed = True
        self._fail_waiting(error)
        while self._sent:
            self._sent.popitem()[1].fail(error)

    # -- hearing

    def _listen(self) -> None:
        if self._listener is not None or time.monotonic() < self._listen_at:
            return
        store: Any = self._backend.hasty_client
        listener = store.pubsub(ignore_subscribe_messages=True)
        try:
            listener.subscribe(self._channel)
            listener.get_message(timeout=_RETRY_INTERVAL)
        except _STORE_ERRORS as error:
            self._lose(error)
        else:
            self._listener = listener
            self._look()  # what was told before is found

    def _hear(self) -> None:
        while self._listener is not None and self._listener.connection.can_read(timeout=0):
            message = self._listener.get_message(timeout=0)
            if message is not None:
                self._take(message["data"])

    def _look(self) -> None:
        """Look up all results that are waited for, and delete those that were received."""
        self._looked_at = now = time.monotonic()
        self._processes = {name: at for name, at in self._processes.items() if now - at < _SILENCE}
        waited_for = list(self._sent)
        try:
            for begin in range(0, len(waited_for), _DELETE_AT_ONCE):
                keys = [self._backend.get_key_for_task(one) for one in waited_for[begin:][:_DELETE_AT_ONCE]]
                for meta in self._backend.mget(keys):
                    if meta:
                        self._take(meta)
            self._forget_received()
        except _STORE_ERRORS as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        logger.info("the executor's connection to the result store is lost: %s", error)
        self._stop_listening()
        self._listen_at = time.monotonic() + _RETRY_INTERVAL

    def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(*_STORE_ERRORS):
                listener.close()

    def _take(self, data: bytes) -> None:
        """Take note of what a worker says of a chunk."""
        try:
            meta = _understood(data)
            task_id, status = meta["task_id"], meta["status"]
        except (ValueError, TypeError, KeyError) as error:
            logger.warning("what a worker said cannot be understood: %s", error)
            return
        chunk = self._sent.get(task_id)
        if status == "STARTED":
            if chunk is not None and chunk.future is not None and not chunk.future.running():
                with contextlib.suppress(RuntimeError):
                    chunk.future.set_running_or_notify_cancel()
            return
        if status not in READY_STATES:
            return  # a worker that lost its connection ended the run: the message comes again
        self._received.append(self._backend.get_key_for_task(task_id))
        if len(self._received) >= _DELETE_AT_ONCE:
            self._forget_received()
        if chunk is None:
            return  # cancelled, or said twice
        del self._sent[task_id]
        if chunk.claim and not _cancelled(meta["result"]):
            self._claims.append(calls.CLAIM + task_id)
        try:
            values, errors = self._outcomes(chunk, meta)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, those who wait are told
            values, errors = chunk.failed(error)
        chunk.settle(values, errors)

    def _outcomes(self, chunk: Chunk, meta: dict[str, Any]) -> Outcomes:
        result = meta["result"]
        if isinstance(result, Exception):
            return chunk.failed(result)
        if meta["status"] != "SUCCESS":
            return chunk.failed(self._exception(result, meta.get("traceback")))
        self._processes[result["by"]] = time.monotonic()
        if result.get("error"):
            return chunk.failed(self._exception(result["error"], result["error"]["traceback"]))
        values = result["values"]
        self._work.measured(chunk.function, len(values), result["seconds"])
        errors = {
            int(number): self._exception(error, error["traceback"])
            for number, error in result["errors"].items()
        }
        return values, errors

    def _exception(self, stored: dict[str, Any], text: str | None) -> BaseException:
        error: BaseException = self._backend.exception_to_python(stored)
        if text:
            error.__cause__ = RemoteTraceback(text)
        return error

    def _forget_received(self) -> None:
        received, self._received = self._received, []
        claims, self._claims = self._claims, []
        # Producers have rights to each kind of key, and to no command with both.
        for keys in filter(None, (received, claims)):
            with contextlib.suppress(*_STORE_ERRORS):
                self._backend.hasty_client.delete(*keys)


def _understood(data: bytes) -> dict[str, Any]:
    """Return what a worker said; an error as its result when that has a type this process does not know.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        meta: dict[str, Any] = kombu_json.loads(data)
    except Exception as error:  # noqa: BLE001 - decoders of an app's own types may raise anything
        meta = {**json.loads(data), "result": error}
    return meta


def _cancelled(result: Any) -> bool:
    """Whether the claim has to stay: should the message come again, it says that nobody wants it run."""
    return isinstance(result, dict) and "cancelled" in result
