"""What a service has logged, for the message of a failure."""

from __future__ import annotations

from pathlib import Path

# Of a long log: the first lines, where an Erlang node says why it ends, and the last, where Python does.
_FIRST = 14
_LAST = 30

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
    if not lines:
        return f"{message}\nNothing is in {path}"
    hidden = len(lines) - _FIRST - _LAST
    if hidden > 0:
        lines = [*lines[:_FIRST], f"... {hidden} lines ...", *lines[-_LAST:]]
    return "\n".join([message, f"From {path}:", *(f"  {line}" for line in lines)])
