"""One drill: load, fault, the wait for the end, the ledger."""

from __future__ import annotations

import contextlib
import functools
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import redis.exceptions
from amqp.exceptions import AMQPError
from kombu.exceptions import OperationalError

from clusterkit.ops import deployment
from clusterkit.ops.drills import beats, deadletters, journal, ledger, outcome
from clusterkit.ops.drills.executions import Store
from clusterkit.ops.drills.journal import Journal
from clusterkit.ops.drills.load import Options, Sender, seconds
from clusterkit.ops.drills.onhosts import Hosts
from clusterkit.ops.drills.producer import Producer
from clusterkit.ops.drills.scene import Scene
from clusterkit.ops.errors import ClusterUnhealthyError, DeployError
from clusterkit.runtime.errors import ClusterUnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from clusterkit.ops.drills.executions import Execution
    from clusterkit.ops.drills.faults import Fault
    from clusterkit.ops.drills.outcome import Outcome
    from clusterkit.ops.model import Cluster
    from clusterkit.ops.progress import Progress

LOAD, FAULT, END, HEALTH, LEDGER = "Load", "Fault", "Wait for the end", "Wait for health", "Ledger"
PHASES: Final = (LOAD, FAULT, END, HEALTH, LEDGER)

#: The fault comes when this share of the tasks is sent, but not before or after so many seconds.
_BEFORE, _BEFORE_SECONDS = 0.25, (3.0, 15.0)
#: Seconds for which the load goes on after the fault, at least: or nobody sees what it left behind.
_AFTER: Final = 5.0
#: Seconds that tasks may take to be through once the load has ended, poison among them.
_SETTLE: Final = 300.0
#: Seconds without a new note, with empty queues, after which nothing more is to come; what the broker counts
#: is up to five seconds old.
_QUIET: Final = 15.0
#: Seconds until the cluster has to be healthy again.
_HEALTHY: Final = 300.0
_LOOK: Final = 0.5


@dataclass(frozen=True)
class Plan:
    """How much load: ``tasks`` at ``rate`` a second; ``seed`` decides about targets.

    ``bulk``: sent as ``submit_many`` does.
    """

    tasks: int
    rate: float
    seed: int
    bulk: bool = False


def run(cluster: Cluster, fault: Fault, plan: Plan, directory: Path, progress: Progress) -> Outcome:
    """Cause ``fault`` under load, undo it, wait for the end, and return what became of the tasks.

    The cluster must be healthy, and nobody else may be changing it. The journal is kept in ``directory``.

    Raises:
        ClusterUnhealthyError: it is not healthy to begin with.
        DeployError: the fault could not be caused or undone.
    """
    drill = f"{fault.title}-{int(time.time())}"
    path = directory / f"{fault.title}.jsonl"
    options = Options(
        drill,
        str(cluster.state_dir / "client.json"),
        str(path),
        queues=tuple(cluster.queues),
        tasks=plan.tasks,
        rate=plan.rate,
        bulk=plan.bulk,
    )
    progress.start(LOAD)
    _must_be_healthy(cluster, progress.doing)
    with Journal(path) as notes, Producer(options, directory / f"{fault.title}.log") as producer:
        scene = Scene(
            cluster=cluster,
            drill=drill,
            chance=random.Random(f"{plan.seed} {fault.title}"),  # noqa: S311 - to be repeated, not secret
            hosts=Hosts(cluster),
            producer=producer,
            sender=Sender(options, notes, connections=2),
            tell=progress.done,
        )
        _load_until(path, producer, plan, progress.doing)
        progress.start(FAULT)
        with fault.value.act(scene):
            _hold(fault.value.lasts, path, progress.doing)
        window = ledger.Window(scene.begin or time.time(), scene.end or time.time())
        _hold(max(window.end + _AFTER - time.time(), 0), path, progress.doing)
        progress.start(END)
        producer.end()
    waiting, dead = _settle(cluster, drill, path, progress.doing)
    progress.start(HEALTH)
    problems = _wait_for_health(cluster, progress.doing)
    healthy = None if problems else round(time.time() - window.end, 1)
    progress.start(LEDGER)
    return _account(
        fault, scene, options, window, waiting=waiting, dead=dead, healthy=healthy, problems=problems
    )


