"""What the consumer refuses before Celery sees it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from clusterkit.runtime.consumer import MalformedTaskError, _check

HEADERS = {"task": "shop.ping", "id": "1"}


def message(payload: Any, **headers: Any) -> SimpleNamespace:
    return SimpleNamespace(headers=headers, payload=payload)


@pytest.mark.parametrize(
    "good",
    [
        message([[], {}, {}], **HEADERS),
        message(([1], {"a": 1}, None), **HEADERS),
        message([[], {}, {"chord": None}], **HEADERS, timelimit=[None, None]),
        message({"args": [], "kwargs": {}}, **HEADERS),
        message(b"not looked at", other="no task: Celery's own business"),
    ],
)
def test_tasks_pass(good: Any) -> None:
    _check(good)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (message(b"xx", **HEADERS), "bytes"),
        (message("text", **HEADERS), "str"),
        (message([[], {}], **HEADERS), "args, kwargs, embed"),
        (message([{}, {}, {}], **HEADERS), "args is not a list"),
        (message([[], [], {}], **HEADERS), "kwargs is not an object"),
        (message([[], {}, "embed"], **HEADERS), "embed"),
        (message([[], {}, {}], task="shop.ping"), "no task id"),
        (message([[], {}, {}], **HEADERS, timelimit=5), "timelimit"),
    ],
)
def test_what_would_end_the_worker_is_refused_with_the_reason(bad: Any, reason: str) -> None:
    with pytest.raises(MalformedTaskError, match=reason):
        _check(bad)
