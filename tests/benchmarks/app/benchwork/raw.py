"""py-amqp alone, without any task framework: what is possible with the library the kit publishes with."""

from __future__ import annotations

import json
import os
import signal
import uuid
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import amqp

from benchwork import work

if TYPE_CHECKING:
    from collections.abc import Sequence

QUEUE: Final = "raw"
#: Messages under way without a confirm.
WINDOW: Final = 1_000
#: Messages taken in advance, and how many are acknowledged at a time.
PREFETCH, _TOGETHER = 64, 16


def connect() -> amqp.Connection:
    """Open a connection to the broker of the benchmark, and declare the queue."""
    url = urlsplit(os.environ["BENCH_BROKER"])
    connection = amqp.Connection(
        host=f"{url.hostname}:{url.port}",
        userid=url.username,
        password=url.password,
        virtual_host=url.path[1:],
        confirm_publish=False,
    )
    connection.connect()
    connection.channel(1).queue_declare(
        QUEUE, durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"}
    )
    return connection


class Sender:
    """Publishes with up to ``WINDOW`` confirms outstanding."""

    def __init__(self) -> None:
        self._connection = connect()
        self._channel = self._connection.channel(1)
        self._channel.confirm_select()
        self._tag = 0
        self._waiting: dict[int, None] = {}  # tags without a confirm, oldest first
        self._channel.events["basic_ack"].add(self._on_ack)

    def _on_ack(self, tag: int, multiple: bool) -> None:
        self._waiting.pop(tag, None)
        while multiple and self._waiting and (oldest := next(iter(self._waiting))) < tag:
            del self._waiting[oldest]

    def one(self, task: str, *arguments: Any) -> None:
        """Publish one task and wait for its confirm."""
        self.many(task, [arguments])

    def many(self, task: str, arguments: Sequence[tuple[Any, ...]]) -> None:
        """Publish a message with the same headers for each of ``arguments``, and wait for all confirms."""
        identity = str(uuid.uuid4())
        headers = {"lang": "py", "task": task, "id": identity, "retries": 0, "timelimit": [None, None]}
        embed: dict[str, None] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
        for each in arguments:
            message = amqp.Message(
                json.dumps([each, {}, embed]),
                delivery_mode=2,
                content_type="application/json",
                content_encoding="utf-8",
                correlation_id=identity,
                application_headers=headers,
            )
            self._tag += 1
            self._waiting[self._tag] = None
            self._channel.basic_publish(message, exchange="", routing_key=QUEUE, mandatory=True)
            self._wait(WINDOW)
        self._wait(1)

    def _wait(self, window: int) -> None:
        while len(self._waiting) >= window:
            self._connection.drain_events()

    def close(self) -> None:
        """Leave nothing behind."""
        self._connection.close()


def consume() -> None:
    """Take messages until told to stop, and acknowledge sixteen at a time, after they ran."""
    connection = connect()
    channel = connection.channel(1)
    last = held = 0
    stopping = False

    def acknowledge() -> None:
        nonlocal held
        if held:
            channel.basic_ack(last, multiple=True)
            held = 0

    def run(message: Any) -> None:
        nonlocal last, held
        arguments, _, _ = json.loads(message.body)
        work.noop(*arguments)
        last, held = message.delivery_tag, held + 1
        if held >= _TOGETHER:
            acknowledge()

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    channel.basic_qos(0, PREFETCH, a_global=False)
    channel.basic_consume(QUEUE, callback=run)
    while not stopping:
        try:
            connection.drain_events(timeout=0.2)
        except TimeoutError:
            acknowledge()
    acknowledge()
    connection.close()


if __name__ == "__main__":
    consume()
