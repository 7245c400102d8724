"""What each fault does: context managers whose body runs while the fault lasts, and whose end undoes it."""

from __future__ import annotations

import contextlib
import io
import time
from typing import TYPE_CHECKING, Any, Final, Literal

from rich.console import Console

from clusterkit.ops import deployment, release, releases, rollout, scale
from clusterkit.ops.drills import beats
from clusterkit.ops.drills.journal import SPECIAL, task_id
from clusterkit.ops.drills.scene import prefork_queue
from clusterkit.ops.errors import DeployError
from clusterkit.runtime import results
from clusterkit.runtime.clusterfile import ClusterFile
from clusterkit.runtime.drill import DRILL
from clusterkit.runtime.errors import NoClusterError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from clusterkit.ops.drills.onhosts import Blow
    from clusterkit.ops.drills.scene import Scene
    from clusterkit.ops.model import Cluster, WorkerNode
    from clusterkit.runtime.drill import Kind

    Act = Callable[[Scene], AbstractContextManager[None]]

#: How many pool processes are killed: a single one may have been idle.
_CHILDREN: Final = 8
#: Messages of each special kind.
_MESSAGES: Final = 3
#: Seconds a producer is gone, and how often it is killed at most until a publish was under way.
_PRODUCER_AWAY: Final = 3.0
_PRODUCER_KILLS: Final = 10


def _at_once(scene: Scene, blow: Blow) -> None:
    """Note down a fault that is over as soon as it is there."""
    scene.began(blow)
    scene.ended(blow)


@contextlib.contextmanager
def pool_child(scene: Scene) -> Iterator[None]:
    """Kill pool processes of a worker node."""
    host, node = scene.node()
    scene.say(f"kill -9 of {_CHILDREN} pool processes of {node.name}@{host}, one after the other")
    script = scene.hosts.kill_children(f"worker-{node.name}", _CHILDREN)
    _at_once(scene, scene.hosts.run({host: script}))
    yield


@contextlib.contextmanager
def worker_node(scene: Scene) -> Iterator[None]:
    """Kill all processes of a worker node."""
    host, node = scene.node()
    scene.say(f"kill -9 of all processes of {node.name}@{host}")
    _at_once(scene, scene.hosts.run({host: scene.hosts.kill(f"worker-{node.name}")}))
    yield


@contextlib.contextmanager
def broker_node(scene: Scene) -> Iterator[None]:
    """Kill a broker node."""
    host = scene.broker()
    scene.say(f"kill -9 of the broker node on {host}")
    _at_once(scene, scene.hosts.run({host: scene.hosts.kill("rabbitmq")}))
    yield


@contextlib.contextmanager
def _host_away(scene: Scene, host: str, *, politely: bool) -> Iterator[None]:
    if politely:
        scene.say(f"host {host} shut down (docker stop), and started again later")
    else:
        scene.say(f"host {host} powered off (off the network, docker kill): no goodbye; started again later")
    scene.began()
    try:
        scene.switch_off(host, politely=politely)
        yield
    finally:
        scene.switch_on(host)
        scene.ended()


def worker_host_stopped(scene: Scene) -> AbstractContextManager[None]:
    """Shut a worker host down."""
    return _host_away(scene, scene.worker_host(), politely=True)


def worker_host_off(scene: Scene) -> AbstractContextManager[None]:
    """Cut a worker host's power."""
    return _host_away(scene, scene.worker_host(), politely=False)


def broker_host_stopped(scene: Scene) -> AbstractContextManager[None]:
    """Shut a broker host down."""
    return _host_away(scene, scene.broker(), politely=True)


@contextlib.contextmanager
def brokers_one_by_one(scene: Scene) -> Iterator[None]:
    """Restart the broker nodes one after the other, as `make cluster-restart` does."""
    scene.say("make cluster-restart SERVICE=rabbitmq")
    scene.began()
    deployment.restart_services(scene.cluster, ["rabbitmq"])
    scene.ended()
    yield


