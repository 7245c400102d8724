"""What one drill found, and the files of a run."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from clusterkit.ops.drills.beats import Beats
from clusterkit.ops.drills.ledger import Ledger, Window, percentile
from clusterkit.runtime.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from clusterkit.ops.drills.executions import Execution
    from clusterkit.ops.drills.journal import Sent

RESULT: Final = "run.json"


@dataclass(frozen=True)
class Timeline:
    """The drill by the second, from ``begin`` (s since the epoch) on."""

    begin: float
    confirmed: tuple[int, ...]
    executed: tuple[int, ...]
    refused: tuple[int, ...]
    delay: tuple[float | None, ...]
    """By when a task was sent: seconds that 95 % of them waited to begin; None where nothing was sent."""


def timeline(sent: Mapping[int, Sent], executions: Iterable[Execution]) -> Timeline:
    """Count by the second."""
    begin = min((one.sent for one in sent.values()), default=0.0)
    runs = list(executions)
    confirmed: Counter[int] = Counter()
    refused: Counter[int] = Counter()
    executed = Counter(int(run.end - begin) for run in runs if run.end is not None and run.number in sent)
    first: dict[int, float] = {}
    for run in runs:
        first[run.number] = min(run.begin, first.get(run.number, run.begin))
    waited: dict[int, list[float]] = {}
    for number, one in sent.items():
        if one.answered is not None:
            (refused if one.error else confirmed)[int(one.answered - begin)] += 1
        if number in first:
            waited.setdefault(int(one.sent - begin), []).append(max(first[number] - one.sent, 0))
    length = max([*confirmed, *refused, *executed, *waited, 0]) + 1
    return Timeline(
        begin,
        tuple(confirmed[at] for at in range(length)),
        tuple(executed[at] for at in range(length)),
        tuple(refused[at] for at in range(length)),
        tuple(percentile(sorted(waited[at]), 0.95) if at in waited else None for at in range(length)),
    )


@dataclass(frozen=True)
class Outcome:
    """One fault, and what became of the tasks."""

    fault: str
    does: str
    sees: str
    done: tuple[str, ...]
    """What was done, with which targets."""
    window: Window
    ledger: Ledger
    timeline: Timeline
    healthy: float | None
    """Seconds from the end of the fault until `cluster-status` had no problem; None when it still had."""
    problems: tuple[str, ...]
    """What it then complained about."""
    beats: Beats | None = None

    @property
    def well(self) -> bool:
        """Whether nothing is lost and the cluster is healthy again."""
        return self.ledger.well and self.healthy is not None


@dataclass(frozen=True)
class Run:
    """A run of one or several drills; ``rate`` in tasks a second, ``tasks`` per drill."""

    name: str
    cluster: str
    settings: str
    """`no-loss`, or `stock`."""
    tasks: int
    rate: float
    seed: int
    started: float
    """Seconds since the epoch."""
    machine: str
    """What it ran on, in words."""
    outcomes: tuple[Outcome, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    """Faults that are not possible on the cluster, and why."""
    failed: dict[str, str] = field(default_factory=dict)
    """Drills that could not do what they should, and why."""
    planned: tuple[str, ...] = ()
    """The faults of the run, in their order."""
    bulk: bool = False
    """Whether tasks were sent as ``submit_many`` does."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Faults that were planned and not come to: the run was ended."""
        known = {*self.failed, *(outcome.fault for outcome in self.outcomes)}
        return tuple(fault for fault in self.planned if fault not in known)

    @property
    def well(self) -> bool:
        """Whether all drills were done and went well."""
        return not self.failed and not self.missing and all(outcome.well for outcome in self.outcomes)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-safe values."""
        outcomes = [{**asdict(each), "ledger": each.ledger.to_json()} for each in self.outcomes]
        return {**asdict(self), "well": self.well, "outcomes": outcomes}

    def write(self, directory: Path) -> None:
        """Write it to ``directory``."""
        text = json.dumps(self.to_json(), indent=1)
        (directory / RESULT).write_text(text + "\n", encoding="utf-8")


def read(directory: Path) -> Run:
    """Read the run in ``directory``.

    Raises:
        BadInputError: there is none.
    """
    path = directory if directory.suffix == ".json" else directory / RESULT
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        del values["well"]
        outcomes = tuple(_outcome(each) for each in values["outcomes"])
        return Run(**{**values, "outcomes": outcomes, "planned": tuple(values["planned"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInputError(
            f"{path} is no run of drills: {error}", next_step="clusterkit drill wrote it below .cluster/"
        ) from error


def _outcome(values: dict[str, Any]) -> Outcome:
    line: dict[str, Any] = {
        name: tuple(each) if isinstance(each, list) else each for name, each in values["timeline"].items()
    }
    return Outcome(
        **{
            **values,
            "done": tuple(values["done"]),
            "problems": tuple(values["problems"]),
            "window": Window(**values["window"]),
            "ledger": Ledger.of_json(values["ledger"]),
            "timeline": Timeline(**line),
            "beats": Beats(**values["beats"]) if values["beats"] else None,
        }
    )
