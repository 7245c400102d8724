"""What the figures of a comparison say, in sentences; each follows from the figures and from nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from clusterkit.ops.compare.figures import MEGABYTE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from clusterkit.ops.compare.figures import Compared, Comparison, Figure

#: Within this part of the fastest a variant counts as fast as that one.
_CLOSE: Final = 0.9
#: Times the plain loop within which a variant counts as no faster.
_NO_FASTER: Final = 1.25
#: Of each core, at least, that a variant keeps busy that uses all.
_BUSY: Final = 0.75
#: Of one core, at most, that calls keep busy that mostly wait.
_WAITS: Final = 0.5


def sentences(comparison: Comparison) -> Iterator[str]:
    """Yield the sentences for each work that at least two variants did as the plain loop does."""
    compared = [work for work in comparison.works if len(work.sound) > 1]
    disturbed = [work for work in compared if not work.quiet]
    if disturbed:
        most = max(work.disturbed for work in disturbed)
        names = " and ".join(work.work for work in disturbed)
        yield (
            f"The machine was busy with something else: the plain loop waited up to {most:.0%} of its time"
            f" for a core. So nothing is said about who is fastest at {names};"
            " CPU time and memory hold."
        )
    for work in compared:
        rates = _rates(work, comparison.cores) if work.quiet else ()
        yield " ".join([f"{work.work}: {_bound(work)}.", *rates, *_price(work)])


def _rates(compared: Compared, cores: int) -> Iterator[str]:
    """Say who is fast, who is not, and what the fast ones take of memory."""
    ran = compared.sound
    fast = [figure for figure in ran if figure.rate >= _CLOSE * ran[0].rate]
    best = f"{_listed(fast)} {'are' if len(fast) > 1 else 'is'} fastest"
    yield f"{best}, {compared.times(fast[0]):.1f} times the plain loop{_cores(fast[0], cores)}."
    slow = [
        figure
        for figure in ran
        if figure not in fast and figure is not compared.plain and compared.times(figure) <= _NO_FASTER
    ]
    if slow:
        lowest, highest = f"{compared.times(slow[-1]):.1f}", f"{compared.times(slow[0]):.1f}"
        span = lowest if lowest == highest else f"{lowest} to {highest}"
        yield f"{_listed(slow)} {'gain' if len(slow) > 1 else 'gains'} little or nothing ({span} times)."
    small = min(fast, key=lambda figure: figure.memory)
    large = max(ran, key=lambda figure: figure.memory)
    if small is not large:
        yield (
            f"{'Of the fastest, ' if len(fast) > 1 else ''}{small.title} takes"
            f" {small.memory / MEGABYTE:.0f} MB, {large.title} {large.memory / MEGABYTE:.0f} MB."
        )


def _bound(compared: Compared) -> str:
    """Say what a call takes in the plain loop, and so what bounds it."""
    plain = compared.plain
    used = plain.processor * plain.calls
    share = used / max(plain.seconds - plain.queued, used)
    milliseconds = 1000 * (plain.seconds - plain.queued) / plain.calls
    if share <= _WAITS:
        bound = "mostly waits"
    elif share >= _BUSY:
        bound = "is bound by the processor"
    else:
        bound = "waits and computes"
    return f"a call takes {milliseconds:.1f} ms, {share:.0%} of it processor time, so it {bound}"


def _cores(fastest: Figure, cores: int) -> str:
    busy = fastest.cores
    return f", and {fastest.title} keeps {busy:.1f} of {cores} cores busy" if busy >= _BUSY else ""


def _price(compared: Compared) -> Iterator[str]:
    """Say what it costs that calls are messages: the best of Celery's against the plain loop."""
    celery = [figure for figure in compared.sound if figure.celery]
    if celery and celery[0].kind != "one at a time":
        best = celery[0]
        more = 1000 * (best.processor - compared.plain.processor)
        yield (
            f"{best.title} takes {more:.1f} ms of CPU a call more than the plain loop, and"
            f" {1000 * best.servers:.1f} ms in broker and result store."
        )


def _listed(figures: Iterable[Figure]) -> str:
    titles = [figure.title for figure in figures]
    return f"{', '.join(titles[:-1])} and {titles[-1]}" if len(titles) > 1 else titles[0]