@contextlib.contextmanager
def rolling_release(scene: Scene) -> Iterator[None]:
    """Roll the release that runs out once more under another name, and back again."""
    record = releases.Record.load(scene.cluster)
    current = record.current
    if current is None:
        raise NoClusterError(
            f"nothing was deployed on cluster {scene.cluster.name!r}", next_step="make cluster-up"
        )
    twin = release.twin(scene.cluster, current.id)
    scene.began()
    try:
        _roll(scene, twin)
    finally:
        _roll(scene, current.id)
        record.restore()
        scene.ended()
    yield


def _roll(scene: Scene, release_id: str) -> None:
    scene.say(f"release {release_id} rolled out")
    rollout.roll(scene.cluster, Console(file=io.StringIO()), release_id)


@contextlib.contextmanager
def scale_down(scene: Scene) -> Iterator[None]:
    """Scale a worker node up, then down to one process a host; the inventory is left alone."""
    _, node = scene.node()
    scene.began()
    try:
        for size in (8, 1):
            found = scale.resize(_with_size(scene.cluster, node, size), node.name, size, timeout=120)
            sizes = ", ".join(f"{one.node}: {one.processes}" for one in found)
            scene.say(f"worker node {node.name} scaled to {size}; processes {sizes}")
            if not all(one.done for one in found):
                raise DeployError(f"worker node {node.name} is not at {size} processes: {sizes}")
        yield
    finally:
        scale.write_sizes(scene.cluster, node.name)
        scene.ended()


def _with_size(cluster: Cluster, node: WorkerNode, size: int) -> Cluster:
    nodes = tuple(
        one.model_copy(update={"concurrency": size}) if one.name == node.name else one
        for one in cluster.worker_nodes
    )
    return cluster.model_copy(update={"worker_nodes": nodes})


@contextlib.contextmanager
def brokers_all_at_once(scene: Scene) -> Iterator[None]:
    """Restart all broker nodes at the same time."""
    hosts = scene.cluster.group("brokers")
    scene.say(f"broker nodes on {', '.join(hosts)} restarted at the same time")
    blow = scene.hosts.run(dict.fromkeys(hosts, scene.hosts.restart("rabbitmq")))
    scene.began(blow)
    scene.ended(blow)
    yield


@contextlib.contextmanager
def _cut_off(scene: Scene, host: str, others: list[str]) -> Iterator[None]:
    addresses = [scene.cluster.hosts[other].address for other in others]
    undo = {host: scene.hosts.join_again()}
    try:
        scene.began(scene.hosts.run({host: scene.hosts.cut_off(addresses)}, undo))
        yield
    finally:
        scene.ended(scene.hosts.undo(undo))


def broker_partition(scene: Scene) -> AbstractContextManager[None]:
    """Cut a broker host off from all other hosts; clients elsewhere still reach it."""
    host = scene.broker()
    others = [other for other in scene.cluster.hosts if other != host]
    scene.say(f"{host} cut off from {', '.join(others)} (packets dropped); the producer still reaches it")
    return _cut_off(scene, host, others)


def worker_partition(scene: Scene) -> AbstractContextManager[None]:
    """Cut a worker host off from the brokers."""
    host = scene.worker_host()
    brokers = list(scene.cluster.group("brokers"))
    scene.say(f"{host} cut off from the brokers {', '.join(brokers)} (packets dropped)")
    return _cut_off(scene, host, brokers)


@contextlib.contextmanager
def _alarm(scene: Scene, resource: Literal["memory", "disk"]) -> Iterator[None]:
    host = scene.broker()
    scene.say(f"{resource} alarm on the broker node of {host}")
    undo = {host: scene.hosts.alarm(resource, on=False)}
    try:
        scene.began(scene.hosts.run({host: scene.hosts.alarm(resource, on=True)}, undo))
        yield
    finally:
        scene.ended(scene.hosts.undo(undo))


def memory_alarm(scene: Scene) -> AbstractContextManager[None]:
    """Set a broker node's memory alarm."""
    return _alarm(scene, "memory")


def disk_alarm(scene: Scene) -> AbstractContextManager[None]:
    """Set a broker node's disk alarm."""
    return _alarm(scene, "disk")


