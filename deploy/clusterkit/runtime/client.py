"""What a script needs to submit tasks to a cluster: connect, wait, and errors that say what to do.

app = client.connect(cluster="local")
result = app.send_task("tasks.compute.fibonacci", [30])
print(client.wait(result, timeout=60))
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import celery.exceptions
import redis.exceptions
from amqp.exceptions import AccessRefused
from celery import Celery
from celery.result import AsyncResult, GroupResult
from kombu.exceptions import OperationalError

from clusterkit.runtime import configure, results
from clusterkit.runtime.clusterfile import DEFAULT_CLUSTER, STATE_DIRECTORY, ClusterFile
from clusterkit.runtime.errors import (
    BadInputError,
    ClusterkitError,
    ClusterUnreachableError,
    InterruptedByUserError,
    NoClusterError,
    TaskFailedError,
    UnknownTaskError,
    WaitTimeoutError,
    report,
)
from clusterkit.runtime.settings import join

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds between two looks at a result that is not there yet.
POLL_INTERVAL = 0.1


def connect(
    app: Celery | None = None,
    cluster: str | None = None,
    *,
    path: Path | None = None,
    timeout: float = 5.0,
) -> Celery:
    """Point ``app`` (or a bare one) at a cluster and check that its broker and result store answer.

    ``cluster`` is a name (default: ``$CLUSTER`` or ``local``), ``path`` a cluster file to use instead of
    that cluster's client file; ``timeout`` is in seconds for each of the two.

    Raises:
        NoClusterError: no such cluster was brought up from this checkout.
        ClusterUnreachableError: the broker or the result store did not answer.
    """
    file = ClusterFile.load(path or find_file(cluster or os.environ.get("CLUSTER") or DEFAULT_CLUSTER))
    if app:
        _check_tasks(app, file)
    app = join(app or configure(Celery("client")), file)
    app.set_current()
    _check_broker(app, file.cluster, timeout)
    _check_result_store(file, timeout)
    return app


def _check_tasks(app: Celery, file: ClusterFile) -> None:
    """Raise if nothing of ``app`` runs on the cluster: its tasks would wait for ever."""
    app.loader.import_default_modules()
    own = {name for name in app.tasks if not name.startswith(("celery.", "clusterkit."))}
    if own and not own & file.tasks.keys():
        raise UnknownTaskError(
            f"cluster {file.cluster!r} runs the app {file.celery_app}, which has none of the tasks"
            f" of this script ({', '.join(sorted(own)[:3])}, ...)",
            next_step="python3 clients/submit.py --list lists what it has",
        )


def find_file(cluster: str) -> Path:
    """Return the client file of ``cluster``, looked for upwards from here and from the script.

    Raises:
        NoClusterError: it is in neither place.
    """
    starts = (Path.cwd(), Path(sys.argv[0]).resolve().parent)
    for directory in dict.fromkeys(folder for start in starts for folder in (start, *start.parents)):
        path = directory / STATE_DIRECTORY / Path(cluster).name / "client.json"
        if path.exists():
            return path
    raise NoClusterError(
        f"there is no running cluster {cluster!r} here",
        next_step=f"make cluster-up CLUSTER={cluster}, or name another with --cluster",
    )


def _check_broker(app: Celery, name: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    connection = app.connection_for_write(connect_timeout=timeout)
    where = f"the broker of cluster {name!r} at {connection.hostname}:{connection.port}"
    try:
        connection.ensure_connection(
            max_retries=len(connection.alt) or 1,
            interval_start=0,
            timeout=timeout,
            reraise_as_library_errors=False,
        )
        connection.release()
    except AccessRefused as error:
        raise ClusterUnreachableError(
            f"{where} refused our credentials", next_step="make cluster-up writes them anew"
        ) from error
    except (OSError, OperationalError) as error:
        waited = timeout - max(deadline - time.monotonic(), 0)
        raise ClusterUnreachableError(
            f"{where} did not answer within {waited:.1f} s: {error}", next_step=_look(name)
        ) from error
    finally:
        connection.collect()  # whatever state it is in, without waiting


def _check_result_store(file: ClusterFile, timeout: float) -> None:
    try:
        results.ping(file, timeout)
    except redis.exceptions.RedisError as error:
        raise ClusterUnreachableError(
            f"the result store of cluster {file.cluster!r} at {results.describe(file)}"
            f" did not answer: {error}",
            next_step=_look(file.cluster),
        ) from error


def _look(cluster: str) -> str:
    return f"make cluster-status CLUSTER={cluster}; make cluster-up CLUSTER={cluster} starts what is down"


def known_tasks(app: Celery) -> dict[str, str]:
    """Return the tasks of the deployed release, name -> queue, for an app from ``connect``."""
    file: ClusterFile = app.conf.clusterkit_cluster_file
    return {name: queue or file.default_queue for name, queue in sorted(file.tasks.items())}


def queue_of(app: Celery, task: str) -> str:
    """Return the queue that the deployed release sends ``task`` to.

    Raises:
        UnknownTaskError: the release has no such task; names those that were probably meant.
    """
    known = known_tasks(app)
    if task in known:
        return known[task]
    near = " or ".join(difflib.get_close_matches(task, known, cutoff=0.5))
    hint = f"did you mean {near}? " if near else ""
    raise UnknownTaskError(
        f"the cluster's release has no task {task!r}", next_step=f"{hint}submit.py --list lists them"
    )


def read_arguments(text: str) -> tuple[list[Any], dict[str, Any]]:
    """Read a task's arguments from JSON: a list is positional, an object has keywords.

    Raises:
        BadInputError: it is neither, or no JSON.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        example = """such as '[30]' or '{"n": 30}'"""
        raise BadInputError(f"ARGS is not JSON: {error}", next_step=example) from error
    if isinstance(value, dict):
        return [], value
    if isinstance(value, list):
        return value, {}
    raise BadInputError(
        f"ARGS is neither a list nor an object: {text}", next_step=f"did you mean '[{text}]'?"
    )


