"""A message made of a pattern is, byte by byte, the one that Celery and py-amqp would send."""

from __future__ import annotations

import random
import string
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import amqp
import pytest
from amqp import spec
from amqp.method_framing import frame_writer
from celery import Celery, signals, signature, uuid
from kombu import Exchange, Queue

from clusterkit.runtime import configure, pipeline
from clusterkit.runtime.errors import BadInputError
from clusterkit.runtime.messages import CapturingProducer, Maker

OPTIONS: list[dict[str, Any]] = [
    {},
    {"queue": "other"},
    {"priority": 3, "ignore_result": True},
    {"time_limit": 20, "soft_time_limit": 10, "shadow": "nickname", "group_id": "g", "group_index": 4},
    {"headers": {"tenant": "a", "number": 7}},
    {"argsrepr": "(hidden)", "compression": "zlib"},
    {"eta": datetime(2099, 1, 1, tzinfo=UTC)},
    {"root_id": "root", "parent_id": "parent", "reply_to": "queue"},
    {"link": [signature("unit.take", args=(1,)), signature("unit.take") | signature("unit.take")]},
    {"link_error": signature("unit.take", kwargs={"x": [1]}), "compression": "zlib"},
    {"chord": signature("unit.take", immutable=True), "group_id": "g", "group_index": 4},
]
ARGUMENTS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((1, 2), {}),
    ((), {"x": 1.5, "y": None}),
    (('it\'s "text" \u00fc\u20ac', True), {}),
    (([1, [2, [3, [4]]]], {"a": {"b": {}}}), {}),
    (("x" * 5_000, 10**1_500), {}),
    ((Decimal("1.5"), datetime(2020, 1, 1, tzinfo=UTC)), {}),
    ((), {"x": b"\xff", "y": Decimal(2)}),
]


@pytest.fixture
def app() -> Celery:
    app = configure(Celery("unit", broker="memory://", set_as_current=False))
    exchange = Exchange("celery", type="topic")
    app.conf.task_queues = [Queue(name, exchange, routing_key=name) for name in ("celery", "other")]
    app.conf.task_default_queue = app.conf.task_default_routing_key = "celery"

    @app.task(name="unit.take", shared=False)
    def take(x: Any = None, y: Any = None) -> None:
        """Take what comes."""

    return app


def as_celery_sends(app: Celery, args: Any, kwargs: Any, options: Any, task_id: str) -> Any:
    producer = CapturingProducer(app.connection_for_write())
    app.tasks["unit.take"].apply_async(args, kwargs, task_id=task_id, producer=producer, **options)
    return producer.captured[0]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_message_of_a_pattern_is_the_one_that_celery_sends(app: Celery, options: dict[str, Any]) -> None:
    maker = Maker(app, app.tasks["unit.take"], options)
    for args, kwargs in ARGUMENTS * 2:
        task_id = uuid()
        made = maker.message(0, task_id, args, kwargs)
        assert made == as_celery_sends(app, args, kwargs, options, task_id).to_message(0)


def test_an_id_that_is_no_uuid_has_its_own_length(app: Celery) -> None:
    maker = Maker(app, app.tasks["unit.take"], {})
    for task_id in (uuid(), "mine", uuid()):
        sent = as_celery_sends(app, (1,), {}, {}, task_id)
        assert maker.message(0, task_id, (1,), {}) == sent.to_message(0)


def test_relative_times_are_at_most_a_twentieth_of_a_second_off(app: Celery) -> None:
    maker = Maker(app, app.tasks["unit.take"], {"countdown": 10, "expires": 60})
    maker.message(0, uuid(), (1,), {})
    first = maker._pattern
    assert first is not None
    maker.message(1, uuid(), (1,), {})
    assert maker._pattern is first
    maker._made_at -= 0.06
    maker.message(2, uuid(), (1,), {})
    assert maker._pattern is not first


def test_who_wants_to_see_each_message_sees_each(app: Celery) -> None:
    seen: list[tuple[Any, ...]] = []

    def note(sender: str, headers: dict[str, Any], body: Any, **_: Any) -> None:
        headers["trace"] = str(len(seen))
        seen.append(body[0])

    signals.before_task_publish.connect(note)
    try:
        maker = Maker(app, app.tasks["unit.take"], {})
        messages = [maker.message(n, uuid(), (n,), {}) for n in range(3)]
    finally:
        signals.before_task_publish.disconnect(note)
    assert seen == [(0,), (1,), (2,)]
    assert [b"trace" in message.head for message in messages] == [True] * 3


def test_a_route_that_looks_at_arguments_gets_each(app: Celery) -> None:
    app.conf.task_routes = [
        lambda _name, args, *_, **__: {"queue": "other"} if args and args[0] > 1 else None
    ]
    maker = Maker(app, app.tasks["unit.take"], {})
    targets = [maker.message(n, uuid(), (n,), {}).target for n in range(4)]
    assert [b"other" in target for target in targets] == [False, False, True, True]


def test_arguments_that_the_task_does_not_take_are_refused_here(app: Celery) -> None:
    maker = Maker(app, app.tasks["unit.take"], {})
    with pytest.raises(TypeError, match="z"):
        maker.message(0, uuid(), (), {"z": 1})


def test_an_app_that_runs_tasks_itself_is_refused(app: Celery) -> None:
    app.conf.task_always_eager = True
    with pytest.raises(BadInputError, match="task_always_eager"):
        Maker(app, app.tasks["unit.take"], {})


class _Transport:
    def __init__(self) -> None:
        self.written = b""
        self.bytes_sent = 0
        self.frame_max = 131_072

    def write(self, data: Any) -> None:
        self.written += bytes(data)


@pytest.mark.parametrize("size", [0, 1, 1_000, 130_000, 131_064, 131_065, 400_000])
def test_frames_are_those_of_py_amqp(size: int) -> None:
    body = "".join(random.Random(size).choices(string.ascii_letters, k=size)).encode()  # noqa: S311
    content = amqp.Message(body, content_type="application/json", application_headers={"id": "1"})
    transport = _Transport()
    where = pipeline.target("celery", "cpu", mandatory=True)
    write = frame_writer(transport, transport)
    write(1, 1, spec.Basic.Publish, where[4:], content)
    message = pipeline.Message(0, "1", where, content._serialize_properties(), body)
    ours = pipeline.frames(message, 1, transport.frame_max)
    assert contents(ours) == contents(transport.written)
    assert all(length <= transport.frame_max for length in lengths(ours))


def split(data: bytes) -> list[bytes]:
    found = []
    while data:
        length = int.from_bytes(data[3:7], "big") + 8
        found.append(data[:length])
        data = data[length:]
    return found


def lengths(data: bytes) -> list[int]:
    return [len(frame) for frame in split(data)]


def contents(data: bytes) -> tuple[list[bytes], bytes]:
    """The method and header frames, and the body, wherever it is cut."""
    first, second, *rest = split(data)
    assert all(frame[0] == 3 and frame[-1] == 0xCE for frame in rest)
    return [first, second], b"".join(frame[7:-1] for frame in rest)
