"""Where a playbook's time went, task by task."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from clusterkit.ops.tables import new_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

#: Tasks that a table has a line for; the others share one.
_LINES = 20


@dataclass(frozen=True)
class Ran:
    """A task on a host, from ``began`` to ``ended`` (seconds since the epoch)."""

    phase: str
    task: str
    host: str
    began: float
    ended: float
    uuid: str
    """Ansible's for the task: two of a phase may have one name."""

    @classmethod
    def of(cls, event: dict[str, Any]) -> Self:
        """Make one of the data of ansible-runner's event ``runner_on_ok``."""
        began, ended = (datetime.fromisoformat(event[key]).timestamp() for key in ("start", "end"))
        return cls(event["play"], event["task"], event["host"], began, ended, event["task_uuid"])


@dataclass(frozen=True)
class TaskTime:
    """A task on all hosts of a phase."""

    phase: str
    task: str
    hosts: int
    seconds: float
    """From its begin on the first host to its end on the last."""
    slowest: str
    """The host that ended last."""


def by_task(ran: Sequence[Ran]) -> list[TaskTime]:
    """Return what ran by task, in the order in which each was first begun."""
    found: dict[str, list[Ran]] = {}
    for each in sorted(ran, key=lambda each: each.began):
        found.setdefault(each.uuid, []).append(each)
    times = []
    for runs in found.values():
        first, last = runs[0], max(runs, key=lambda each: each.ended)
        hosts = len({each.host for each in runs})
        times.append(TaskTime(first.phase, first.task, hosts, last.ended - first.began, last.host))
    return times


def table(ran: Sequence[Ran], total: float) -> Table:
    """Return the tasks that took longest, and what is left of ``total`` seconds."""
    times = sorted(by_task(ran), key=lambda each: -each.seconds)
    shown = new_table("Where the time went", "phase", "task", "hosts", "s", "last on", right=("hosts", "s"))
    for each in times[:_LINES]:
        shown.add_row(each.phase, each.task, str(each.hosts), f"{each.seconds:.1f}", each.slowest)
    rest = sum(each.seconds for each in times[_LINES:])
    if len(times) > _LINES:
        shown.add_row("", f"{len(times) - _LINES} other tasks", "", f"{rest:.1f}", "")
    between = total - sum(each.seconds for each in times)
    shown.add_row("", "between tasks, and on this machine", "", f"{max(between, 0):.1f}", "")
    return shown
