"""Parallel Python put to the test, each experiment a process of its own: ``parallelpython.py NAME``.

It prints what was seen as lines of JSON. Whoever starts it ends it when it takes too long: that an experiment
does not end is one of the things that are seen.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ppft
import psutil

SECRET = secrets.token_hex()
#: Seconds for something to be listening, or gone.
PATIENCE = 30.0
#: Where a broadcast goes to all of this machine and no other.
LOOPBACK = "127.255.255.255"


def observe(name: str, deadline: float, cores: set[int] | None = None) -> dict[str, Any]:
    """Run an experiment; return what it saw until it ended, or hung for ``deadline`` seconds (``hung``)."""
    process = subprocess.Popen(
        [
            *(("taskset", "--cpu-list", ",".join(map(str, cores))) if cores else ()),
            sys.executable,
            __file__,
            name,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    hung = False
    try:
        process.wait(deadline)
    except subprocess.TimeoutExpired:
        hung = True
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its servers and workers, too
    said = process.communicate()[0].splitlines()
    seen: dict[str, Any] = {"hung": hung}
    for line in said:
        seen |= json.loads(line) if line.startswith("{") else {}
    return seen


def see(**values: Any) -> None:
    sys.stdout.write(f"{json.dumps(values)}\n")
    sys.stdout.flush()


def pause(seconds: float) -> int:
    import os  # noqa: PLC0415 - Parallel Python sends this source alone
    import time  # noqa: PLC0415

    time.sleep(seconds)
    return os.getpid()


def workers() -> list[int]:
    """The processes that Parallel Python has started here."""
    return [process.pid for process in psutil.Process().children()]


def configuration() -> None:
    see(workers=ppft.Server(ncpus="autodetect", ppservers=()).get_ncpus())


def fewer() -> None:
    server = ppft.Server(ncpus=4, ppservers=())
    before = workers()
    server.set_ncpus(1)
    until(lambda: len(workers()) == 1, 5.0)
    see(before=len(before), after=len(workers()), said=server.get_ncpus())


def balance() -> None:
    with ppserver(3) as large, ppserver(1) as small:
        server = ppft.Server(ncpus=0, ppservers=(large, small), secret=SECRET)
        until(lambda: len(server.get_active_nodes()) == 3, PATIENCE)
        for job in [server.submit(pause, (0.25,)) for _ in range(40)]:
            job()
        stats = server.get_stats()
        see(large=stats[large].njobs, small=stats[small].njobs)


def killed() -> None:
    server = ppft.Server(ncpus=2, ppservers=())
    jobs = [server.submit(pause, (2.0,)) for _ in range(6)]
    until(lambda: len(workers()) == 2, PATIENCE)
    time.sleep(0.5)  # into the first jobs
    os.kill(workers()[0], signal.SIGKILL)
    _wait_for(jobs)


def restarted_listed() -> None:
    port = free_port()
    _restarted(port, (f"127.0.0.1:{port}",))


def restarted_discovered() -> None:
    # A broadcast reaches those alone who listen on all addresses; it stays on this machine.
    _restarted(free_port(), (), "-i", "0.0.0.0", "-a", "-b", LOOPBACK)  # noqa: S104


def _restarted(port: int, listed: tuple[str, ...], *options: str) -> None:
    """A server is killed at work, comes back on its port, and is asked to work."""
    with ppserver(2, port, *options):
        server = ppft.Server(ncpus=0, ppservers=listed, secret=SECRET)
        if not listed:
            everywhere, broadcast = ("0.0.0.0", port), (LOOPBACK, port)  # noqa: S104
            threading.Thread(target=server.discover.run, args=(everywhere, broadcast), daemon=True).start()
        until(lambda: len(server.get_active_nodes()) > 1, PATIENCE)
        see(before=bool(server.submit(pause, (0.1,))()))
        jobs = [server.submit(pause, (3.0,)) for _ in range(2)]
        time.sleep(0.5)  # into the jobs
    with ppserver(2, port, *options):
        jobs += [server.submit(pause, (0.1,)) for _ in range(4)]
        _wait_for(jobs)


def _wait_for(jobs: list[Any]) -> None:
    while not all(job.finished for job in jobs):
        see(done=sum(1 for job in jobs if job.finished), jobs=len(jobs))
        time.sleep(0.5)
    see(done=len(jobs), jobs=len(jobs))


@contextlib.contextmanager
def ppserver(number: int, port: int = 0, *options: str) -> Iterator[str]:
    """A server of Parallel Python with ``number`` workers; its end is a kill -9 of all its processes."""
    port = port or free_port()
    command = [sys.executable, str(Path(sys.executable).with_name("ppserver")), "-i", "127.0.0.1"]
    process = subprocess.Popen([*command, "-p", str(port), "-w", str(number), "-s", SECRET, *options])
    until(lambda: listens(port), PATIENCE)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            one.kill()
        process.wait()


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def until(condition: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)


EXPERIMENTS = {
    one.__name__: one
    for one in (configuration, fewer, balance, killed, restarted_listed, restarted_discovered)
}

if __name__ == "__main__":
    EXPERIMENTS[sys.argv[1]]()
    os._exit(0)
