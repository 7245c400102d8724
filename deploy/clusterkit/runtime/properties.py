"""Reads a message's properties even where they are no UTF-8.

py-amqp 5.4 raises UnicodeDecodeError for such a property while it reads from the connection: not an error of
the message, which nobody has seen yet, but of the whole worker, which exits, and then of the next one.
RabbitMQ does not look at the bytes, so anybody who may publish can send such a message.
"""

from __future__ import annotations

from typing import Any

from amqp import serialization, spec
from amqp.serialization import decode_properties_basic


def tolerate() -> None:
    """Have py-amqp escape what it cannot decode, in this process; a second time changes nothing."""
    serialization.PROPERTY_CLASSES[spec.Basic.CLASS_ID] = _properties


def _properties(buffer: Any, offset: int) -> Any:
    try:
        return decode_properties_basic(buffer, offset)
    except UnicodeDecodeError:
        strict = serialization.pstr_t
        serialization.pstr_t = _escaped
        try:
            return decode_properties_basic(buffer, offset)
        finally:
            serialization.pstr_t = strict


def _escaped(text: Any) -> str:
    # As py-amqp's own: it passes text on.
    return text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else str(text)
