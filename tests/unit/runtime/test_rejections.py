"""Notes of why messages were rejected: best effort, and no harm to the worker."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest
from celery import Celery
from kombu.message import Message

from clusterkit.runtime import rejections
from clusterkit.runtime.clusterfile import ClusterFile
from clusterkit.runtime.rejections import Notes, fingerprint


def message(body: bytes | str = b"{", **headers: Any) -> Message:
    return Message(
        body=body,
        content_type="application/json",
        content_encoding="utf-8",
        headers={"task": "shop.ping", "id": "1", **headers},
        properties={"correlation_id": "1"},
    )


def notes(result_url: str) -> Notes:
    app = Celery("shop")
    app.conf.clusterkit_cluster_file = ClusterFile(
        cluster="test",
        role="worker",
        broker_url="amqp://",
        result_url=result_url,
        queues=("default",),
        default_queue="default",
        celery_app="shop:app",
    )
    return Notes(app, "cpu@h1")


class Store:
    """A result store that takes notes, as redis-py's pipeline does."""

    def __init__(self) -> None:
        self.written: list[str] = []

    def pipeline(self, **_: Any) -> contextlib.AbstractContextManager[Store]:
        return contextlib.nullcontext(self)

    def set(self, key: str, *_: Any, **__: Any) -> None:
        self.written.append(key)

    def execute(self) -> None:
        pass


def test_a_message_is_known_again_among_the_dead_letters() -> None:
    assert fingerprint(message("{ä")) == fingerprint(message("{ä".encode(), **{"x-death": [{}]}))
    assert fingerprint(message()) != fingerprint(message(id="2"))
    assert fingerprint(message()) != fingerprint(message(b"["))


def test_a_store_that_is_away_costs_the_worker_a_moment_and_then_nothing() -> None:
    store = notes("redis://127.0.0.1:1/0")
    began = time.monotonic()
    store.write(message(), ValueError("no"))
    assert time.monotonic() - began < 5
    began = time.monotonic()
    for _ in range(1_000):
        store.write(message(), ValueError("no"))
    assert time.monotonic() - began < 0.5, "it is not asked again for a while"


def test_an_app_that_is_on_no_cluster_writes_none() -> None:
    Notes(Celery("shop"), "cpu@h1").write(message(), ValueError("no"))


def test_a_flood_of_bad_messages_does_not_fill_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    store, server = notes("redis://127.0.0.1:1/0"), Store()
    monkeypatch.setattr(store, "_connected", lambda: server)
    for number in range(rejections.MOST_PER_HOUR + 100):
        store.write(message(id=str(number)), ValueError("no"))
    assert len(server.written) == rejections.MOST_PER_HOUR
    assert all(key.startswith(rejections.PREFIX) for key in server.written)


def test_notes_of_while_the_store_was_away_are_written_with_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, server = notes("redis://127.0.0.1:1/0"), Store()
    store.write(message(id="1"), ValueError("no"))
    store.write(message(id="2"), ValueError("no"))
    monkeypatch.setattr(store, "_connected", lambda: server)
    monkeypatch.setattr(store, "_silent_until", 0.0)
    store.write(message(id="3"), ValueError("no"))
    assert len(server.written) == 3
