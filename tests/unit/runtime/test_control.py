"""Control commands: replicated queues, and a connection that gevent and eventlet workers keep up."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from celery import Celery

from clusterkit.runtime import configure, control
from clusterkit.runtime.consumer import Consumer


def test_a_worker_nodes_control_queue_is_a_quorum_queue() -> None:
    app = configure(Celery("test"))
    queue = app.control.mailbox.get_queue("cpu@h1")
    assert queue.queue_arguments == {"x-queue-type": "quorum"}
    assert queue.expires == 86_400, "it must outlive a broker node's restart"
    assert (queue.name, queue.durable, queue.exclusive) == ("cpu@h1.celery.pidbox", True, False)


def test_the_consumer_starts_with_the_kits_step_for_control_commands() -> None:
    steps = Consumer.Blueprint.default_steps
    assert "clusterkit.runtime.control:ControlStep" in steps
    assert "celery.worker.consumer.control:Control" not in steps


class Stand:
    """A consumer whose connection for control commands fails ``failures`` times."""

    connection_errors = (ConnectionError,)
    channel_errors = ()
    connection: Any = True

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.loops = 0


@pytest.fixture
def pidbox(monkeypatch: pytest.MonkeyPatch) -> control.GreenPidbox:
    monkeypatch.setattr(control, "_PAUSE", 0)
    box = control.GreenPidbox.__new__(control.GreenPidbox)

    def loop(self: control.GreenPidbox, c: Stand) -> None:
        self._node_shutdown = threading.Event()
        c.loops += 1
        if c.loops <= c.failures:
            raise ConnectionError("the broker went away")

    monkeypatch.setattr("celery.worker.pidbox.gPidbox.loop", loop)
    return box


def test_a_lost_connection_is_made_again(pidbox: control.GreenPidbox) -> None:
    stand = Stand(failures=3)
    pidbox.loop(stand)
    assert stand.loops == 4


def test_it_ends_with_the_worker(pidbox: control.GreenPidbox) -> None:
    stand = Stand(failures=1_000)
    stand.connection = None
    pidbox.loop(stand)
    assert stand.loops == 1
