"""What is known of a submission that something ended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from celery import Celery
from kombu.exceptions import EncodeError

from clusterkit.runtime import bulk, configure
from clusterkit.runtime.bulk import Refused, Submission, SubmissionTimeoutError, submit_many
from clusterkit.runtime.errors import BadInputError, PublishTimeoutError
from clusterkit.runtime.pipeline import Message


class Pipe:
    """Confirms a message when two others have followed it, refuses number 5, and has no broker."""

    def __init__(self, _app: Celery, outcomes: Any, **_: Any) -> None:
        self.outcomes = outcomes
        self.unconfirmed: list[Message] = []

    def declare(self, _entities: list[Any]) -> None:
        """Every queue is there."""

    def send(self, message: Message) -> None:
        self.unconfirmed.append(message)
        self._settle(2)

    def finish(self) -> None:
        self._settle(0)

    def close(self) -> None:
        """Nothing is open."""

    def _settle(self, most: int) -> None:
        while len(self.unconfirmed) > most:
            message = self.unconfirmed.pop(0)
            if message.number == 5:
                self.outcomes.refused(message, "full")
            else:
                self.outcomes.confirmed(message)


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Celery:
    monkeypatch.setattr(bulk, "Pipeline", Pipe)
    return configure(Celery("unit", broker="memory://", set_as_current=False))


def then(error: BaseException) -> Iterator[int]:
    """Ten numbers, and an end that nobody expected."""
    yield from range(10)
    raise error


@dataclass(frozen=True)
class FrozenError(Exception):
    """Takes no attributes."""

    text: str


def known(submission: Submission) -> tuple[int, int, int, tuple[int, ...]]:
    return submission.sent, submission.confirmed, submission.refused, submission.unknown


@pytest.mark.parametrize(
    ("error", "expected"),
    [(ValueError("no more"), (10, 9, 1, ())), (KeyboardInterrupt(), (10, 7, 1, (8, 9)))],
    ids=["the iterable's own", "Ctrl-C"],
)
def test_what_ends_a_submission_says_what_is_known_of_it(
    error: BaseException, expected: tuple[Any, ...], app: Celery
) -> None:
    with pytest.raises(type(error)) as ended:
        submit_many("unit.take", then(error), app=app, on_refused=lambda _: None)
    assert ended.value is error
    assert known(error.submission) == expected  # type: ignore[attr-defined]
    [note] = error.__notes__
    assert f"{expected[1]} of 10 tasks are confirmed, 1 refused, {len(expected[3])} unknown" in note


def test_a_wrong_item_says_it_too(app: Celery) -> None:
    with pytest.raises(EncodeError) as ended:
        submit_many("unit.take", [1, 2, object()], app=app)
    assert known(ended.value.submission) == (2, 2, 0, ())


def test_a_callback_that_fails_says_it_too(app: Celery) -> None:
    def on_refused(_: Refused) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError) as ended:
        submit_many("unit.take", range(10), app=app, on_refused=on_refused)
    assert known(ended.value.submission) == (8, 5, 1, (6, 7))  # type: ignore[attr-defined]


def test_a_broker_that_confirms_nothing_in_time_says_it_too(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish(_: Pipe) -> None:
        raise PublishTimeoutError("too late")

    monkeypatch.setattr(Pipe, "finish", finish)
    with pytest.raises(SubmissionTimeoutError, match="too late") as ended:
        submit_many("unit.take", range(4), app=app)
    assert known(ended.value.submission) == (4, 2, 0, (2, 3))


def test_an_exception_that_takes_no_attributes_stays_what_it_is(app: Celery) -> None:
    with pytest.raises(FrozenError) as ended:
        submit_many("unit.take", then(FrozenError("mine")), app=app, on_refused=lambda _: None)
    assert ended.value.text == "mine"


@pytest.mark.parametrize("option", ["task_id", "correlation_id"])
def test_one_id_for_all_tasks_is_refused(option: str, app: Celery) -> None:
    options: dict[str, Any] = {option: "mine"}
    with pytest.raises(BadInputError, match=option):
        submit_many("unit.take", range(4), app=app, **options)
