"""The task behind ``ClusterExecutor``: it calls a function of the deployed app, once or many times.

A message names the function, so whoever may publish could name any: ``os.system`` is importable too. A
worker calls those alone that ``clusterkit_callables`` allows, a list of modules and packages; without the
setting those are the packages of the deployed app: of its own module, and of those it lists in ``include``
and ``imports``. Not those of all tasks it has: a library may bring some, and with them all its functions.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import signal
import time
import traceback
from concurrent.futures import BrokenExecutor
from typing import TYPE_CHECKING, Any, Final

import celery
from billiard.exceptions import SoftTimeLimitExceeded
from celery.exceptions import WorkerShutdown, WorkerTerminate
from celery.local import maybe_evaluate
from kombu.utils import json as kombu_json

from clusterkit.runtime.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from celery import Celery

    from clusterkit.runtime.clusterfile import ClusterFile

#: The task's name.
CALL: Final = "clusterkit.call"
#: The setting that lists what may be called: modules and packages.
SETTING: Final = "clusterkit_callables"
#: A message delivered this often before killed its process each time: its calls fail instead. The broker
#: would put it aside after 20, and nobody would tell the one who waits.
MOST_DELIVERIES: Final = 5
#: Prefix of the key by which a call is begun or cancelled, whichever comes first. Producers may write there.
CLAIM: Final = "celery-taskset-meta-claim-"
#: How a pool process leaves a task when it is told to end (billiard.common).
TERMINATED: Final = -(256 - signal.SIGTERM)
#: Values of that key.
BEGUN, CANCELLED = b"begun", b"cancelled"


class NotCallableError(BadInputError):
    """A function cannot be called on the cluster: it has no name there, or must not be called."""


def reference(function: Callable[..., Any]) -> str:
    """Return what names ``function`` to a worker, ``package.module:name``.

    Raises:
        NotCallableError: nothing does: it is a lambda, is defined inside another function, or in a script.
    """
    function = _plain(function)
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not module or not name:
        raise NotCallableError(f"{function!r} has no name that a worker could import")
    if "<lambda>" in name or "<locals>" in name:
        raise NotCallableError(
            f"{name}: a lambda or a function inside a function has no name that a worker could import",
            next_step="define it at the top of a module of the deployed app",
        )
    if module == "__main__":
        raise NotCallableError(
            f"{name} is defined in the script itself, which workers do not have",
            next_step="move it to a module of the deployed app, and import it",
        )
    if inspect.ismethod(function) and not isinstance(function.__self__, type):
        raise NotCallableError(f"{module}:{name} is the method of an object, which stays here")
    return f"{module}:{name}"


def _plain(function: Any) -> Any:
    """Return the function of a task; another function as it is."""
    function = maybe_evaluate(function)
    return function.run if isinstance(function, celery.Task) else function


def allowed(app: Celery) -> tuple[str, ...]:
    """Return the modules and packages whose functions workers of ``app`` call."""
    listed: Iterable[str] | None = app.conf.get(SETTING)
    if listed is not None:
        return tuple(listed)
    cluster: ClusterFile | None = app.conf.get("clusterkit_cluster_file")
    modules = [*app.conf.include, *app.conf.imports, *([cluster.celery_app] if cluster else [])]
    packages = {re.split("[.:]", module)[0] for module in modules}
    return tuple(sorted(packages - {"celery", "clusterkit"}))


def knows(app: Celery) -> bool:
    """Whether ``app`` has been told what workers call: an app without modules, as of a client, has not."""
    return app.conf.get(SETTING) is not None or bool(app.conf.include or app.conf.imports)


def check(app: Celery, function: str) -> None:
    """Raise unless workers of ``app`` call ``function``.

    Raises:
        NotCallableError: they do not.
    """
    module = function.partition(":")[0]
    packages = allowed(app)
    if not any(module == package or module.startswith(f"{package}.") for package in packages):
        raise NotCallableError(
            f"workers do not call {function}: it is not in {', '.join(packages) or 'any allowed package'}",
            next_step=f"the app's setting {SETTING} lists the modules and packages whose functions they call",
        )


def resolve(app: Celery, function: str) -> Callable[..., Any]:
    """Return the function named, imported.

    Raises:
        NotCallableError: it must not be called, or is not what it is called: ``tasks.app:os.system`` would be
            found in an allowed module, and is not defined there.
        ImportError: this release does not have it.
    """
    check(app, function)
    module, _, name = function.partition(":")
    found: Any = importlib.import_module(module)
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise ImportError(f"the worker's release has no {function}") from error
    plain = _plain(found)
    if not callable(plain) or (getattr(plain, "__module__", None), getattr(plain, "__qualname__", None)) != (
        module,
        name,
    ):
        raise NotCallableError(f"workers do not call {function}: it is not defined in {module}")
    call: Callable[..., Any] = maybe_evaluate(found)
    return call


def register(app: Celery) -> None:
    """Add the task to ``app``."""

    @app.task(  # type: ignore[untyped-decorator]
        name=CALL, bind=True, ignore_result=True, store_errors_even_if_ignored=True, shared=False
    )
    def call(  # noqa: PLR0913, PLR0917 - what the message carries
        task: celery.Task,
        function: str,
        calls: list[Any],
        channel: str,
        stop: bool = False,  # noqa: FBT001, FBT002 - comes from a message
        claim: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        """Call ``function`` with each of ``calls``, and tell the outcomes on ``channel`` of the result store.

        Each call is its arguments in a list, or ``{"a": arguments, "k": keywords}``. With ``stop`` none is
        begun after one that failed; with ``claim`` none at all if its sender has cancelled it.
        """
        backend, request = task.backend, task.request
        if claim and not backend.claim(CLAIM + request.id, BEGUN, request.id, channel):
            return
        deliveries = request.get("x-delivery-count") or 0
        outcome = (
            _gone(function, deliveries) if deliveries >= MOST_DELIVERIES else _run(app, function, calls, stop)
        )
        outcome["by"] = f"{request.hostname}/{os.getpid()}"
        backend.tell(request.id, _encoded(outcome), channel)


def _run(app: Celery, function: str, calls: list[Any], stop: bool) -> dict[str, Any]:  # noqa: FBT001
    values: list[Any] = []
    errors: dict[str, Any] = {}
    try:
        target = resolve(app, function)
    except Exception as error:  # noqa: BLE001 - importing may raise anything
        return {"values": [], "errors": {}, "error": _described(error), "seconds": 0.0}
    began = time.perf_counter()
    for arguments in calls:
        try:
            if type(arguments) is dict:
                values.append(target(*arguments["a"], **arguments["k"]))
            else:
                values.append(target(*arguments))
        except (SoftTimeLimitExceeded, WorkerShutdown, WorkerTerminate):
            raise
        except (Exception, SystemExit) as error:
            if isinstance(error, SystemExit) and error.code == TERMINATED:
                raise  # the worker lost its connection, and ends the run: the message comes again
            errors[str(len(values))] = _described(error)
            values.append(None)
            if stop:
                break
    return {"values": values, "errors": errors, "seconds": time.perf_counter() - began}


def _gone(function: str, deliveries: int) -> dict[str, Any]:
    error = BrokenExecutor(f"{function}: its worker process died, {deliveries} times")
    return {"values": [], "errors": {}, "error": _description(error, ""), "seconds": 0.0, "gone": True}


def _described(error: BaseException) -> dict[str, Any]:
    return _description(error, "".join(traceback.format_exception(error)))


def _description(error: BaseException, text: str) -> dict[str, Any]:
    kind = type(error)
    try:
        arguments = kombu_json.loads(kombu_json.dumps(error.args))
    except (TypeError, ValueError):
        arguments = [str(error)]
    return {
        "exc_module": kind.__module__,
        "exc_type": kind.__qualname__,
        "exc_message": arguments,
        "traceback": text,
    }


def _encoded(outcome: dict[str, Any]) -> str:
    """Return the outcome as JSON; a value that is none becomes an error of its call alone."""
    try:
        return str(kombu_json.dumps(outcome))
    except (TypeError, ValueError, RecursionError):
        for number, value in enumerate(outcome["values"]):
            try:
                kombu_json.dumps(value)
            except (TypeError, ValueError, RecursionError) as error:
                outcome["values"][number] = None
                outcome["errors"][str(number)] = _description(
                    TypeError(f"the function returned what JSON cannot carry: {error}"), ""
                )
        return str(kombu_json.dumps(outcome))


def check_json(value: Any) -> None:
    """Raise unless ``value`` can be sent.

    Raises:
        BadInputError: JSON cannot carry it.
    """
    try:
        kombu_json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInputError(
            f"arguments travel as JSON, and these cannot: {error}",
            next_step="numbers, text, lists, dictionaries with text as keys; dates, decimals and bytes too",
        ) from error
