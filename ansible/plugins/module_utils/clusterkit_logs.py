"""What a service has logged: for the message of a failure, and for whoever reads along."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

# Of a long log: the first lines, where an Erlang node says why it ends, and the last, where Python does.
_FIRST = 14
_LAST = 30

# More than a line has, on average.
_LINE_BYTES = 1000

# More than any service logs while it starts; a log as a whole may be large.
_BYTES = 256 * 1024


def size(path: Path | str) -> int:
    """Return the size of a log in bytes; 0 when it is not there."""
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


def lines_since(path: Path | str, start: int) -> list[str]:
    """Return what was logged after the log was `start` bytes long; all of it when it was rotated since."""
    try:
        with Path(path).open("rb") as file:
            length = size(path)
            file.seek(max(start if start <= length else 0, length - _BYTES))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def last_lines(path: Path | str, count: int = _LAST) -> list[str]:
    """Return the last `count` lines of a log; none when it cannot be read."""
    return lines_since(path, 0)[-count:]


def with_log(message: str, path: Path | str, start: int | None = None) -> str:
    """Return `message`, followed by the end of the log `path`.

    With `start`, by what was logged since the log was `start` bytes long, without the middle when it is much.
    """
    lines = last_lines(path) if start is None else lines_since(path, start)
    return with_lines(message, path, lines)


def with_lines(message: str, source: Path | str, lines: list[str]) -> str:
    """Return `message`, followed by the `lines` that `source` has, without the middle when they are many."""
    if not lines:
        return f"{message}\nNothing is in {source}"
    hidden = len(lines) - _FIRST - _LAST
    if hidden > 0:
        lines = [*lines[:_FIRST], f"... {hidden} lines ...", *lines[-_LAST:]]
    return "\n".join([message, f"From {source}:", *(f"  {line}" for line in lines)])


class FileLog:
    """A log file that is read in parts. It may be rotated meanwhile, once between two reads.

    A cursor says up to where it was read: the file's inode and an offset in bytes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, cursor: str, count: int) -> tuple[list[str], str]:
        """Return at most `count` lines, the last of the log or the first after `cursor`, and a new cursor.

        Raises:
            ValueError: that is no cursor.
            OSError: the log cannot be read.
        """
        if not cursor:
            return self._last(count)
        inode, _, start = cursor.partition(":")
        rotated = self._path.with_name(f"{self._path.name}.1")
        if self._path.stat().st_ino == int(inode):
            return self._after(self._path, int(start), count)
        if rotated.exists() and rotated.stat().st_ino == int(inode):
            lines, cursor = self._after(rotated, int(start), count)
            if lines:
                return lines, cursor
        return self._after(self._path, 0, count)

    def _last(self, count: int) -> tuple[list[str], str]:
        start = max(0, size(self._path) - count * _LINE_BYTES)
        lines, cursor = self._after(self._path, start, None)
        # The first may be the end of one.
        return lines[1 if start else 0 :][-count:] if count else [], cursor

    def _after(self, path: Path, start: int, count: int | None) -> tuple[list[str], str]:
        with path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            file.seek(start)
            # Only whole lines: the rest of the last one is still to come.
            whole = [line for line in itertools.islice(file, count) if line.endswith(b"\n")]
        end = start + sum(map(len, whole))
        return [line.decode(errors="replace").rstrip("\r\n") for line in whole], f"{inode}:{end}"
