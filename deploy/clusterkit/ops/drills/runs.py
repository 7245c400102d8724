"""A run of one drill, all of them, or some by chance: refused or made, kept on disk, told."""

from __future__ import annotations

import os
import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from clusterkit.ops.drills import drill, report
from clusterkit.ops.drills.faults import Fault
from clusterkit.ops.drills.outcome import Run
from clusterkit.ops.errors import DeployError, PreflightError, ReleaseError
from clusterkit.ops.lock import alone
from clusterkit.ops.progress import Progress

if TYPE_CHECKING:
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

    Each is kept as soon as it has ended. One whose fault could not be caused or undone is among the run's
    ``failed``.

    Raises:
        PreflightError: the cluster may not be hurt, or a drill is not possible on it.
        ClusterUnhealthyError: it is not healthy, to begin with or after a drill.
    """
    refuse_unless_marked(cluster)
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
        bulk=plan.bulk,
        skipped={fault.title: why for fault, why in impossible.items()} if name == ALL else {},
    )
    with alone(cluster):
        for number, fault in enumerate(faults, 1):
            title = f"drill {number} of {len(faults)} on {cluster.name}: {fault.title}"
            try:
                with Progress(title, drill.PHASES, console) as progress:
                    ended = drill.run(cluster, fault, plan, directory, progress)
                found = replace(found, outcomes=(*found.outcomes, ended))
            except (DeployError, ReleaseError) as error:  # the next may be possible all the same
                found = replace(found, failed={**found.failed, fault.title: str(error)})
            found.write(directory)
            report.write(found, directory)
    return found, directory


def _machine(cluster: Cluster) -> str:
    hosts = len(cluster.hosts)
    where = "1 host" if hosts == 1 else f"{hosts} hosts"
    return f"{where}, {os.cpu_count()} cores in all" if not cluster.tls else where
