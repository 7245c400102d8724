"""Has every variant do the same work, in rounds, one variant at a time while the others idle."""

from __future__ import annotations

import contextlib
import json
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from clusterkit.ops.compare import usage, works
from clusterkit.ops.compare.child import Child, ChildError
from clusterkit.ops.compare.figures import Compared, Figure
from clusterkit.ops.compare.variants import PLAIN, VARIANTS, Variant
from clusterkit.runtime.errors import TaskFailedError
from tasks.comparison_app import CALL

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psutil

    from clusterkit.ops.compare.works import Work
    from clusterkit.ops.model import Cluster
    from clusterkit.ops.progress import Progress

#: Seconds a variant has for a round: at least, and as many times the plain loop's; and for a first call.
_PATIENCE: Final = 60.0
_PATIENCE_TIMES: Final = 10.0
_FIRST_PATIENCE: Final = 600.0


@dataclass(frozen=True)
class Setting:
    """What all variants have in common: ``paths`` are where the reader's function is imported from."""

    rounds: int
    cores: int
    concurrency: int | None
    paths: tuple[str, ...]
    cluster: Cluster


@dataclass
class _Place:
    """Where a variant works, and what it took there in each round; or why it cannot."""

    variant: Variant
    child: Child
    nodes: list[int]
    servers: list[int]
    seconds: list[float] = field(default_factory=list)
    queued: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    server_processor: list[float] = field(default_factory=list)
    memory: int = 0
    digests: list[str] = field(default_factory=list)
    problem: str = ""

    def own(self) -> list[psutil.Process]:
        """Return the processes that are the variant's alone: the one that calls, and those that work."""
        return [process for pid in (self.child.pid, *self.nodes) for process in usage.tree(pid)]

    def shared(self) -> list[psutil.Process]:
        """Return the broker and the result store, if the variant needs them."""
        return [process for pid in self.servers for process in usage.tree(pid)]


def compare(work: Work, variants: Sequence[Variant], setting: Setting, progress: Progress) -> Compared:
    """Have ``variants``, of which the plain loop is the first, do ``work``.

    Raises:
        TaskFailedError: the plain loop could not: then there is nothing to compare with.
    """
    with contextlib.ExitStack() as stack:
        places = []
        for variant in variants:
            progress.doing(f"{variant.title}: making ready")
            places.append(_make_ready(variant, work, setting, stack))
        plain = places[0]
        for number in range(1, setting.rounds + 1):
            for place in places:
                progress.doing(f"round {number} of {setting.rounds}: {place.variant.title}")
                _measure(place, _patience(plain))
            _refuse_failed(plain, work)
            progress.done(f"{work.name}, round {number} of {setting.rounds}")
        for place in places:
            _look_at_results(place, plain)
        _refuse_failed(plain, work)
        figures = tuple(_figure(place, work, setting) for place in places)
    return Compared(work.name, work.limit, work.what, figures)


def sized(work: Work, setting: Setting) -> Work:
    """Return ``work`` with as many calls as make a comparison, after a first call of it.

    Raises:
        TaskFailedError: the call failed.
    """
    with contextlib.ExitStack() as stack:
        place = _make_ready(VARIANTS[0], work, setting, stack)
        _measure(place, _FIRST_PATIENCE)
        _refuse_failed(place, work)
        return work.filled(works.own_count(place.seconds[0] / len(work.calls)))


def _make_ready(variant: Variant, work: Work, setting: Setting, stack: contextlib.ExitStack) -> _Place:
    child = stack.enter_context(Child("runner"))
    cluster = setting.cluster
    place = _Place(
        variant,
        child,
        usage.of_node(cluster, variant.name) if variant.celery else [],
        usage.of_servers(cluster) if variant.celery else [],
    )
    job = {
        "variant": variant.name,
        "function": work.function,
        "calls": work.calls,
        "at_once": variant.at_once(setting.cores, setting.concurrency),
        "paths": setting.paths,
        "client_file": str(cluster.state_dir / "client.json"),
        "task": CALL,
        "queue": variant.name,
    }
    child.tell(json.dumps(job))
    try:
        child.ask("warm", _FIRST_PATIENCE)
    except ChildError as error:
        place.problem = str(error)
    return place


def _measure(place: _Place, patience: float) -> None:
    if place.problem:
        return
    try:
        shared = usage.processor_seconds(place.shared())
        with usage.Usage(place.own) as own:
            answer = place.child.ask("run", patience)
        shared = usage.processor_seconds(place.shared()) - shared
    except ChildError as error:
        place.problem = str(error)
        return
    place.seconds.append(answer["seconds"])
    place.queued.append(answer["queued"])
    place.processor.append(own.seconds)
    place.server_processor.append(max(shared, 0.0))
    place.memory = max(place.memory, own.peak)


def _patience(plain: _Place) -> float:
    return max(_PATIENCE, _PATIENCE_TIMES * max(plain.seconds)) if plain.seconds else _FIRST_PATIENCE


def _look_at_results(place: _Place, plain: _Place) -> None:
    """Note what the results of the last round are, and if they are not the plain loop's."""
    if place.problem:
        return
    try:
        place.digests = place.child.ask("digests", _PATIENCE)["digests"]
    except ChildError as error:
        place.problem = f"a result is not JSON: {error}"
        return
    if len(place.digests) != len(plain.digests):
        place.problem = f"{len(place.digests)} results, not the plain loop's {len(plain.digests)}"
        return
    pairs = zip(place.digests, plain.digests, strict=True)
    differ = [number for number, (own, expected) in enumerate(pairs) if own != expected]
    if differ:
        count = f"{len(differ)} of {len(plain.digests)} results"
        place.problem = f"{count} differ from the plain loop's, that of call {differ[0] + 1} first"


def _refuse_failed(plain: _Place, work: Work) -> None:
    if plain.problem and plain.variant.name == PLAIN:
        raise TaskFailedError(
            f"{work.function} failed in a plain loop: {plain.problem}",
            next_step="there is nothing to compare with then: correct the function, or ARGS",
        )


def _figure(place: _Place, work: Work, setting: Setting) -> Figure:
    variant, calls = place.variant, len(work.calls)
    at_once = variant.at_once(setting.cores, setting.concurrency)
    if not place.seconds:
        return Figure(variant.name, variant.title, variant.kind, at_once, calls, problem=place.problem)
    return Figure(
        variant.name,
        variant.title,
        variant.kind,
        at_once,
        calls,
        seconds=statistics.median(place.seconds),
        processor=statistics.median(place.processor) / calls,
        servers=statistics.median(place.server_processor) / calls,
        queued=statistics.median(place.queued),
        memory=place.memory,
        problem=place.problem,
    )
