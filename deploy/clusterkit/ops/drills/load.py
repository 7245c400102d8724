"""The load of a drill, as a process of its own: numbered tasks at a steady rate until told to end.

    python -m clusterkit.ops.drills.load OPTIONS-AS-JSON

It reads one line from its standard input: `end` means that it may stop once all its tasks are sent. Without
anybody at the other end it stops at once.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from celery import Celery

from clusterkit.ops.drills.journal import SPECIAL, Journal, task_id
from clusterkit.runtime import client, configure
from clusterkit.runtime.drill import DRILL
from clusterkit.runtime.errors import RefusedError
from clusterkit.runtime.messages import Maker
from clusterkit.runtime.pipeline import WINDOW, Message, Pipeline

if TYPE_CHECKING:
    from collections.abc import Callable

    from clusterkit.runtime.drill import Kind

#: Publishes a thread does in a second at most: one takes a few milliseconds, on a busy machine up to 50.
_PER_THREAD: Final = 10
_THREADS: Final = (4, 32)
#: Milliseconds a task works, and a few of them: or a fault would hardly ever meet a task that runs.
SHORT: Final = 10
LONG: Final = 1_000
#: How many tasks of a second's are long ones.
_LONG_A_SECOND: Final = 3


@dataclass(frozen=True)
class Options:
    """What the load is told; ``rate`` is in tasks a second, ``first`` the number of the first task."""

    drill: str
    client_file: str
    journal: str
    queues: tuple[str, ...]
    tasks: int
    rate: float
    first: int = 0
    bulk: bool = False
    """Send as ``submit_many`` does, many publishes under way, instead of one after the other."""

    def to_json(self) -> str:
        """Return it as an argument for the process."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Options:
        """Read it from an argument."""
        values: dict[str, Any] = json.loads(text)
        return cls(**{**values, "queues": tuple(values["queues"])})


def milliseconds(options: Options, number: int) -> int:
    """Return for how long the task ``number`` works: some of them for long, on each queue in turn."""
    every = max(round(options.rate / _LONG_A_SECOND), 1)
    while len(options.queues) > 1 and not every % len(options.queues):
        every += 1
    return SHORT if number % every else LONG


def seconds(options: Options, number: int) -> float:
    """Return for how long the task ``number`` works, in seconds; 0 for what a fault sent."""
    return milliseconds(options, number) / 1_000 if number < SPECIAL else 0.0


def connected(options: Options, connections: int) -> Celery:
    """Return an app with the producer's identity, and at most so many connections to the broker."""
    app = configure(Celery("drill", set_as_current=False))
    app.conf.broker_pool_limit = connections
    return client.connect(app, path=Path(options.client_file), timeout=30)


class Sender:
    """Publishes tasks of a drill with the producer's identity, and notes down what came of each."""

    def __init__(self, options: Options, journal: Journal, connections: int) -> None:
        self._options = options
        self._journal = journal
        self._app = connected(options, connections)

    def send(self, number: int, queue: str, kind: Kind = "ok", name: str = DRILL) -> None:
        """Publish the task ``number``; what it raises is in the journal, not here."""
        options = self._options
        self._journal.intent(number, queue)
        try:
            self._app.send_task(
                name,
                [options.drill, number, milliseconds(options, number), kind],
                task_id=task_id(options.drill, number),
                queue=queue,
            )
        except Exception as error:  # noqa: BLE001 - whatever a producer gets is what the drill is about
            self._journal.refused(number, error)
        else:
            self._journal.confirmed(number)

    def publish(self, number: int, queue: str, body: bytes, **properties: Any) -> None:
        """Publish a message that Celery would not make."""
        self._journal.intent(number, queue)
        try:
            with self._app.producer_pool.acquire(block=True) as producer:
                producer.publish(body, exchange="celery", routing_key=queue, mandatory=True, **properties)
        except Exception as error:  # noqa: BLE001
            self._journal.refused(number, error)
        else:
            self._journal.confirmed(number)


