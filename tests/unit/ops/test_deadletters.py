"""Drops and replays: what is taken is somewhere else first, and what is left is named."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from clusterkit.ops import deadletters, queuefiles
from clusterkit.ops.deadletters import Replayed, Survey
from clusterkit.ops.letters import DEATHS, Selection
from clusterkit.ops.messaging import Message
from clusterkit.ops.model import Cluster
from clusterkit.runtime.clusterfile import ClusterFile
from clusterkit.runtime.errors import (
    BadInputError,
    ClusterUnreachableError,
    InterruptedByUserError,
    UnknownTaskError,
)

from .conftest import Inventory


def letter(number: int, queue: str = "cpu", task: str = "shop.ping", **headers: Any) -> Message:
    death = {"queue": queue, "reason": "rejected", "count": 1}
    return Message(
        b"[[], {}, {}]", {}, {"task": task, "id": f"id-{number}", "x-death": [death], **headers}, tag=number
    )


#: Tasks of the deployed release.
RELEASE = SimpleNamespace(tasks={"shop.ping": None})


class DeadLetters:
    """The queue of dead letters and its reader; ``before`` is called before a letter is read."""

    def __init__(self) -> None:
        self.messages_there: list[Message] = []
        self.before: Callable[[int], None] = lambda _: None
        self.replayed: list[tuple[str, Message]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def ready(self) -> int:
        return len(self.messages_there)

    def messages(self, number: int) -> Iterator[Message]:
        for message in self.messages_there[:number]:
            self.before(message.tag)
            yield message

    def publish(self, message: Message, queue: str) -> None:
        self.replayed.append((queue, message))

    def remove(self, message: Message) -> None:
        self.messages_there.remove(message)


@pytest.fixture
def cluster(inventory: Inventory) -> Cluster:
    return inventory.load()


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> DeadLetters:
    found = DeadLetters()
    monkeypatch.setattr(deadletters, "connected", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(deadletters, "wait_for_others", lambda *_: None)
    monkeypatch.setattr(deadletters, "check_queue", lambda *_: None)
    monkeypatch.setattr(deadletters, "Reader", lambda *_: found)
    monkeypatch.setattr(deadletters, "Publisher", lambda *_: found)
    monkeypatch.setattr(ClusterFile, "load", lambda _: RELEASE)
    return found


def drop(cluster: Cluster, dead: DeadLetters, path: Path) -> int:
    return deadletters.drop(cluster, Selection(), Survey(dead.ready, meant=dead.ready), path, lambda _: None)


def replay(cluster: Cluster, to: str = "", *, force: bool = False) -> Replayed:
    return deadletters.replay(cluster, Selection(), to=to, force=force, report=lambda _: None)


def tags(messages: list[Message]) -> list[int]:
    return [message.tag for message in messages]


def test_ctrl_c_ends_a_drop_between_two_letters_with_a_complete_file(
    cluster: Cluster, dead: DeadLetters, tmp_path: Path
) -> None:
    path = tmp_path / "dropped"
    dead.messages_there = [letter(number) for number in range(1, 6)]
    dead.before = lambda number: signal.raise_signal(signal.SIGINT) if number == 3 else None
    with pytest.raises(InterruptedByUserError, match=f"2 of 5 dead letters are dropped, they are in {path};"):
        drop(cluster, dead, path)
    assert tags(dead.messages_there) == [3, 4, 5]
    assert queuefiles.check(path) == queuefiles.Summary("test", "celery.dead", 2, complete=True)


def test_a_drop_that_loses_its_broker_says_where_the_letters_are(
    cluster: Cluster, dead: DeadLetters, tmp_path: Path
) -> None:
    def lose(number: int) -> None:
        if number == 3:
            raise ClusterUnreachableError("the broker is away", next_step="look")

    path = tmp_path / "dropped"
    dead.messages_there = [letter(number) for number in range(1, 6)]
    dead.before = lose
    with pytest.raises(ClusterUnreachableError, match=f"is away; {path} has up to 2 letters") as error:
        drop(cluster, dead, path)
    assert error.value.next_step == "look"
    assert tags(dead.messages_there) == [1, 2, 3, 4, 5], "what was not synced was not taken"
    assert queuefiles.check(path) == queuefiles.Summary("test", "celery.dead", 2, complete=False)


def test_a_drop_takes_nothing_when_its_file_is_there(
    cluster: Cluster, dead: DeadLetters, tmp_path: Path
) -> None:
    dead.messages_there = [letter(1)]
    dead.before = lambda _: pytest.fail("a letter was read")
    path = tmp_path / "dropped"
    path.touch()
    with pytest.raises(BadInputError, match=f"{path} is there already$"):
        drop(cluster, dead, path)


def test_a_letter_from_a_queue_that_no_worker_reads_is_left_and_the_others_are_replayed(
    cluster: Cluster, dead: DeadLetters
) -> None:
    dead.messages_there = [letter(1, "renamed"), letter(2), letter(3, ""), letter(4, "celery.dead")]
    done = replay(cluster, force=True)
    assert (done.queues, tags(dead.messages_there)) == ({"cpu": 1}, [1, 3, 4])
    assert done.left == {
        "queue renamed is not in the inventory: --to QUEUE": 1,
        "queue celery.dead is not in the inventory: --to QUEUE": 1,
        "does not say which queue it comes from: --to QUEUE": 1,
    }
    assert replay(cluster, to="io").queues == {"io": 3}


@pytest.mark.parametrize("only", [letter(1, "renamed"), letter(1, ""), letter(1, task="nobody.knows")])
def test_a_replay_that_leaves_all_is_an_error_whatever_the_reason(
    only: Message, cluster: Cluster, dead: DeadLetters
) -> None:
    dead.messages_there = [only]
    with pytest.raises(UnknownTaskError, match="1 dead letters not replayed: 1 x "):
        replay(cluster)
    dead.messages_there = []
    assert replay(cluster).number == 0, "none is meant"


def test_a_replayed_message_is_as_it_was_before_it_died_but_for_how_often_it_did(
    cluster: Cluster, dead: DeadLetters
) -> None:
    before: dict[str, Any] = {"expires": "2020-01-01T00:00:00+00:00", DEATHS: 3}
    dead.messages_there = [letter(1, mine=1), letter(2, **before)]
    replay(cluster, force=True)
    assert [message.headers for _, message in dead.replayed] == [
        {"task": "shop.ping", "id": "id-1", "mine": 1, DEATHS: 1},
        {"task": "shop.ping", "id": "id-2", "expires": None, DEATHS: 4},
    ]
