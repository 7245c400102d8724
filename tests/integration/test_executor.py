"""concurrent.futures over a real cluster, and CPython's own tests of it."""

from __future__ import annotations

import functools
import itertools
import os
import signal
import subprocess
import threading
import time
import unittest
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, as_completed, wait
from pathlib import Path
from typing import Any

import cpython_tests
import psutil
import pytest
from celery import Celery
from harness import BIN, ENVIRONMENT, ROOT, LocalCluster, eventually

from clusterkit.runtime.errors import BadInputError
from clusterkit.runtime.executor import ClusterExecutor
from tasks import compute, probes


@pytest.fixture
def executor(app: Celery) -> Iterator[ClusterExecutor]:
    with ClusterExecutor(app=app, queue="cpu") as executor:
        yield executor


def test_map_gives_results_in_order_whatever_the_chunks(executor: ClusterExecutor) -> None:
    expected = [compute._fibonacci(n % 50) for n in range(3_000)]
    numbers = [n % 50 for n in range(3_000)]
    assert list(executor.map(compute._fibonacci, numbers)) == expected
    assert list(executor.map(compute._fibonacci, numbers, chunksize=700)) == expected
    assert list(executor.map(compute._fibonacci, iter(numbers[:5]), chunksize=1)) == expected[:5]


@pytest.mark.parametrize("chunksize", [None, 2])
def test_arguments_arrive_as_they_are(executor: ClusterExecutor, chunksize: int | None) -> None:
    values = [{"a": [1], "k": {}}, [2, [3]], None, 'a "text" \u00fc', "x" * 60_000]
    assert list(executor.map(probes.echo, values, chunksize=chunksize)) == values
    counted = executor.map(functools.partial(compute.count_primes, 0), [10, 100], chunksize=chunksize)
    assert list(counted) == [4, 25]
    counted = executor.map(functools.partial(compute.count_primes, stop=100), [0, 90], chunksize=chunksize)
    assert list(counted) == [25, 1]
    assert list(executor.map(compute.count_primes, [0, 90], [10, 100], chunksize=chunksize)) == [4, 1]


def test_futures_work_with_the_standard_librarys_functions(executor: ClusterExecutor) -> None:
    futures: dict[Any, int] = {executor.submit(compute.fibonacci, n): n for n in range(200)}
    assert {futures[done]: done.result() for done in as_completed(futures, timeout=60)} == {
        n: compute._fibonacci(n) for n in range(200)
    }
    assert not wait(futures, timeout=0).not_done


def test_an_exception_is_the_original_one_and_says_where(executor: ClusterExecutor) -> None:
    with pytest.raises(RuntimeError, match="on purpose") as failure:
        executor.submit(probes.fail, "on purpose").result(timeout=30)
    assert "probes.py" in str(failure.value.__cause__)
    values = executor.map(compute.fibonacci, [1, 2, -1, 3])
    assert list(itertools.islice(values, 2)) == [1, 1]
    with pytest.raises(Exception, match="greater than or equal to 0"):
        next(values)


def test_a_worker_calls_nothing_but_the_apps_functions(app: Celery, executor: ClusterExecutor) -> None:
    with pytest.raises(BadInputError, match="do not call posix:system"):
        executor.submit(os.system, "true").result(timeout=30)


@pytest.mark.parametrize("function", ["posix:system", "os:system", "tasks.probes:os.system"])
def test_nor_does_it_when_a_message_asks_for_it(function: str, app: Celery, tmp_path: Path) -> None:
    path = tmp_path / "made"
    app.send_task("clusterkit.call", [function, [[f"touch {path}"]], "celery-task-meta-x"], queue="cpu")
    assert app.send_task("clusterkit.probe", ["after"], queue="cpu").get(timeout=30)["note"] == "after"
    time.sleep(0.5)  # the other process of the node may be the one that has it
    assert not path.exists()