class Pipelined:
    """Publishes tasks of a drill as ``submit_many`` does, and notes down what the broker says of each."""

    def __init__(self, options: Options, journal: Journal) -> None:
        self._options = options
        self._journal = journal
        self._app = connected(options, 1)
        self._makers = {queue: Maker(self._app, DRILL, {"queue": queue}) for queue in options.queues}
        self._pipeline = self._opened()

    def _opened(self) -> Pipeline:
        deadline = self._app.conf.clusterkit_publish_deadline
        return Pipeline(self._app, self, window=WINDOW, timeout=deadline)

    def send(self, number: int, queue: str) -> None:
        """Publish the task ``number``, and do not wait for its confirm."""
        arguments = [self._options.drill, number, milliseconds(self._options, number), "ok"]
        message = self._makers[queue].message(number, task_id(self._options.drill, number), arguments, {})
        self._journal.intent(number, queue)
        self._try(self._pipeline.send, message)

    def look(self) -> None:
        """Take note of what the broker has said."""
        self._try(self._pipeline.poll)

    def finish(self) -> None:
        """Wait until the broker has said what became of all."""
        self._try(self._pipeline.finish)

    def _try(self, act: Callable[..., None], *args: Any) -> None:
        try:
            act(*args)
        except Exception as error:  # noqa: BLE001 - whatever a producer gets is what the drill is about
            for message in self._pipeline.unconfirmed:
                self._journal.refused(message.number, error)
            self._pipeline.close()
            self._pipeline = self._opened()

    def confirmed(self, message: Message) -> None:
        """Note that the broker has a task."""
        self._journal.confirmed(message.number)

    def refused(self, message: Message, reason: str) -> None:
        """Note that the broker does not have a task."""
        self._journal.refused(message.number, RefusedError(reason))


class Load:
    """Threads that take the next number and publish it when it is due.

    What could not be sent in its time is sent when a thread is free again, and the others later: the rate is
    never exceeded to make up for an outage.
    """

    def __init__(self, options: Options, sender: Sender | Pipelined, threads: int) -> None:
        self._options = options
        self._sender = sender
        self._count = threads
        self._lock = threading.Lock()
        self._next = options.first
        self._due = time.monotonic()
        self._may_end = threading.Event()
        self._stop = threading.Event()

    def run(self) -> None:
        """Send until all is sent and the load may end, or until nobody listens any more."""
        threading.Thread(target=self._listen, daemon=True).start()
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self._count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _listen(self) -> None:
        if sys.stdin.readline().strip() == "end":
            self._may_end.set()
        else:
            self._stop.set()

    def _take(self) -> int | None:
        """Return the next number when it is due; None when there is no more."""
        with self._lock:
            done = self._next - self._options.first >= self._options.tasks and self._may_end.is_set()
            if done or self._stop.is_set() or self._next >= SPECIAL:
                return None
            number = self._next
            self._next += 1
            self._due = max(self._due + 1 / self._options.rate, time.monotonic())
            wait = self._due - time.monotonic()
        return None if self._stop.wait(max(wait, 0)) else number

    def _work(self) -> None:
        queues = self._options.queues
        while (number := self._take()) is not None:
            self._sender.send(number, queues[number % len(queues)])


class BulkLoad(Load):
    """One thread, with many publishes under way."""

    def __init__(self, options: Options, sender: Pipelined) -> None:
        super().__init__(options, sender, threads=1)
        self._pipelined = sender

    def _work(self) -> None:
        super()._work()
        self._pipelined.finish()

    def _take(self) -> int | None:
        self._pipelined.look()
        return super()._take()


def main() -> None:
    """Run the load that the argument describes."""
    options = Options.of(sys.argv[1])
    low, high = _THREADS
    threads = min(max(round(options.rate / _PER_THREAD), low), high)
    with Journal(Path(options.journal)) as journal:
        if options.bulk:
            BulkLoad(options, Pipelined(options, journal)).run()
        else:
            Load(options, Sender(options, journal, threads), threads).run()
    sys.stdout.flush()
    os._exit(0)  # results that are still alive print tracebacks otherwise (clusterkit.runtime.client.run)


if __name__ == "__main__":
    main()