def _account(  # noqa: PLR0913 - all that is known at the end
    fault: Fault,
    scene: Scene,
    options: Options,
    window: ledger.Window,
    *,
    waiting: int,
    dead: set[str],
    healthy: float | None,
    problems: tuple[str, ...],
) -> Outcome:
    cluster = scene.cluster
    store = Store(cluster.state_dir / "operator.json", scene.drill)
    sent, executions = journal.read(Path(options.journal)), store.executions()
    results = store.results([journal.task_id(scene.drill, number) for number in sent])
    dead |= deadletters.take(cluster, scene.drill, keep=False)
    spec = fault.value
    kept = beats.count(executions)
    return outcome.Outcome(
        fault=fault.title,
        does=spec.does,
        sees=spec.sees,
        done=tuple(scene.done),
        window=window,
        ledger=ledger.make(
            scene.drill,
            sent,
            executions,
            dead_letters=dead,
            results=results,
            window=window,
            work=functools.partial(seconds, options),
            waiting=waiting,
        ),
        timeline=outcome.timeline(sent, executions),
        healthy=healthy,
        problems=problems,
        beats=kept if kept.count else None,
    )


def _load_until(path: Path, producer: Producer, plan: Plan, tell: Callable[[str], None]) -> None:
    """Wait until enough was confirmed before the fault.

    Raises:
        DeployError: nothing is.
    """
    shortest, longest = _BEFORE_SECONDS
    enough = min(max(plan.tasks * _BEFORE, plan.rate * shortest), plan.rate * longest)
    give_up_at = time.monotonic() + 60 + longest
    while (count := sum(one.confirmed for one in journal.read(path).values())) < enough:
        producer.check()
        if time.monotonic() > give_up_at:
            raise DeployError(
                f"only {count} tasks were confirmed before the fault: the rate is too high here"
            )
        tell(f"{count} confirmed")
        time.sleep(_LOOK)


def _hold(seconds: float, path: Path, tell: Callable[[str], None]) -> None:
    give_up_at = time.monotonic() + seconds
    while (left := give_up_at - time.monotonic()) > 0:
        sent = journal.read(path).values()
        refused = sum(bool(one.error) for one in sent)
        tell(f"{left:.0f} s, {sum(one.confirmed for one in sent)} confirmed, {refused} refused")
        time.sleep(min(_LOOK, left))


def _settle(cluster: Cluster, drill: str, path: Path, tell: Callable[[str], None]) -> tuple[int, set[str]]:
    """Wait until all that was confirmed is through; return what is left in queues, and the dead letters."""
    store = Store(cluster.state_dir / "operator.json", drill)
    sent = journal.read(path)
    confirmed = {number for number, one in sent.items() if one.confirmed}
    give_up_at = time.monotonic() + _SETTLE
    seen, changed, waiting, dead = -1, time.monotonic(), 0, set[str]()
    while time.monotonic() < give_up_at:
        with contextlib.suppress(*AWAY):
            executions = store.executions()
            left = _left(drill, confirmed, executions, dead)
            waiting = _waiting(cluster)
            tell(f"{len(left)} of {len(confirmed)} left, {waiting} in the queues")
            if len(executions) != seen or waiting:
                seen, changed = len(executions), time.monotonic()
            if left and len(left) <= _FEW:
                dead = deadletters.take(cluster, drill, keep=True)
            quiet = time.monotonic() - changed
            # What is through may still be running for a second time, or about to.
            if not waiting and (quiet > _QUIET or (not left and quiet > _QUIET / 3)):
                break
        time.sleep(_LOOK)
    return waiting, dead


#: So few tasks that they may all be dead letters.
_FEW: Final = 200
#: What asking raises while servers come and go.
AWAY: Final = (
    ClusterUnreachableError,
    redis.exceptions.RedisError,
    OperationalError,
    AMQPError,
    OSError,
)


def _left(drill: str, confirmed: set[int], executions: list[Execution], dead: set[str]) -> set[int]:
    through = {each.number for each in executions if each.end is not None}
    return {number for number in confirmed - through if journal.task_id(drill, number) not in dead}


def _waiting(cluster: Cluster) -> int:
    with deployment.monitor(cluster) as broker:
        queues = broker.queues()
    return sum(queues[name].ready + queues[name].unacknowledged for name in cluster.queues if name in queues)


def _must_be_healthy(cluster: Cluster, tell: Callable[[str], None]) -> None:
    if problems := _wait_for_health(cluster, tell):
        raise ClusterUnhealthyError(
            f"cluster {cluster.name!r} is not healthy, so nothing can be said about a fault: {problems[0]}",
            next_step=f"make cluster-up CLUSTER={cluster.name} starts what is down; cluster-logs says why",
        )


def _problems(cluster: Cluster) -> tuple[str, ...]:
    try:
        return deployment.status_of(cluster).problems
    except AWAY as error:
        return (str(error),)


def _wait_for_health(cluster: Cluster, tell: Callable[[str], None]) -> tuple[str, ...]:
    """Wait until the status has no problem; return those it still has."""
    give_up_at = time.monotonic() + _HEALTHY
    while problems := _problems(cluster):
        if time.monotonic() > give_up_at:
            break
        tell(problems[0])
        time.sleep(1)
    return problems
