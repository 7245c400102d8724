"""Rolls a release out over the worker hosts, and back, without a gap: a canary first, then a share at a time.

A release is sent to every host and imported there before anything is switched. On each host the new worker
nodes run beside the old ones until they serve (role `worker`), so that capacity never falls. New task names
reach the workers before the clients: these are told at the end. Of names that go away they are told first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from clusterkit.ops import addresses, deployment, playbook, probing, releases, status, topology
from clusterkit.ops.errors import ClusterUnhealthyError, DeployError, ReleaseError
from clusterkit.ops.lock import alone, note
from clusterkit.ops.progress import Progress
from clusterkit.runtime.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from rich.console import Console

    from clusterkit.ops.broker import Queue
    from clusterkit.ops.deployment import Prepared
    from clusterkit.ops.model import Cluster
    from clusterkit.ops.releases import Entry
    from clusterkit.ops.status import NodeStatus

#: The share of the worker hosts that change at a time, unless said otherwise.
_SHARE: Final = 3
_GATE: Final = "Gate"
_SEND, _WORKERS, _SWITCH = "send", "workers", "switch"
#: The task of role release that lists what a host has.
_LIST: Final = "List the releases"


@dataclass(frozen=True)
class Way:
    """How a release goes over the hosts.

    ``canary`` is the host that gets it first (default: the first with worker nodes), ``serial`` how many get
    it at a time afterwards (default: a third of them). With ``allow_missing`` task names may go away.
    """

    canary: str = ""
    serial: int = 0
    allow_missing: bool = False


DEFAULT_WAY: Final = Way()


@dataclass(frozen=True)
class Rolled:
    """What a roll-out did: the release, the one before it, the hosts in their order, seconds taken."""

    release: str
    before: str
    batches: tuple[tuple[str, ...], ...]
    seconds: float
    nodes: tuple[NodeStatus, ...]


@dataclass(frozen=True)
class Known:
    """A release that a host has or that the record knows; ``hosts`` run it, ``installed`` could."""

    entry: Entry
    hosts: tuple[str, ...]
    installed: tuple[str, ...]
    current: bool


def release(cluster: Cluster, console: Console, *, source: str = "", way: Way = DEFAULT_WAY) -> Rolled:
    """Build the app, from ``source`` instead of the inventory's app_source if given, and roll it out.

    Raises:
        ReleaseError: it cannot be built or imported, lacks task names, or its workers do not serve. On every
            host that has not been through, the old release goes on.
        ClusterUnhealthyError: all hosts have it, and a worker node does not answer its probes.
        PreflightError, DeployError, BadInputError: as for ``deployment.up``.
    """
    built_from = cluster.model_copy(update={"app_source": source}) if source else cluster
    return _roll(built_from, console, way, _Goal("release", pinned=bool(source)))


def rollback(cluster: Cluster, console: Console, *, release_id: str = "", way: Way = DEFAULT_WAY) -> Rolled:
    """Go back to ``release_id``, or to the release before the newest, in the same way and without building.

    Raises:
        BadInputError: there is no such release.
        ReleaseError: as for ``release``; a task name may go away here unless messages wait in its queue.
        ClusterUnhealthyError: as for ``release``.
    """
    record = releases.Record.load(cluster)
    entry = record.find(release_id) if release_id else record.before()
    if entry is None:
        known = ", ".join(dict.fromkeys(one.id for one in record.entries)) or "none"
        what = f"no release {release_id!r} was rolled out" if release_id else "no release was before this one"
        raise BadInputError(
            f"{what} on cluster {cluster.name!r}; known: {known}", next_step="make cluster-releases"
        )
    built_from = cluster.model_copy(update={"app_source": entry.source})
    return _roll(built_from, console, way, _Goal("rollback", entry.id, pinned=True))


def roll(cluster: Cluster, console: Console, release_id: str) -> Rolled:
    """Roll out the release ``release_id``, which was built before.

    Raises:
        ReleaseError, ClusterUnhealthyError: as for ``release``.
    """
    return _roll(cluster, console, DEFAULT_WAY, _Goal("release", release_id))


def batches(
    workers: Sequence[str], idle: Collection[str], canary: str, serial: int
) -> tuple[tuple[str, ...], ...]:
    """Return the worker hosts in the order in which they change: the canary, then ``serial`` at a time.

    Those that run no worker node, ``idle``, come last: they would prove nothing.

    Raises:
        BadInputError: the canary is no worker, or runs no worker node.
    """
    working = [host for host in workers if host not in idle]
    if canary and canary not in working:
        what = "runs no worker node now" if canary in workers else "is no worker of this cluster"
        raise BadInputError(f"CANARY={canary} {what}", next_step=f"those that do: {', '.join(working)}")
    first = canary or next(iter(working), "")
    rest = [host for host in working if host != first]
    size = serial or max(len(working) // _SHARE, 1)
    shares = [tuple(rest[at : at + size]) for at in range(0, len(rest), size)]
    last = tuple(host for host in workers if host in idle)
    return tuple(hosts for hosts in ((first,) if first else (), *shares, last) if hosts)


@dataclass(frozen=True)
class _Goal:
    """What is rolled out: by which command, a release that is there already, and whether it is to stay."""

    how: releases.How
    release_id: str = ""
    pinned: bool = False


def _roll(cluster: Cluster, console: Console, way: Way, goal: _Goal) -> Rolled:
    cluster = addresses.resolved(cluster)
    workers = cluster.group("workers")
    idle = [host for host in workers if not cluster.nodes_on(host)]
    order = batches(workers, idle, way.canary, way.serial)
    names = [name for one in (_SEND, _WORKERS, _SWITCH) for name in playbook.phases(cluster, one)]
    names.insert(len(playbook.phases(cluster, _SEND)), _GATE)
    phases = [deployment.PREFLIGHT, deployment.BUILD, *names, deployment.PROBE]
    with (
        alone(cluster),
        Progress(f"cluster {cluster.name}: {goal.how}", phases, console) as progress,
    ):
        record = releases.Record.load(cluster)
        before, old_tasks = record.current, record.tasks() or releases.tasks_of_clients(cluster)
        ready = deployment.prepare(cluster, progress, goal.release_id)
        sent = playbook.run(cluster, _SEND, {**ready.variables, "cluster_release_sent": True}, progress)
        tasks = deployment.manifest(sent)
        progress.start(_GATE)
        _check_queues(cluster)
        if not way.allow_missing:
            _check_tasks(cluster, old_tasks, tasks, strict=goal.how == "release")
        record.begin(
            releases.new_entry(ready.built.id, goal.how, cluster.app_source, tasks, pinned=goal.pinned)
        )
        changed = _Names(releases.tasks_of_clients(cluster), old_tasks, tasks)
        _tell_first(cluster, ready, changed, progress)
        try:
            _hand_over(cluster, ready, order[0], progress)
        except DeployError as error:
            record.give_up()
            _take_back(cluster, ready, changed, before, progress)
            raise _canary_failed(ready.built.id, order[0], record.unfinished, error) from error
        _others(cluster, ready, order, progress)
        if not changed.only_gone:
            playbook.run(cluster, _SWITCH, ready.variables, progress)
        deployment.write_cluster_files(cluster, ready.keys, tasks)
        record.complete()
        _prove(cluster, progress)
        nodes = status.nodes(cluster, deployment.operator_app(cluster))
        return Rolled(ready.built.id, before.id if before else "", order, progress.seconds, nodes)


@dataclass(frozen=True)
class _Names:
    """Task names with their queues: those that clients know, those workers had so far, those of a release."""

    known: dict[str, str | None]
    old: dict[str, str | None]
    new: dict[str, str | None]

    @property
    def gone(self) -> bool:
        """Whether names go away: nobody may send them any more before the first host lacks them."""
        return bool(self.old.keys() - self.new.keys())

    @property
    def only_gone(self) -> bool:
        """Whether names go away and none is new, which schedulers may send only when all hosts have it."""
        return self.gone and self.new.keys() <= self.old.keys()

    def staying(self) -> dict[str, str | None]:
        """Return the names that clients know and may go on sending."""
        return {name: queue for name, queue in self.known.items() if name in self.new}


def _tell_first(cluster: Cluster, ready: Prepared, names: _Names, progress: Progress) -> None:
    """Have clients, and where it can be schedulers, send no task that the release lacks."""
    if names.gone:
        deployment.write_cluster_files(cluster, ready.keys, names.staying())
    if names.only_gone:
        playbook.run(cluster, _SWITCH, ready.variables, progress)


def _take_back(
    cluster: Cluster, ready: Prepared, names: _Names, before: Entry | None, progress: Progress
) -> None:
    """Undo ``_tell_first`` after a canary that failed."""
    if names.gone:
        deployment.write_cluster_files(cluster, ready.keys, names.known)
    if names.only_gone and before:
        earlier = {**ready.variables["cluster_release"], "id": before.id}
        playbook.run(cluster, _SWITCH, {**ready.variables, "cluster_release": earlier}, progress)


def _hand_over(cluster: Cluster, ready: Prepared, hosts: tuple[str, ...], progress: Progress) -> None:
    """Hand the worker nodes of ``hosts`` over."""
    playbook.run(cluster, _WORKERS, {**ready.variables, "cluster_batch": ",".join(hosts)}, progress)
    note(hosts, ready.built.id)


def _others(
    cluster: Cluster, ready: Prepared, order: tuple[tuple[str, ...], ...], progress: Progress
) -> None:
    """Hand over after the canary, batch after batch; the first that fails is the last."""
    done = [*order[0]]
    for hosts in order[1:]:
        try:
            _hand_over(cluster, ready, hosts, progress)
        except DeployError as error:
            raise _failed(cluster, ready.built.id, hosts, done, error) from error
        done += hosts


def _prove(cluster: Cluster, progress: Progress) -> None:
    """Probe every queue of every worker node, but those with messages.

    There a probe may take hours, and the hand-over has seen each new node begin one of them.

    Raises:
        ClusterUnhealthyError: a worker node did not answer.
    """
    progress.start(deployment.PROBE)
    with deployment.monitor(cluster) as broker:
        busy = {queue.name for queue in broker.queues().values() if queue.ready or queue.unacknowledged}
    app = deployment.operator_app(cluster)
    probes = probing.probe(app, cluster, deadline=deployment.PROBE_DEADLINE, report=progress.doing, but=busy)
    if not probes.complete:
        raise ClusterUnhealthyError(
            "\n  ".join(
                ["every host has the release, but not every node answered:", *probes.describe_missing()]
            ),
            next_step=f"make cluster-status CLUSTER={cluster.name}; cluster-logs says why;"
            " make cluster-rollback goes back",
        )


def _canary_failed(
    release_id: str, hosts: tuple[str, ...], unfinished: Entry | None, error: DeployError
) -> ReleaseError:
    next_step = "mend the app and run make cluster-release again"
    if unfinished:
        next_step += f"; make cluster-rollback takes back the hosts that run {unfinished.id}"
    return ReleaseError(
        f"release {release_id} does not serve on the canary {hosts[0]}, where the release before goes on;"
        f" no other host was touched:\n{error}",
        next_step=next_step,
    )


def _failed(
    cluster: Cluster, release_id: str, hosts: tuple[str, ...], done: list[str], error: DeployError
) -> ReleaseError:
    return ReleaseError(
        f"release {release_id} does not serve on {', '.join(hosts)}, where the release before goes on;"
        f" {', '.join(done)} run the new one:\n{error}",
        next_step=f"make cluster-rollback CLUSTER={cluster.name} takes {', '.join(done)} back;"
        " make cluster-release goes on with the others",
    )


def _check_queues(cluster: Cluster) -> None:
    """Refuse a release to queues that are in the inventory alone: a release declares none.

    Raises:
        ReleaseError: has their names.
    """
    with deployment.administrator(cluster) as broker:
        bindings = broker.definitions()["bindings"]
    reached = {binding["destination"] for binding in bindings if binding["source"] == topology.EXCHANGE}
    if missing := sorted(cluster.queues.keys() - reached):
        raise ReleaseError(
            f"the inventory has queues that the broker has not: {', '.join(missing)}",
            next_step=f"make cluster-up CLUSTER={cluster.name} declares them",
        )


def _check_tasks(
    cluster: Cluster, old: dict[str, str | None], new: dict[str, str | None], *, strict: bool
) -> None:
    """Refuse a release that lacks task names; unless ``strict`` only where messages may wait for them.

    Raises:
        ReleaseError: has each name with its queue, and how many messages are in there.
    """
    missing = {name: old[name] or cluster.default_queue for name in sorted(old.keys() - new.keys())}
    if not missing:
        return
    with deployment.monitor(cluster) as broker:
        queues = broker.queues()
    counts = {name: waiting(queues, queue) for name, queue in missing.items()}
    if not strict and not any(counts.values()):
        return
    lines = [
        f"{name}: queue {queue} holds {counts[name]} messages, delayed ones included"
        for name, queue in missing.items()
    ]
    raise ReleaseError(
        "\n  ".join([f"the release lacks {len(missing)} task names that clients may have sent:", *lines]),
        next_step="keep a task until nobody sends it and its queue is empty; ALLOW_MISSING=1 goes on, and"
        " messages for the missing go to the dead letters",
    )


def waiting(queues: dict[str, Queue], name: str) -> int:
    """Return how many messages may be for a task of queue ``name``: those in it, and all delayed ones."""
    counted = [
        queue for queue in queues.values() if queue.name == name or queue.name.startswith("celery_delayed_")
    ]
    return sum(queue.ready + queue.unacknowledged for queue in counted)


def known(cluster: Cluster) -> tuple[Known, ...]:
    """Return the releases of ``cluster``, the newest first, and where each is; hosts are asked."""
    record = releases.Record.load(cluster)
    here = _on_hosts(deployment.ask(cluster, "releases", {}).of(_LIST))
    current = record.current.id if record.current else ""
    newest = {entry.id: entry for entry in record.entries}
    return tuple(
        Known(
            entry,
            tuple(host for host, (_, processes) in here.get(entry.id, {}).items() if processes),
            tuple(here.get(entry.id, {})),
            entry.id == current,
        )
        for entry in sorted(newest.values(), key=lambda entry: entry.when, reverse=True)
    )


def _on_hosts(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, tuple[bool, int]]]:
    """Return release -> host -> whether `current` points at it there, and the processes that run it."""
    found: dict[str, dict[str, tuple[bool, int]]] = {}
    for host, result in sorted(results.items()):
        for line in result.get("stdout_lines", ()):
            name, current, processes = line.split()
            found.setdefault(name, {})[host] = (current == "yes", int(processes))
    return found


def show(rolled: Rolled, console: Console) -> None:
    """Print what runs now."""
    order = ", then ".join(" and ".join(hosts) for hosts in rolled.batches)
    console.print(
        f"[green]released[/]  {rolled.release} in {rolled.seconds:.0f} s: {order}"
        + (f" (before: {rolled.before})" if rolled.before else ""),
        highlight=False,
        soft_wrap=True,
    )
    for node in rolled.nodes:
        if node.retiring:
            console.print(
                f"          {node.celery_name} finishes {node.running} tasks of the release before",
                highlight=False,
            )
