"""What a dead letter says: which task it was, where it died, of what; and which of them are meant."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Self

import kombu.message

from clusterkit.runtime import rejections
from clusterkit.runtime.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from clusterkit.ops.messaging import Message
    from clusterkit.runtime.rejections import Rejection

#: Characters of the fingerprint by which a letter without a task id goes.
_SHORT: Final = 12
#: What stands in the place of what is not shown.
HIDDEN: Final = "(hidden)"
#: How often a message had died before it was replayed: a replay leaves out what RabbitMQ says of that. As any
#: header that is not Celery's, a worker shows it in `request.headers` and keeps it in a retry.
DEATHS: Final = "clusterkit-deaths"
#: Headers that quote a task's arguments.
_QUOTING: Final = ("argsrepr", "kwargsrepr")
_BODY_PARTS: Final = 3


class Reason(StrEnum):
    """Why the broker moved a message to the dead letters; the values are what the command takes."""

    REJECTED = "rejected"
    DELIVERY_LIMIT = "delivery-limit"
    EXPIRED = "expired"
    FULL = "full"
    UNKNOWN = "unknown"

    @property
    def words(self) -> str:
        """What it says to a person."""
        return {
            Reason.REJECTED: "rejected by the worker",
            Reason.DELIVERY_LIMIT: "delivery limit reached",
            Reason.EXPIRED: "expired",
            Reason.FULL: "queue full",
            Reason.UNKNOWN: "not known",
        }[self]


#: RabbitMQ's words for them, in the header x-death.
_OF_BROKER: Final = {
    "rejected": Reason.REJECTED,
    "delivery_limit": Reason.DELIVERY_LIMIT,
    "expired": Reason.EXPIRED,
    "maxlen": Reason.FULL,
}


@dataclass(frozen=True)
class Letter:
    """A dead letter; what it does not say is empty."""

    message: Message
    name: str
    """By what it is called: the task's id, or a short hash of its content."""
    fingerprint: str
    task: str
    id: str
    queue: str
    """Where it died."""
    reason: Reason
    died: datetime | None
    times: int
    """How often it died: this time, and before each replay."""
    arguments: str
    expires: datetime | None
    """When the task is not to be run any more."""
    worker: Rejection | None = None
    """What the worker that rejected it said, if its note is still there."""

    @classmethod
    def of(cls, message: Message) -> Self:
        """Read a message from the dead letters; one that makes no sense is a letter, too."""
        decoded = kombu.message.Message(
            message.body,
            content_type=message.properties.get("content_type"),
            content_encoding=message.properties.get("content_encoding"),
            properties=message.properties,
            headers=message.headers,
        )
        payload = _payload(decoded.body)
        old = payload if isinstance(payload, dict) and "task" in payload else {}  # message protocol 1
        headers = message.headers
        fingerprint = rejections.fingerprint(decoded)
        death = _last_death(headers)
        task_id = _text(headers.get("id", old.get("id")))
        return cls(
            message=message,
            name=task_id if task_id and task_id.isprintable() else fingerprint[:_SHORT],
            fingerprint=fingerprint,
            task=_text(headers.get("task", old.get("task"))),
            id=task_id,
            queue=_text(death.get("queue")),
            reason=_OF_BROKER.get(_text(death.get("reason")), Reason.UNKNOWN),
            died=_moment(death.get("time")),
            times=_number(death.get("count"), 1) + _number(headers.get(DEATHS), 0),
            arguments=_arguments(payload, decoded.body),
            expires=_moment(headers.get("expires", old.get("expires"))),
        )

    @property
    def has_expired(self) -> bool:
        """Whether a worker would discard the task instead of running it."""
        return self.expires is not None and self.expires < datetime.now(UTC)

    def why(self, *, redact: bool = False) -> str:
        """Return why it died, in words."""
        if self.worker is None:
            return self.reason.words
        # Only the kind of an error is sure to quote nothing of the message.
        detail = "" if redact or not self.worker.detail else f": {self.worker.detail}"
        return f"{self.reason.words} {self.worker.node}: {self.worker.kind}{detail}"

    def to_json(self, *, redact: bool, whole: bool = False) -> dict[str, Any]:
        """Return it as JSON-safe values, ``whole`` with headers, properties and body."""
        said: dict[str, Any] = {
            "name": self.name,
            "died": self.died.isoformat() if self.died else None,
            "queue": self.queue,
            "reason": self.reason.value,
            "worker": None
            if self.worker is None
            else {
                "node": self.worker.node,
                "kind": self.worker.kind,
                "detail": HIDDEN if redact else self.worker.detail,
            },
            "task": self.task,
            "id": self.id,
            "times": self.times,
            "arguments": HIDDEN if redact else self.arguments,
            "expires": self.expires.isoformat() if self.expires else None,
        }
        if whole:
            said |= {
                "properties": {key: _plain(value) for key, value in self.message.properties.items()},
                "headers": self.headers(redact=redact),
                "body": HIDDEN if redact else readable(self.message.body),
            }
        return said

    def headers(self, *, redact: bool) -> dict[str, Any]:
        """Return the message's headers as JSON-safe values."""
        return {
            str(key): HIDDEN if redact and key in _QUOTING else _plain(value)
            for key, value in self.message.headers.items()
        }


