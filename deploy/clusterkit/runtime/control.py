"""Control commands that outlive a broker node: each worker node's control queue is a quorum queue.

Celery's is a classic queue, and lives on one broker node. When that node dies, a worker whose queue was on
it cannot declare it again until the node is back, reconnects over and over and takes no task meanwhile
(Celery 5.7 with RabbitMQ 4.0, three nodes). An exclusive queue, Celery's default, instead locks its own
worker out after a connection that was cut without a goodbye (kombu #2237).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import celery.app.control
import celery.worker.consumer.control
import celery.worker.pidbox
import kombu.pidbox
from celery.utils.log import get_logger

if TYPE_CHECKING:
    import logging

    from kombu import Queue

logger: logging.Logger = get_logger(__name__)

#: Seconds a control queue stays without its worker. With Celery's 10 it is deleted while a broker node is
#: away, and made anew; the node that comes back brings the old one along, wins the election with it, and
#: deletes the new one from under its worker, who is not told and answers nobody any more (RabbitMQ 4.0.5).
_EXPIRES = 86_400
#: Seconds until a lost connection for control commands is made anew.
_PAUSE = 1.0


class Mailbox(kombu.pidbox.Mailbox):
    """Celery's mailbox with replicated queues."""

    def get_queue(self, hostname: str) -> Queue:
        """Return the control queue of the worker node ``hostname``."""
        queue = super().get_queue(hostname)
        queue.queue_arguments = {**(queue.queue_arguments or {}), "x-queue-type": "quorum"}
        queue.expires = _EXPIRES
        return queue


class Control(celery.app.control.Control):
    """Celery's control with the kit's mailbox, and connections that died in the pool made anew."""

    Mailbox = Mailbox

    def broadcast(
        self,
        command: str,
        arguments: dict[str, Any] | None = None,
        destination: list[str] | None = None,
        connection: kombu.Connection | None = None,
        **options: Any,
    ) -> Any:
        """Send a command to worker nodes; as Celery's, which everything else here is made of.

        A connection that lay in the pool while its broker node restarted is dead, which only its next use
        tells: Celery's then fails with BrokenPipeError. Asked before, because a command sent twice may do
        its work twice (``pool_grow``).
        """
        with self.app.connection_or_acquire(connection) as usable:
            if usable.connected:
                try:
                    usable.channel().close()
                except usable.recoverable_connection_errors:
                    usable.collect()
            return super().broadcast(command, arguments, destination, usable, **options)


class GreenPidbox(celery.worker.pidbox.gPidbox):
    """What gevent and eventlet workers take control commands with: a connection of its own, kept up.

    Celery's ends with its connection, and the worker answers no command any more until it is restarted.
    """

    def loop(self, c: Any) -> None:
        """Take commands until the worker stops."""
        while True:
            try:
                super().loop(c)
            except (*c.connection_errors, *c.channel_errors) as error:
                logger.warning("connection for control commands lost, connecting again: %r", error)
            else:
                return
            shutdown = self._node_shutdown
            if shutdown.is_set():
                return
            time.sleep(_PAUSE)  # the pool has patched it: only this greenlet waits
            # Meanwhile the worker may have stopped, or lost its own connection and begun another loop.
            if self._node_shutdown is not shutdown or shutdown.is_set() or not c.connection:
                return


class ControlStep(celery.worker.consumer.control.Control):
    """The step of a worker's start that begins to take control commands."""

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        if self.is_green:
            self.box = GreenPidbox(c)
            self.start, self.stop, self.shutdown = self.box.start, self.box.stop, self.box.shutdown
