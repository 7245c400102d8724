"""Many calls of one function as a process of its own, on whichever executor; prints what it took, as JSON.

python -m benchwork.mapping EXECUTOR PROCESSES COUNT CHUNK LOOPS     CHUNK 0: as code is written, without
a chunk size; LOOPS 0: the tiny function
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

import benchwork.work
from benchwork import turn, work


class Mapper(Protocol):
    """Calls the function with each of ``numbers``, ``chunk`` calls in a message, and returns the results."""

    def __call__(self, loops: int, numbers: range, chunk: int) -> list[int]: ...


def function(loops: int) -> Callable[[int], int]:
    """Return the function to call, which a worker can import by its name."""
    return functools.partial(work.spun, loops) if loops else work.following


@contextmanager
def cluster(_: int) -> Iterator[Mapper]:
    """Call on the cluster's worker nodes."""
    from benchwork.kit import app  # noqa: PLC0415 - only who measures it
    from clusterkit.runtime.executor import ClusterExecutor  # noqa: PLC0415

    with ClusterExecutor(app=app) as executor:
        yield lambda loops, numbers, chunk: list(
            executor.map(function(loops), numbers, chunksize=chunk or None)
        )


@contextmanager
def processes(count: int) -> Iterator[Mapper]:
    """Call in ``count`` processes of Python's own."""
    with ProcessPoolExecutor(count) as pool:
        yield lambda loops, numbers, chunk: list(pool.map(function(loops), numbers, chunksize=chunk or 1))


@contextmanager
def parallel_python(count: int) -> Iterator[Mapper]:
    """Call in ``count`` processes of Parallel Python, a job a chunk."""
    import ppft  # noqa: PLC0415 - only who measures it

    server = ppft.Server(ncpus=count, ppservers=())
    try:
        yield functools.partial(_jobs, server)
    finally:
        server.destroy()


def _jobs(server: Any, loops: int, numbers: range, chunk: int) -> list[int]:
    jobs = [
        server.submit(called, (loops, each.start, each.stop), modules=("benchwork.work",))
        for start in range(0, len(numbers), chunk)
        for each in [numbers[start : start + chunk]]
    ]
    return [result for job in jobs for result in job()]


def called(loops: int, start: int, stop: int) -> list[int]:
    """Call for each number; Parallel Python sends this source text, and imports the module beside it."""
    if not loops:
        return [benchwork.work.following(number) for number in range(start, stop)]
    return [benchwork.work.spun(loops, number) for number in range(start, stop)]


EXECUTORS = {"cluster": cluster, "multiprocessing": processes, "ppft": parallel_python}


def main() -> None:
    """Call as the command line says."""
    name, *rest = sys.argv[1:]
    count, calls, chunk, loops = map(int, rest)
    numbers = range(calls)
    with EXECUTORS[name](count) as mapper:
        mapper(loops, numbers[: max(calls // 20, count)], chunk and max(chunk // 20, 1))
        turn.wait()
        began = time.perf_counter()
        results = mapper(loops, numbers, chunk)
        seconds = time.perf_counter() - began
        right = results == list(range(1, calls + 1))
        print(json.dumps({"count": calls, "seconds": seconds, "right": right}), flush=True)  # noqa: T201
        sys.stdin.readline()  # its processes are looked at before they end


if __name__ == "__main__":
    main()
