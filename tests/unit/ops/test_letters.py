"""What is read out of a dead letter, whatever is in it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from clusterkit.ops.letters import DEATHS, Letter, Reason, Selection
from clusterkit.ops.messaging import Message
from clusterkit.runtime.errors import BadInputError
from clusterkit.runtime.rejections import Rejection

DIED = datetime(2026, 1, 2, 3, 4, 5)  # noqa: DTZ001 - as py-amqp gives it
DEATH = {"queue": "cpu", "reason": "rejected", "count": 2, "time": DIED}
DELAY = {"queue": "celery_delayed_3", "reason": "expired", "count": 1, "time": DIED}


def letter(body: bytes = b"[[1], {}, {}]", deaths: Any = None, **more: Any) -> Letter:
    headers = {"task": "shop.ping", "id": "1234-5678", "x-death": deaths or [DEATH, DELAY], **more}
    properties = {"content_type": "application/json", "content_encoding": "utf-8"}
    return Letter.of(Message(body, properties, headers))


def test_a_letter_says_which_task_died_where_and_of_what() -> None:
    found = letter(b'[[1, "two"], {"a": 3}, {"chord": null}]')
    assert (found.name, found.task, found.queue) == ("1234-5678", "shop.ping", "cpu")
    assert (found.reason, found.times, found.died) == (Reason.REJECTED, 2, DIED.replace(tzinfo=UTC))
    assert found.arguments == '[1, "two"] {"a": 3}'


@pytest.mark.parametrize(("before", "times"), [(1, 3), (4, 6), ("many", 2), (None, 2)])
def test_deaths_before_a_replay_count_as_well(before: Any, times: int) -> None:
    assert letter(**{DEATHS: before}).times == times


def test_the_last_death_counts_where_the_broker_says_which_it_was() -> None:
    last: dict[str, Any] = {"x-last-death-queue": "cpu"}
    found = letter(b"", [DELAY, DEATH], **last)
    assert found.queue == "cpu"


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("rejected", Reason.REJECTED),
        ("delivery_limit", Reason.DELIVERY_LIMIT),
        ("expired", Reason.EXPIRED),
        ("maxlen", Reason.FULL),
        ("something new", Reason.UNKNOWN),
    ],
)
def test_the_brokers_reasons_have_words(said: str, meant: Reason) -> None:
    found = letter(deaths=[{**DEATH, "reason": said}])
    assert found.reason is meant
    assert found.why() == meant.words


def test_the_workers_own_reason_is_added_and_what_quotes_the_message_can_be_hidden() -> None:
    said = Letter(**{**vars(letter()), "worker": Rejection("DecodeError", "near: secret", "cpu@h1")})
    assert said.why() == "rejected by the worker cpu@h1: DecodeError: near: secret"
    assert "secret" not in said.why(redact=True)
    shown = Letter(**{**vars(said), "message": Message(b"secret", {}, {"argsrepr": "secret", "task": "t"})})
    assert "secret" not in str(shown.to_json(redact=True, whole=True))
    assert "secret" in str(shown.to_json(redact=False, whole=True))


@pytest.mark.parametrize(
    ("body", "headers", "shown"),
    [
        (b"\xff\xfe", {}, r"b'\xff\xfe'"),
        (b"{", {}, "{"),
        (b"[[], {}, {}]", {}, "none"),
        (b"\x1b[2J", {}, r"'\x1b[2J'"),
        (b"[" * 100_000, {}, "[" * 100_000),
        (b'[["\\ud800"], {}, {}]', {}, r"""'["\ud800"]'"""),
        (b"not gzip", {"compression": "application/x-gzip"}, "not gzip"),
    ],
)
def test_a_body_that_is_no_task_is_shown_so_that_it_harms_no_terminal(
    body: bytes, headers: dict[str, Any], shown: str
) -> None:
    assert letter(body, **headers).arguments == shown


@pytest.mark.parametrize("name", [None, "", "\x1b]0;evil", 7, ["a"], {"b": 1}, b"\xff"])
def test_a_letter_without_a_name_of_its_own_has_one_by_its_content(name: Any) -> None:
    found = letter(id=name)
    assert found.name.isprintable()
    assert found.name == letter(id=name).name


def test_a_task_of_the_old_protocol_is_read_from_its_body() -> None:
    found = letter(b'{"task": "shop.old", "id": "o1", "args": [1], "kwargs": {}}', task=None, id=None)
    assert (found.task, found.arguments) == ("", "[1]"), "a header that is there counts, even if empty"
    bare = Letter.of(Message(found.message.body, {"content_type": "application/json"}, {}))
    assert (bare.task, bare.id, bare.arguments) == ("shop.old", "o1", "[1]")


def test_a_letter_with_no_marks_of_death_at_all_is_a_letter() -> None:
    assert letter(deaths=[{"count": "many", "queue": 1}]).times == 1
    found = letter(deaths="nonsense")
    assert (found.queue, found.died, found.reason) == ("", None, Reason.UNKNOWN)


def test_expiry_is_told_by_the_clock() -> None:
    assert letter(expires="2020-01-01T00:00:00+00:00").has_expired
    assert not letter(expires="2999-01-01T00:00:00+00:00").has_expired
    assert not letter(expires="soon").has_expired


def test_a_selection_takes_what_fits_everything() -> None:
    assert Selection().fits(letter())
    assert Selection(task="shop.ping", queue="cpu", reason=Reason.REJECTED).fits(letter())
    assert not Selection(task="shop.ping", queue="io").fits(letter())
    assert Selection(names=("12",)).fits(letter())


def test_a_beginning_must_mean_one_name_and_a_whole_name_is_no_beginning() -> None:
    names = ["ab", "abc", "b1", "b2", "c1", "c1"]
    Selection(names=("ab", "b1", "c")).check(names)
    assert Selection(names=("ab", "c")).exact(names) == {"ab", "c1"}
    with pytest.raises(BadInputError, match="b1, b2"):
        Selection(names=("b",)).check(names)
    with pytest.raises(BadInputError, match="no dead letter 'x'"):
        Selection(names=("x",)).check(names)
