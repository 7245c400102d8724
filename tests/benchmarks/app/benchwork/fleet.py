"""Many idle worker nodes in one process: connections, consumers, control queues and heartbeats.

python -m benchwork.fleet kit|stock NODES [--gossip]     NODES 0: nothing but the reader of events

It says when all are there, and ends with its standard input. What a node declares and sends is made by the
libraries that a real one uses (kombu, Celery's dispatcher and receiver, the kit's mailbox); what it
receives is read and thrown away, so that the broker's work can be measured and the workers' cannot. One more
connection reads all events, as Flower's does.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import select
import selectors
import sys
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

import kombu

from clusterkit.runtime import client

if TYPE_CHECKING:
    from celery import Celery

#: Seconds between a node's heartbeat events (Celery's), and between frames on its other connection, on which
#: the broker expects one every 30 s.
_EVENT, _FRAME = 2.0, 10.0
#: The queue that all nodes consume from.
_QUEUES: Final = {"kit": "steady", "stock": "celery"}
#: Threads that connect; each waits for the broker most of the time.
_CONNECTING: Final = 8
_READ: Final = 262_144


class Node:
    """One worker node as the broker sees it: a connection that receives, and one that sends events."""

    def __init__(self, app: Celery, queue: str, number: int, *, gossip: bool) -> None:
        self.name = f"{queue}@idle-{number}"
        self.receives, self.sends = connected(app), connected(app)
        channel = self.receives.channel()
        channel.basic_qos(0, 4, a_global=False)
        channel.basic_consume(queue, consumer_tag=self.name)
        kombu.Consumer(channel, [app.control.mailbox.get_queue(self.name)], no_ack=True).consume()
        if gossip:
            hear(app, self.receives, "worker.#")
        self.events = app.events.Dispatcher(self.sends, hostname=self.name)
        self._framed = time.monotonic()

    def beat(self) -> None:
        """Send what an idle worker node sends."""
        self.events.send("worker-heartbeat", freq=_EVENT, active=0, processed=0, loadavg=(0.1, 0.1, 0.1))
        if time.monotonic() - self._framed > _FRAME:
            self.receives.connection.send_heartbeat()
            self._framed = time.monotonic()


def connected(app: Celery, heartbeat: int = 30) -> kombu.Connection:
    """Return a connection as a worker's main process has it: without confirms."""
    connection = app.connection_for_write(heartbeat=heartbeat)
    connection.transport_options = {**connection.transport_options, "confirm_publish": False}
    connection.connect()
    return connection


def hear(app: Celery, connection: kombu.Connection, key: str) -> None:
    """Have the events under ``key`` delivered."""
    channel = connection.channel()
    receiver = app.events.Receiver(channel, routing_key=key)
    for consumer in receiver.get_consumers(functools.partial(kombu.Consumer, channel), channel):
        consumer.consume()


class Fleet:
    """The nodes that are there, and whose turn it is to send."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._due: deque[tuple[float, Node]] = deque()
        self.names: list[str] = []

    def listen(self, connection: kombu.Connection) -> None:
        """Read from ``connection`` from now on."""
        self._selector.register(connection.connection.transport.sock, selectors.EVENT_READ)

    def add(self, node: Node) -> None:
        """Let a node begin to send."""
        self.listen(node.receives)
        self.listen(node.sends)
        self._due.append((time.monotonic(), node))
        self.names.append(node.name)

    def go_on(self) -> None:
        """Read what has come, and send what is due."""
        for key, _ in self._selector.select(0.01):
            if not os.read(key.fd, _READ):
                sys.exit(f"the broker closed a connection; {len(self.names)} nodes were there")
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            due, node = self._due.popleft()
            node.beat()
            self._due.append((max(due + _EVENT, now), node))  # all have the same interval: in order


def main() -> None:
    """Be the nodes that the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("app", choices=_QUEUES)
    parser.add_argument("nodes", type=int)
    parser.add_argument("--gossip", action="store_true")
    options = parser.parse_args()
    app = importlib.import_module(f"benchwork.{options.app}").app
    queue = _QUEUES[options.app]
    fleet = Fleet()
    kit = options.app == "kit"
    # The kit's workers may not read events, and its queues are there.
    watching = client.connect(path=Path(os.environ["BENCH_READER"])) if kit else app
    with connected(watching, heartbeat=0) as reader, ThreadPoolExecutor(_CONNECTING) as pool:
        hear(watching, reader, "#")
        if not kit:
            app.amqp.queues[queue](reader.channel()).declare()
        fleet.listen(reader)
        coming: deque[Future[Node]] = deque(
            pool.submit(Node, app, queue, number, gossip=options.gossip) for number in range(options.nodes)
        )
        while coming:
            fleet.go_on()
            while coming and coming[0].done():
                fleet.add(coming.popleft().result())
        print("ready", flush=True)  # noqa: T201 - a word to the process that measures
        while not select.select([sys.stdin], [], [], 0)[0]:
            fleet.go_on()
    with connected(app) as last:
        for name in fleet.names if kit else ():  # Celery's control queues go with their connections
            app.control.mailbox.get_queue(name)(last.default_channel).delete()


if __name__ == "__main__":
    main()
