"""Takes a host out of work without losing, killing or repeating a task, and gives it back.

The worker nodes stop consuming, what they have prefetched goes back to its queue, what runs ends, and only
then are they stopped. Celery's control commands do all but the last.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from clusterkit.ops import deployment, drained, inventory, playbook
from clusterkit.ops.errors import PreflightError
from clusterkit.ops.lock import alone, note
from clusterkit.ops.progress import Progress
from clusterkit.runtime.errors import BadInputError, InterruptedByUserError, WaitTimeoutError

if TYPE_CHECKING:
    from rich.console import Console

    from clusterkit.ops.deployment import Deployed
    from clusterkit.ops.drained import Mark
    from clusterkit.ops.model import Cluster
    from clusterkit.ops.status import ServiceStatus

_CONSUMING, _RUNNING = "Stop consuming", "Running tasks"
#: Seconds the worker nodes have to answer a control command; the first time, when it is seen who there is.
_ANSWER, _LOOK = 2.0, 10.0
#: Seconds between two looks at what still runs, and between two lines about it.
_POLL, _REPORT = 0.5, 10.0
#: Seconds that worker nodes without a task get to end, whatever running tasks get.
_ENDING: Final = 30.0
_WORKER: Final = "worker-"


@dataclass(frozen=True)
class Wish:
    """How a host is to be drained."""

    reason: str = ""
    """Why; it is remembered."""
    timeout: float | None = None
    """Seconds that running tasks get; None: as long as they take."""
    force: bool = False
    """Also when a queue is left without a consumer."""


@dataclass(frozen=True)
class Running:
    """A task that runs: ``seconds`` says for how long it has."""

    node: str
    task: str
    id: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.task} ({self.id}) on {self.node} for {self.seconds:.0f} s"


@dataclass(frozen=True)
class Drained:
    """A drained host: its mark, the nodes that were stopped, and what of the cluster is still there."""

    mark: Mark
    nodes: tuple[str, ...]
    given_back: int
    """Messages that were prefetched and went back to their queues."""
    stays: tuple[str, ...]
    """Services that run on there."""
    broker: bool
    """Whether it is one of several brokers."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-safe values."""
        return asdict(self)


class _Nodes:
    """The worker nodes of the host that is drained, and which queues those of the others leave to them."""

    def __init__(self, cluster: Cluster, host: str) -> None:
        self._control = deployment.operator_app(cluster).control
        self.given_back = 0
        # Waiting ends when all have answered.
        inspect = self._control.inspect(timeout=_LOOK, limit=len(cluster.expected_nodes()))
        consumed = {
            node: {queue["name"] for queue in queues or ()}
            for node, queues in (inspect.active_queues() or {}).items()
        }
        self.here = tuple(node for node in consumed if node.partition("@")[2] == host)
        others = [queues for node, queues in consumed.items() if node not in self.here]
        of_inventory = {queue for node in cluster.nodes_on(host) for queue in node.queues}
        #: Queues that nobody else consumes.
        self.left_alone = sorted(
            of_inventory.union(*(consumed[node] for node in self.here)).difference(*others)
        )

    def include(self, services: list[ServiceStatus]) -> None:
        """Take in the nodes that run on the host and did not answer yet."""
        names = {
            f"{one.name.removeprefix(_WORKER)}@{one.host}"
            for one in services
            if one.name.startswith(_WORKER) and one.state == "running"
        }
        self.here = tuple(sorted(names))

    def stop_consuming(self) -> None:
        """Have no node consume any more, and give back what was prefetched.

        Called again and again: a node that crashed meanwhile came back and consumes.
        """
        if not self.here:
            return  # no destination would mean all of them
        for node, queues in self._ask("active_queues").items():
            for queue in queues or ():
                self._control.cancel_consumer(
                    queue["name"], destination=[node], reply=True, timeout=_ANSWER, limit=1
                )
        # What was on its way from the broker came before the broker's answer to the cancel: all is there.
        replies = self._control.broadcast("give_back", reply=True, **self._to_them())
        self.given_back += sum(answer.get("ok", 0) for reply in replies or () for answer in reply.values())

    def running(self) -> tuple[list[Running], list[str]]:
        """Return what runs or waits for a slot on the host, the longest first, and who did not answer."""
        answers = [self._ask("active"), self._ask("reserved")]
        silent = [node for node in self.here if not all(node in answer for answer in answers)]
        now = time.time()
        found = [
            Running(node, task["name"], task["id"], max(now - (task.get("time_start") or now), 0))
            for answer in answers
            for node, tasks in answer.items()
            for task in tasks
        ]
        return sorted(found, key=lambda one: -one.seconds), silent

    def _ask(self, what: str) -> dict[str, Any]:
        return getattr(self._control.inspect(**self._to_them()), what)() or {} if self.here else {}

    def _to_them(self) -> dict[str, Any]:
        return {"destination": list(self.here), "timeout": _ANSWER, "limit": len(self.here)}


