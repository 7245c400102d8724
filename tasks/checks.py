"""Bounds on what a task accepts, checked before it runs."""

from __future__ import annotations

import functools
import inspect
import reprlib
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from pydantic import ConfigDict, ValidationError, validate_call

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check every argument against its annotation, then call ``function``.

    Celery's own ``pydantic=True`` looks at arguments that are models only; this looks at plain
    ones, such as ``n: Annotated[int, Field(ge=0)]``. Types are strict: ``"5"`` is no integer.

    A ``ValueError`` names the task, the argument, the rule and the value. It is a plain
    ``ValueError`` because pydantic's error cannot be rebuilt from JSON by whoever reads the result.
    """
    signature = inspect.signature(function)
    validated = validate_call(config=ConfigDict(strict=True))(function)

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            arguments = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            message = f"{function.__name__}: {error}"
            raise ValueError(message) from None
        try:
            # By name, so that the message says "n" and not "argument 0".
            return validated(**arguments)  # type: ignore[call-arg]
        except ValidationError as error:
            raise ValueError(f"{function.__name__}: {_sentence(error)}") from None

    # Celery checks the argument count at submission time and reads it from here.
    wrapper.__signature__ = signature  # type: ignore[attr-defined]
    return wrapper


def _sentence(error: ValidationError) -> str:
    """Say in one line what is wrong with which argument; at most three are listed."""
    faults = error.errors(include_url=False)
    told = [
        f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}, not {reprlib.repr(fault['input'])}"
        for fault in faults[:3]
    ]
    more = [f"and {len(faults) - 3} more"] if len(faults) > len(told) else []
    return "; ".join(told + more)
