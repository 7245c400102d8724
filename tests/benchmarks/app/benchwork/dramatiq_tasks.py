"""dramatiq over pika, on quorum queues; with confirms for a publisher that asks for them."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

from benchwork import marks, work

if TYPE_CHECKING:
    from collections.abc import Sequence


class QuorumBroker(RabbitmqBroker):
    """dramatiq's broker; it has no setting for the type of its queues."""

    def _build_queue_arguments(self, queue_name: str) -> dict[str, Any]:
        arguments: dict[str, Any] = super()._build_queue_arguments(queue_name)  # type: ignore[no-untyped-call]
        return {**arguments, "x-queue-type": "quorum"}


broker = QuorumBroker(
    url=os.environ["BENCH_BROKER"], confirm_delivery=os.environ.get("BENCH_WAY") == "confirms"
)
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name="dramatiq")
def noop(number: int) -> None:
    """Do nothing."""
    work.noop(number)


@dramatiq.actor(queue_name="dramatiq")
def nap(number: int) -> None:
    """Wait 10 ms."""
    time.sleep(work.NAP)
    marks.here().ran(number)


@dramatiq.actor(queue_name="dramatiq")
def paced(number: int) -> None:
    """Wait 10 ms, and note when that began."""
    marks.here().begins(number)
    time.sleep(work.NAP)
    marks.here().ran(number)


@dramatiq.actor(queue_name="dramatiq")
def compute(number: int, loops: int) -> None:
    """Keep a core busy."""
    work.compute(number, loops)


class Sender:
    """Publishes with ``send``."""

    def one(self, task: str, *arguments: Any) -> None:
        """Publish one task."""
        broker.get_actor(task).send(*arguments)

    def many(self, task: str, arguments: Sequence[tuple[Any, ...]]) -> None:
        """Publish a task for each of ``arguments``."""
        send = broker.get_actor(task).send
        for each in arguments:
            send(*each)

    def close(self) -> None:
        """Leave nothing behind."""
        broker.close()