def drain(cluster: Cluster, host: str, wish: Wish, console: Console) -> Drained:
    """Have ``host`` run no task any more, and stop its worker nodes; what runs there ends first.

    It is remembered, so that nothing starts them again before ``undrain``.

    Raises:
        BadInputError: the host runs no worker nodes.
        PreflightError: a queue would have no consumer; nothing was changed.
        WaitTimeoutError: tasks still run; the host takes no new ones.
        InterruptedByUserError: Ctrl-C; the host takes no new tasks.
    """
    if host not in cluster.group("workers"):
        raise BadInputError(
            f"{host!r} runs no worker nodes of cluster {cluster.name!r};"
            f" these do: {', '.join(cluster.group('workers'))}",
            next_step=_broker_word(cluster, host),
        )
    phases = [_CONSUMING, _RUNNING, *playbook.phases(cluster, "drain")]
    with alone(cluster), Progress(f"cluster {cluster.name}: drain {host}", phases, console) as progress:
        progress.start(_CONSUMING)
        nodes = _Nodes(cluster, host)
        mark = _begin(cluster, host, nodes, wish)
        try:
            # Before the host is asked for its services, which takes a while on a busy one.
            nodes.stop_consuming()
            services = _services(cluster, host)
            nodes.include(services)
            _wait(cluster, host, nodes, progress, wish.timeout)
            variables = {**deployment.base_variables(cluster), "drained_host": host}
            playbook.run(cluster, "drain", variables, progress)
            _await_end(cluster, host, progress, wish.timeout)
        except KeyboardInterrupt:
            raise InterruptedByUserError(
                f"interrupted; {host} takes no new tasks, and those that run go on",
                next_step=_again(cluster, host),
            ) from None
        stays = tuple(one.name for one in services if not one.name.startswith(_WORKER))
        broker = host in cluster.group("brokers") and len(cluster.group("brokers")) > 1
        return Drained(mark, nodes.here, nodes.given_back, stays, broker, progress.seconds)


def undrain(cluster: Cluster, host: str, console: Console) -> Deployed:
    """Have ``host`` work again: bring the cluster up with it, and then forget that it is drained.

    Not merely started: a release or a setting may have changed meanwhile. The release is the one that the
    other hosts have, whatever the app's source holds by now: that takes a canary first.

    Raises:
        BadInputError: the host is not drained.
        ClusterkitError: as of ``deployment.up``; the host counts as drained still.
    """
    if host not in {mark.host for mark in drained.marks(cluster)}:
        raise BadInputError(
            f"{host!r} of cluster {cluster.name!r} is not drained",
            next_step=f"make cluster-up CLUSTER={cluster.name} starts what does not run",
        )
    with alone(cluster):
        whole = inventory.load(str(cluster.directory), cluster.root)
        done = deployment.up(drained.without(whole, but=host), console, keep_release=True)
        drained.unmark(cluster, host)
        return done


