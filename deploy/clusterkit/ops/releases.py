"""The record of a cluster's releases, kept on the control machine: which ran when, and who rolled it out.

A file of JSON in the cluster's state directory, the newest last. Only who holds the cluster's lock writes.
"""

from __future__ import annotations

import getpass
import json
import socket
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal

from clusterkit.runtime.clusterfile import ClusterFile

if TYPE_CHECKING:
    from pathlib import Path

    from clusterkit.ops.model import Cluster

How = Literal["up", "release", "rollback"]

#: Entries that are kept.
_KEPT: Final = 100


@dataclass(frozen=True)
class Entry:
    """One roll-out: ``source`` is the app_source it was built from, ``tasks`` its task names with queues.

    ``complete`` says that every host got it; ``pinned``, that the inventory's app_source would give another.
    """

    id: str
    how: How
    when: str
    who: str
    source: str
    tasks: dict[str, str | None] = field(repr=False)
    pinned: bool = False
    complete: bool = True

    def why_pinned(self) -> str:
        """Return why `cluster-up` leaves this release alone, and what changes that."""
        return (
            f"the release stays {self.id}: {self.how} by {self.who}, {self.when}, from {self.source};"
            " make cluster-release deploys what app_source in the inventory says"
        )


class Record:
    """The releases of one cluster, oldest first."""

    def __init__(self, path: Path, entries: list[Entry]) -> None:
        self._path = path
        self.entries = entries
        self._before = entries

    @classmethod
    def load(cls, cluster: Cluster) -> Record:
        """Read the record; a cluster that was never brought up has an empty one."""
        path = cluster.state_dir / "releases.json"
        if not path.exists():
            return cls(path, [])
        return cls(path, [Entry(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))])

    @property
    def current(self) -> Entry | None:
        """The release that all hosts got last."""
        return next((entry for entry in reversed(self.entries) if entry.complete), None)

    @property
    def unfinished(self) -> Entry | None:
        """The release that some hosts got and others not, if the last one ended so."""
        return self.entries[-1] if self.entries and not self.entries[-1].complete else None

    def tasks(self) -> dict[str, str | None]:
        """Return the task names that some host knows, so that they may have been sent: name -> queue."""
        return {
            name: queue
            for entry in (self.current, self.unfinished)
            if entry
            for name, queue in entry.tasks.items()
        }

    def pinned(self, cluster: Cluster) -> Entry | None:
        """Return the current release if it is to stay whatever the inventory's app_source has by now.

        So does one that was gone back to, and one from another source, until the inventory names that source.
        """
        current = self.current
        if not current or not current.pinned:
            return None
        return None if current.how == "release" and current.source == cluster.app_source else current

    def before(self) -> Entry | None:
        """Return the release to go back to: the last that all hosts had before the newest."""
        newest = self.entries[-1].id if self.entries else ""
        return next(
            (entry for entry in reversed(self.entries) if entry.complete and entry.id != newest), None
        )

    def find(self, release_id: str) -> Entry | None:
        """Return the newest entry of a release."""
        return next((entry for entry in reversed(self.entries) if entry.id == release_id), None)

    def begin(self, entry: Entry) -> None:
        """Note that hosts begin to get a release."""
        self._before = self.entries
        self._drop_unfinished()
        self._write([*self.entries, replace(entry, complete=False)])

    def complete(self) -> None:
        """Note that every host has the release that was begun."""
        self._write([*self.entries[:-1], replace(self.entries[-1], complete=True)])

    def restore(self) -> None:
        """Write the record as it was when it was loaded: all hosts are back at the release they had then."""
        self._write(self.entries)

    def give_up(self) -> None:
        """Forget the release that was begun: no host has it, but some may have one that was begun before."""
        self._write(self._before)

    def deployed(self, release_id: str, how: How, source: str, tasks: dict[str, str | None]) -> None:
        """Note what all hosts run now, unless that is known already."""
        known = self.current if not self.unfinished else None
        if known and (known.id, known.pinned) == (release_id, False):
            return
        self._drop_unfinished()
        self._write([*self.entries, new_entry(release_id, how, source, tasks)])

    def stayed(self) -> None:
        """Note that all hosts run the current release, also those that had got another."""
        if self.unfinished:
            self._drop_unfinished()
            self._write(self.entries)

    def _drop_unfinished(self) -> None:
        self.entries = [entry for entry in self.entries if entry.complete]

    def _write(self, entries: list[Entry]) -> None:
        self.entries = entries[-_KEPT:]
        unfinished = self._path.with_suffix(".part")
        unfinished.write_text(
            json.dumps([asdict(entry) for entry in self.entries], indent=1), encoding="utf-8"
        )
        unfinished.replace(self._path)


def new_entry(
    release_id: str, how: How, source: str, tasks: dict[str, str | None], *, pinned: bool = False
) -> Entry:
    """Return an entry of this moment and this user."""
    who = f"{getpass.getuser()}@{socket.gethostname()}"
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return Entry(release_id, how, when, who, source, tasks, pinned)


def tasks_of_clients(cluster: Cluster) -> dict[str, str | None]:
    """Return the task names that clients of ``cluster`` know, and may have sent: name -> queue."""
    path = cluster.state_dir / "client.json"
    return ClusterFile.load(path).tasks if path.exists() else {}
