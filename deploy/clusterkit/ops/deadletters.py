"""The dead letters of a cluster: look at them, replay them, drop them; nothing is lost on the way.

Looking holds all of them for its time, so that they go back in the order they had.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Final

import redis.exceptions

from clusterkit.ops.letters import DEATHS, Letter, Selection
from clusterkit.ops.messaging import (
    Message,
    Publisher,
    Reader,
    check_queue,
    connected,
    interruptible,
    wait_for_others,
)
from clusterkit.ops.queuefiles import Writer
from clusterkit.ops.topology import DEAD_LETTERS
from clusterkit.runtime import rejections, results
from clusterkit.runtime.clusterfile import ClusterFile
from clusterkit.runtime.errors import (
    BadInputError,
    ClusterUnreachableError,
    InterruptedByUserError,
    UnknownTaskError,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from clusterkit.ops.model import Cluster

#: Letters whose workers' notes are asked for at once.
_BATCH: Final = 200
#: Letters written to a file before they are taken out of the queue.
_SYNC_EVERY: Final = 500
#: Seconds the result store may take to answer; without it letters have no worker's reason.
_STORE_TIMEOUT: Final = 2.0
#: A person sees how far it is at every so many letters.
_TELL_EVERY: Final = 100

Report = Callable[[str], None]


@dataclass
class Survey:
    """What one look through all dead letters found; of the letters themselves only names are kept."""

    total: int
    """Dead letters there are."""
    meant: int = 0
    """Those that fit the selection."""
    names: frozenset[str] = frozenset()
    """The names that the selection's beginnings of names mean."""
    held_back: Counter[str] = field(default_factory=Counter)
    """Why some of those meant are not replayed: reason -> letters."""


def letters(cluster: Cluster, selection: Selection, warn: Report) -> Iterator[tuple[int, Letter]]:
    """Yield (how many dead letters there are, a letter) for each that is meant, with its worker's reason.

    Whoever stops early has seen the oldest. ``warn`` is told when the workers' reasons cannot be had.

    Raises:
        BadInputError: somebody else is reading them.
    """
    with connected(cluster) as connection:
        wait_for_others(connection, DEAD_LETTERS)
        with Reader(connection, DEAD_LETTERS) as reader:
            meant = filter(selection.fits, map(Letter.of, reader.messages(reader.ready)))
            for letter in _with_reasons(cluster, meant, warn):
                yield reader.ready, letter


def _with_reasons(cluster: Cluster, found: Iterator[Letter], warn: Report) -> Iterator[Letter]:
    file = ClusterFile.load(cluster.state_dir / "operator.json")
    store = results.client(file, patience=0, timeout=_STORE_TIMEOUT)
    answers = True
    try:
        while batch := list(islice(found, _BATCH)):
            notes: dict[str, rejections.Rejection] = {}
            if answers:
                try:
                    notes = rejections.read(store, (letter.fingerprint for letter in batch))
                except redis.exceptions.RedisError as error:
                    answers = False
                    warn(
                        f"the result store does not answer, so the workers' own reasons are missing: {error}"
                    )
            yield from (replace(letter, worker=notes.get(letter.fingerprint)) for letter in batch)
    finally:
        store.close()


@dataclass(frozen=True)
class Destination:
    """Where a replay puts letters: into the queue ``to``, or ("") each into the one it came from.

    ``force``: also those that no worker could run.
    """

    tasks: Collection[str]
    """Those of the deployed release."""
    queues: Collection[str]
    """Those of the inventory, which worker nodes read."""
    to: str = ""
    force: bool = False

    def queue(self, letter: Letter) -> str:
        """Return the queue for ``letter``."""
        return self.to or letter.queue

    def holds_back(self, letter: Letter) -> str:
        """Return why ``letter`` is not replayed, or nothing."""
        if not self.queue(letter):
            return "does not say which queue it comes from: --to QUEUE"
        # Where a letter died is what its sender may have written; --to is what a person did.
        if not self.to and letter.queue not in self.queues:
            return f"queue {letter.queue} is not in the inventory: --to QUEUE"
        if self.force:
            return ""
        if not letter.task:
            return "names no task: a worker would reject it again"
        if letter.task not in self.tasks and not letter.task.startswith("celery."):
            return f"the deployed release has no task {letter.task!r}"
        return "its `expires` has passed: a worker would discard it" if letter.has_expired else ""


def survey(
    cluster: Cluster, selection: Selection, report: Report, destination: Destination | None = None
) -> Survey:
    """Look through all dead letters for those that are meant, and that ``destination`` holds back.

    Raises:
        BadInputError: a name means no letter, or several; or somebody else is reading them.
        ClusterUnreachableError: the broker does not answer, or stopped sending.
    """
    with connected(cluster) as connection:
        wait_for_others(connection, DEAD_LETTERS)
        with Reader(connection, DEAD_LETTERS) as reader:
            found = Survey(reader.ready)
            names: set[str] = set()
            for number, letter in enumerate(map(Letter.of, reader.messages(reader.ready)), 1):
                if number % _TELL_EVERY == 0:
                    report(f"{number} of {reader.ready} looked at")
                if not selection.fits(letter):
                    continue
                if selection.names:
                    names.add(letter.name)
                found.meant += 1
                if destination and (reason := destination.holds_back(letter)):
                    found.held_back[reason] += 1
    selection.check(names)
    found.names = selection.exact(names)
    return found


