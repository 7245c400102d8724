"""A reader gets all the messages that were there, or says that it did not."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import amqp
import pytest

from clusterkit.ops import messaging
from clusterkit.ops.messaging import Reader
from clusterkit.runtime.errors import ClusterUnreachableError


class Broker:
    """A queue that says it has ``ready`` messages and sends ``sent`` of them, as far as the window goes."""

    def __init__(self, ready: int, sent: int) -> None:
        self.ready, self.window, self.unacknowledged = ready, 0, 0
        self.waiting = deque(range(1, sent + 1))

    def channel(self) -> Any:
        return self

    def queue_declare(self, *_: Any, passive: bool) -> Any:
        return SimpleNamespace(message_count=self.ready)

    def basic_qos(self, _size: int, count: int, _global: bool) -> None:
        self.window = count

    def basic_consume(self, _queue: str, callback: Any) -> None:
        self.callback = callback

    def basic_ack(self, _tag: int, multiple: bool) -> None:
        self.unacknowledged = 0 if multiple else self.unacknowledged - 1

    def drain_events(self, timeout: float) -> None:
        if not self.waiting or self.unacknowledged >= self.window:
            raise TimeoutError
        self.unacknowledged += 1
        message = amqp.Message(b"")
        message.delivery_info = {
            "exchange": "",
            "routing_key": "cpu",
            "delivery_tag": self.waiting.popleft(),
        }
        self.callback(message)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messaging, "_SILENCE", 0.01)


def reader(broker: Broker, window: int = 10) -> Reader:
    connection: Any = broker
    return Reader(connection, "cpu", window)


def test_all_messages_are_read_also_more_than_may_be_held_at_once() -> None:
    with reader(Broker(25, 25), window=10) as found:
        for message in found.messages(found.ready):
            found.remove(message, all_before=message.tag % 5 == 0)
    assert message.tag == 25


def test_a_broker_that_stops_sending_is_told_as_such() -> None:
    with reader(Broker(3, 2)) as found:
        messages = found.messages(found.ready)
        assert [next(messages).tag, next(messages).tag] == [1, 2]
        with pytest.raises(ClusterUnreachableError, match="sent 2 of 3 messages of queue cpu"):
            next(messages)


def test_a_reader_that_holds_all_it_may_ends_without_waiting_for_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(messaging, "_SILENCE", 3600)
    with reader(Broker(3, 3), window=2) as found:
        assert [message.tag for message in found.messages(found.ready)] == [1, 2]