def test_mistakes_are_told_before_anything_is_sent(executor: ClusterExecutor) -> None:
    with pytest.raises(BadInputError, match="lambda"):
        executor.submit(lambda: 1)
    with pytest.raises(BadInputError, match="JSON"):
        executor.submit(compute.fibonacci, object())
    with pytest.raises(BadInputError, match="JSON"):
        executor.map(compute.fibonacci, [1, {1, 2}])
    with pytest.raises(ValueError, match="chunksize"):
        executor.map(compute.fibonacci, [1], chunksize=0)


def test_a_killed_process_in_the_middle_of_a_map_loses_no_call(
    cluster: LocalCluster, executor: ClusterExecutor
) -> None:
    main = psutil.Process(cluster.pid_of("worker-cpu"))
    killed = []
    found = []
    for number in executor.map(probes.sleep, [0.01 + n / 1e6 for n in range(600)], chunksize=10):
        found.append(number)
        if len(found) in {50, 300}:
            for process in main.children():
                process.kill()
                killed.append(process.pid)
    assert killed
    assert found == [0.01 + n / 1e6 for n in range(600)]


def test_a_broker_restart_in_the_middle_of_a_map_loses_no_call(cluster: LocalCluster, app: Celery) -> None:
    with ClusterExecutor(app=app, queue="cpu") as executor:
        values = executor.map(probes.sleep, [0.02 + n / 1e6 for n in range(400)], chunksize=4)
        found = list(itertools.islice(values, 20))
        next(process for process in cluster.processes() if "beam" in process.name()).kill()
        found += values
    assert found == [0.02 + n / 1e6 for n in range(400)]


def test_a_call_that_no_worker_has_begun_is_cancelled(cluster: LocalCluster, app: Celery) -> None:
    with ClusterExecutor(app=app, queue="cpu") as executor:
        busy = [executor.submit(probes.sleep, 2) for _ in range(2 * (os.cpu_count() or 1))]
        last = executor.submit(probes.fail, "it was not to run")
        eventually(busy[0].running, within=20, what="the first has begun", cluster=cluster)
        assert not busy[0].cancel()
        assert last.cancel()
        assert last.cancelled()
        assert [future.result(timeout=60) for future in busy] == [2] * len(busy)


def test_a_shutdown_cancels_what_has_not_begun(cluster: LocalCluster, app: Celery) -> None:
    executor = ClusterExecutor(app=app, queue="cpu")
    futures = [executor.submit(probes.sleep, 1) for _ in range(40)]
    eventually(futures[0].running, within=20, what="the first has begun", cluster=cluster)
    executor.shutdown(cancel_futures=True)
    assert sum(future.cancelled() for future in futures) > 20
    assert [future.result() for future in futures if not future.cancelled()].count(1) > 0
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(probes.sleep, 1)


def test_a_result_that_is_late_is_a_timeout(executor: ClusterExecutor) -> None:
    with pytest.raises(TimeoutError):
        list(executor.map(probes.sleep, [0, 3], timeout=1, chunksize=1))
    with pytest.raises(TimeoutError):
        executor.submit(probes.sleep, 3).result(timeout=0.5)


def test_a_call_that_ends_its_process_each_time_fails_in_the_end(executor: ClusterExecutor) -> None:
    future = executor.submit(probes.crash, again=True)
    with pytest.raises(BrokenExecutor, match="died"):
        future.result(timeout=240)
    assert executor.submit(compute.fibonacci, 10).result(timeout=30) == 55


SCRIPT = """
import sys
from clusterkit.runtime import client
from clusterkit.runtime.executor import ClusterExecutor
from tasks.probes import sleep
executor = ClusterExecutor(app=client.connect(cluster=sys.argv[1]), queue="cpu")
executor.submit(sleep, 1).add_done_callback(lambda future: print(future.result(), flush=True))
"""


