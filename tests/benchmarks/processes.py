"""Processes that are measured: what they used, and how they end."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

#: Seconds a process has to end when told to, before it is killed.
_STOP_WITHIN = 20.0
#: Seconds a process may measure.
_LONGEST = 120.0
#: Seconds a process may be there for others to be measured.
_LONGEST_THERE = 600.0


class MeasureError(Exception):
    """A system could not be measured; says which, and what it printed last."""


def cpu_seconds(roots: Sequence[psutil.Process]) -> float:
    """Return user and system seconds of ``roots`` and all their descendants so far.

    Those of descendants that have ended are in their parents' account, as soon as these took notice: a pool
    that replaces its processes loses nothing.
    """
    total = 0.0
    for process in dict.fromkeys([*roots, *(child for root in roots for child in _children(root))]):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def _children(root: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        children: list[psutil.Process] = root.children(recursive=True)
        return children
    return []


@contextlib.contextmanager
def running(
    commands: Sequence[Sequence[str]], environments: Sequence[dict[str, str]], log: Path
) -> Iterator[list[psutil.Process]]:
    """Run ``commands`` meanwhile; they and all that they started have ended afterwards."""
    started: list[psutil.Process] = []
    try:
        for command, environment in zip(commands, environments, strict=True):
            with log.open("ab") as output:
                started.append(
                    psutil.Popen(
                        command,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
                )
        yield started
    finally:
        end(*started)


def end(*roots: psutil.Process) -> None:
    """Ask ``roots`` to stop, and kill what is left of them and their descendants when their time is up."""
    family = [process for root in roots for process in (root, *_children(root))]
    for root in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            root.terminate()
    _, left = psutil.wait_procs(family, timeout=_STOP_WITHIN)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=_STOP_WITHIN)


@dataclass(frozen=True)
class Measured:
    """What a process that waited for its turn printed, and what ``watched`` processes used meanwhile."""

    answer: dict[str, Any]
    used: dict[str, float]
    """CPU seconds by the name of what was watched."""


class Watch:
    """CPU seconds of several groups of processes from now on."""

    def __init__(self, groups: dict[str, Sequence[psutil.Process]]) -> None:
        self._groups = groups
        self._before = {name: cpu_seconds(roots) for name, roots in groups.items()}

    def used(self) -> dict[str, float]:
        """Return what each group used since the beginning."""
        return {name: cpu_seconds(roots) - self._before[name] for name, roots in self._groups.items()}


def in_turn(
    command: Sequence[str],
    environment: dict[str, str],
    watched: dict[str, Sequence[psutil.Process]],
    log: Path,
    itself: str = "",
) -> Measured:
    """Run a process of `benchwork` that says when it is warm, and watch it and others while it works.

    ``itself`` names the process and its descendants among what was watched.

    Raises:
        MeasureError: it failed, or took longer than two minutes.
    """
    with log.open("ab") as errors:
        process = psutil.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    too_long = threading.Timer(_LONGEST, process.kill)
    too_long.start()
    try:
        _expect(process, command, log)
        watch = Watch({**watched, itself: [process]} if itself else watched)
        _go(process)
        answer = _expect(process, command, log)
        used = watch.used()
        with contextlib.suppress(BrokenPipeError):
            _go(process)
        process.wait(_STOP_WITHIN)
    finally:
        too_long.cancel()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        end(process)
    return Measured(json.loads(answer), used)


@contextlib.contextmanager
def until_told(command: Sequence[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    """Run a process of `benchwork` that says when it is there, and ends when its standard input does.

    Raises:
        MeasureError: it failed, or took longer than ten minutes in all.
    """
    with log.open("ab") as errors:
        process = psutil.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    too_long = threading.Timer(_LONGEST_THERE, process.kill)
    too_long.start()
    try:
        _expect(process, command, log)
        yield
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        if process.wait(_LONGEST_THERE):
            raise MeasureError(f"{' '.join(command)} ended with {process.wait()}; {log} may say why")
    finally:
        too_long.cancel()
        process.stdout.close()
        end(process)


def _expect(process: Any, command: Sequence[str], log: Path) -> str:
    line: str = process.stdout.readline()
    if not line:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise MeasureError(f"{' '.join(command)} ended with {process.wait()}:\n{tail}")
    return line


def _go(process: Any) -> None:
    process.stdin.write("\n")
    process.stdin.flush()
