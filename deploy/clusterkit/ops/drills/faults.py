"""Every fault a drill can cause: what is done, what should be seen, how long, and where it is possible."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from clusterkit.ops.drills import acts, scene
from clusterkit.ops.suggest import did_you_mean
from clusterkit.runtime.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from clusterkit.ops.drills.scene import Scene
    from clusterkit.ops.model import Cluster

#: Fewest brokers of which one may be cut off: the others have to be the majority.
_MAJORITY: Final = 3


def _anywhere(cluster: Cluster) -> str:
    del cluster
    return ""


def _on_lab(cluster: Cluster) -> str:
    return "" if scene.is_lab(cluster) else "only a lab's hosts can be stopped and started from here"


def _schedulers_on_lab(cluster: Cluster) -> str:
    few = len(cluster.group("schedulers")) < 2  # noqa: PLR2004
    return _on_lab(cluster) or ("there is one scheduler: nobody could take over" if few else "")


def _brokers_on_lab(cluster: Cluster) -> str:
    return _on_lab(cluster) or _several_brokers(cluster)


def _several_brokers(cluster: Cluster) -> str:
    return "" if len(cluster.group("brokers")) >= _MAJORITY else "needs three brokers: two have to go on"


def _broker_network(cluster: Cluster) -> str:
    return _hosts_with_nftables(cluster) or _several_brokers(cluster)


def _worker_network(cluster: Cluster) -> str:
    apart = set(cluster.group("workers")) - set(cluster.group("brokers"))
    return _hosts_with_nftables(cluster) or ("" if apart else "every worker runs on a broker's host")


def _hosts_with_nftables(cluster: Cluster) -> str:
    return (
        ""
        if cluster.tls and cluster.firewall
        else "cuts hosts off with nftables: needs hosts with a firewall"
    )


def _prefork(cluster: Cluster) -> str:
    return "" if scene.prefork_queue(cluster) else "needs a queue that prefork nodes alone take tasks from"


@dataclass(frozen=True)
class Spec:
    """One fault. ``lasts`` is for how many seconds it stays before it is undone; 0 for a blow."""

    name: str
    does: str
    sees: str
    act: Callable[[Scene], AbstractContextManager[None]]
    lasts: float = 0.0
    obstacle: Callable[[Cluster], str] = _anywhere
    """Returns why the fault is not possible on a cluster; empty when it is."""


class Fault(Enum):
    """The faults, in the order in which `all` causes them."""

    POOL_CHILD = Spec(
        "child-killed",
        "kill -9 of pool processes of a worker node",
        "what they ran is delivered again and completes once; the node stays up",
        acts.pool_child,
        obstacle=_prefork,
    )
    WORKER_NODE = Spec(
        "worker-killed",
        "kill -9 of all processes of a worker node",
        "what it had goes to other nodes at once; it is back within seconds",
        acts.worker_node,
        obstacle=_prefork,
    )
    WORKER_HOST_STOPPED = Spec(
        "worker-host-stopped",
        "a worker host is shut down and started again",
        "its nodes finish what they run; nothing begins twice",
        acts.worker_host_stopped,
        lasts=10,
        obstacle=_on_lab,
    )
    WORKER_HOST_OFF = Spec(
        "worker-host-off",
        "a worker host loses its power: no goodbye, half-open connections",
        "what it had is late by up to two heartbeats of 30 s, or until it is back, and completes elsewhere",
        acts.worker_host_off,
        lasts=20,
        obstacle=_on_lab,
    )
    BROKER_NODE = Spec(
        "broker-killed",
        "kill -9 of a broker node",
        "clients go to another node; what was delivered through the dead one is delivered again",
        acts.broker_node,
    )
    BROKER_HOST = Spec(
        "broker-host-stopped",
        "a broker host is shut down and started again",
        "clients go to another node; queues go on with two members of three",
        acts.broker_host_stopped,
        lasts=15,
        obstacle=_brokers_on_lab,
    )
    BROKERS_ONE_BY_ONE = Spec(
        "brokers-one-by-one",
        "every broker node is restarted, one after the other",
        "clients move twice or more; with one broker node, producers wait or get an error",
        acts.brokers_one_by_one,
    )
    BROKERS_AT_ONCE = Spec(
        "brokers-at-once",
        "all broker nodes are restarted at the same time",
        "nothing is accepted meanwhile: producers wait or get an error; what was confirmed is there later",
        acts.brokers_all_at_once,
    )
    BROKER_PARTITION = Spec(
        "broker-partition",
        "a broker host is cut off from all others for 45 s; the producer still reaches it",
        "it pauses when it notices (net_ticktime); publishes through it hang until then",
        acts.broker_partition,
        lasts=45,
        obstacle=_broker_network,
    )
    WORKER_PARTITION = Spec(
        "worker-partition",
        "a worker host is cut off from the brokers for 75 s",
        "what it had is delivered again after two heartbeats; what it still ran runs twice",
        acts.worker_partition,
        lasts=75,
        obstacle=_worker_network,
    )
    MEMORY_ALARM = Spec(
        "memory-alarm",
        "a broker node has a memory alarm for 25 s",
        "workers go on; producers get an error after 15 s, and what they sent may run all the same",
        acts.memory_alarm,
        lasts=25,
    )
    DISK_ALARM = Spec(
        "disk-alarm",
        "a broker node has a disk alarm for 25 s",
        "the same as in a memory alarm",
        acts.disk_alarm,
        lasts=25,
    )
    STORE_MASTER = Spec(
        "store-killed",
        "kill -9 of the result store's master",
        "tasks end later, as results have to be stored first; none is lost where there is a replica",
        acts.store_master,
    )
    SCHEDULER_HOST = Spec(
        "scheduler-host-stopped",
        "the host of the active scheduler is shut down for 45 s; a task is due every second",
        "the other takes over when the lock is 30 s old; nothing is sent twice",
        acts.scheduler_host,
        lasts=45,
        obstacle=_schedulers_on_lab,
    )
    ROLLING_RELEASE = Spec(
        "rolling-release",
        "the release is rolled out over all worker hosts under another name, and back",
        "new worker nodes take over beside the old ones; nothing begins twice",
        acts.rolling_release,
    )
    SCALE_DOWN = Spec(
        "scale-down",
        "a worker node is scaled to 8 processes on each of its hosts, then to 1",
        "only idle processes go; nothing begins twice",
        acts.scale_down,
        obstacle=_prefork,
    )
    MEMORY_ERROR = Spec(
        "memory-error",
        "tasks raise MemoryError",
        "they fail like any other; their worker node stays up",
        acts.memory_error,
    )
    POISON = Spec(
        "poison",
        "tasks kill -9 the process that runs them, each time",
        "they are in the dead letters when the delivery limit is reached",
        acts.poison,
        obstacle=_prefork,
    )
    UNDECODABLE = Spec(
        "undecodable",
        "messages that cannot be decoded",
        "they are in the dead letters; the worker node stays up",
        acts.undecodable,
    )
    MALFORMED = Spec(
        "malformed",
        "messages of a trusted content type that are no tasks",
        "they are in the dead letters; the worker node stays up",
        acts.malformed,
    )
    UNKNOWN_TASK = Spec(
        "unknown-task",
        "tasks of a name that no worker knows",
        "they are in the dead letters",
        acts.unknown_task,
    )
    PRODUCER = Spec(
        "producer-killed",
        "kill -9 of the producer between sending and confirm",
        "of what it was sending nobody knows, except that it ran or did not; what was confirmed ran",
        acts.producer_killed,
    )

    @property
    def title(self) -> str:
        """The fault's name, as one writes it."""
        return self.value.name

    @classmethod
    def of(cls, name: str) -> Fault:
        """Return the fault ``name``.

        Raises:
            BadInputError: there is none; says which was probably meant.
        """
        for fault in cls:
            if fault.title == name:
                return fault
        names = [*(fault.title for fault in cls), "all", "random"]
        raise BadInputError(
            f"there is no drill {name!r}. {did_you_mean(name, names, otherwise='Drills')}",
            next_step="clusterkit drill list says what each does",
        )
