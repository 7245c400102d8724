"""How a measured process tells that it is warm, and waits for its turn."""

from __future__ import annotations

import sys


def wait() -> None:
    """Say that all is ready, and wait for the line that begins the measurement."""
    print("ready", flush=True)  # noqa: T201 - a word to the process that measures
    sys.stdin.readline()