@dataclass
class Replayed:
    """What a replay did: letters put into each queue, and those left where they are."""

    queues: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)

    @property
    def number(self) -> int:
        """How many letters are queued again."""
        return self.queues.total()


def replay(
    cluster: Cluster, selection: Selection, *, to: str = "", force: bool = False, report: Report
) -> Replayed:
    """Put the letters that are meant back into the queues they came from, or into ``to``.

    A letter is removed when the broker has confirmed the message, so it is never in neither place; ended by
    force in between, one is in both. What no worker could run is left, unless ``force``: then an unknown
    task is queued as it is, and an expired one without its ``expires``. What says no queue of the inventory
    is left unless there is ``to``.

    Raises:
        UnknownTaskError: there are letters that are meant, and all of them were left.
        ClusterUnreachableError, PublishTimeoutError, BadInputError: the broker went away, a queue is full or
            not there, publishers are held back, or somebody else is reading; the letters not yet replayed
            stay.
        InterruptedByUserError: likewise.
    """
    tasks = ClusterFile.load(cluster.state_dir / "operator.json").tasks
    destination = Destination(tasks, cluster.queues, to, force)
    found = survey(cluster, selection, report, destination)
    if found.meant and found.meant == found.held_back.total():
        raise _all_left(found.held_back)
    done = Replayed()
    with connected(cluster) as connection, connected(cluster) as publishing:
        publisher = Publisher(publishing, cluster)
        if to:
            check_queue(publishing, to)
        wait_for_others(connection, DEAD_LETTERS)
        with Reader(connection, DEAD_LETTERS) as reader, interruptible() as interrupted:
            for letter in map(Letter.of, reader.messages(reader.ready)):
                if interrupted():
                    raise InterruptedByUserError(
                        f"{done.number} of {found.meant} dead letters are replayed, the others stay",
                        next_step="the same command goes on",
                    )
                if not _meant(letter, selection, found):
                    continue
                if reason := destination.holds_back(letter):
                    done.left[reason] += 1
                    continue
                queue = destination.queue(letter)
                publisher.publish(_as_it_was(letter), queue)
                reader.remove(letter.message)
                done.queues[queue] += 1
                report(f"{done.number} of {found.meant} replayed")
    if done.left and not done.queues:
        raise _all_left(done.left)
    return done


def _all_left(reasons: Counter[str]) -> UnknownTaskError:
    told = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    return UnknownTaskError(
        f"{reasons.total()} dead letters not replayed: {told}",
        next_step="a release that has the task, or --to QUEUE; --force queues what has no such task or has"
        " expired all the same, without `expires`",
    )


def _meant(letter: Letter, selection: Selection, found: Survey) -> bool:
    return selection.fits(letter) and (not selection.names or letter.name in found.names)


def _as_it_was(letter: Letter) -> Message:
    message = letter.message.without_deaths()
    marks = {DEATHS: letter.times} | ({"expires": None} if letter.has_expired else {})
    return replace(message, headers=message.headers | marks)


def drop(cluster: Cluster, selection: Selection, found: Survey, path: Path, report: Report) -> int:
    """Write the letters that are meant to the file ``path``, then take them out; return how many.

    ``found`` is from a survey by the same selection. They can be had back with `clusterkit queue load`.

    Raises:
        BadInputError: the file is there already, or cannot be written; or somebody else is reading them.
        ClusterUnreachableError: the broker went away; the file has what was dropped, and breaks off.
        InterruptedByUserError: the file is complete for what was dropped; the others stay.
    """
    dropped = 0
    written: list[Message] = []
    try:
        with connected(cluster) as connection:
            wait_for_others(connection, DEAD_LETTERS)
            with (
                Writer(path, cluster.name, DEAD_LETTERS) as file,
                Reader(connection, DEAD_LETTERS) as reader,
                interruptible() as interrupted,
            ):
                for letter in map(Letter.of, reader.messages(reader.ready)):
                    if interrupted():
                        break
                    if _meant(letter, selection, found):
                        file.add(letter.message)
                        written.append(letter.message)
                        dropped += 1
                    if len(written) >= _SYNC_EVERY:
                        _remove(reader, file, written)
                        report(f"{dropped} of {found.meant} dropped")
                    if dropped == found.meant:
                        break  # what died since was not asked about
                _remove(reader, file, written)
    except (BadInputError, ClusterUnreachableError) as error:
        if not dropped:
            raise
        raise type(error)(
            f"{error}; {path} has up to {dropped} letters, the last of which may be dead letters still",
            next_step=error.next_step,
        ) from error
    if interrupted() and dropped < found.meant:
        raise InterruptedByUserError(
            f"{dropped} of {found.meant} dead letters are dropped, they are in {path}; the others stay",
            next_step=f"the same command drops those, too; back with: clusterkit queue load {path}",
        )
    return dropped


def _remove(reader: Reader, file: Writer, written: list[Message]) -> None:
    file.sync()
    for message in written:
        reader.remove(message)
    written.clear()


def show(cluster: Cluster, name: str, warn: Report) -> list[Letter]:
    """Return the letters called ``name``, or whose name begins so; several only if all have one name.

    Raises:
        BadInputError: there is none, or several names begin so.
    """
    selection = Selection(names=(name,))
    found = [letter for _, letter in letters(cluster, selection, warn)]
    selection.check(letter.name for letter in found)
    exact = selection.exact(letter.name for letter in found)
    return [letter for letter in found if letter.name in exact]
