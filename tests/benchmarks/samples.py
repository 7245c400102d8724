"""Samples, pairs of them, and what is said about them: pure functions."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One measurement of one system."""

    value: float
    """What the workload is about, in its unit: tasks a second, mostly."""
    cpu: float
    """Microseconds of user and system time a task, of the publisher or of all worker processes."""
    broker: float
    """The same of the broker."""
    figures: dict[str, float] = field(default_factory=dict)
    """What else a workload measures, by name."""


@dataclass(frozen=True)
class Pair:
    """A peer and the system it is compared with, measured one right after the other."""

    peer: str
    reference: Sample
    other: Sample


@dataclass(frozen=True)
class Turn:
    """Whom to measure now: the reference and a peer, in this order."""

    peer: str
    order: tuple[str, str]


def turns(reference: str, peers: Sequence[str], repeats: int) -> Iterator[Turn]:
    """Yield every pair as often as asked; each round begins with the other half of the pair.

    So neither gains from a machine that gets slower or faster meanwhile, nor from being the second.
    """
    for number in range(repeats):
        for peer in peers:
            order = (reference, peer) if number % 2 == 0 else (peer, reference)
            yield Turn(peer, order)


@dataclass(frozen=True)
class Row:
    """A system's medians, and how the reference's pairs with it came out."""

    name: str
    value: float
    lowest: float
    highest: float
    cpu: float
    broker: float
    figures: dict[str, float]
    ratio: float | None
    """Median of the reference's value / this one's, pair by pair; None of the reference itself."""
    samples: int


@dataclass(frozen=True)
class Table:
    """The result of a workload."""

    bench: str
    title: str
    unit: str
    """Of the values: messages/s, tasks/s, calls/s or ms."""
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    guarantees: dict[str, str]
    """By system."""
    seconds: float = 0.0
    """How long it took to measure."""
    logarithmic: bool = False
    """Whether the picture's first bars are: their values are too far apart."""
    cpu_of: str = "a task"
    """What the microseconds are of."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-safe values."""
        return asdict(self)


def rows(reference: str, pairs: Sequence[Pair]) -> tuple[Row, ...]:
    """Return the reference's row, and one for each peer in the order in which they were first measured."""
    peers = list(dict.fromkeys(pair.peer for pair in pairs))
    return (
        row(reference, [pair.reference for pair in pairs]),
        *(row(peer, [pair.other for pair in own], own) for peer in peers for own in [_of(peer, pairs)]),
    )


def _of(peer: str, pairs: Sequence[Pair]) -> list[Pair]:
    return [pair for pair in pairs if pair.peer == peer]


def row(name: str, samples: Sequence[Sample], pairs: Sequence[Pair] = ()) -> Row:
    """Return what ``samples`` of a system say, and ``pairs`` with the reference."""
    values = [sample.value for sample in samples]
    return Row(
        name=name,
        value=statistics.median(values),
        lowest=min(values),
        highest=max(values),
        cpu=statistics.median(sample.cpu for sample in samples),
        broker=statistics.median(sample.broker for sample in samples),
        figures={
            figure: statistics.median(sample.figures[figure] for sample in samples)
            for figure in samples[0].figures
        },
        ratio=_median_ratio([(pair.reference.value, pair.other.value) for pair in pairs]),
        samples=len(samples),
    )


def _median_ratio(values: Sequence[tuple[float, float]]) -> float | None:
    ratios = [mine / other for mine, other in values if other]
    return statistics.median(ratios) if ratios else None


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of ``values`` that ``share`` (0 to 1) of them do not exceed: nearest rank."""
    ordered = sorted(values)
    return ordered[max(-(-len(ordered) * round(share * 100) // 100) - 1, 0)]
