"""What a worker calls for a ``ClusterExecutor``, and what it does not."""

from __future__ import annotations

import functools
import subprocess
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from celery import Celery
from celery.exceptions import Ignore, Reject, Retry
from kombu.utils import json

from clusterkit.runtime import calls, configure
from clusterkit.runtime.errors import BadInputError
from tasks.app import app as default_app
from tasks.compute import fibonacci, tile_pixels


def test_functions_and_tasks_are_named_by_module_and_name() -> None:
    assert calls.reference(tile_pixels) == "tasks.compute:tile_pixels"
    assert calls.reference(fibonacci) == "tasks.compute:fibonacci"


def module_level() -> None:
    """Be importable."""


class Thing:
    """Has a method."""

    def method(self) -> None:
        """Be bound."""


@pytest.mark.parametrize(
    "function", [lambda: 1, functools.partial(print), Thing().method], ids=["lambda", "partial", "method"]
)
def test_what_no_worker_can_import_is_refused(function: Any) -> None:
    with pytest.raises(calls.NotCallableError):
        calls.reference(function)


def test_a_function_inside_a_function_is_refused() -> None:
    def inner() -> None: ...

    with pytest.raises(calls.NotCallableError, match="inside a function"):
        calls.reference(inner)


def test_the_packages_of_the_apps_tasks_are_allowed() -> None:
    default_app.loader.import_default_modules()
    assert calls.allowed(default_app) == ("tasks",)
    assert calls.resolve(default_app, "tasks.compute:tile_pixels") is tile_pixels
    assert calls.resolve(default_app, "tasks.compute:fibonacci")(10) == 55


@pytest.mark.parametrize(
    "function",
    [
        "os:system",
        "posix:system",
        "subprocess:run",
        "builtins:eval",
        "tasks.app:os.system",
        "tasks.compute:sys.exit",
        "tasks.compute:base64.b64encode",
        "tasks.crawl:app.conf.update",
        "tasks.compute:fibonacci.__globals__",
        "tasks.compute:fibonacci.run.__globals__.clear",
        "tasks.compute:app.send_task",
        "tasksevil:run",
        "clusterkit.runtime.calls:resolve",
        "celery.app.base:Celery",
    ],
)
def test_nothing_else_is_called_whatever_a_message_says(function: str) -> None:
    default_app.loader.import_default_modules()
    with pytest.raises((calls.NotCallableError, ImportError)):
        calls.resolve(default_app, function)


def test_the_setting_replaces_the_rule() -> None:
    app = configure(Celery("unit", set_as_current=False))
    assert calls.allowed(app) == ()
    with pytest.raises(calls.NotCallableError):
        calls.resolve(app, "subprocess:run")
    app.conf.clusterkit_callables = ["math", "subprocess"]
    assert calls.resolve(app, "subprocess:run") is subprocess.run
    assert calls.resolve(app, "math:sqrt")(9) == 3
    with pytest.raises(calls.NotCallableError, match="not defined in subprocess"):
        calls.resolve(app, "subprocess:os.system")


def test_a_value_that_json_cannot_carry_fails_its_own_call_alone() -> None:
    app = configure(Celery("unit", set_as_current=False))
    app.conf.clusterkit_callables = ["builtins"]
    outcome = calls._run(app, "builtins:iter", [["ab"]], stop=False)
    outcome["values"] += [1]
    text = calls._encoded(outcome)
    assert '"values": [null, 1]' in text
    assert "JSON cannot carry" in text


def test_after_a_failed_call_of_a_map_none_is_begun() -> None:
    app = configure(Celery("unit", set_as_current=False))
    app.conf.clusterkit_callables = ["builtins"]
    every = calls._run(app, "builtins:divmod", [[1, 1], [1, 0], [2, 1]], stop=False)
    assert (every["values"], list(every["errors"])) == ([(1, 0), None, (2, 0)], ["1"])
    assert calls._run(app, "builtins:divmod", [[1, 0], [2, 1]], stop=True)["values"] == [None]


def test_a_run_that_the_worker_ends_has_no_outcome_and_one_that_exits_by_itself_has() -> None:
    app = configure(Celery("unit", set_as_current=False))
    app.conf.clusterkit_callables = ["sys"]
    with pytest.raises(SystemExit):
        calls._run(app, "sys:exit", [[calls.TERMINATED]], stop=False)
    assert calls._run(app, "sys:exit", [[3]], stop=False)["errors"]["0"]["exc_message"] == [3]


