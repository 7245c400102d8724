"""The ledger of a drill puts every task where it belongs, and sees a loss."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from clusterkit.ops.drills import beats, executions, journal, ledger
from clusterkit.ops.drills.journal import Journal, Sent, task_id
from clusterkit.ops.drills.ledger import Ledger, Window

if TYPE_CHECKING:
    from pathlib import Path

    from clusterkit.ops.drills.executions import Execution

DRILL = "child-killed-1"
#: A blow at second 100.
BLOW = Window(100.0, 100.0)


def confirmed(number: int, at: float = 50.0) -> Sent:
    return Sent(number, "cpu", at, at + 0.01)


def run(number: int, begin: float = 50.1, end: float | None = 50.2, run_id: str = "") -> list[dict[str, Any]]:
    note = {
        "task": task_id(DRILL, number),
        "number": number,
        "run": run_id or f"run of {number}",
        "node": "cpu@h1",
        "pid": 1,
        "release": "r",
        "redelivered": False,
    }
    notes = [{**note, "what": "begin", "at": begin}]
    return notes if end is None else [*notes, {**note, "what": "end", "at": end}]


def book(
    sent: list[Sent],
    notes: list[dict[str, Any]],
    dead: tuple[int, ...] = (),
    without_result: tuple[int, ...] = (),
    window: Window = BLOW,
) -> Ledger:
    found: list[Execution] = executions.collect(notes)
    numbers = {one.number for one in sent}
    return ledger.make(
        DRILL,
        {one.number: one for one in sent},
        found,
        dead_letters={task_id(DRILL, number) for number in dead},
        results={task_id(DRILL, number) for number in numbers - set(without_result)},
        window=window,
    )


def test_a_task_that_ran_once_is_nothing_else() -> None:
    made = book([confirmed(1)], run(1))
    assert (made.sent, made.confirmed, made.once) == (1, 1, 1)
    assert not any((made.lost, made.dead, made.begun_again, made.completed_again, made.results_missing))
    assert made.well


def test_a_confirmed_task_that_never_ran_is_lost() -> None:
    made = book([confirmed(1), confirmed(2)], run(1))
    assert made.lost == (2,)
    assert not made.well


def test_a_task_that_began_and_never_ended_is_lost() -> None:
    assert book([confirmed(1)], run(1, end=None)).lost == (1,)


def test_a_task_in_the_dead_letters_is_not_lost() -> None:
    made = book([confirmed(1)], run(1, end=None), dead=(1,))
    assert made.dead == (1,)
    assert not made.lost


def test_begun_twice_and_completed_twice_are_told_apart() -> None:
    notes = [
        *run(1, end=None, run_id="a"),
        *run(1, run_id="b"),
        *run(2, run_id="c"),
        *run(2, run_id="d"),
    ]
    made = book([confirmed(1), confirmed(2)], notes)
    assert (made.begun_again, made.completed_again, made.once) == (2, 1, 0)


def test_a_note_that_was_written_twice_counts_once() -> None:
    notes = run(1)
    made = book([confirmed(1)], [*notes, notes[1]])
    assert (made.once, made.completed_again) == (1, 0)


def test_an_end_without_its_begin_counts() -> None:
    assert book([confirmed(1)], run(1)[1:]).once == 1


def test_a_producers_error_is_counted_with_what_ran_all_the_same() -> None:
    refused = [Sent(number, "cpu", 50.0, 65.0, "PublishTimeoutError", "no") for number in (1, 2)]
    made = book(refused, run(2))
    assert (made.refused, made.errors, made.refused_but_ran) == (2, {"PublishTimeoutError": 2}, 1)
    assert not made.lost


def test_what_a_killed_producer_was_sending_is_unknown_and_not_lost() -> None:
    made = book([Sent(1, "cpu", 50.0), Sent(2, "cpu", 50.0)], run(2))
    assert (made.unknown, made.unknown_but_ran) == (2, 1)
    assert not made.lost


def test_a_lost_result_is_no_lost_task() -> None:
    made = book([confirmed(1), confirmed(2)], [*run(1), *run(2)], without_result=(2,))
    assert made.results_missing == 1
    assert not made.lost


def test_a_result_without_an_execution_does_not_save_a_task() -> None:
    assert book([confirmed(1)], []).lost == (1,)


def test_messages_that_are_left_are_not_well() -> None:
    made = ledger.make(DRILL, {}, [], dead_letters=[], results=[], window=BLOW, waiting=1)
    assert not made.well


def test_what_others_ran_is_not_counted() -> None:
    assert book([confirmed(1)], [*run(1), *run(-1)]).once == 1


def test_delays_are_those_of_the_tasks_sent_before_during_and_after() -> None:
    window = Window(100.0, 110.0)
    sent = [confirmed(1, 50.0), confirmed(2, 105.0), confirmed(3, 120.0)]
    notes = [*run(1, 50.5, 51), *run(2, 107.0, 107.1), *run(3, 120.1, 120.2)]
    delays = book(sent, notes, window=window).delays
    assert [delays[part].longest for part in ("before", "during", "after")] == [0.5, 2.0, 0.1]


def test_recovery_ends_with_the_last_late_task() -> None:
    sent = [confirmed(1, 50.0), confirmed(2, 99.0), confirmed(3, 101.0)]
    notes = [*run(1), *run(2, 99.1, 107.0), *run(3, 101.1, 101.2)]
    assert book(sent, notes).recovery == 7.0


def test_recovery_ends_with_the_last_error_too() -> None:
    sent = [confirmed(1, 50.0), Sent(2, "cpu", 99.0, 114.0, "OperationalError", "gone")]
    assert book(sent, run(1)).recovery == 14.0


def test_a_task_that_works_for_long_is_not_late_for_that() -> None:
    sent = [confirmed(1, 50.0), confirmed(2, 104.0), confirmed(3, 105.0)]
    notes = [*run(1), *run(2, 104.01, 105.02), *run(3, 107.0, 108.0)]
    found = executions.collect(notes)
    numbered = {one.number: one for one in sent}
    made = ledger.make(
        DRILL, numbered, found, dead_letters=[], results=[], window=BLOW, work=lambda number: number > 1
    )
    assert made.recovery == 8.0
    del numbered[3]
    made = ledger.make(DRILL, numbered, found, dead_letters=[], results=[], window=BLOW, work=float)
    assert made.recovery == 0


def test_a_task_of_the_load_in_the_dead_letters_is_not_well() -> None:
    assert not book([confirmed(1)], [], dead=(1,)).well
    assert book([confirmed(journal.SPECIAL)], [], dead=(journal.SPECIAL,)).well


def test_without_anything_late_there_was_nothing_to_recover_from() -> None:
    assert book([confirmed(1)], run(1)).recovery == 0


def test_a_ledger_can_be_read_again() -> None:
    made = book([confirmed(1), confirmed(2)], run(1))
    assert Ledger.of_json(json.loads(json.dumps(made.to_json()))) == made


@pytest.mark.parametrize(("share", "value"), [(0.5, 2), (0.95, 4), (0, 1)])
def test_percentiles_are_values_that_were_seen(share: float, value: float) -> None:
    assert ledger.percentile([1, 2, 3, 4], share) == value


def test_the_journal_says_what_became_of_each_task(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path) as notes:
        for number in range(3):
            notes.intent(number, "cpu")
        notes.confirmed(0)
        notes.refused(1, ValueError("no"))
    found = journal.read(path)
    assert [one.confirmed for one in found.values()] == [True, False, False]
    assert (found[1].error, found[1].message) == ("ValueError", "no")
    assert found[2].answered is None


def test_a_line_that_a_killed_producer_left_unfinished_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path) as notes:
        notes.intent(1, "cpu")
    with path.open("a") as file:
        file.write('["confirmed", 1')
    assert journal.read(path)[1].answered is None


def test_a_schedule_that_was_kept_has_a_task_a_second() -> None:
    notes = [note for second in range(10) for note in run(-1, second, second + 0.1, f"r{second}")]
    for note in notes:
        note["task"] = note["run"]
    assert beats.count(executions.collect(notes)) == beats.Beats(10, 1.0, 0)


def test_a_gap_and_two_schedulers_are_seen() -> None:
    begins = [
        0.0,
        1.0,
        2.0,
        9.0,
        9.1,
        10.0,
        10.1,
        11.0,
        11.1,
        12.0,
        12.1,
        13.0,
        13.1,
        14.0,
        14.1,
        15.0,
        15.1,
        15.2,
    ]
    notes = [note for index, begin in enumerate(begins) for note in run(-1, begin, None, f"r{index}")]
    for note in notes:
        note["task"] = note["run"]
    found = beats.count(executions.collect(notes))
    assert (found.longest_gap, found.twice) == (7.0, 1)
