"""Reading of messages in larger pieces.

py-amqp asks the system for each part of each frame (three calls and more a frame, three frames a message),
and kombu reads one message in each turn of the loop, which costs a poll and the pool's registrations.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

from amqp.exceptions import RecoverableConnectionError

if TYPE_CHECKING:
    from kombu import Connection

#: Bytes asked for at once; what is left of it is copied with each frame, so that more is not better.
PIECE: Final = 8_192
#: Messages in one turn of the loop: results of the pool and heartbeats want their turn too.
MESSAGES: Final = 64


def read_ahead(connection: Connection) -> None:
    """Have ``connection``, which a loop reads, read in large pieces and several messages in a turn."""
    transport = connection.connection.transport
    receive = transport._quick_recv  # noqa: SLF001 - py-amqp has no setting; it keeps what is too much
    transport._quick_recv = lambda size: receive(max(size, PIECE))  # noqa: SLF001
    connection.transport.on_readable = _read


def _read(connection: Any, loop: Any) -> None:
    """Take the messages that are there, and come again when there are more than fit into a turn."""
    if not connection.connected:
        raise RecoverableConnectionError("the connection was closed")
    try:
        for _ in range(MESSAGES):
            connection.drain_events(timeout=0)
    except TimeoutError:
        return
    except OSError as error:
        if error.errno in {errno.EAGAIN, errno.EINTR}:
            return
        raise
    loop.call_soon(_read, connection, loop)