@pytest.mark.parametrize("error", [Ignore, Reject, Retry])
def test_what_a_task_tells_its_worker_is_an_error_of_a_call(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising() -> None:
        raise error

    monkeypatch.setattr(calls, "resolve", lambda *_: raising)
    app = Celery("unit", set_as_current=False)
    outcome = calls._run(app, "m:f", [[], []], stop=False)
    assert [outcome["errors"][number]["exc_type"] for number in "01"] == [error.__name__] * 2


CALLS: list[tuple[Any, dict[str, Any]]] = [
    ([[1, 2], [3, 4]], {}),
    ("[[1, 2], [3, 4]]", {}),
    ('[[1, 2], {"a": [3], "k": {"y": 4}}]', {}),
    ("[2, 4]", {"flat": True, "common": "[[[1, 3]], {}]"}),
    ("[1, 3]", {"flat": True, "common": '[[], {"y": 2}]'}),
]


@pytest.mark.parametrize(("given", "form"), CALLS, ids=["list", "text", "keywords", "arguments", "common"])
def test_calls_come_as_a_list_or_as_json_and_what_they_have_in_common_once(
    given: Any, form: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pair(x: Any, y: Any) -> list[Any]:
        return [x, y]

    monkeypatch.setattr(calls, "resolve", lambda *_: pair)
    app = Celery("unit", set_as_current=False)
    outcome = calls._run(app, "m:f", given, stop=True, **form)
    first = 1 if "[[1, 3]]" not in str(form) else [1, 3]
    assert (outcome["errors"], outcome["values"][0]) == ({}, [first, 2])
    assert outcome["values"][1][1] in {2, 4}


@pytest.mark.parametrize("form", [{"flat": True}, {"flat": False}], ids=["flat", "tuples"])
def test_calls_go_on_after_one_that_failed_whatever_it_raised(
    form: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def picky(number: int) -> int:
        if number == 2:
            raise StopIteration
        return number

    monkeypatch.setattr(calls, "resolve", lambda *_: picky)
    app = Celery("unit", set_as_current=False)
    given = "[1, 2, 3]" if form["flat"] else "[[1], [2], [3]]"
    outcome = calls._run(app, "m:f", given, stop=False, **form)
    assert (outcome["values"], list(outcome["errors"])) == ([1, None, 3], ["1"])


def test_a_worker_reads_the_values_that_celery_would_have_read() -> None:
    values = [
        None,
        1.5,
        'a "text" \\ \u00fc\u20ac\U0001f600\ud800',
        b"\xff",
        b"text",
        Decimal("1.50"),
        date(2026, 2, 28),
        datetime(2026, 2, 28, 1, 2, 3, tzinfo=UTC),
        {"a": [1, (2, 3)], 5: UUID(int=7)},
    ]
    [(text, count)] = calls.chunks(values)
    message = json.loads(json.dumps([["m:f", text], {}, {}]))
    assert count == len(values)
    assert json.loads(message[0][1]) == json.loads(json.dumps([[values], {}, {}]))[0][0]


class Told:
    """What a worker tells of a message; ``claimed``: whether the sender has not cancelled it."""

    def __init__(self, claimed: bool) -> None:
        self.claimed = claimed
        self.told: list[dict[str, Any]] = []

    def claim(self, *_: Any) -> bool:
        return self.claimed

    def tell(self, task_id: str, result: str, channel: str) -> None:
        self.told.append(json.loads(result))


@pytest.mark.parametrize(
    ("claimed", "deliveries", "error", "words"),
    [
        (False, 0, "CancelledError", "was cancelled"),
        (True, calls.MOST_DELIVERIES, "BrokenExecutor", "delivered 10 times"),
    ],
)
def test_what_is_not_run_is_told_all_the_same(
    claimed: bool, deliveries: int, error: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = configure(Celery("unit", set_as_current=False))
    store = Told(claimed)
    task = app.tasks[calls.CALL]
    monkeypatch.setattr(type(task), "backend", store)
    task.push_request(id="id", hostname="node", **{"x-delivery-count": deliveries})
    task.run("m:f", "[[1]]", "channel", claim=True)
    assert store.told[0]["error"]["exc_type"] == error
    assert words in store.told[0]["error"]["exc_message"][0]


@pytest.mark.parametrize("items", [[object()], [1, {2}], [(1, 2), (1, object())], [[1, {(1, 2): 3}]]])
def test_arguments_that_json_cannot_carry_are_refused(items: list[Any]) -> None:
    with pytest.raises(BadInputError, match="JSON"):
        calls.check_json(items)
    with pytest.raises(BadInputError, match="JSON"):
        list(calls.chunks(items))


def test_calls_that_are_too_much_for_a_message_go_in_several() -> None:
    items = ["x" * 1_000] * 3_000 + ["y" * 2 * calls.CHUNK_SIZE, "z"]
    found = list(calls.chunks(items))
    assert [item for text, _ in found for item in json.loads(text)] == items
    assert [count for text, count in found if len(text) > calls.CHUNK_SIZE] == [1]
    assert len(found) < 15


def test_a_call_that_is_too_much_for_any_message_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"15\.0 MiB of JSON; a message may have 15"):
        list(calls.chunks(["x" * calls.CALL_SIZE]))
    with pytest.raises(BadInputError, match="MiB"):
        calls.check_size(calls.to_json('"' * (calls.CALL_SIZE // 2)))
