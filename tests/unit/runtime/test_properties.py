"""Properties that are no text are read all the same."""

from __future__ import annotations

import amqp
from amqp import serialization

from clusterkit.runtime import properties


def read(frame: bytes) -> dict[str, object]:
    found: dict[str, object] = serialization.PROPERTY_CLASSES[amqp.spec.Basic.CLASS_ID](frame, 0)[0]
    return found


def test_what_is_no_text_is_escaped_and_the_rest_is_as_it_was() -> None:
    properties.tolerate()
    properties.tolerate()
    kept = {"content_type": "text/plain", "application_headers": {"task": "shop.ping", "n": 1}}
    sent = amqp.Message(b"", correlation_id="IDID", **kept)._serialize_properties()
    assert read(sent) == {**kept, "correlation_id": "IDID"}
    assert read(sent.replace(b"IDID", b"\xff\xfeID")) == {**kept, "correlation_id": "\\xff\\xfeID"}
