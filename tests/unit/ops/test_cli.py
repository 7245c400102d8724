"""The command line itself: usage, exit codes, help."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def clusterkit(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "clusterkit", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("cluster", "upp"), 2, "upp"),
        (("cluster", "up", "--colour"), 2, "--colour"),
        (("cluster", "status", "--cluster", "nowhere"), 13, "nowhere"),
        (("cluster", "logs", "--lines", "0"), 2, "greater than or equal to 1"),
    ],
)
def test_a_mistake_in_the_call_is_told_without_a_traceback(
    arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = clusterkit(*arguments)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["up", "status", "check", "logs", "restart", "down", "destroy"])
def test_every_command_has_help_with_examples(command: str) -> None:
    said = clusterkit("cluster", command, "--help").stdout
    assert f"\n    clusterkit cluster {command}" in said


@pytest.mark.parametrize(
    ("group", "first"), [("", "cluster broker"), ("cluster", "preflight up status"), ("broker", "restart")]
)
def test_the_help_lists_first_what_is_needed_first_and_cuts_nothing_off(group: str, first: str) -> None:
    said = clusterkit(*group.split(), "--help").stdout
    listed = said.partition("Commands:\n")[2].splitlines()
    assert " ".join(line.split()[0] for line in listed).startswith(first)
    assert [line for line in listed if line.endswith("...")] == []


def test_the_exit_codes_are_in_the_help() -> None:
    assert "7 it answers but is not well" in " ".join(clusterkit("--help").stdout.split())
