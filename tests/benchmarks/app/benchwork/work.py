"""What the tasks do, whoever runs them."""

from __future__ import annotations

from typing import Final

from benchwork import marks

#: Seconds the task ``nap`` waits.
NAP: Final = 0.01


def noop(number: int) -> None:
    """Do nothing but leave the note."""
    marks.here().ran(number)


def spin(loops: int) -> int:
    """Keep a core busy: the same ``loops`` are the same work everywhere."""
    value = 1
    for step in range(loops):
        value = (value * 1_103_515_245 + step) & 0x7FFF_FFFF
    return value


def compute(number: int, loops: int) -> None:
    """Spin, and leave the note."""
    spin(loops)
    marks.here().ran(number)


def following(number: int) -> int:
    """Return the next number: the least that a function that is mapped can do."""
    return number + 1


def spun(loops: int, number: int) -> int:
    """Return the next number, after some work."""
    spin(loops)
    return number + 1
