"""The load's process, seen from the drill: started, told to end, killed, started again."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from clusterkit.ops.drills import journal
from clusterkit.ops.errors import DeployError

if TYPE_CHECKING:
    from clusterkit.ops.drills.load import Options

#: Seconds the load may take to send what is left.
_END: Final = 600.0


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

    def kill(self) -> None:
        """Kill the process, wherever it is."""
        self._process.kill()
        self._process.wait()

    def start_again(self) -> None:
        """Go on with another process after the last number that the killed one noted down."""
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
            code = self._process.wait(_END)
        except subprocess.TimeoutExpired as error:
            raise DeployError("the load of the drill did not end in time") from error
        if code:
            self.check()
