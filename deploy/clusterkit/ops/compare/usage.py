"""What processes take: processor time and memory, also those that come and go meanwhile."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from clusterkit.ops.model import Cluster

    Processes = Callable[[], Iterable[psutil.Process]]

#: Seconds between two looks at the memory.
INTERVAL: Final = 0.5
#: Broker and result store by the names of their processes.
_SERVERS: Final = ("beam.smp", "valkey-server", "redis-server")


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and all that it has started."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def of_cluster(cluster: Cluster) -> list[tuple[psutil.Process, str]]:
    """Return the processes of a private cluster, each with the worker node it is of ('' for others)."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            if environment.get("CLUSTERKIT_HOME") == str(cluster.home):
                found.append((process, environment.get("CLUSTERKIT_SERVICE", "").partition(".")[0]))
    return found


def of_node(cluster: Cluster, node: str) -> list[int]:
    """Return the process of one of the cluster's worker nodes that started its others."""
    mine = {process.pid: process for process, name in of_cluster(cluster) if name == node}
    return [pid for pid, process in mine.items() if process.ppid() not in mine]


def of_servers(cluster: Cluster) -> list[int]:
    """Return the cluster's broker and result store."""
    found = []
    for process, _ in of_cluster(cluster):
        with contextlib.suppress(psutil.Error):
            if process.name() in _SERVERS:
                found.append(process.pid)
    return found


def processor_seconds(processes: Iterable[psutil.Process]) -> float:
    """Return the user and system time of ``processes`` and of the children that have ended."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def memory(processes: Iterable[psutil.Process]) -> int:
    """Return the bytes of memory of ``processes``; a page that several have counts once (PSS)."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total


@dataclass
class Usage:
    """What a set of processes took between entering and leaving; ``peak`` is in bytes, ``seconds`` of CPU."""

    processes: Processes
    seconds: float = 0.0
    peak: int = 0

    def __enter__(self) -> Self:
        self._ended = threading.Event()
        self._before = processor_seconds(self.processes())
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        now = list(self.processes())
        self.seconds = max(processor_seconds(now) - self._before, 0.0)
        self._ended.set()
        self._watcher.join()
        self.peak = max(self.peak, memory(now))

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL):
            self.peak = max(self.peak, memory(list(self.processes())))
