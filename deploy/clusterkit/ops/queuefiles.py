"""Files of messages: JSON lines, each complete in itself and with its own checksum.

The first line says what the file is, the last one how many messages it has; one without a last line is from
a command that was ended in the middle. Body and binary values are in base64.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import IO, TYPE_CHECKING, Any, Final, Self

from clusterkit.ops.messaging import Message
from clusterkit.runtime.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

FORMAT: Final = "clusterkit messages 1"
_SUM, _MESSAGES = "sha256", "messages"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell an error of the disk from one of the broker's connection.

    Raises:
        BadInputError: in the place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise BadInputError(f"{path} cannot be written: {error.strerror}") from error


class Writer:
    """A new file of messages, readable by its owner alone. What was added is safe after ``sync``.

    Raises:
        BadInputError: there is a file of that name, or it cannot be made.
    """

    def __init__(self, path: Path, cluster: str, queue: str) -> None:
        self._path, self._count = path, 0
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise BadInputError(f"{path} is there already", next_step="give another file's name") from None
        except OSError as error:
            raise BadInputError(f"{path} cannot be made: {error.strerror}") from error
        self._file: IO[str] = os.fdopen(handle, "w", encoding="utf-8")
        self._write(
            {"format": FORMAT, "cluster": cluster, "queue": queue, "made": datetime.now(UTC).isoformat()}
        )
        self.sync()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._write({_MESSAGES: self._count})
                self.sync()
        finally:
            # What a full disk did not take is tried again here. The first error is the one to tell, and
            # nothing counts as written that was not synced.
            with contextlib.suppress(OSError):
                self._file.close()

    def add(self, message: Message) -> None:
        """Write a message."""
        self._write(
            {
                "body": base64.b64encode(message.body).decode(),
                "properties": _to_json(message.properties),
                "headers": _to_json(message.headers),
                "exchange": message.exchange,
                "routing_key": message.routing_key,
            }
        )
        self._count += 1

    def sync(self) -> None:
        """Return when everything added is on the disk.

        Raises:
            BadInputError: it cannot be written there.
        """
        with writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def _write(self, line: dict[str, Any]) -> None:
        with writing(self._path):
            self._file.write(json.dumps({**line, _SUM: _checksum(line)}) + "\n")


@dataclass(frozen=True)
class Summary:
    """What a file of messages holds; ``complete`` is False when it has no last line."""

    cluster: str
    queue: str
    messages: int
    complete: bool


def check(path: Path) -> Summary:
    """Read a whole file and make sure of every line, without keeping any.

    Raises:
        BadInputError: it is no file of messages, or it is damaged.
    """
    head, count, end = None, 0, None
    for number, line in _lines(path):
        if number == 1:
            head = line
        elif _MESSAGES in line:
            end = line[_MESSAGES]
        elif end is not None:
            raise BadInputError(f"{path}, line {number}: goes on after its last line")
        else:
            count += 1
    if head is None or head.get("format") != FORMAT:
        raise BadInputError(
            f"{path} is no file of messages", next_step="clusterkit queue dump and dlq drop make them"
        )
    if end not in (None, count):
        raise BadInputError(f"{path} should have {end} messages and has {count}: it is damaged")
    return Summary(head["cluster"], head["queue"], count, complete=end is not None)


def messages(path: Path) -> Iterator[Message]:
    """Yield the messages of a file, one in memory at a time.

    Raises:
        BadInputError: it is damaged.
    """
    for number, line in _lines(path):
        if number > 1 and _MESSAGES not in line:
            yield Message(
                base64.b64decode(line["body"]),
                _from_json(line["properties"]),
                _from_json(line["headers"]),
                line["exchange"],
                line["routing_key"],
            )


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, text in enumerate(file, 1):
                if not text.endswith("\n"):
                    return  # the writer was ended within it, and the message is still in its queue
                yield number, _parsed(text, f"{path}, line {number}")
    except OSError as error:
        raise BadInputError(f"{path} cannot be read: {error.strerror}") from error


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
        said = line.pop(_SUM)
    except (ValueError, KeyError, AttributeError, TypeError):
        raise BadInputError(f"{where}: is no line of a file of messages") from None
    if said != _checksum(line):
        raise BadInputError(f"{where}: is damaged: its checksum is another")
    return dict(line)


def _checksum(line: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(line, sort_keys=True).encode()).hexdigest()


#: AMQP's values that JSON does not have: type, name of the one key of the object in their place, both ways.
_KINDS: Final[tuple[tuple[tuple[type, ...], str, Callable[[Any], Any], Callable[[Any], Any]], ...]] = (
    (
        (bytes, bytearray, memoryview),
        "$bytes",
        lambda value: base64.b64encode(value).decode(),
        base64.b64decode,
    ),
    ((datetime,), "$time", datetime.isoformat, datetime.fromisoformat),
    ((Decimal,), "$decimal", str, Decimal),
    (
        (dict,),
        "$table",
        lambda value: [[_to_json(key), _to_json(item)] for key, item in value.items()],
        lambda pairs: {_from_json(key): _from_json(item) for key, item in pairs},
    ),
)


def _to_json(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_to_json(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) and not key.startswith("$") for key in value):
        return {key: _to_json(item) for key, item in value.items()}
    for types, key, write, _ in _KINDS:
        if isinstance(value, types):
            return {key: write(value)}
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    for _, key, _, read in _KINDS:
        if key in value:
            return read(value[key])
    return {key: _from_json(item) for key, item in value.items()}
