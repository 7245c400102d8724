"""Drains a queue into a file, and a file into a queue; every message is in one of the two at any time."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from clusterkit.ops import queuefiles
from clusterkit.ops.messaging import Publisher, Reader, check_queue, connected, interruptible
from clusterkit.ops.queuefiles import Writer, writing
from clusterkit.ops.topology import DEAD_LETTERS
from clusterkit.runtime.errors import BadInputError, InterruptedByUserError

if TYPE_CHECKING:
    from pathlib import Path

    from clusterkit.ops.messaging import Message
    from clusterkit.ops.model import Cluster

#: Messages written to the disk before the broker is told that they are taken.
_BATCH: Final = 500
#: Seconds without a message after which a queue that says it is empty is.
_SILENCE: Final = 1.0
#: Queues in which a message's place is what it says: elsewhere it would mean something else.
_NOT_TO_DUMP: Final = re.compile(r"celery_delayed_.*|celeryev.*|.*pidbox")

Report = Callable[[str], None]


def dump(cluster: Cluster, queue: str, path: Path, report: Report) -> int:
    """Take all messages out of ``queue`` into the new file ``path``; return how many.

    They are on the disk before the broker forgets them. Ended by force in between, those of the last 500
    are in the file and in the queue. Workers that consume from the queue go on and take their share.

    Raises:
        BadInputError: there is no such queue or it is Celery's own; there is such a file.
        InterruptedByUserError: the file is complete for what was taken; the rest is in the queue.
    """
    if _NOT_TO_DUMP.fullmatch(queue):
        raise BadInputError(
            f"{queue!r} is Celery's own: its messages are on their way to another queue",
            next_step="make cluster-status lists the queues",
        )
    with connected(cluster) as connection:
        check_queue(connection, queue)
        # The file first: a message that is taken and returned has used up one of its deliveries.
        with (
            Writer(path, cluster.name, queue) as file,
            Reader(connection, queue, window=2 * _BATCH) as reader,
            interruptible() as interrupted,
        ):
            taken = _drain(reader, file, interrupted, report)
    if interrupted():
        raise InterruptedByUserError(
            f"{taken} messages are in {path}, the others in queue {queue}",
            next_step="the rest goes to another file",
        )
    return taken


def _drain(reader: Reader, file: Writer, interrupted: Callable[[], bool], report: Report) -> int:
    taken, last = 0, None
    while not interrupted():
        message = reader.next(_SILENCE)
        if message:
            file.add(message)
            taken, last = taken + 1, message
        if last and (message is None or taken % _BATCH == 0):
            _settle(reader, file, last)
            last = None
            report(f"{taken} messages, {reader.left()} left")
        if message is None and not reader.left():
            break
    if last:
        _settle(reader, file, last)
    return taken


def _settle(reader: Reader, file: Writer, last: Message) -> None:
    file.sync()
    reader.remove(last, all_before=True)


@dataclass(frozen=True)
class Loaded:
    """What a load did: messages put into ``queue`` now, and by earlier runs of the same load."""

    queue: str
    now: int
    before: int
    complete: bool
    """Whether the file had its last line; without it, its last messages may be in their queue, too."""


def load(cluster: Cluster, path: Path, queue: str, report: Report, *, force: bool = False) -> Loaded:
    """Put the messages of the file ``path`` into ``queue`` ("": where they came from), each confirmed.

    How far it came is kept beside the file, so that the same load, run again, goes on there. Not known to
    it is the one message that was confirmed when it was ended by force, and after a power cut those of the
    moment before: these are then sent twice.

    Raises:
        BadInputError: the file is damaged, or breaks off and there is no ``force`` (nothing was sent); there
            is no such queue; all of the file was loaded already, or another command is loading it.
        PublishTimeoutError: the queue is full, or the broker holds publishers back.
        InterruptedByUserError: the rest is still to be loaded.
    """
    report("checking the file")
    summary = queuefiles.check(path)
    if not (summary.complete or force):
        raise BadInputError(
            f"{path} breaks off: what wrote it was ended by force, and its last messages may have stayed in"
            f" queue {summary.queue} of cluster {summary.cluster!r}, too",
            next_step="look there; --force (FORCE=1) loads all of it, and what is in both then runs twice",
        )
    queue = queue or summary.queue
    with connected(cluster) as connection:
        publisher = Publisher(connection, cluster)
        check_queue(connection, queue)
        with _Progress(path, cluster.name, queue) as progress, interruptible() as interrupted:
            before = progress.confirmed
            if summary.messages and before >= summary.messages:
                raise BadInputError(
                    f"all {before} messages of {path} were put into {queue} already",
                    next_step=f"remove {progress.path} to put them there once more",
                )
            for number, message in enumerate(queuefiles.messages(path), 1):
                if number <= before:
                    continue
                if interrupted():
                    raise InterruptedByUserError(
                        f"{number - 1} of {summary.messages} messages of {path} are in queue {queue}",
                        next_step="the same command goes on",
                    )
                publisher.publish(message if queue == DEAD_LETTERS else message.without_deaths(), queue)
                progress.keep(number)
                report(f"{number} of {summary.messages} messages")
    return Loaded(queue, summary.messages - before, before, summary.complete)


class _Progress:
    """How many messages of a file a cluster's queue has: one line in a file beside it, written after each.

    The kernel's lock on that file (flock) keeps a second load out, which would send all of it once more.
    """

    def __init__(self, path: Path, cluster: str, queue: str) -> None:
        self._file = path
        self._what = {"cluster": cluster, "queue": queue, "file": _head(path)}
        self.path = path.with_name(f"{path.name}.loaded")
        self.confirmed = 0
        self._synced = 0.0

    def __enter__(self) -> Self:
        with writing(self.path):
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                self._lock()
                self.confirmed = self._read()
            except BaseException:
                os.close(self._handle)
                raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with writing(self.path):
                os.fsync(self._handle)
        finally:
            os.close(self._handle)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInputError(
                f"another command is loading {self._file}", next_step="wait for it to end"
            ) from None

    def _read(self) -> int:
        text = os.pread(self._handle, 10_000, 0)
        if not text:
            return 0
        try:
            kept = json.loads(text)
            confirmed = int(kept.pop("confirmed"))
        except (ValueError, KeyError, AttributeError):
            kept, confirmed = None, 0
        if kept != self._what:
            raise BadInputError(
                f"{self.path} tells of a load of this file into another cluster or queue",
                next_step=f"finish that one, or remove {self.path}: what it loaded is then loaded again",
            )
        return confirmed

    def keep(self, confirmed: int) -> None:
        """Note that so many messages of the file are in the queue."""
        # Of one length, so that it is replaced by one write.
        line = json.dumps({**self._what, "confirmed": f"{confirmed:12}"}) + "\n"
        with writing(self.path):
            os.pwrite(self._handle, line.encode(), 0)
            if time.monotonic() - self._synced >= 1:
                os.fsync(self._handle)
                self._synced = time.monotonic()


def _head(path: Path) -> str:
    """Return what tells one file of messages from another: its first line has the moment it was made."""
    with path.open("rb") as file:
        return hashlib.sha256(file.readline()).hexdigest()
