"""The task behind ``ClusterExecutor``: it calls a function of the deployed app, once or many times.

A message names the function, so whoever may publish could name any: ``os.system`` is importable too. A
worker calls those alone that ``clusterkit_callables`` allows, a list of modules and packages; without the
setting those are the packages of the deployed app: of its own module, and of those it lists in ``include``
and ``imports``. Not those of all tasks it has: a library may bring some, and with them all its functions.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import os
import re
import signal
import time
import traceback
from concurrent.futures import BrokenExecutor, CancelledError
from typing import TYPE_CHECKING, Any, Final

import celery
from billiard.exceptions import SoftTimeLimitExceeded
from celery.exceptions import WorkerShutdown, WorkerTerminate
from celery.local import maybe_evaluate
from kombu.utils import json as kombu_json

from clusterkit.runtime.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from celery import Celery

    from clusterkit.runtime.clusterfile import ClusterFile

#: The task's name.
CALL: Final = "clusterkit.call"
#: The setting that lists what may be called: modules and packages.
SETTING: Final = "clusterkit_callables"
#: A message that was delivered this often before, and that nobody has answered: its calls fail instead. Most
#: likely it kills its process; but a drain that gives it back and a lost connection count as well. The broker
#: would put it aside after 20, and nobody would tell the one who waits.
MOST_DELIVERIES: Final = 10
#: Characters of JSON that a chunk has at most, unless it is one call. Messages of a megabyte are no problem
#: to any broker, and no gain over smaller ones.
CHUNK_SIZE: Final = 2**20
#: Characters of JSON that a call may have. RabbitMQ 4.0 takes messages of 16 MiB (max_message_size), and what
#: is around the call needs some of it.
CALL_SIZE: Final = 15 * 2**20
#: Types of which JSON can carry any value.
_PLAIN: Final = frozenset({int, float, bool, str, type(None)})
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
        calls: str | list[Any],
        channel: str,
        stop: bool = False,  # noqa: FBT001, FBT002 - comes from a message
        claim: bool = False,  # noqa: FBT001, FBT002
        flat: bool = False,  # noqa: FBT001, FBT002
        common: str = "",
    ) -> None:
        """Call ``function`` with each of ``calls``, and tell the outcomes on ``channel`` of the result store.

        ``calls`` is a list as JSON, or the list itself. Each call is its arguments in a list, or
        ``{"a": arguments, "k": keywords}``, or (``flat``) its only argument; ``common`` is JSON of the
        arguments and keywords that all have besides. With ``stop`` none is begun after one that failed; with
        ``claim`` none at all if its sender has cancelled it.
        """
        backend, request = task.backend, task.request
        deliveries = request.get("x-delivery-count") or 0
        if claim and not backend.claim(CLAIM + request.id, BEGUN, request.id, channel):
            # Told although its sender knows, unless the store's answer to it was lost.
            outcome = _without_run(CancelledError(f"{function} was cancelled before it began"))
            outcome["cancelled"] = True
        elif deliveries >= MOST_DELIVERIES:
            outcome = _without_run(
                BrokenExecutor(
                    f"{function}: its message was delivered {deliveries} times, and its worker process died,"
                    " was stopped or was cut off each time"
                )
            )
        else:
            outcome = _run(app, function, calls, stop=stop, flat=flat, common=common)
        outcome["by"] = f"{request.hostname}/{os.getpid()}"
        backend.tell(request.id, _encoded(outcome), channel)


def _run(  # noqa: PLR0913 - as the message carries it
    app: Celery, function: str, calls: str | list[Any], *, stop: bool, flat: bool = False, common: str = ""
) -> dict[str, Any]:
    try:
        target = resolve(app, function)
        # In this process: a worker's main process, which reads all messages, has seen a text.
        items = kombu_json.loads(calls) if isinstance(calls, str) else calls
        if common:
            arguments, keywords = kombu_json.loads(common)
            target = functools.partial(target, *arguments, **keywords)
    except Exception as error:  # noqa: BLE001 - importing may raise anything
        return {"values": [], "errors": {}, "error": _described(error), "seconds": 0.0}
    began = time.perf_counter()
    values, errors = _called(_each_flat if flat else _each, target, items, stop=stop)
    return {"values": values, "errors": errors, "seconds": time.perf_counter() - began}


def _called(
    each: Callable[..., None], target: Callable[..., Any], items: list[Any], *, stop: bool
) -> tuple[list[Any], dict[str, Any]]:
    """Have ``each`` call ``target``; return values and errors. It goes on after a call that failed."""
    values: list[Any] = []
    errors: dict[str, Any] = {}
    rest = iter(items)
    while len(values) < len(items):
        try:
            each(target, rest, values)
        except (SoftTimeLimitExceeded, WorkerShutdown, WorkerTerminate):
            raise
        except (Exception, SystemExit) as error:
            if isinstance(error, SystemExit) and error.code == TERMINATED:
                raise  # the worker lost its connection, and ends the run: the message comes again
            errors[str(len(values))] = _described(error)
            values.append(None)
            if stop:
                break
    return values, errors


# Loops, and nothing shorter: for `map` and `extend` a function that raises StopIteration ends all.
def _each(target: Callable[..., Any], items: Iterator[Any], values: list[Any]) -> None:
    for arguments in items:
        if type(arguments) is dict:
            values.append(target(*arguments["a"], **arguments["k"]))
        else:
            values.append(target(*arguments))


def _each_flat(target: Callable[..., Any], items: Iterator[Any], values: list[Any]) -> None:
    for argument in items:
        values.append(target(argument))  # noqa: PERF401 - as said


def _without_run(error: Exception) -> dict[str, Any]:
    return {"values": [], "errors": {}, "error": _description(error, ""), "seconds": 0.0}


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


def to_json(value: Any) -> str:
    """Return ``value`` as it is sent.

    Raises:
        BadInputError: JSON cannot carry it.
    """
    try:
        return str(kombu_json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInputError(
            f"arguments travel as JSON, and these cannot: {error}",
            next_step="numbers, text, lists, dictionaries with text as keys; dates, decimals and bytes too",
        ) from error


def check_json(items: list[Any]) -> None:
    """Raise unless each of ``items``, arguments or tuples of them, can be sent.

    Raises:
        BadInputError: JSON cannot carry it.
    """
    types = set(map(type, items))
    if types == {tuple}:
        types = set(map(type, itertools.chain.from_iterable(items)))
    if not types <= _PLAIN:
        to_json(items)


def chunks(items: list[Any]) -> Iterator[tuple[str, int]]:
    """Yield ``items`` as JSON and how many they are: together, or in parts if that is too much for a message.

    Raises:
        BadInputError: JSON cannot carry them, or one alone is too much.
    """
    text = to_json(items)
    if len(text) > CHUNK_SIZE and len(items) > 1:
        count = max(len(items) * CHUNK_SIZE // len(text), 1)
        for begin in range(0, len(items), count):
            yield from chunks(items[begin : begin + count])
    else:
        check_size(text)
        yield text, len(items)


def check_size(text: str) -> None:
    """Raise unless ``text``, the JSON of a call, fits into a message.

    Raises:
        BadInputError: it does not.
    """
    # Within a message it is a text, with a backslash before each of these.
    size = len(text) + text.count('"') + text.count("\\")
    if size > CALL_SIZE:
        raise BadInputError(
            f"the arguments of a call are {size / 2**20:.1f} MiB of JSON; a message may have"
            f" {CALL_SIZE / 2**20:.0f}",
            next_step="store them where workers can read them, and pass the place",
        )
