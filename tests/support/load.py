"""Numbered tasks of the app `ledger` at a steady rate, and the note that each execution left of itself."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from celery import Celery
from harness import ROOT, LocalCluster

from clusterkit.runtime import client, results
from clusterkit.runtime.clusterfile import ClusterFile

SOURCE = ROOT / "tests" / "apps" / "ledger"


def new_version(source: Path, version: str, *more: str) -> None:
    """Write the app anew as ``version``, with lines added at its end."""
    text = (SOURCE / "ledger" / "app.py").read_text().replace('VERSION = "one"', f'VERSION = "{version}"')
    (source / "ledger" / "app.py").write_text("\n".join([text, *more, ""]))


@dataclass(frozen=True)
class Execution:
    """A line of the ledger: task ``number`` began or ended on ``node`` at ``at``, in seconds of the clock."""

    number: int
    what: str
    node: str
    version: str
    at: float


class Load:
    """Sends tasks of ``seconds`` each, ``rate`` a second, until it is left; use it as a context manager.

    Those in ``long`` are sent first, as many tasks of so many seconds as it has.
    """

    def __init__(
        self, cluster: LocalCluster, *, queue: str = "default", rate: float = 20, long: tuple[float, ...] = ()
    ) -> None:
        self.run = uuid.uuid4().hex
        self.sent = 0
        self._cluster = cluster
        self._queue = queue
        self._rate = rate
        self._long = long
        self._app: Celery = client.connect(path=cluster.model.state_dir / "client.json")
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._send_on)

    def __enter__(self) -> Self:
        for seconds in self._long:
            self.send(seconds)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _send_on(self) -> None:
        while not self._stop.wait(1 / self._rate):
            self.send(0.01)

    def send(self, seconds: float, task: str = "ledger.app.work") -> None:
        """Send one task of so many ``seconds``."""
        with self._lock:  # a number is one task's
            self._app.send_task(task, [self.run, self.sent, seconds], queue=self._queue, ignore_result=True)
            self.sent += 1

    def executions(self) -> list[Execution]:
        """Every note that an execution left, in the order in which they came."""
        file = ClusterFile.load(self._cluster.model.state_dir / "operator.json")
        with results.client(file, patience=10) as store:
            lines = store.lrange(f"clusterkit:executions:{self.run}", 0, -1)
        return [Execution(*json.loads(line)) for line in lines]

    def count(self, what: str) -> Counter[int]:
        """How often each task did ``what``, begin or end."""
        return Counter(execution.number for execution in self.executions() if execution.what == what)

    def done(self) -> bool:
        """Whether every task that was sent has ended."""
        return len(self.count("end")) == self.sent

    def lost(self) -> list[int]:
        """The tasks that never ended."""
        return sorted(set(range(self.sent)) - self.count("end").keys())

    def twice(self) -> list[int]:
        """The tasks that began more than once."""
        return sorted(number for number, times in self.count("begin").items() if times > 1)


def began(load: Load, count: int) -> bool:
    """Whether ``count`` tasks began."""
    return len(load.count("begin")) >= count


def now() -> float:
    """The clock that executions are noted by."""
    return time.time()
