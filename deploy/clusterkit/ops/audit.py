"""The record of what was done to a cluster: a line per changing command, kept on the control machine.

It lies beside the cluster's state directory, not in it, so that it outlives ``cluster destroy``: who took a
cluster away is what is asked most. Lines are only ever added. ``clusterkit.ops.lock`` writes them.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import socket
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, Self

from clusterkit.ops.tables import new_table
from clusterkit.runtime.errors import ClusterkitError, InterruptedByUserError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from rich.console import Console

    from clusterkit.ops.model import Cluster

#: `running` is shown of the command that holds the lock; in the file there are only the others. A command
#: that was killed could write nothing: the next one that takes the lock writes its line.
Result = Literal["running", "ok", "failed", "interrupted", "killed"]

_HIDDEN = "***"
_SECRET_OPTION = re.compile(r"(?i)^-{0,2}[\w-]*(password|passphrase|secret|token|credential|api-?key)[\w-]*$")
_LOGIN_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")


@dataclass
class Entry:
    """One changing command; ``since`` is ISO 8601 with the offset from UTC, ``seconds`` how long it took."""

    since: str
    who: str
    """The person, as `user@host`, where host is the control machine."""
    pid: int
    command: str
    """What was typed after `clusterkit`, without secrets."""
    outcome: Result = "running"
    code: int | None = None
    """What the command ended with; None while it runs, and when it was killed."""
    seconds: float | None = None
    hosts: list[str] = field(default_factory=list)
    """Hosts on which something was changed."""
    release: str = ""
    """The release that was deployed."""
    error: str = ""
    """The first line of what went wrong."""

    @classmethod
    def from_json(cls, text: str) -> Self | None:
        """Return the entry in ``text``; None when there is none, as in a line cut off by a full disk."""
        try:
            values = json.loads(text)
            return cls(**{name: value for name, value in values.items() if name in _FIELDS})
        except (ValueError, TypeError, AttributeError):
            return None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-safe values."""
        return asdict(self)

    def end(self, error: BaseException | None, seconds: float) -> None:
        """Note how the command ended."""
        self.seconds = round(seconds, 1)
        if error is None:
            self.outcome, self.code = "ok", 0
        elif isinstance(error, (KeyboardInterrupt, InterruptedByUserError)):
            self.outcome, self.code = "interrupted", InterruptedByUserError.exit_code
        else:
            self.outcome = "failed"
            self.code = error.exit_code if isinstance(error, ClusterkitError) else 1
            self.error = hide_logins(next(iter(str(error).splitlines()), type(error).__name__))

    def changed(self, hosts: Iterable[str] = (), release: str = "") -> None:
        """Note hosts on which something was changed, and the release that was deployed."""
        self.hosts = sorted({*self.hosts, *hosts})
        self.release = release or self.release


_FIELDS = {one.name for one in fields(Entry)}


def person() -> str:
    """Return who runs this, as `user@host`; behind sudo the person who typed it."""
    return f"{os.environ.get('SUDO_USER') or getpass.getuser()}@{socket.gethostname()}"


def without_secrets(arguments: list[str]) -> str:
    """Return a command's arguments as one line; passwords and the like, and logins in URLs, are hidden."""
    shown, hide = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if hide:
            shown.append(_HIDDEN)
        elif equals and _SECRET_OPTION.match(name):
            shown.append(f"{name}={_HIDDEN}")
        else:
            shown.append(hide_logins(argument))
        hide = not hide and not equals and argument.startswith("-") and bool(_SECRET_OPTION.match(argument))
    return " ".join(shown)


def hide_logins(text: str) -> str:
    """Return ``text`` without user and password of the URLs in it."""
    return _LOGIN_IN_URL.sub(_HIDDEN, text)


def path(cluster: Cluster) -> Path:
    """Return where the record of ``cluster`` is."""
    return cluster.state_dir.with_name(f"{cluster.name}.audit.jsonl")


def write(cluster: Cluster, entry: Entry) -> None:
    """Add a line to the record, in one write at its end: commands without the lock may do so at once."""
    descriptor = os.open(path(cluster), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry.to_json()) + "\n")


def entries(cluster: Cluster, last: int) -> list[Entry]:
    """Return the ``last`` entries, the oldest first."""
    lines: list[str] = []
    with contextlib.suppress(FileNotFoundError):
        lines = path(cluster).read_text(encoding="utf-8").splitlines()[-last:]
    return [entry for entry in map(Entry.from_json, lines) if entry]


def show(cluster: Cluster, found: list[Entry], console: Console) -> None:
    """Print entries as a table."""
    columns = ("when", "who", "command", "outcome", "took", "changed")
    table = new_table(f"Changes to cluster {cluster.name}", *columns, right=("took",))
    for name, column in zip(columns, table.columns, strict=True):
        column.no_wrap, column.overflow = name in {"when", "took"}, "fold"
    for entry in found:
        good = entry.outcome in {"ok", "running"}
        outcome = entry.outcome if entry.code in {0, None} else f"{entry.outcome} ({entry.code})"
        changed = ", ".join([*entry.hosts, *([f"release {entry.release}"] if entry.release else [])])
        table.add_row(
            entry.since[:19].replace("T", " "),
            entry.who,
            entry.command,
            f"[green]{outcome}[/]" if good else f"[red]{outcome}[/]",
            "" if entry.seconds is None else f"{entry.seconds:.0f} s",
            changed,
        )
    console.print(table)
