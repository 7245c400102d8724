"""What the workers noted down of a drill's tasks, and which of its results are there."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from clusterkit.runtime import drill, results
from clusterkit.runtime.clusterfile import ClusterFile

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

#: Seconds a fail-over of the store may take while it is asked.
_PATIENCE: Final = 60.0
#: Notes and results asked for at once.
_SLICE: Final = 2_000


@dataclass(frozen=True)
class Execution:
    """One run of a task, by the clock of its worker; ``end`` is None while it runs, or for ever."""

    number: int
    task: str
    run: str
    node: str
    pid: int
    release: str
    redelivered: bool
    begin: float
    end: float | None = None


def collect(notes: Iterable[dict[str, Any]]) -> list[Execution]:
    """Return the executions that ``notes`` tell of, in order; a note that is there twice counts once."""
    found: dict[str, Execution] = {}
    for note in notes:
        known = found.get(note["run"])
        if note["what"] == "end" and known:
            found[note["run"]] = replace(known, end=note["at"])
            continue
        values = {name: note[name] for name in ("number", "task", "run", "node", "pid", "release")}
        # The note of a begin may be lost with a master; that of an end is not.
        end = note["at"] if note["what"] == "end" else (known.end if known else None)
        found[note["run"]] = Execution(**values, redelivered=note["redelivered"], begin=note["at"], end=end)
    return sorted(found.values(), key=lambda execution: execution.begin)


class Store:
    """The result store, as the operator reads it."""

    def __init__(self, operator_file: Path, drill_id: str) -> None:
        self._client = results.client(ClusterFile.load(operator_file), patience=_PATIENCE)
        self._drill = drill_id
        self._notes: list[dict[str, Any]] = []

    def executions(self) -> list[Execution]:
        """Return every execution noted down so far; asks only for what is new since the last time."""
        name = drill.key(self._drill)
        if self._client.llen(name) < len(self._notes):
            self._notes = []  # a new master that does not have the last of them: all from the start
        while found := self._client.lrange(name, len(self._notes), len(self._notes) + _SLICE - 1):
            self._notes += [json.loads(note) for note in found]
        return collect(self._notes)

    def results(self, tasks: list[str]) -> set[str]:
        """Return those of ``tasks`` that have a result in the store."""
        found: set[str] = set()
        for at in range(0, len(tasks), _SLICE):
            part = tasks[at : at + _SLICE]
            answers = self._client.mget([f"celery-task-meta-{task}" for task in part])
            found |= {task for task, answer in zip(part, answers, strict=True) if answer is not None}
        return found
