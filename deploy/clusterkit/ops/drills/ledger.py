"""The ledger of a drill: what became of every task, from what was noted down alone.

Pure functions over the producers' journal, the workers' notes, the dead letters and the results.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from clusterkit.ops.drills.journal import SPECIAL, task_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from clusterkit.ops.drills.executions import Execution
    from clusterkit.ops.drills.journal import Sent

#: A task counts as late when it waits longer than this times what 95 % waited before the fault, ...
_LATE_FACTOR: Final = 3
#: ... and longer than so many seconds.
_LATE_AT_LEAST: Final = 1.0

RECOVERY: Final = (
    "Time to recover: seconds from the end of the fault until the last late task was through and the last"
    " error reached a producer; late is a task that ends, its own work not counted, more than 1 s after it"
    " was sent, and more than 3 times what 95 % waited before the fault."
)


@dataclass(frozen=True)
class Window:
    """From when to when the fault lasted, in seconds since the epoch; begin and end are one for a blow."""

    begin: float
    end: float


@dataclass(frozen=True)
class Delays:
    """Seconds from sending to the first begin of an execution, over ``count`` tasks."""

    count: int
    p50: float
    p95: float
    longest: float


@dataclass(frozen=True)
class Ledger:
    """What became of the tasks. Numbers of tasks, unless said otherwise."""

    sent: int
    confirmed: int
    """The producer was told that the broker has it (stock Celery: that nothing went wrong)."""
    once: int
    """Executed once."""
    begun_again: int
    """Begun more than once, for instance because its worker died in the middle."""
    completed_again: int
    """Completed more than once: what tasks have to be idempotent for."""
    lost: tuple[int, ...]
    """Numbers of those that were confirmed, never completed, and are not in the dead letters."""
    dead: tuple[int, ...]
    """Numbers of those in the dead letters."""
    refused: int
    """The producer got an error."""
    errors: dict[str, int]
    """Which errors, and how often."""
    refused_but_ran: int
    unknown: int
    """Neither confirmed nor refused: the producer was killed in between."""
    unknown_but_ran: int
    results_missing: int
    """Completed, and without a result."""
    waiting: int
    """Messages that were still in the queues at the end: the drill gave up waiting for them."""
    delays: dict[str, Delays]
    """Of tasks sent before the fault, during it (until all had recovered), and after."""
    late_after: float
    """Seconds of waiting after which a task counts as late."""
    recovery: float
    """Seconds; see RECOVERY."""

    @property
    def well(self) -> bool:
        """Whether nothing is lost or left, and nothing but what a fault sent is in the dead letters."""
        return not self.lost and not self.waiting and all(number >= SPECIAL for number in self.dead)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-safe values."""
        return {**asdict(self), "lost": list(self.lost), "dead": list(self.dead)}

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> Ledger:
        """Read it from what `to_json` returned."""
        delays = {name: Delays(**each) for name, each in values["delays"].items()}
        return cls(
            **{**values, "lost": tuple(values["lost"]), "dead": tuple(values["dead"]), "delays": delays}
        )


def make(  # noqa: PLR0913 - what a drill left behind, each of another origin
    drill: str,
    sent: Mapping[int, Sent],
    executions: Iterable[Execution],
    *,
    dead_letters: Iterable[str],
    results: Iterable[str],
    window: Window,
    work: Callable[[int], float] = lambda _: 0.0,
    waiting: int = 0,
) -> Ledger:
    """Draw up the ledger of the drill ``drill``.

    ``dead_letters`` and ``results`` are ids of tasks; ``work`` returns for how many seconds a task works;
    ``waiting`` is the number of messages left in queues.
    """
    runs: dict[int, list[Execution]] = defaultdict(list)
    for execution in executions:
        if execution.number in sent:
            runs[execution.number].append(execution)
    completed = {
        number: count for number in sent if (count := sum(run.end is not None for run in runs[number]))
    }
    letters, there = set(dead_letters), set(results)
    dead = tuple(sorted(number for number in sent if task_id(drill, number) in letters))
    confirmed = {number for number, one in sent.items() if one.confirmed}
    refused = {number for number, one in sent.items() if one.error}
    unknown = {number for number, one in sent.items() if one.answered is None}
    late_after = max(_LATE_AT_LEAST, _LATE_FACTOR * _delays(sent, runs, window)["before"].p95)
    recovery = _recovery(sent, runs, window, late_after, work)
    return Ledger(
        sent=len(sent),
        confirmed=len(confirmed),
        once=sum(len(runs[number]) == 1 for number in completed),
        begun_again=sum(len(each) > 1 for each in runs.values()),
        completed_again=sum(count > 1 for count in completed.values()),
        lost=tuple(sorted(confirmed - completed.keys() - set(dead))),
        dead=dead,
        refused=len(refused),
        errors=dict(Counter(sent[number].error for number in sorted(refused)).most_common()),
        refused_but_ran=len(refused & completed.keys()),
        unknown=len(unknown),
        unknown_but_ran=len(unknown & completed.keys()),
        results_missing=sum(task_id(drill, number) not in there for number in completed),
        waiting=waiting,
        # A blow has no length of its own: what it does lasts until all have recovered.
        delays=_delays(sent, runs, Window(window.begin, window.end + recovery)),
        late_after=round(late_after, 3),
        recovery=recovery,
    )


def _delays(
    sent: Mapping[int, Sent], runs: Mapping[int, list[Execution]], window: Window
) -> dict[str, Delays]:
    found: dict[str, list[float]] = {"before": [], "during": [], "after": []}
    for number, one in sent.items():
        if runs[number]:
            first = min(run.begin for run in runs[number])
            found[_part(one.sent, window)].append(max(first - one.sent, 0))
    return {part: _summary(values) for part, values in found.items()}


def _part(at: float, window: Window) -> str:
    if at < window.begin:
        return "before"
    return "during" if at <= window.end else "after"


def _summary(values: list[float]) -> Delays:
    ordered = sorted(values)
    return Delays(
        len(ordered), percentile(ordered, 0.5), percentile(ordered, 0.95), round(max(ordered, default=0), 3)
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest of ``ordered`` that ``share`` of them do not exceed; 0 for none."""
    if not ordered:
        return 0.0
    return round(ordered[max(math.ceil(share * len(ordered)) - 1, 0)], 3)


def _recovery(
    sent: Mapping[int, Sent],
    runs: Mapping[int, list[Execution]],
    window: Window,
    late_after: float,
    work: Callable[[int], float],
) -> float:
    last = window.end
    for number, one in sent.items():
        if one.error and one.answered is not None:
            last = max(last, one.answered)
        ends = [run.end for run in runs[number] if run.end is not None]
        # What was sent before is late, too, when the fault interrupted it.
        if one.special or not ends or min(ends) < window.begin:
            continue
        if min(ends) - one.sent - work(number) > late_after:
            last = max(last, min(ends))
    return round(last - window.end, 1)
