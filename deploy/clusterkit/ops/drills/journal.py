"""What a producer of a drill did, noted down as it does it: one line of JSON an event, appended at once.

    ["intent", 17, 1763800000.12, "cpu"]      about to publish task 17
    ["confirmed", 17, 1763800000.13]          the publish came back without an error
    ["refused", 17, 1763800015.2, "PublishTimeoutError", "the broker did not confirm ..."]

An intent that nothing follows is a task of which nobody knows: the producer was killed in between.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pathlib import Path

#: Numbers from here on are messages that a fault sent, not the load.
SPECIAL = 1_000_000_000


def id_prefix(drill: str) -> str:
    """Return what the ids of the drill's tasks begin with."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, drill))[:24]


def task_id(drill: str, number: int) -> str:
    """Return the id of the drill's task ``number``, as long as Celery's are: bulk submission needs that."""
    return f"{id_prefix(drill)}{number:012d}"


class Journal:
    """Appends to the file at ``path``.

    A line is one system call, so that what was claimed is in the file even when the process is killed, and
    lines of several threads and processes do not mix.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def intent(self, number: int, queue: str) -> None:
        """Say that a task is about to be published."""
        self._write("intent", number, time.time(), queue)

    def confirmed(self, number: int) -> None:
        """Say that its publish came back without an error."""
        self._write("confirmed", number, time.time())

    def refused(self, number: int, error: Exception) -> None:
        """Say that the producer got an error instead."""
        self._write("refused", number, time.time(), type(error).__name__, str(error))

    def _write(self, *event: Any) -> None:
        os.write(self._file, json.dumps(event).encode() + b"\n")


@dataclass(frozen=True)
class Sent:
    """One task as its producer saw it; times in s since the epoch, ``answered`` None without an answer."""

    number: int
    queue: str
    sent: float
    answered: float | None = None
    error: str = ""
    message: str = ""

    @property
    def confirmed(self) -> bool:
        """Whether the publish came back without an error."""
        return self.answered is not None and not self.error

    @property
    def special(self) -> bool:
        """Whether a fault sent it, not the load."""
        return self.number >= SPECIAL


def is_intent(line: bytes) -> bool:
    """Whether a line of a journal says that a task is about to be published."""
    return line.startswith(b'["intent"')


def unanswered(path: Path) -> set[int]:
    """Return the numbers of the tasks whose publish has no answer yet, or never got one."""
    return {number for number, one in read(path).items() if one.answered is None}


def read(path: Path) -> dict[int, Sent]:
    """Return every task in the journal at ``path`` by number; a last line that was cut off does not count."""
    found: dict[int, Sent] = {}
    for line in path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else ():
        kind, number, at, *more = json.loads(line)
        if kind == "intent":
            found[number] = Sent(number, more[0], at)
        else:
            before = found[number]
            error, message = more or ("", "")
            found[number] = Sent(number, before.queue, before.sent, at, error, message)
    return found
