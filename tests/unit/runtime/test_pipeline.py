"""A window of unconfirmed messages, at a broker that answers what the test says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from amqp import Connection
from amqp.exceptions import AccessRefused

from clusterkit.runtime import pipeline
from clusterkit.runtime.errors import PublishTimeoutError
from clusterkit.runtime.pipeline import Message, Pipeline


class Clock:
    """Time that passes only when somebody waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        clock = SimpleNamespace(monotonic=lambda: self.now, sleep=self.wait)
        monkeypatch.setattr(pipeline, "time", clock)

    def wait(self, seconds: float) -> None:
        self.now += seconds


class Broker:
    """The connection to a broker: what it is going to answer, what was written to it, which node it is."""

    recoverable_connection_errors = Connection.recoverable_connection_errors

    def __init__(self, clock: Clock, nodes: int) -> None:
        self.clock = clock
        self.alt = [f"node{number}" for number in range(nodes)] if nodes > 1 else []
        self.node = 0
        self.connects = 0
        self.answers: list[Any] = []
        self.written: list[bytes] = []
        self.timeouts: list[tuple[str, float | None]] = []
        self.timeout: float | None = None
        self.stuck: list[int] = []

    def connection_for_write(self) -> Broker:
        return self

    def ensure_connection(self, **_: Any) -> None:
        self.connects += 1
        self.timeout = None
        transport = SimpleNamespace(sock=SimpleNamespace(settimeout=self._set), write=self._write)
        self.connection = SimpleNamespace(transport=transport, frame_max=131_072, drain_events=self._drain)

    def channel(self) -> Any:
        self._wait_for("channel")
        events: dict[str, set[Any]] = {"basic_ack": set(), "basic_nack": set(), "basic_return": set()}
        self.opened = SimpleNamespace(
            channel_id=1, events=events, confirm_select=lambda: self._wait_for("confirms")
        )
        return self.opened

    def collect(self) -> None:
        """Forget the connection."""

    def maybe_switch_next(self) -> None:
        self.node += 1

    def says(self, event: str, *args: Any) -> Any:
        """Let the pipeline hear something when it reads."""

        def say() -> None:
            [hear] = self.opened.events[event]
            hear(*args)

        self.answers.append(say)

    def _set(self, seconds: float | None) -> None:
        self.timeout = seconds

    def _wait_for(self, what: str) -> None:
        self.timeouts.append((what, self.timeout))

    def _write(self, data: bytes) -> None:
        self._wait_for("write")
        if self.node in self.stuck:
            self.clock.wait(self.timeout or 0)
            raise TimeoutError
        self.written.append(data)

    def _drain(self, timeout: float) -> None:
        if not self.answers:
            self.clock.wait(timeout)
            raise TimeoutError
        self.answers.pop(0)()


class Told:
    """What became of messages: number and reason, if they were refused."""

    def __init__(self) -> None:
        self.outcomes: list[tuple[int, str | None]] = []
        self.raises: BaseException | None = None

    def confirmed(self, message: Message) -> None:
        self._note(message, None)

    def refused(self, message: Message, reason: str) -> None:
        self._note(message, reason)

    def _note(self, message: Message, reason: str | None) -> None:
        self.outcomes.append((message.number, reason))
        if self.raises is not None:
            raise self.raises


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def told() -> Told:
    return Told()


def opened(
    clock: Clock, told: Told, *, nodes: int = 1, timeout: float | None = 15.0
) -> tuple[Broker, Pipeline]:
    """A pipeline that has sent messages 1, 2 and 3."""
    broker = Broker(clock, nodes)
    pipe = Pipeline(broker, told, window=100, timeout=timeout)
    for number in (1, 2, 3):
        pipe.send(message(number))
    pipe.poll()  # connects
    return broker, pipe


def message(number: int, body: bytes = b"body") -> Message:
    return Message(number, f"id{number}", b"target", b"head", body)


def poll_now_and_then(clock: Clock, pipe: Pipeline, times: int, between: Any = None) -> None:
    for _ in range(times):
        clock.wait(0.6)
        pipe.poll()
        if between:
            between()


def test_who_polls_now_and_then_learns_that_the_broker_confirms_nothing(clock: Clock, told: Told) -> None:
    _, pipe = opened(clock, told)
    began = clock.now
    with pytest.raises(PublishTimeoutError):
        poll_now_and_then(clock, pipe, 100)
    assert clock.now - began == pytest.approx(15, abs=1)


def test_who_polls_now_and_then_leaves_a_node_that_confirms_nothing(clock: Clock, told: Told) -> None:
    broker, pipe = opened(clock, told, nodes=3)
    poll_now_and_then(clock, pipe, 8)
    assert (broker.node, broker.connects) == (1, 2)


def test_what_is_sent_between_two_polls_does_not_begin_the_time_anew(clock: Clock, told: Told) -> None:
    _, pipe = opened(clock, told)
    with pytest.raises(PublishTimeoutError):
        poll_now_and_then(clock, pipe, 100, between=lambda: pipe.send(message(4)))


