"""A publisher as a process of its own: publishes tasks of one system and prints what that cost, as JSON.

When it is warm it says "ready" and waits for a line: whoever measures looks at the broker meanwhile.

python -m benchwork.produce MODULE TASK COUNT [ARGUMENT ...]       as fast as it goes
python -m benchwork.produce MODULE TASK COUNT --rate R --seed S    at random, R a second on average
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import resource
import sys
import time
from typing import Any

from benchwork import turn


def main() -> None:
    """Publish as the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("task")
    parser.add_argument("count", type=int)
    parser.add_argument("arguments", type=int, nargs="*")
    parser.add_argument("--first", type=int, default=0, help="number of the first task")
    parser.add_argument("--rate", type=float)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sender = importlib.import_module(options.module).Sender()
    numbers = range(options.first, options.first + options.count)
    try:
        if options.rate:
            found: dict[str, Any] = {"submitted": _paced(sender, options, numbers)}
        else:
            found = _flat_out(sender, options, [(number, *options.arguments) for number in numbers])
        print(json.dumps(found), flush=True)  # noqa: T201 - the answer
        sys.stdin.readline()  # the broker is looked at before anything is closed
    finally:
        sender.close()


def _flat_out(sender: Any, options: argparse.Namespace, arguments: list[tuple[int, ...]]) -> dict[str, float]:
    # The first ones connect, and import what is only imported when needed.
    warm = max(len(arguments) // 20, 1)
    sender.many(options.task, arguments[:warm])
    turn.wait()
    wall, processor = time.perf_counter(), _processor_seconds()
    sender.many(options.task, arguments[warm:])
    return {
        "count": len(arguments) - warm,
        "seconds": time.perf_counter() - wall,
        "cpu": _processor_seconds() - processor,
    }


def _paced(sender: Any, options: argparse.Namespace, numbers: range) -> list[float]:
    """Publish at the times of a Poisson process; return when each was due, so that a late publisher shows."""
    chance = random.Random(options.seed)  # noqa: S311 - the same times for every system
    turn.wait()
    due = time.time()
    times = []
    for number in numbers:
        due += chance.expovariate(options.rate)
        time.sleep(max(due - time.time(), 0))
        times.append(due)
        sender.one(options.task, number)
    return times


def _processor_seconds() -> float:
    """Return user and system time of this process, with its threads, in seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
