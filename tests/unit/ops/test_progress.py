"""What a person reads while the kit works."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from clusterkit.ops.progress import Progress


def printed(*, terminal: bool, fail: bool = False) -> str:
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=100)
    try:
        with Progress("cluster x: up", ["First", "Second", "Third"], console) as progress:
            progress.start("First")
            progress.doing("localhost: Write a file")
            progress.done("localhost: Write a file", changed=True)
            progress.start("Second")
            progress.doing("localhost: Look")
            progress.done("localhost: Look")
            if fail:
                raise RuntimeError("no")
    except RuntimeError:
        pass
    return output.getvalue()


def test_lines_are_plain_where_there_is_no_terminal() -> None:
    lines = printed(terminal=False).splitlines()
    assert [line.split("] ")[1] for line in lines] == [
        "cluster x: up",
        "First",
        "  changed localhost: Write a file",
        "Second",
        "  ok      localhost: Look",
    ]
    assert "\x1b" not in "".join(lines)


def test_a_terminal_shows_every_phase_with_its_state() -> None:
    shown = printed(terminal=True)
    for words in ("✔", "First", "1 changed", "Second", "unchanged", "Third"):
        assert words in shown


def test_the_phase_that_failed_is_marked() -> None:
    assert "✘" in printed(terminal=True, fail=True)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_phase_nobody_announced_is_shown_all_the_same(terminal: bool) -> None:
    output = io.StringIO()
    with Progress("t", ["One"], Console(file=output, force_terminal=terminal, width=80)) as progress:
        progress.start("Another")
    assert "Another" in output.getvalue()
