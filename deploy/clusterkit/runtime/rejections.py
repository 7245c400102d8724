"""Why a worker rejected a message: a note in the result store, where the operator's `dlq list` finds it.

RabbitMQ says that a message was rejected, not why, and nothing can be written into the message on its way
to the dead letters (docs/decisions/0012). A note is best effort: the worker's main process writes it, so it
never waits long for the store, gives up for a while when the store is away, and does not write too many.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from celery.utils.log import get_logger

from clusterkit.runtime import results

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterable

    import redis
    from celery import Celery
    from kombu import Message

logger: logging.Logger = get_logger(__name__)

#: Where notes are, followed by the message's fingerprint; the worker's rights at the store allow it.
PREFIX: Final = "clusterkit:executions:rejected:"
#: Seconds a note is kept.
KEEP: Final = 7 * 86_400
#: Characters of a reason that are kept: it may quote a message of any length.
LONGEST_REASON: Final = 500
#: Seconds the store may take to answer, once for each server asked.
_TIMEOUT = 1.0
#: Seconds in which the store is not asked after it did not answer, at first and at most: the main process
#: must not wait at every message. Notes of that time are written with the next one, the newest hundred.
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_MOST_WAITING = 100
#: Notes a worker node writes in an hour, so that a flood of bad messages does not fill the store.
MOST_PER_HOUR: Final = 1_000
_HOUR = 3_600.0


@dataclass(frozen=True)
class Rejection:
    """What a worker node said of a message it rejected."""

    kind: str
    """The error's class, such as MalformedTaskError; quotes nothing of the message."""
    detail: str
    """The error's own words, which may quote the message."""
    node: str
    """The worker node."""


def fingerprint(message: Message) -> str:
    """Return what tells ``message`` from others, the same at the worker and among the dead letters.

    Made of what RabbitMQ leaves alone on the way: the body and who the task is, not all headers.
    """
    headers = message.headers or {}
    body = message.body
    if isinstance(body, str):  # py-amqp decodes what names its encoding
        body = body.encode(message.content_encoding or "utf-8", "surrogatepass")
    said = (
        headers.get("task"),
        headers.get("id"),
        message.content_type,
        message.content_encoding,
        message.properties.get("correlation_id"),
    )
    return hashlib.sha256(repr(said).encode("utf-8", "replace") + b"\0" + (body or b"")).hexdigest()


class Notes:
    """Writes down why messages were rejected, without ever harming the worker that does."""

    def __init__(self, app: Celery, node: str) -> None:
        self._node = node
        self._cluster = app.conf.get("clusterkit_cluster_file")
        self._store: redis.Redis | None = None
        self._waiting: deque[tuple[str, str]] = deque(maxlen=_MOST_WAITING)
        self._pause = _FIRST_PAUSE
        self._silent_until = 0.0
        self._hour = time.monotonic()
        self._written = 0

    def write(self, message: Message, error: BaseException) -> None:
        """Note that ``message`` is rejected because of ``error``; the note may be missing afterwards."""
        now = time.monotonic()
        if self._cluster is None or not self._may_write(now):
            return
        try:
            rejection = Rejection(type(error).__name__, str(error)[:LONGEST_REASON], self._node)
            self._waiting.append((PREFIX + fingerprint(message), json.dumps(asdict(rejection))))
            if now >= self._silent_until:
                self._send()
                self._pause = _FIRST_PAUSE
        except Exception as trouble:  # noqa: BLE001 - a note is worth no trouble at all
            logger.warning(
                "why a message was rejected cannot be noted for `dlq list`; next try in %d s: %s",
                self._pause,
                trouble,
            )
            # From the end of the try: a store that is silent for long must not be asked again at once.
            self._silent_until = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _send(self) -> None:
        with self._connected().pipeline(transaction=False) as commands:
            for key, note in self._waiting:
                commands.set(key, note, ex=KEEP)
            commands.execute()
        self._waiting.clear()

    def _may_write(self, now: float) -> bool:
        if now - self._hour >= _HOUR:
            self._hour, self._written = now, 0
        self._written += 1
        return self._written <= MOST_PER_HOUR

    def _connected(self) -> redis.Redis:
        if self._store is None:
            self._store = results.client(self._cluster, patience=0, timeout=_TIMEOUT)
        return self._store


@functools.cache
def notes(app: Celery, node: str) -> Notes:
    """Return the notes of worker node ``node`` of ``app``, one object for all who write."""
    return Notes(app, node)


def read(store: redis.Redis, fingerprints: Iterable[str]) -> dict[str, Rejection]:
    """Return what workers noted of the messages with these fingerprints; most have no note.

    Raises:
        redis.exceptions.RedisError: the store does not answer.
    """
    wanted = list(fingerprints)
    found: list[Any] = store.mget([PREFIX + one for one in wanted]) if wanted else []
    return {one: Rejection(**json.loads(note)) for one, note in zip(wanted, found, strict=True) if note}
