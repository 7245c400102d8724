"""The process in which one variant does one work: ``python -m clusterkit.ops.compare.runner``.

It is a process of its own so that what it takes can be counted, and imports what its variant needs and no
more. A line of JSON on its input says what to do; each further line is a command, answered with such a line.

    {"variant": "threading", "function": "module:function", "calls": [[1], [2]], "at_once": 2, ...}
    warm | run | digests
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import comparison

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Calls = Sequence[Sequence[Any]]
    #: Does the calls, and returns their results in the order of the calls.
    Map = Callable[[Calls], list[Any]]


@contextlib.contextmanager
def plain(function: str, at_once: int, _: dict[str, Any]) -> Iterator[Map]:  # noqa: ARG001 - one at a time
    """Call one after the other."""
    found = comparison.resolve(function)
    yield lambda calls: [found(*arguments) for arguments in calls]


@contextlib.contextmanager
def threading(function: str, at_once: int, _: dict[str, Any]) -> Iterator[Map]:
    """Call in the threads of concurrent.futures."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - only what the variant needs

    with ThreadPoolExecutor(at_once) as pool:
        yield lambda calls: list(pool.map(comparison.invoke, [function] * len(calls), calls))


@contextlib.contextmanager
def multiprocessing(function: str, at_once: int, _: dict[str, Any]) -> Iterator[Map]:
    """Call in the processes of concurrent.futures."""
    from concurrent.futures import ProcessPoolExecutor  # noqa: PLC0415

    with ProcessPoolExecutor(at_once) as pool:
        yield lambda calls: list(pool.map(comparison.invoke, [function] * len(calls), calls))


@contextlib.contextmanager
def ppft(function: str, at_once: int, _: dict[str, Any]) -> Iterator[Map]:
    """Call in the processes of Parallel Python."""
    import ppft as pp  # noqa: PLC0415

    server = pp.Server(ncpus=at_once, ppservers=())

    def submit_all(calls: Calls) -> list[Any]:
        jobs = [server.submit(_invoke, (function, list(arguments))) for arguments in calls]
        return [job() for job in jobs]

    try:
        yield submit_all
    finally:
        server.destroy()


def _invoke(function: str, arguments: list[object]) -> object:
    # Parallel Python sends this source alone: it must need nothing of this module, not for its types either.
    from tasks import comparison  # noqa: PLC0415

    return comparison.invoke(function, arguments)


@contextlib.contextmanager
def celery(function: str, at_once: int, options: dict[str, Any]) -> Iterator[Map]:  # noqa: ARG001 - the pool's
    """Call on a worker node of the cluster."""
    from celery import group  # noqa: PLC0415

    from clusterkit.runtime import client  # noqa: PLC0415

    app = client.connect(path=Path(options["client_file"]))

    def submit_all(calls: Calls) -> list[Any]:
        tasks = (
            app.signature(options["task"], (function, list(arguments)), queue=options["queue"])
            for arguments in calls
        )
        # However long it takes: who asks for it has the patience, and ends this process.
        results: list[Any] = client.wait(group(tasks, app=app).apply_async())
        return results

    yield submit_all


_SYSTEMS: dict[str, Any] = {
    "plain": plain,
    "threading": threading,
    "multiprocessing": multiprocessing,
    "ppft": ppft,
}


def _queued() -> float:
    """Return the seconds for which this thread could have run, and others did (Linux, sched-stats.rst)."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def main() -> None:
    """Do as the input says, until it ends."""
    # What the function prints must not come among the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    comparison.add_paths(job["paths"])
    calls = job["calls"]
    results: list[Any] = []

    def answer(**values: Any) -> None:
        answers.write(f"{json.dumps(values)}\n")
        answers.flush()

    try:
        with _SYSTEMS.get(job["variant"], celery)(job["function"], job["at_once"], job) as do:
            for command in sys.stdin:
                started = time.perf_counter()
                match command.strip():
                    case "warm":
                        # Once for each place that a call can run in, so that all have started and imported.
                        do(calls[: max(job["at_once"], 1)])
                        answer(seconds=time.perf_counter() - started)
                    case "run":
                        queued = _queued()
                        results = do(calls)
                        answer(seconds=time.perf_counter() - started, queued=_queued() - queued)
                    case "digests":
                        answer(digests=[comparison.digest(result) for result in results])
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this variant's outcome
        answer(error=f"{type(error).__name__}: {error}")
    answers.flush()
    # Not sys.exit: a result that is still alive prints a traceback then (clusterkit.runtime.client.run).
    os._exit(0)


if __name__ == "__main__":
    main()
