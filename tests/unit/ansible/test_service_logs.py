"""Logs are read in parts: first the end, then what came since, whatever happened to the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils import clusterkit_systemd

Call = Callable[..., dict[str, Any]]


@pytest.fixture
def read(tmp_path: Path, call: Call) -> Call:
    """Return a function that reads the logs in a directory as a private supervisord's."""

    def run(**more: Any) -> dict[str, Any]:
        return call("service_logs", backend="supervisor", log_directory=str(tmp_path), **more)

    return run


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def only(result: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Return the lines of the only log, and the cursors to go on with."""
    assert result["failed"] is False
    (log,) = result["logs"]
    return log["lines"], {log["service"]: log["cursor"]}


def test_the_last_lines_come_first_and_then_what_was_added(read: Call, tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    append(log, "one\ntwo\nthree\n")
    lines, cursors = only(read(lines=2))
    assert lines == ["two", "three"]
    assert only(read(cursors=cursors)) == ([], cursors)
    append(log, "four\nfive\n")
    lines, cursors = only(read(cursors=cursors))
    assert lines == ["four", "five"]


def test_a_line_that_is_not_whole_yet_waits(read: Call, tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    append(log, "one\ntw")
    lines, cursors = only(read())
    assert lines == ["one"]
    append(log, "o\n")
    assert only(read(cursors=cursors))[0] == ["two"]


def test_more_lines_than_are_wanted_at_once_are_left_for_the_next_time(read: Call, tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    append(log, "one\n")
    _, cursors = only(read())
    append(log, "two\nthree\nfour\n")
    lines, cursors = only(read(cursors=cursors, lines=2))
    assert lines == ["two", "three"]
    assert only(read(cursors=cursors, lines=2))[0] == ["four"]


def test_a_rotation_loses_no_line(read: Call, tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    append(log, "one\n")
    _, cursors = only(read())
    append(log, "two\n")
    log.rename(tmp_path / "a.log.1")
    append(log, "three\n")
    lines, cursors = only(read(cursors=cursors))
    assert lines == ["two"]
    lines, cursors = only(read(cursors=cursors))
    assert lines == ["three"]
    assert only(read(cursors=cursors))[0] == []


def test_of_a_long_log_only_the_end_is_read_and_begins_with_a_whole_line(read: Call, tmp_path: Path) -> None:
    lines = [f"{number:04} " + "x" * 95 for number in range(1000)]
    append(tmp_path / "a.log", "".join(line + "\n" for line in lines))
    assert only(read(lines=5))[0] == lines[-5:]


def test_names_that_are_not_here_are_left_out(read: Call, tmp_path: Path) -> None:
    append(tmp_path / "a.log", "one\n")
    append(tmp_path / "b.log", "two\n")
    result = read(services=["b", "c"])
    assert [log["service"] for log in result["logs"]] == ["b"]
    assert result["services"] == ["a", "b"]


def test_under_systemd_the_journal_is_asked_for_what_comes_after_the_cursor(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clusterkit-a.service").write_text("X-ClusterkitSet=one\n", encoding="utf-8")
    asked = []
    answers = [b"one\ntwo\n-- cursor: s=1;i=2\n", b""]

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        asked.append(command)
        return SimpleNamespace(returncode=0, stdout=answers[len(asked) - 1], stderr=b"")

    monkeypatch.setattr(clusterkit_systemd, "subprocess", SimpleNamespace(run=run, DEVNULL=-3))
    lines, cursors = only(call("service_logs", backend="systemd", unit_directory=str(tmp_path), lines=2))
    assert (lines, cursors) == (["one", "two"], {"a": "s=1;i=2"})
    # Nothing new: the journal shows no cursor then.
    again = call("service_logs", backend="systemd", unit_directory=str(tmp_path), cursors=cursors)
    assert only(again) == ([], cursors)
    assert "--after-cursor=s=1;i=2" in asked[1]
    assert "--unit=clusterkit-a.service" in asked[1]
