"""Acknowledgements of a prefork worker, sent together: one write for all tasks that ended in one go.

Nothing is acknowledged before its task has ended; it is only sent a turn of the main process's loop later.
Where all earlier deliveries are settled, one frame acknowledges all (`multiple`), which is one command of a
quorum queue instead of many. What is lost with a connection before it was sent is delivered again.
"""

from __future__ import annotations

import struct
from typing import Any, Final

#: AMQP 0-9-1: a method frame with basic.ack: type, channel, size, class, method, tag, multiple, end.
_FRAME: Final = struct.Struct(">BHIHHQBB")
_METHOD, _SIZE, _BASIC, _ACK, _END = 1, 13, 60, 80, 0xCE


class Acks:
    """What is to be acknowledged on a worker's channel.

    ``call_soon`` has the main process's loop call a function in its next turn.
    """

    def __init__(self, call_soon: Any) -> None:
        self._call_soon = call_soon
        self._begin(None)

    def _begin(self, channel: Any) -> None:
        self._channel = channel
        #: Delivery tag -> message, of all that are not known to be settled; the broker counts from 1.
        self._open: dict[int, Any] = {}
        self._last = 0
        #: Whether each tag up to the last was seen: without that, no frame may speak for several.
        self._complete = True
        self._done: list[int] = []

    def seen(self, message: Any) -> None:
        """Note that ``message`` was delivered; to be told of each, in the order of their arrival."""
        if message.channel is not self._channel:
            self._begin(message.channel)
        tag: int = message.delivery_tag
        if tag != self._last + 1:
            self._complete = False
        self._last = tag
        self._open[tag] = message

    def add(self, message: Any) -> bool:
        """Acknowledge ``message`` in the loop's next turn; False if it is not one of this channel's."""
        if message.channel is not self._channel or message.acknowledged:
            return False
        if not self._done:
            self._call_soon(self.flush)
        message._state = "ACK"  # noqa: SLF001 - kombu's, which would send it itself
        self._done.append(message.delivery_tag)
        return True

    def flush(self) -> None:
        """Send what there is.

        Raises:
            OSError, amqp.exceptions.ConnectionError: the connection is lost; what was not sent comes again.
        """
        done, self._done = sorted(self._done), []
        if not done:
            return
        connection = self._channel.connection
        if connection is None or connection.transport is None:  # closed: the loop is about to notice
            return
        frames = self._frames(done)
        connection.transport.write(b"".join(frames))
        connection.bytes_sent += len(frames)  # frames, despite its name: heartbeats go by it

    def _frames(self, done: list[int]) -> list[bytes]:
        settled = self._settled()
        together = [tag for tag in done if tag <= settled] if self._complete else []
        frames = [self._frame(together[-1], multiple=True)] if together else []
        return frames + [self._frame(tag, multiple=False) for tag in done[len(together) :]]

    def _settled(self) -> int:
        """Return the tag up to which every message is acknowledged, about to be, or was given back."""
        while self._open:
            tag = next(iter(self._open))
            if not self._open[tag].acknowledged:
                return tag - 1
            del self._open[tag]
        last: int = self._last
        return last

    def _frame(self, tag: int, *, multiple: bool) -> bytes:
        return _FRAME.pack(_METHOD, self._channel.channel_id, _SIZE, _BASIC, _ACK, tag, multiple, _END)
