"""A comparison from beginning to end: the cluster for Celery's pools, the works, the report."""

from __future__ import annotations

import contextlib
import json
import os
import sysconfig
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from clusterkit.ops import deployment
from clusterkit.ops.compare import measure, reading, report, usage, works
from clusterkit.ops.compare.child import Child
from clusterkit.ops.compare.figures import Comparison, machine
from clusterkit.ops.compare.variants import chosen
from clusterkit.ops.progress import Progress
from clusterkit.runtime.errors import BadInputError
from tasks import comparison, comparison_app

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console

    from clusterkit.ops.compare.variants import Variant
    from clusterkit.ops.compare.works import Selection, Work
    from clusterkit.ops.model import Cluster

#: The app that a cluster to compare on runs.
APP: Final = "tasks.comparison_app:app"
#: Seconds the site to crawl may take to start.
_SITE_START: Final = 30.0


@dataclass(frozen=True)
class Wanted:
    """What a user asked for; ``function`` and ``arguments`` (JSON) are the reader's own, if any."""

    selection: Selection = "all"
    names: tuple[str, ...] = ()
    rounds: int = 3
    calls: int | None = None
    concurrency: int | None = None
    function: str = ""
    arguments: str = "[]"
    keep: bool = False


def run(cluster: Cluster, wanted: Wanted, console: Console) -> tuple[Comparison, Path]:
    """Compare, write the report; return what was found and the directory of the report.

    Raises:
        BadInputError: what is wanted is not possible.
        TaskFailedError: the function failed in a plain loop.
        PreflightError, ReleaseError, DeployError, ClusterUnhealthyError: Celery's cluster did not come up.
    """
    refuse_unless_for_it(cluster)
    variants = chosen(wanted.names)
    paths = _paths()
    comparison.add_paths(paths)
    mine = [works.own(wanted.function, wanted.arguments, wanted.calls)] if wanted.function else []
    cores = len(os.sched_getaffinity(0))
    setting = measure.Setting(wanted.rounds, cores, wanted.concurrency, paths, cluster)
    if mine and not wanted.calls and len(mine[0].calls) == 1:
        mine = [measure.sized(mine[0], setting)]
    started = time.time()
    with contextlib.ExitStack() as stack:
        on_cluster = any(variant.celery for variant in variants)
        brokers = stack.enter_context(_celery(cluster, wanted, console)) if on_cluster else {}
        planned = mine or stack.enter_context(_kits_own(wanted))
        if on_cluster:
            _allow(cluster, planned, setting.paths)
        names = [work.name for work in planned]
        progress = stack.enter_context(Progress(_title(variants, cores), names, console))
        found = []
        for work in planned:
            progress.start(work.name)
            found.append(measure.compare(work, variants, setting, progress))
    compared = Comparison(started, cores, wanted.rounds, machine(brokers), tuple(found))
    compared = replace(compared, reading=tuple(reading.sentences(compared)))
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(started))
    directory = cluster.state_dir / "compare" / stamp
    report.write(compared, directory)
    return compared, directory


def refuse_unless_for_it(cluster: Cluster) -> None:
    """Raise unless ``cluster`` is one to compare on: private to this machine, with the app for it."""
    if cluster.celery_app != APP or cluster.service_backend != "supervisor":
        raise BadInputError(
            f"cluster {cluster.name!r} is not one to compare on: that runs {APP} on this machine alone",
            next_step="leave CLUSTER out, and the cluster `compare` is used",
        )


def _title(variants: Sequence[Variant], cores: int) -> str:
    return f"compare {len(variants)} systems on {cores} {'core' if cores == 1 else 'cores'}"


def _paths() -> tuple[str, ...]:
    """Return where the reader's function and what it imports are found: here, and as for this command."""
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return (str(Path.cwd()), *filter(None, named), sysconfig.get_path("purelib"))


@contextlib.contextmanager
def _kits_own(wanted: Wanted) -> Iterator[list[Work]]:
    """Yield the kit's works; while it lasts the site to crawl is served."""
    cpu = works.cpu_works(wanted.calls) if wanted.selection != "io" else []
    if wanted.selection == "cpu":
        yield cpu
        return
    pages = wanted.calls or works.CALLS
    with Child("site", str(works.PAGE_DELAY), str(pages)) as site:
        yield [*cpu, works.crawl(site.line(_SITE_START), pages)]


def _allow(cluster: Cluster, planned: Sequence[Work], paths: Sequence[str]) -> None:
    """Let the cluster's workers call the functions of ``planned``, and nothing else."""
    allowed = {"functions": works.functions(planned), "paths": list(paths)}
    (cluster.home / comparison_app.ALLOWED_FILE).write_text(json.dumps(allowed), encoding="utf-8")


@contextlib.contextmanager
def _celery(cluster: Cluster, wanted: Wanted, console: Console) -> Iterator[dict[str, str]]:
    """Bring the cluster up with the concurrency that is wanted; stop it at the end unless it shall stay.

    Yields the versions of the servers.
    """
    if wanted.concurrency:
        nodes = tuple(
            node if node.pool == "solo" else node.model_copy(update={"concurrency": wanted.concurrency})
            for node in cluster.worker_nodes
        )
        cluster = cluster.model_copy(update={"worker_nodes": nodes})
    stayed = bool(usage.of_cluster(cluster))
    try:
        deployment.up(cluster, console)
        if stayed and wanted.function:
            # A worker keeps what it has imported: the function may have changed since.
            deployment.restart(cluster, [f"worker-{node.name}" for node in cluster.worker_nodes], console)
        with deployment.monitor(cluster) as broker:
            yield {"RabbitMQ": broker.version()}
    finally:
        (cluster.home / comparison_app.ALLOWED_FILE).unlink(missing_ok=True)
        if not wanted.keep:
            deployment.down(cluster, console)