def _services(cluster: Cluster, host: str) -> list[ServiceStatus]:
    services = [one for one in deployment.services(cluster) if one.host == host]
    if any(one.state == "unreachable" for one in services):
        raise PreflightError(
            f"{host} takes no new tasks, but it cannot be reached to see what still runs and to stop it",
            next_step=f"{_again(cluster, host)}; when it is gone for good, take it out of hosts.yml",
        )
    return services


def _begin(cluster: Cluster, host: str, nodes: _Nodes, wish: Wish) -> Mark:
    if nodes.left_alone and not wish.force:
        raise PreflightError(
            f"without {host} nobody would consume: {', '.join(nodes.left_alone)}; nothing was changed",
            next_step="bring another host to them first, or --force (FORCE=1): their messages then wait",
        )
    note(hosts=[host])
    return drained.mark(cluster, host, wish.reason)


def _wait(cluster: Cluster, host: str, nodes: _Nodes, progress: Progress, timeout: float | None) -> None:
    """Wait until nothing runs on the host any more."""
    began, said = time.monotonic(), 0.0
    while True:
        nodes.stop_consuming()
        running, silent = nodes.running()
        if not silent and not running:
            break
        progress.start(_RUNNING)
        what = _still(silent, running)
        progress.doing(what)
        now = time.monotonic()
        if now - said >= _REPORT:
            progress.done(what)
            said = now
        if timeout is not None and now - began >= timeout:
            lines = [*map(str, running), *(f"{node} does not answer" for node in silent)]
            raise WaitTimeoutError(
                f"{host} takes no new tasks, but after {timeout:.0f} s there still are:\n  "
                + "\n  ".join(lines),
                next_step=_again(cluster, host),
            )
        time.sleep(_POLL)
    progress.start(_RUNNING)
    progress.done(f"no task runs on {host}; {nodes.given_back} prefetched ones went back to their queues")


def _await_end(cluster: Cluster, host: str, progress: Progress, timeout: float | None) -> None:
    """Wait for the worker nodes' processes; one that a release retired may have a task still."""
    began = time.monotonic()
    while True:
        left = [one.name for one in _services(cluster, host) if one.name.startswith(_WORKER)]
        if not left:
            return
        progress.doing(f"{', '.join(left)} on its way out")
        if timeout is not None and time.monotonic() - began >= max(timeout, _ENDING):
            raise WaitTimeoutError(
                f"{host} takes no new tasks; {', '.join(left)} was asked to end and still runs",
                next_step=_again(cluster, host),
            )
        time.sleep(_POLL)


def _still(silent: list[str], running: list[Running]) -> str:
    parts = []
    if running:
        each = ", ".join(
            f"{number} {name}" for name, number in Counter(one.task for one in running).most_common(3)
        )
        parts.append(f"{len(running)} tasks left ({each}); the longest runs for {running[0].seconds:.0f} s")
    if silent:
        parts.append(f"no answer from {', '.join(silent)}")
    return "; ".join(parts)


def _again(cluster: Cluster, host: str) -> str:
    option = f"CLUSTER={cluster.name} HOST={host}"
    return f"make cluster-drain {option} waits again; make cluster-undrain {option} has it work again"


def _broker_word(cluster: Cluster, host: str) -> str:
    if host not in cluster.group("brokers"):
        return ""
    return f"it is a broker: make broker-remove CLUSTER={cluster.name} HOST={host} takes it out of those"


def show(cluster: Cluster, done: Drained, console: Console) -> None:
    """Print what was stopped, what stays, and what to do next."""

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    stopped = ", ".join(done.nodes) or "none ran"
    say(f"[green]drained[/]   {done.mark.host} in {done.seconds:.0f} s; stopped: {stopped}")
    if done.stays:
        say(f"stays     {', '.join(done.stays)}")
    if done.broker:
        say(f"broker    {_broker_word(cluster, done.mark.host)}")
    say(f"next      make cluster-undrain CLUSTER={cluster.name} HOST={done.mark.host} has it work again")
