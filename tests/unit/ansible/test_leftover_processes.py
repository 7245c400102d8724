"""Processes of a dead cluster are found by what they were started with, and ended; others are left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.clusterkit_processes import belongs_to, cluster_processes

Call = Callable[..., dict[str, Any]]
Start = Callable[..., subprocess.Popen[bytes]]

# Writes over its own environment as setproctitle does: /proc/self/stat tells which memory /proc/<pid>/environ
# shows (proc(5), env_start and env_end).
_CLEAR_ENVIRONMENT = """
import ctypes, time
start, end = map(int, open("/proc/self/stat").read().rpartition(")")[2].split()[47:49])
ctypes.memset(start, 0, end - start)
print("cleared", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts a process; all are ended afterwards."""
    processes: list[subprocess.Popen[bytes]] = []

    def run(*command: str, **more: Any) -> subprocess.Popen[bytes]:
        processes.append(subprocess.Popen(command, start_new_session=True, **more))
        return processes[-1]

    yield run
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout:
            process.stdout.close()


def marked(home: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "CLUSTERKIT_HOME": str(home)}


def test_only_the_processes_of_this_home_are_found(start: Start, tmp_path: Path) -> None:
    mine = start("/bin/sleep", "1000", env=marked(tmp_path / "mine"))
    start("/bin/sleep", "1000", env=marked(tmp_path / "mine-too"))
    start("/bin/sleep", "1000")
    assert [p.pid for p in cluster_processes(str(tmp_path / "mine"))] == [mine.pid]


def test_a_process_that_wrote_over_its_environment_is_found_by_its_directory(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    command = [sys.executable, "-c", _CLEAR_ENVIRONMENT]
    inside = start(*command, env=marked(tmp_path), cwd=tmp_path / "data", stdout=subprocess.PIPE)
    outside = start(*command, env=marked(tmp_path), cwd="/", stdout=subprocess.PIPE)
    for process in (inside, outside):
        assert process.stdout is not None
        assert process.stdout.readline() == b"cleared\n"
    assert belongs_to(inside.pid, str(tmp_path))
    assert not belongs_to(outside.pid, str(tmp_path))


def test_a_shell_in_the_home_is_not_a_process_of_the_cluster(start: Start, tmp_path: Path) -> None:
    shell = start("/bin/sleep", "1000", cwd=tmp_path, env={"PATH": "/bin"})
    assert not belongs_to(shell.pid, str(tmp_path))


def test_left_over_processes_are_ended_and_named(start: Start, call: Call, tmp_path: Path) -> None:
    process = start("/bin/sleep", "1000", env=marked(tmp_path))
    listed = call("leftover_processes", home=str(tmp_path), state="listed")
    assert (listed["changed"], [p["pid"] for p in listed["processes"]]) == (False, [process.pid])
    result = call("leftover_processes", home=str(tmp_path))
    assert result["changed"] is True
    assert result["processes"] == [{"pid": process.pid, "command": "/bin/sleep 1000"}]
    assert process.wait(5) == -signal.SIGTERM
    assert call("leftover_processes", home=str(tmp_path)) == {
        "changed": False,
        "processes": [],
        "failed": False,
        "invocation": {"module_args": {"home": str(tmp_path), "state": "absent", "timeout": 10}},
    }


def test_a_process_that_ignores_the_polite_signal_is_killed(start: Start, call: Call, tmp_path: Path) -> None:
    script = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    process = start("/bin/sh", "-c", script, env=marked(tmp_path), stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    assert call("leftover_processes", home=str(tmp_path), timeout=1)["failed"] is False
    assert process.wait(5) == -signal.SIGKILL


def test_a_child_is_left_to_its_parent_as_long_as_there_is_one(
    start: Start, call: Call, tmp_path: Path
) -> None:
    # The parent ends its child by SIGUSR1: had the child been sent SIGTERM, it would have written so.
    child = "trap 'echo term' TERM; trap 'echo usr1; exit' USR1; echo up; while :; do sleep 0.05; done"
    parent = f'sh -c "{child}" & trap "kill -USR1 $!; wait $!; exit" TERM; while :; do sleep 0.05; done'
    process = start("/bin/sh", "-c", parent, env=marked(tmp_path), stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    call("leftover_processes", home=str(tmp_path), timeout=5)
    assert process.stdout.read() == b"usr1\n"
