"""The load's process, seen from the drill: started, told to end, killed, started again."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from clusterkit.ops.drills import journal
from clusterkit.ops.errors import DeployError

if TYPE_CHECKING:
    from clusterkit.ops.drills.load import Options

#: Seconds the load may take to send what is left, beyond what its rate needs.
_END: Final = 600.0

#: Seconds within which the load must begin to publish the next task.
_SENDS_WITHIN: Final = 30.0


class Producer:
    """The process that sends the load ``options``; errors of its own are in ``log``."""

    def __init__(self, options: Options, log: Path) -> None:
        self._options = options
        self._log = log
        self._process = self._start(options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        self._process.kill()
        self._process.wait()

    def _start(self, options: Options) -> subprocess.Popen[str]:
        with self._log.open("a", encoding="utf-8") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "clusterkit.ops.drills.load", options.to_json()],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
                # Ctrl-C is for the drill, which undoes its fault while the load goes on.
                start_new_session=True,
            )

    def check(self) -> None:
        """Raise DeployError if the process has ended by itself."""
        if self._process.poll() is not None:
            said = self._log.read_text(encoding="utf-8").strip().splitlines()[-15:]
            raise DeployError("\n".join(["the load of the drill ended by itself", *said]))

    def kill_while_sending(self) -> bool:
        """Kill the process as soon as it begins a publish; tell whether that one got no answer.

        Raises:
            DeployError: it sends nothing.
        """
        path = Path(self._options.journal)
        before = journal.unanswered(path)
        with path.open("rb") as lines:
            lines.seek(0, os.SEEK_END)
            give_up_at = time.monotonic() + _SENDS_WITHIN
            while not journal.is_intent(lines.readline()):
                if time.monotonic() > give_up_at:
                    raise DeployError(f"the load of the drill sent nothing for {_SENDS_WITHIN:g} s")
        self._process.kill()
        self._process.wait()
        return bool(journal.unanswered(path) - before)

    def start_again(self) -> None:
        """Go on with another process after the last number that the killed one noted down."""
        self._process.kill()
        self._process.wait()
        sent = [number for number in journal.read(Path(self._options.journal)) if number < journal.SPECIAL]
        first = max(sent, default=-1) + 1
        self._options = replace(self._options, first=first, tasks=max(self._options.tasks - len(sent), 0))
        self._process = self._start(self._options)

    def end(self) -> None:
        """Let the load end once its tasks are sent, and wait for it.

        Raises:
            DeployError: it did not end in time, or failed.
        """
        assert self._process.stdin  # noqa: S101 - a pipe
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("end\n")
            self._process.stdin.flush()
        try:
            code = self._process.wait(_END + self._options.tasks / self._options.rate)
        except subprocess.TimeoutExpired as error:
            raise DeployError("the load of the drill did not end in time") from error
        if code:
            self.check()
