"""What `apply_async` would send, without sending it; and many like it, at a fraction of the cost.

Celery makes each message anew: routes, options, headers, 200 microseconds. Of a thousand calls of one task
with the same options, only the ids and what stands for the arguments differ. So Celery makes one message,
with a producer that keeps it instead of sending it, and the others are made of that one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import celery
import celery.local
import kombu
from amqp.serialization import dumps as amqp_dumps
from celery import signals, uuid
from celery.app.routes import MapRoute
from celery.utils.saferepr import saferepr
from kombu.compression import compress
from kombu.serialization import dumps
from kombu.transport.pyamqp import Channel
from kombu.utils.functional import maybe_evaluate

from clusterkit.runtime import task as kit
from clusterkit.runtime.errors import BadInputError
from clusterkit.runtime.pipeline import Message, target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from celery import Celery

#: Seconds a message with a time in it (ETA, expiry) serves as pattern: so much may its copies be off.
FRESH: Final = 0.05
#: Characters of Celery's ids, for which those of a pattern's copies have room.
_ID_LENGTH: Final = 36
#: Arguments whose text `repr` gives just as Celery's own, shortening, saferepr does.
_PLAIN: Final = frozenset({int, float, bool, type(None)})


@dataclass(frozen=True)
class Captured:
    """A message that was about to be sent."""

    content: Any
    target: bytes
    declare: list[Any]
    serializer: str
    compression: str | None
    args_body: Any

    def to_message(self, number: int) -> Message:
        """Return it as it is."""
        return Message(
            number,
            self.content.properties["correlation_id"],
            self.target,
            self.content._serialize_properties(),  # noqa: SLF001 - py-amqp's own sender calls it
            _bytes(self.content.body),
        )


class CapturingProducer(kombu.Producer):
    """A producer that keeps messages instead of sending them."""

    #: Has the kit's result backend not subscribe to a result before somebody waits for it.
    subscribes = False

    def __init__(self, connection: kombu.Connection) -> None:
        super().__init__(None)
        self.__connection__ = connection
        self.captured: list[Captured] = []
        self._what: tuple[Any, str, str | None] = (None, "", None)

    def publish(self, body: Any, *args: Any, **options: Any) -> None:
        """Keep a message."""
        options |= {"retry": False}
        self._what = (body, options.get("serializer") or "json", options.get("compression"))
        super().publish(body, *args, **options)

    def _publish(  # noqa: PLR0913, PLR0917 - kombu's signature
        self,
        body: Any,
        priority: int,
        content_type: str,
        content_encoding: str,
        headers: Any,
        properties: Any,
        routing_key: str,
        mandatory: bool,  # noqa: FBT001
        immediate: bool,  # noqa: FBT001
        exchange: str,
        declare: list[Any],
        *_: Any,
    ) -> None:
        content = Channel.prepare_message(
            None, body, priority, content_type, content_encoding, headers, properties
        )
        where = target(exchange, routing_key, mandatory=mandatory, immediate=immediate)
        original, serializer, compression = self._what
        self.captured.append(Captured(content, where, declare, serializer, compression, original))


class Maker:
    """Makes the messages of one task with one set of ``apply_async``'s options.

    ``task`` is a task, or the name of one that this process does not have.
    """

    def __init__(self, app: Celery, task: celery.Task | str, options: Mapping[str, Any]) -> None:
        if app.conf.task_always_eager:
            raise BadInputError(
                "task_always_eager is on: tasks run here, and there is nothing to send",
                next_step="call the task, or turn it off",
            )
        task = celery.local.maybe_evaluate(task)  # of @app.task, there is a proxy at first
        self._app = app
        self._task = task
        self._options = dict(options)
        self._connection = app.connection_for_write()
        self._check = getattr(task, "__header__", None) if getattr(task, "typing", False) else None
        self._alike = _alike(app, task)
        self._timed = any(options.get(name) is not None for name in ("countdown", "eta", "expires")) or (
            getattr(task, "expires", None) is not None
        )
        self._pattern: _Pattern | None = None
        self._made_at = 0.0
        self.declare: list[Any] = []

    def message(self, number: int, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Message:
        """Return the message that ``apply_async(args, kwargs, task_id=task_id, ...)`` would send.

        Raises:
            TypeError: the task does not take these arguments.
            kombu.exceptions.EncodeError: they cannot be written in the task's serializer.
        """
        if not self._alike or len(task_id) != _ID_LENGTH:
            return self._capture(task_id, args, kwargs).to_message(number)
        if self._check is not None:
            self._check(*args, **kwargs)
        pattern = self._pattern
        if pattern is None or (self._timed and time.monotonic() - self._made_at > FRESH):
            self._made_at = time.monotonic()
            self._pattern = pattern = _Pattern(self._app, self._capture(uuid(), args, kwargs), self._options)
        return pattern.message(number, task_id, args, kwargs)

    def _capture(self, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Captured:
        producer = CapturingProducer(self._connection)
        options = {**self._options, "task_id": task_id, "producer": producer, "add_to_parent": False}
        if isinstance(self._task, str):
            self._app.send_task(self._task, args, dict(kwargs), **options)
        else:
            self._task.apply_async(args, dict(kwargs), **options)
        # A task-sent event, where they are on, comes after.
        captured = producer.captured[0]
        self.declare = captured.declare
        return captured


def _alike(app: Celery, task: celery.Task | str) -> bool:
    """Tell whether messages of ``task`` differ in ids and arguments only.

    Not where somebody wants to see each of them (signals, events) or decides by arguments (routes).
    """
    watched = any(
        signal.receivers
        for signal in (signals.before_task_publish, signals.after_task_publish, signals.task_sent)
    )
    if watched or app.conf.task_send_sent_event or app.conf.task_protocol != 2:  # noqa: PLR2004 - its name
        return False
    if not all(isinstance(maybe_evaluate(route), MapRoute) for route in app.amqp.routes):
        return False
    if isinstance(task, str):
        return True
    kind = type(task)
    return (
        kind.apply_async in {kit.Task.apply_async, celery.Task.apply_async}
        and kind.shadow_name is celery.Task.shadow_name
        and getattr(task, "_dump_pydantic_arguments", None) is None
    )


class _Pattern:
    """A message, cut where the id and the text of the arguments are."""

    def __init__(self, app: Celery, captured: Captured, options: Mapping[str, Any]) -> None:
        content = captured.content
        headers = dict(content.properties["application_headers"])
        self._target = captured.target
        self._serializer, self._compression = captured.serializer, captured.compression
        self._embed = captured.args_body[2]
        self._args_text, self._kwargs_text = options.get("argsrepr"), options.get("kwargsrepr")
        self._text_sizes = app.amqp.argsrepr_maxsize, app.amqp.kwargsrepr_maxsize
        self._levels = app.conf.task_repr_maxlevels
        self._id: bytes = content.properties["correlation_id"].encode()
        whole = content._serialize_properties()  # noqa: SLF001 - py-amqp's own sender calls it
        table = amqp_dumps("F", [headers])
        self._before, self._after = whole.split(table)
        marks = {"argsrepr": uuid(), "kwargsrepr": uuid()}
        marked = amqp_dumps("F", [{**headers, **marks}])[4:]
        self._first, rest = marked.split(_long_string(marks["argsrepr"]))
        self._second, self._third = rest.split(_long_string(marks["kwargsrepr"]))

    def message(self, number: int, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Message:
        _, _, body = dumps((args, kwargs, self._embed), serializer=self._serializer)
        if self._compression:
            body, _ = compress(body, self._compression)
        args_text = self._args_text or self._text(args, self._text_sizes[0])
        kwargs_text = self._kwargs_text or self._text(kwargs, self._text_sizes[1])
        table = b"".join(
            (
                self._first,
                _long_string(args_text),
                self._second,
                _long_string(kwargs_text),
                self._third,
            )
        )
        head = b"".join((self._before, len(table).to_bytes(4, "big"), table, self._after))
        return Message(number, task_id, self._target, head.replace(self._id, task_id.encode()), _bytes(body))

    def _text(self, value: Any, longest: int) -> str:
        if not value or (type(value) is tuple and _PLAIN.issuperset(map(type, value))):
            text = repr(value)
            if len(text) < longest:
                return text
        return str(saferepr(value, longest, maxlevels=self._levels))


def _long_string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return b"S" + len(data).to_bytes(4, "big") + data


def _bytes(body: str | bytes) -> bytes:
    return body.encode() if isinstance(body, str) else body