def test_a_program_that_ends_waits_for_its_calls(cluster: LocalCluster) -> None:
    done = subprocess.run(
        [BIN / "python", "-c", SCRIPT, cluster.name],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1.0\n", "")


@pytest.fixture(scope="module")
def _worker_for_cpython(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A worker node in the place of `io` that may call what CPython's tests call."""
    supervisorctl = str(cluster.home / "bin" / "supervisorctl")
    service = cluster.running_slot("worker-io")
    subprocess.run([supervisorctl, "stop", service], check=True, capture_output=True)
    log = tmp_path_factory.mktemp("calls") / "worker.log"
    environment = {
        **ENVIRONMENT,
        "CLUSTERKIT_CONFIG": str(cluster.home / "worker" / "cluster.json"),
        "PYTHONPATH": str(ROOT / "tests" / "support"),
    }
    command: list[Any] = [
        BIN / "celery",
        "--app",
        "callsapp",
        "worker",
        "--queues",
        "io",
        "--hostname",
        "io@pytest",
    ]
    options = ["--concurrency", "5", "--without-gossip", "--without-mingle", "--loglevel", "INFO"]
    with log.open("w") as output:
        worker = subprocess.Popen(
            [*command, *options], env=environment, cwd=ROOT, stdout=output, stderr=output
        )
    eventually(lambda: "ready." in log.read_text(), within=60, what="the worker is ready", cluster=cluster)
    yield
    worker.send_signal(signal.SIGTERM)
    worker.wait(timeout=60)
    subprocess.run([supervisorctl, "start", service], check=True, capture_output=True)
    eventually(lambda: cluster.status()["healthy"], within=60, what="healthy again", cluster=cluster, every=1)


#: Tests of CPython's that are left out, and why; docs/howto/executor.md says the same.
LEFT_OUT = {
    "test_map_exception": "compares tuples, which JSON brings back as lists",
    "test_submit_keyword": "as above; its calls with keywords are in our own tests",
    "test_no_stale_references": "submits an object's method",
    "test_free_reference": "returns an object of its own class",
    "test_interpreter_shutdown": "prints in the worker, and makes its executor by its class's name",
    "test_submit_after_interpreter_shutdown": "makes its executor by its class's name",
    "test_hang_gh83386": "prints in the worker, and makes its executor by its class's name",
    "test_cancel_futures": "wants a call to have run by then; here all are cancelled in time",
    "test_hang_gh94440": "makes its executor with a multiprocessing context",
    "test_map_buffersize_type_validation": "buffersize is of a later Python",
}
GROUPS = {
    "wait": "WaitTests",
    "as_completed": "AsCompletedTests",
    "executor": "ExecutorTest",
    "shutdown": "ExecutorShutdownTest",
    "process_pool": "ProcessPoolExecutorTest",
}
#: Of the tests of processes, those that are about any executor.
OF_PROCESSES = {"test_map_chunksize"}


def of_cpython() -> list[Any]:
    try:
        found = cpython_tests.modules()
    except ModuleNotFoundError:
        reason = "the interpreter has no tests of its own: make test installs Debian's"
        return [pytest.param("", "", marks=pytest.mark.skip(reason=reason))]
    return [
        pytest.param(
            place, name, marks=[pytest.mark.skip(reason=LEFT_OUT[name])] if name in LEFT_OUT else [], id=name
        )
        for place, group in GROUPS.items()
        for name in unittest.TestLoader().getTestCaseNames(getattr(found[place], group))
        if place != "process_pool" or name in OF_PROCESSES
    ]


@pytest.mark.usefixtures("_worker_for_cpython")
@pytest.mark.parametrize(("place", "name"), of_cpython())
def test_of_cpython(place: str, name: str, app: Celery) -> None:
    found = cpython_tests.modules()

    def executor_type(max_workers: int, **_: Any) -> ClusterExecutor:
        return ClusterExecutor(max_workers, app=app, queue="io")

    bases = (
        found["util"].ExecutorMixin,
        getattr(found[place], GROUPS[place]),
        found["util"].BaseTestCase,
    )
    case = type("ClusterExecutorTest", bases, {"executor_type": staticmethod(executor_type)})
    result = unittest.TestResult()
    before = threading.active_count()
    case(name).run(result)
    assert not [*result.errors, *result.failures], "\n".join(
        text for _, text in result.errors + result.failures
    )
    eventually(lambda: threading.active_count() <= before, within=10, what="its threads have ended")