@contextlib.contextmanager
def store_master(scene: Scene) -> Iterator[None]:
    """Kill the result store's master."""
    host = _store_master(scene)
    scene.say(f"kill -9 of the result store's master on {host}")
    _at_once(scene, scene.hosts.run({host: scene.hosts.kill("valkey")}))
    yield


def _store_master(scene: Scene) -> str:
    hosts = scene.cluster.group("results")
    if not scene.cluster.sentinel:
        return hosts[0]
    file = ClusterFile.load(scene.cluster.state_dir / "operator.json")
    address, _ = results.master(file)
    return next(host for host in hosts if scene.cluster.listen_address(host) == address)


@contextlib.contextmanager
def scheduler_host(scene: Scene) -> Iterator[None]:
    """Shut down the host of the scheduler that holds the schedule's lock."""
    hosts = scene.cluster.group("schedulers")
    with beats.every_second(scene.app, scene.drill):
        printed = scene.hosts.run(dict.fromkeys(hosts, scene.hosts.last_lock())).printed
        times = {host: float(text) for host, text in printed.items() if text}
        if not times:
            raise DeployError("no scheduler says in its log that it has the schedule's lock")
        time.sleep(5)  # for a while as it always is
        with _host_away(scene, max(times, key=lambda host: times[host]), politely=True):
            yield


@contextlib.contextmanager
def _messages(scene: Scene, what: str, send: Callable[[int], None]) -> Iterator[None]:
    scene.say(f"{_MESSAGES} messages: {what}")
    scene.began()
    for number in range(SPECIAL, SPECIAL + _MESSAGES):
        send(number)
    scene.ended()
    yield


def _tasks(
    scene: Scene, what: str, kind: Kind, queue: str, name: str = DRILL
) -> AbstractContextManager[None]:
    return _messages(scene, what, lambda number: scene.sender.send(number, queue, kind, name))


def memory_error(scene: Scene) -> AbstractContextManager[None]:
    """Send tasks that raise MemoryError."""
    return _tasks(scene, "tasks that raise MemoryError", "memory_error", _queue(scene))


def poison(scene: Scene) -> AbstractContextManager[None]:
    """Send tasks that kill the process that runs them, each time."""
    what = "tasks that kill -9 their own pool process, each time"
    return _tasks(scene, what, "poison", _queue(scene))


def unknown_task(scene: Scene) -> AbstractContextManager[None]:
    """Send tasks of a name that no worker knows."""
    name = "clusterkit.drill.unknown"
    return _tasks(scene, f"tasks named {name}, which no worker knows", "ok", _queue(scene), name)


def undecodable(scene: Scene) -> AbstractContextManager[None]:
    """Send messages whose body is no JSON, although it says so."""
    return _raw(scene, "of a known task, with a body that is no JSON", b"{", "application/json", "utf-8")


def malformed(scene: Scene) -> AbstractContextManager[None]:
    """Send messages of a content type that kombu trusts, whose body is no task."""
    return _raw(
        scene, "of a known task, of the trusted type application/data", b"xx", "application/data", "binary"
    )


def _raw(
    scene: Scene, what: str, body: bytes, content_type: str, encoding: str
) -> AbstractContextManager[None]:
    def send(number: int) -> None:
        headers: dict[str, Any] = {"task": DRILL, "id": task_id(scene.drill, number)}
        scene.sender.publish(
            number,
            _queue(scene),
            body,
            content_type=content_type,
            content_encoding=encoding,
            headers=headers,
            delivery_mode=2,
        )

    return _messages(scene, what, send)


def _queue(scene: Scene) -> str:
    return prefork_queue(scene.cluster) or scene.cluster.default_queue


@contextlib.contextmanager
def producer_killed(scene: Scene) -> Iterator[None]:
    """Kill the producer between sending and confirm, and start another."""
    scene.began()
    try:
        for _ in range(_PRODUCER_KILLS):
            scene.say(f"kill -9 of the producer's process; another one {_PRODUCER_AWAY:g} s later")
            caught = scene.producer.kill_while_sending()
            time.sleep(_PRODUCER_AWAY)
            if caught:
                break
            scene.producer.start_again()
        else:
            raise DeployError("the producer was never killed between send and confirm")
        yield
    finally:
        scene.producer.start_again()
        scene.ended()
