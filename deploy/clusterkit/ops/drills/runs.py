"""A run of one drill, all of them, or some by chance: refused or made, kept on disk, told."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from clusterkit.ops import addresses
from clusterkit.ops.drills import drill, report
from clusterkit.ops.drills.faults import Fault
from clusterkit.ops.drills.outcome import Run
from clusterkit.ops.errors import ClusterUnhealthyError, PreflightError
from clusterkit.ops.lock import alone
from clusterkit.ops.progress import Progress
from clusterkit.runtime.errors import ClusterkitError, InterruptedByUserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import Console

    from clusterkit.ops.drills.drill import Plan
    from clusterkit.ops.model import Cluster

ALL, RANDOM = "all", "random"
#: Drills of a random run.
_SOME: Final = 5


def refuse_unless_marked(cluster: Cluster) -> None:
    """Raise unless the cluster may be hurt.

    Raises:
        PreflightError: it may not.
    """
    if not cluster.drills:
        raise PreflightError(
            f"a drill kills processes and hosts of cluster {cluster.name!r}, and it is not marked for that",
            next_step=f"drills: true in {cluster.directory}/group_vars/all.yml, if nobody needs its tasks",
        )


def obstacles(cluster: Cluster) -> dict[Fault, str]:
    """Return why faults are not possible on ``cluster``."""
    return {fault: why for fault in Fault if (why := fault.value.obstacle(cluster))}


def chosen(name: str, seed: int, impossible: dict[Fault, str]) -> list[Fault]:
    """Return the faults that ``name`` means: a fault, `all`, or `random`, which the same seed repeats.

    Raises:
        BadInputError: there is no such drill.
        PreflightError: it is not possible here.
    """
    possible = [fault for fault in Fault if fault not in impossible]
    if name == ALL:
        return possible
    if name == RANDOM:
        return random.Random(seed).sample(possible, min(_SOME, len(possible)))  # noqa: S311 - to be repeated
    fault = Fault.of(name)
    if fault in impossible:
        raise PreflightError(f"the drill {name} is not possible here: {impossible[fault]}")
    return [fault]


def run(cluster: Cluster, name: str, plan: Plan, console: Console) -> tuple[Run, Path]:
    """Run the drills that ``name`` means, one after the other; return the run and its directory.

    Each is kept as soon as it has ended. One that went wrong is among the run's ``failed``. After one that
    left the cluster unhealthy there are no more.

    Raises:
        PreflightError: the cluster may not be hurt, or a drill is not possible on it.
        ClusterUnhealthyError: it is not healthy to begin with.
        InterruptedByUserError: Ctrl-C, or the terminal is gone; the fault was undone.
    """
    refuse_unless_marked(cluster)
    cluster = addresses.resolved(cluster)
    impossible = obstacles(cluster)
    faults = chosen(name, plan.seed, impossible)
    started = time.time()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(started))
    directory = cluster.state_dir / "drills" / f"{stamp}-{name}"
    directory.mkdir(parents=True)
    found = Run(
        name,
        cluster.name,
        cluster.celery_settings,
        plan.tasks,
        plan.rate,
        plan.seed,
        started,
        _machine(cluster),
        planned=tuple(fault.title for fault in faults),
        bulk=plan.bulk,
        skipped={fault.title: why for fault, why in impossible.items()} if name == ALL else {},
    )
    found.write(directory)
    with alone(cluster), _ends_as_by_ctrl_c():
        for number, fault in enumerate(faults, 1):
            title = f"drill {number} of {len(faults)} on {cluster.name}: {fault.title}"
            unhealthy = False
            try:
                with Progress(title, drill.PHASES, console) as progress:
                    ended = drill.run(cluster, fault, plan, directory, progress)
                found = replace(found, outcomes=(*found.outcomes, ended))
            except (KeyboardInterrupt, InterruptedByUserError):
                raise InterruptedByUserError(
                    f"interrupted in drill {number} of {len(faults)}, {fault.title}; its fault was undone",
                    next_step=f"{directory / report.REPORT} has the {number - 1} before it",
                ) from None
            except (ClusterkitError, *drill.AWAY) as error:  # the next may be possible all the same
                unhealthy = isinstance(error, ClusterUnhealthyError)
                if unhealthy and not found.outcomes:
                    raise
                found = replace(found, failed={**found.failed, fault.title: str(error)})
            finally:
                found.write(directory)
                report.write(found, directory)
            if unhealthy:
                break
    return found, directory


@contextlib.contextmanager
def _ends_as_by_ctrl_c() -> Iterator[None]:
    """Have a drill whose terminal is gone, or that is told to end, undo its fault first."""
    before = {
        number: signal.signal(number, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _machine(cluster: Cluster) -> str:
    hosts = len(cluster.hosts)
    where = "1 host" if hosts == 1 else f"{hosts} hosts"
    return f"{where}, {os.cpu_count()} cores in all" if not cluster.tls else where