def restore(app: Celery, group_id: str) -> GroupResult:
    """Return the group of results that an interrupted script has saved.

    Raises:
        BadInputError: there is none of that id: it has expired, or is another cluster's.
    """
    result = app.GroupResult.restore(group_id)
    if result is None:
        raise BadInputError(f"no group {group_id}: it has expired, or is another cluster's")
    return result


def wait(
    result: AsyncResult | GroupResult,
    *,
    timeout: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    resume: str = "",
) -> Any:
    """Wait for a result and return its value; for a group, the list of values in the order sent.

    ``timeout`` is in seconds for the whole wait (None: no limit). ``on_progress(done, total)`` is
    called as a group's tasks end. ``resume`` is the command that fetches the result later.

    Raises:
        TaskFailedError: the task raised; for a group, the first that did.
        WaitTimeoutError, InterruptedByUserError: it is still running, and goes on.
        ClusterUnreachableError: the result store went away.
    """
    later = resume or f"python3 clients/result.py {result.id} --wait"
    try:
        if isinstance(result, GroupResult):
            return _wait_for_group(result, timeout, on_progress)
        return result.get(timeout=timeout, interval=POLL_INTERVAL)
    except celery.exceptions.TimeoutError as error:
        raise WaitTimeoutError(
            f"{result.id} had no result within {timeout:g} s; it goes on", next_step=later
        ) from error
    except KeyboardInterrupt as error:
        raise InterruptedByUserError(
            f"stopped waiting for {result.id}; it goes on on the cluster", next_step=later
        ) from error
    except redis.exceptions.RedisError as error:
        raise ClusterUnreachableError(
            f"the result store went away: {error}", next_step=f"make cluster-status; then {later}"
        ) from error
    except ClusterkitError:
        raise
    except Exception as error:
        raise TaskFailedError(
            f"task {result.id} failed: {type(error).__name__}: {error}",
            next_step="make cluster-logs; Flower shows the traceback",
        ) from error


def _wait_for_group(
    result: GroupResult, timeout: float | None, on_progress: Callable[[int, int], None] | None
) -> list[Any]:
    children: list[AsyncResult] = result.results
    values: dict[str, Any] = {}
    # A group without tasks has nothing to subscribe to.
    completed = result.iter_native(timeout=timeout, interval=POLL_INTERVAL) if children else ()
    for task_id, meta in completed:
        if meta["status"] in celery.states.PROPAGATE_STATES:
            child = AsyncResult(task_id, app=result.app)
            child.get()  # raises what the task raised
        values[task_id] = meta["result"]
        if on_progress:
            on_progress(len(values), len(children))
    return [values[child.id] for child in children]


def argument_parser(description: str | None, **options: Any) -> argparse.ArgumentParser:
    """Return a parser that has ``--cluster`` and keeps the line breaks of the description."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **options
    )
    default = os.environ.get("CLUSTER") or DEFAULT_CLUSTER
    parser.add_argument(
        "--cluster", metavar="NAME", default=default, help="which cluster (default: $CLUSTER or local)"
    )
    return parser


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's ``main`` and end the process: errors become two lines and an exit code."""
    try:
        code = _outcome(main)
        sys.stdout.flush()
    except BrokenPipeError:  # | head
        code = 0
    # Not sys.exit: a result still alive at the interpreter's end prints a traceback, because its
    # clean-up talks to the result store with half the modules gone (Celery 5.7, AsyncResult.__del__).
    os._exit(code)


def _outcome(main: Callable[[], int | None]) -> int:
    try:
        return main() or 0
    except ClusterkitError as error:
        return report(error)
    except celery.exceptions.QueueNotFound as error:
        return report(BadInputError(str(error), next_step="queues are declared in the cluster's group_vars"))
    except (OperationalError, redis.exceptions.RedisError) as error:
        return report(ClusterUnreachableError(str(error), next_step="make cluster-status"))
    except KeyboardInterrupt:
        message = "interrupted before everything was sent"
        return report(InterruptedByUserError(message, next_step="start it again: what was sent goes on"))