def test_time_in_which_the_next_message_was_not_there_does_not_count(clock: Clock, told: Told) -> None:
    broker, pipe = opened(clock, told)
    for number in (4, 5, 6):
        clock.wait(60)
        pipe.send(message(number))
    broker.says("basic_ack", 6, True)
    pipe.finish()
    assert told.outcomes == [(number, None) for number in range(1, 7)]


@pytest.mark.parametrize("trouble", [BrokenPipeError("standard output"), KeyboardInterrupt()], ids=repr)
def test_who_is_told_may_fail_and_every_message_is_told_all_the_same(
    trouble: BaseException, clock: Clock, told: Told
) -> None:
    """A broken pipe is no lost connection: nothing is sent again, and no outcome disappears."""
    broker, pipe = opened(clock, told)
    told.raises = trouble
    broker.says(
        "basic_return", None, "exchange", "nowhere", SimpleNamespace(properties={"correlation_id": "id2"})
    )
    broker.says("basic_ack", 3, True)
    with pytest.raises(type(trouble)):
        pipe.poll()
    assert told.outcomes == [
        (1, None),
        (2, "no queue takes the routing key 'nowhere' of exchange 'exchange'"),
        (3, None),
    ]
    assert not pipe.unconfirmed
    told.raises = None
    pipe.send(message(4))
    broker.says("basic_ack", 4, False)
    pipe.finish()
    assert (told.outcomes[3:], broker.connects, len(broker.written)) == ([(4, None)], 1, 4)


def test_what_the_broker_said_before_a_connection_was_lost_is_told(clock: Clock, told: Told) -> None:
    broker, pipe = opened(clock, told)
    broker.says("basic_ack", 2, True)
    broker.answers.append(lost)
    pipe.poll()
    assert told.outcomes == [(1, None), (2, None)]
    assert [message.number for message in pipe.unconfirmed] == [3]


def test_what_the_broker_said_before_an_error_is_told(clock: Clock, told: Told) -> None:
    broker, pipe = opened(clock, told)
    broker.says("basic_ack", 2, True)
    broker.answers.append(no_right)
    with pytest.raises(AccessRefused):
        pipe.poll()
    assert told.outcomes == [(1, None), (2, None)]


def test_what_a_full_queue_refuses_is_sent_again_until_its_time_is_over(clock: Clock, told: Told) -> None:
    broker, pipe = opened(clock, told, timeout=2.0)
    broker.says("basic_nack", 3, True)
    pipe.poll()
    assert not told.outcomes
    broker.answers.append(lambda: clock.wait(2))
    broker.says("basic_nack", 6, True)
    pipe.finish()
    assert [number for number, _ in told.outcomes] == [1, 2, 3]
    assert {reason for _, reason in told.outcomes} == {"the broker refused it (queue full, or not available)"}


@pytest.mark.parametrize(
    ("nodes", "timeout", "expected"),
    [(1, 15.0, 15.0), (1, None, None), (3, 15.0, 4.0), (3, 2.0, 2.0), (3, None, 4.0)],
)
def test_no_wait_of_a_connection_is_longer_than_a_node_or_the_caller_has_time(
    nodes: int, timeout: float | None, expected: float | None, clock: Clock, told: Told
) -> None:
    broker, _ = opened(clock, told, nodes=nodes, timeout=timeout)
    assert broker.timeouts == [(what, expected) for what in ("channel", "confirms", *["write"] * 3)]


def test_a_node_that_does_not_read_is_left_for_another_that_gets_the_same_messages(
    clock: Clock, told: Told
) -> None:
    broker, pipe = opened(clock, told, nodes=3)
    broker.written.clear()
    broker.stuck = [0]
    began = clock.now
    pipe.send(message(4))
    assert clock.now - began == pytest.approx(4, abs=1)
    assert broker.node == 1
    broker.says("basic_ack", 4, True)
    pipe.finish()
    assert [number for number, _ in told.outcomes] == [1, 2, 3, 4]
    assert len(broker.written) == 4
    assert broker.timeout == 6.0


def test_patience_has_an_end(clock: Clock, told: Told) -> None:
    broker, pipe = opened(clock, told, nodes=3, timeout=None)
    broker.stuck = list(range(10_000))
    for _ in range(3_000):
        pipe.poll(1.0)
    broker.stuck.clear()
    pipe.poll(1.0)
    assert broker.timeout == 60.0


def test_a_large_message_has_time_for_each_of_its_pieces(clock: Clock, told: Told) -> None:
    broker, pipe = opened(clock, told)
    broker.written.clear()
    large = message(4, b"x" * 5 * 2**19)
    pipe.send(large)
    assert [len(piece) > 2**18 for piece in broker.written] == [True] * 3
    assert b"".join(broker.written) == pipeline.frames(large, 1, 131_072)


def lost() -> None:
    raise ConnectionResetError


def no_right() -> None:
    raise AccessRefused
