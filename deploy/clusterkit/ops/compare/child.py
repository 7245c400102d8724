"""A process that a variant works in, from the outside: started, told what to do, waited for within limits."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, Self

import psutil

from clusterkit.ops.compare import usage

if TYPE_CHECKING:
    from types import TracebackType


class ChildError(Exception):
    """The process could not do what it was told; says why."""


class Child:
    """A process of one of this package's modules, that answers lines with lines.

    A context manager: at its end the process is gone, with all that it has started.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"clusterkit.ops.compare.{module}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._said: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in usage.tree(self.pid):
            try:
                process.kill()
            except psutil.Error:
                continue
        self._process.wait()

    def tell(self, line: str) -> None:
        """Send ``line``."""
        stream = self._process.stdin
        try:
            if stream:
                stream.write(f"{line}\n")
                stream.flush()
        except BrokenPipeError:
            pass  # what it said last is the answer

    def line(self, patience: float) -> str:
        """Return the next line it says.

        Raises:
            ChildError: it did not say one within ``patience`` seconds, or has ended.
        """
        try:
            line = self._lines.get(timeout=patience)
        except queue.Empty:
            raise ChildError(f"no answer within {patience:.0f} s") from None
        if not line:
            raise ChildError(f"ended without an answer: {' '.join(self._said[-1:]) or 'it said nothing'}")
        return line.strip()

    def ask(self, line: str, patience: float) -> dict[str, Any]:
        """Send ``line`` and return the answer, a JSON object.

        Raises:
            ChildError: it says that it failed, or there is no answer within ``patience`` seconds.
        """
        self.tell(line)
        answer: dict[str, Any] = json.loads(self.line(patience))
        if "error" in answer:
            raise ChildError(answer["error"])
        return answer

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self._lines.put(line)
        self._lines.put("")

    def _listen(self) -> None:
        for line in self._process.stderr or ():
            self._said = [*self._said[-4:], line.strip()]
