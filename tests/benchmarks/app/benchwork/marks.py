"""Where every task notes that it ran: a file in memory, mapped by every process of every system.

A task's note is a byte of its own number, its end, and its begin when asked for: no connection, the same for
all, and whoever measures sees what is missing and what ran twice while it goes on.
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path
from typing import Final

#: Names the directory of the files; a worker node of the kit has them below its cluster's home.
DIRECTORY: Final = "BENCH_DIRECTORY"
#: Bytes of the note of a time: seconds, as a double.
_TIME: Final = 8


class Marks:
    """The notes of ``count`` tasks, numbered from 0."""

    def __init__(self, directory: Path) -> None:
        self.count = (directory / "ran").stat().st_size
        self._ran = _mapped(directory / "ran")
        self._begins = memoryview(_mapped(directory / "begins")).cast("d")
        self._ends = memoryview(_mapped(directory / "ends")).cast("d")

    @classmethod
    def new(cls, directory: Path, count: int) -> Marks:
        """Make the files anew: no task ran."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, size in (("begins", count * _TIME), ("ends", count * _TIME), ("ran", count)):
            unfinished = directory / f"{name}.part"
            unfinished.write_bytes(bytes(size))
            unfinished.rename(directory / name)  # who still has the old file does not write into the new one
        return cls(directory)

    def ran(self, number: int) -> None:
        """Note that task ``number`` ran; a third run and more count as the second."""
        self._ends[number] = self._ends[number] or time.monotonic()
        self._ran[number] = min(self._ran[number] + 1, 2)

    def begins(self, number: int) -> None:
        """Note when task ``number`` began."""
        self._begins[number] = time.time()

    def done(self) -> int:
        """Return how many tasks ran."""
        return self.count - self._ran[:].count(0)

    def twice(self) -> int:
        """Return how many ran more than once."""
        return self._ran[:].count(2)

    def when(self) -> list[float]:
        """Return when each task began, by number; 0.0 where none did."""
        return [float(begin) for begin in self._begins]

    def pace(self, warm: int) -> float:
        """Return how many tasks a second ran after the first ``warm``, which only got the workers going.

        By the tasks' own clocks, so that it does not matter when whoever measures gets to look.
        """
        ends = sorted(self._ends)
        return (self.count - warm) / (ends[-1] - ends[warm - 1])


def _mapped(path: Path) -> mmap.mmap:
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)


def _directory() -> Path:
    return Path(os.environ.get(DIRECTORY) or Path(os.environ["CLUSTERKIT_HOME"]) / "bench")


_opened: Marks | None = None


def here() -> Marks:
    """Return the notes of this process's tasks, opened when the first of them runs."""
    global _opened  # noqa: PLW0603 - one per process
    if _opened is None:
        _opened = Marks(_directory())
    return _opened
