"""One changing command at a time on a cluster, and a line of each in its record.

Commands that only move messages leave a line as well, at any time.

The lock is the kernel's (flock): it is gone with the process that held it, however that ended, so there is
never a stale one to remove. What the file holds says who has it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import time
from contextvars import ContextVar
from datetime import datetime
from typing import IO, TYPE_CHECKING, Final

from clusterkit.ops import audit
from clusterkit.ops.audit import Entry
from clusterkit.ops.errors import PreflightError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from clusterkit.ops.model import Cluster

_FILE: Final = "lock"
#: What the command that holds the lock will leave in the record.
_entry: ContextVar[Entry | None] = ContextVar("entry", default=None)


@contextlib.contextmanager
def alone(cluster: Cluster) -> Iterator[Entry]:
    """Keep two commands from changing a cluster at the same time; leave a line of this one in its record.

    Yields what the record will say, so that the command may add to it; playbooks add the hosts they changed.
    Within itself it does nothing: a command may be made of others.

    Raises:
        PreflightError: another one is at it; the message says who, since when and with what.
    """
    held = _entry.get()
    if held:
        yield held
        return
    cluster.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (cluster.state_dir / _FILE).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _taken(cluster, _read(file)) from None
        _record_killed(cluster, _read(file))
        entry = _this_command()
        _write(file, json.dumps(entry.to_json()))
        try:
            with _recorded(cluster, entry):
                token = _entry.set(entry)
                try:
                    yield entry
                finally:
                    _entry.reset(token)
        finally:
            _write(file, "")  # whatever is still there when the lock is free, its command was killed


@contextlib.contextmanager
def recorded(cluster: Cluster) -> Iterator[None]:
    """Leave a line in the record of a command that moves messages, without keeping others from the cluster.

    Messages have to be moved just when a release or a drain goes on for hours, and neither has to wait for a
    dump. A command that is killed leaves no line: nobody else looks after one without the lock.
    """
    with _recorded(cluster, _this_command()):
        yield


def _this_command() -> Entry:
    return Entry(
        since=datetime.now().astimezone().isoformat(timespec="seconds"),
        who=audit.person(),
        pid=os.getpid(),
        command=audit.without_secrets(sys.argv[1:]),
    )


@contextlib.contextmanager
def _recorded(cluster: Cluster, entry: Entry) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    except BaseException as error:
        entry.end(error, time.monotonic() - began)
        raise
    else:
        entry.end(None, time.monotonic() - began)
    finally:
        audit.write(cluster, entry)


def note(hosts: Iterable[str] = (), release: str = "") -> None:
    """Add to what the record will say of the command that holds the lock; nothing without one."""
    entry = _entry.get()
    if entry:
        entry.changed(hosts, release)


def holder(cluster: Cluster) -> Entry | None:
    """Return the command that is changing ``cluster`` now; None when there is none."""
    try:
        file = (cluster.state_dir / _FILE).open("r+", encoding="utf-8")
    except FileNotFoundError:
        return None
    with file:
        entry = _read(file)
        try:
            # Only where somebody is named, or a look would now and then get in the way of a change.
            if entry:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return entry
    return None


def _taken(cluster: Cluster, other: Entry | None) -> PreflightError:
    if other is None:  # between taking the lock and saying so
        return PreflightError(
            f"another command has just begun to change cluster {cluster.name!r}",
            next_step="wait for it to end",
        )
    return PreflightError(
        f"another command is changing cluster {cluster.name!r}: {other.who} since {other.since},"
        f" process {other.pid}: clusterkit {other.command}",
        next_step=f"wait for it to end; to end it: Ctrl-C in its terminal, or kill -INT {other.pid}",
    )


def _record_killed(cluster: Cluster, earlier: Entry | None) -> None:
    """Record a command that took the lock and did not live to say how it ended."""
    if earlier:
        earlier.outcome = "killed"
        audit.write(cluster, earlier)


def _read(file: IO[str]) -> Entry | None:
    file.seek(0)
    return Entry.from_json(file.read())


def _write(file: IO[str], text: str) -> None:
    file.truncate(0)
    file.write(text)
    file.flush()
