"""Acknowledgements together: one frame speaks for several messages only where it may."""

from __future__ import annotations

import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from clusterkit.runtime.acks import Acks

FRAME = struct.Struct(">BHIHHQBB")


class Loop:
    """A loop that does what it was asked to in its next turn, and a channel that keeps what is written."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []
        self.writes: list[bytes] = []
        self.acks = Acks(self.soon.append)
        self.channel = self.new_channel()

    def new_channel(self) -> Any:
        transport = SimpleNamespace(write=self.writes.append)
        return SimpleNamespace(channel_id=3, connection=SimpleNamespace(transport=transport, bytes_sent=0))

    def deliver(self, *tags: int) -> list[Any]:
        messages = [
            SimpleNamespace(channel=self.channel, delivery_tag=tag, acknowledged=False) for tag in tags
        ]
        for message in messages:
            self.acks.seen(message)
        return messages

    def done(self, *messages: Any) -> None:
        for message in messages:
            assert self.acks.add(message)
            message.acknowledged = True  # a property of kombu's

    def turn(self) -> list[list[tuple[int, bool]]]:
        """Return, for each write of the turn, its frames: (tag, whether for all before it)."""
        due, self.soon[:] = list(self.soon), []
        for callback in due:
            callback()
        written, self.writes[:] = list(self.writes), []
        return [[self._read(frame) for frame in FRAME.iter_unpack(data)] for data in written]

    def _read(self, frame: tuple[int, ...]) -> tuple[int, bool]:
        kind, channel, size, class_id, method, tag, multiple, end = frame
        assert (kind, channel, size, class_id, method, end) == (1, 3, 13, 60, 80, 0xCE)
        return tag, bool(multiple)


@pytest.fixture
def loop() -> Loop:
    return Loop()


def test_what_ended_in_one_turn_is_one_frame_when_nothing_before_it_is_open(loop: Loop) -> None:
    loop.done(*reversed(loop.deliver(1, 2, 3)))
    assert loop.turn() == [[(3, True)]]
    assert loop.turn() == []


def test_nothing_is_sent_before_the_loop_turns(loop: Loop) -> None:
    loop.done(*loop.deliver(1))
    assert loop.writes == []


def test_no_frame_speaks_for_a_message_that_is_not_done(loop: Loop) -> None:
    one, two, three, four = loop.deliver(1, 2, 3, 4)
    loop.done(one, three, four)
    assert loop.turn() == [[(1, True), (3, False), (4, False)]]
    loop.done(two)
    assert loop.turn() == [[(2, True)]]


def test_a_message_that_was_given_back_holds_up_nobody(loop: Loop) -> None:
    one, two, three = loop.deliver(1, 2, 3)
    one.acknowledged = True  # rejected
    loop.done(two, three)
    assert loop.turn() == [[(3, True)]]


def test_after_a_message_that_was_not_seen_each_is_acknowledged_alone(loop: Loop) -> None:
    loop.done(*loop.deliver(1, 3, 4))
    assert loop.turn() == [[(1, False), (3, False), (4, False)]]


def test_a_message_of_a_lost_connection_is_not_acknowledged_on_the_new_one(loop: Loop) -> None:
    (old,) = loop.deliver(1)
    loop.channel = loop.new_channel()
    new = loop.deliver(1, 2)
    assert not loop.acks.add(old)
    loop.done(*new)
    assert loop.turn() == [[(2, True)]]


def test_on_a_closed_connection_nothing_is_sent(loop: Loop) -> None:
    loop.done(*loop.deliver(1))
    loop.channel.connection = None
    assert loop.turn() == []
