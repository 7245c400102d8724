"""Where a playbook's time went."""

from __future__ import annotations

from rich.console import Console

from clusterkit.ops import times
from clusterkit.ops.times import Ran, TaskTime


def event(task: str, host: str, start: int, end: int, uuid: str = "") -> dict[str, str]:
    day = "2026-01-01T00:00:{:02d}.500000+00:00"
    return {
        "play": "Broker",
        "task": task,
        "task_uuid": uuid or task,
        "host": host,
        "start": day.format(start),
        "end": day.format(end),
    }


RAN = [
    Ran.of(event("Start", "h2", 3, 9)),
    Ran.of(event("Look", "h1", 0, 1)),
    Ran.of(event("Look", "h2", 0, 3)),
    Ran.of(event("Start", "h1", 3, 5)),
]


def test_a_task_takes_from_its_begin_on_the_first_host_to_its_end_on_the_last() -> None:
    assert times.by_task(RAN) == [
        TaskTime("Broker", "Look", 2, 3.0, "h2"),
        TaskTime("Broker", "Start", 2, 6.0, "h2"),
    ]


def test_two_tasks_of_one_name_are_two() -> None:
    again = [Ran.of(event("Look", "h1", 20, 21, "the second"))]
    assert [each.seconds for each in times.by_task([*RAN, *again])] == [3.0, 6.0, 1.0]


def test_the_slowest_come_first_and_the_rest_of_the_time_has_a_line() -> None:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(times.table(RAN, 12.5))
    lines = [line.split() for line in capture.get().splitlines()]
    assert lines[2] == ["Broker", "Start", "2", "6.0", "h2"]
    assert lines[-1] == ["between", "tasks,", "and", "on", "this", "machine", "3.5"]


def test_many_tasks_share_the_last_line() -> None:
    ran = [Ran("Broker", f"task {number}", "h1", number, number + 1, str(number)) for number in range(25)]
    console = Console(width=120)
    with console.capture() as capture:
        console.print(times.table(ran, 25))
    assert "5 other tasks" in capture.get()
