"""Consumers come and go so that their prefetch adds up to what is wanted."""

from __future__ import annotations

from typing import Any

import pytest
from kombu import Queue

from clusterkit.runtime.prefetch import TaskConsumer


class Broker:
    """A channel that keeps what the broker would know: the prefetch of each consumer."""

    def __init__(self) -> None:
        self.consumers: dict[str, int] = {}
        self.next = 0

    def basic_qos(self, _size: int, count: int, _global: bool) -> None:
        self.next = count

    def basic_cancel(self, tag: str) -> None:
        self.consumers.pop(tag, None)


class Tasks(TaskConsumer):
    """A consumer of the queue `cpu` that began with a prefetch."""

    def __init__(self, broker: Broker, prefetch: int) -> None:
        self._active_tags = {"cpu": "first"}
        self._queues = {"cpu": Consumed("cpu", broker)}
        self._active_queue_no_ack: dict[str, bool] = {}
        self.channel = broker
        self.no_ack = False
        self._live, self._gone, self.fits, self.first_prefetch = {}, {}, True, prefetch
        self.tag_prefix, self._tags = "", iter("abcdefgh")
        broker.consumers["first"] = prefetch


class Consumed(Queue):
    """A queue whose consumers the broker notes."""

    def __init__(self, name: str, broker: Broker) -> None:
        super().__init__(name)
        self.broker = broker

    def consume(self, tag: str, *_: Any, **__: Any) -> None:
        self.broker.consumers[tag] = self.broker.next


@pytest.fixture
def broker() -> Broker:
    return Broker()


def test_more_is_one_more_consumer_and_less_is_one_less(broker: Broker) -> None:
    tasks = Tasks(broker, 2)
    tasks.fit(8, {"first": 2})
    assert (broker.consumers, tasks.fits) == ({"first": 2, "a": 6}, True)
    tasks.fit(2, {"first": 2, "a": 6})
    assert (broker.consumers, tasks.fits) == ({"first": 2}, True)


def test_what_a_consumer_left_behind_counts_until_it_is_done(broker: Broker) -> None:
    tasks = Tasks(broker, 8)
    tasks.fit(3, {"first": 8})
    assert (broker.consumers, tasks.fits) == ({}, False)
    tasks.fit(3, {"first": 2})
    assert (broker.consumers, tasks.fits) == ({"a": 1}, False)
    tasks.fit(3, {"a": 1})
    assert (broker.consumers, tasks.fits) == ({"a": 1, "b": 2}, True)


def test_stopping_takes_all_of_them_away(broker: Broker) -> None:
    tasks = Tasks(broker, 2)
    tasks.fit(8, {})
    tasks.cancel()
    assert broker.consumers == {}