def _payload(body: Any) -> Any:
    try:
        return json.loads(body)
    except (ValueError, TypeError, RecursionError):
        return None


def _arguments(payload: Any, body: bytes | str) -> str:
    if isinstance(payload, list) and len(payload) == _BODY_PARTS:
        args, kwargs, _ = payload
        return _call(args, kwargs)
    if isinstance(payload, dict) and "args" in payload:
        return _call(payload["args"], payload.get("kwargs"))
    return readable(body)


def _call(args: Any, kwargs: Any) -> str:
    parts = [json.dumps(part, ensure_ascii=False) for part in (args, kwargs) if part]
    return readable(" ".join(parts)) or "none"


def readable(content: bytes | str) -> str:
    """Return ``content`` as text for a terminal; what is none is escaped, as Python writes it."""
    try:
        text = content if isinstance(content, str) else content.decode()
    except UnicodeDecodeError:
        return repr(content)
    return text if text.isprintable() else ascii(text)


def _last_death(headers: dict[str, Any]) -> dict[str, Any]:
    """Return RabbitMQ's note of the last time the message died. Passing a delay counts as dying to it.

    The newest comes first; the queues of delays come after what died since.
    """
    deaths = headers.get("x-death")
    found = [death for death in deaths if isinstance(death, dict)] if isinstance(deaths, list) else []
    last = headers.get("x-last-death-queue")
    return next((death for death in found if death.get("queue") == last), found[0] if found else {})


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else str(_plain(value))


def _number(value: Any, default: int) -> int:
    return value if isinstance(value, int) else default


def _moment(value: Any) -> datetime | None:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def _plain(value: Any) -> Any:
    """Return an AMQP value as JSON has it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, (bytes, memoryview)):
        return readable(bytes(value))
    return value if isinstance(value, (str, int, float, bool)) or value is None else str(value)


@dataclass(frozen=True)
class Selection:
    """Which letters are meant: all that fit everything given here; nothing given means all."""

    names: tuple[str, ...] = ()
    """Names, or beginnings of names."""
    task: str = ""
    queue: str = ""
    reason: Reason | None = None

    def fits(self, letter: Letter) -> bool:
        """Return whether ``letter`` is meant."""
        return (
            (not self.names or letter.name.startswith(self.names))
            and self.task in ("", letter.task)
            and self.queue in ("", letter.queue)
            and self.reason in (None, letter.reason)
        )

    def check(self, found: Iterable[str]) -> None:
        """Make sure that each of ``names`` means one name of those ``found``.

        Raises:
            BadInputError: one means none, or more than one.
        """
        found = sorted(set(found))
        for name in self.names:
            meant = [one for one in found if one.startswith(name)]
            if not meant:
                raise BadInputError(f"there is no dead letter {name!r}", next_step="make dlq-list lists them")
            if len(meant) > 1 and name not in meant:
                raise BadInputError(
                    f"{name!r} is the beginning of {len(meant)} dead letters: {', '.join(meant[:5])}",
                    next_step="write more of the name",
                )

    def exact(self, found: Iterable[str]) -> frozenset[str]:
        """Return, of the names ``found``, those that ``names`` mean; a whole name is never a beginning."""
        found = set(found)
        return frozenset(
            one
            for one in found
            for name in self.names
            if one == name or (one.startswith(name) and name not in found)
        )
