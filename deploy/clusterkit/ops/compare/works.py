"""The work that every system gets: the kit's own, or a function of the reader's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from clusterkit.runtime.errors import BadInputError
from tasks import comparison

if TYPE_CHECKING:
    from collections.abc import Sequence

Selection = Literal["cpu", "io", "all"]
Limit = Literal["cpu", "io", "own"]

#: Numbers among which one call looks for primes, and where they begin.
PRIMES_SPAN, PRIMES_BEGIN = 7_000, 100_000
ROW_ITERATIONS: Final = 1_000
#: Calls of each of the kit's works, and seconds until the site to crawl sends a page.
CALLS: Final = 60
PAGE_DELAY: Final = 0.03
#: Seconds that the plain loop should take with the reader's function, when nothing is said about N.
OWN_SECONDS: Final = 1.5
OWN_CALLS: Final = (4, 200)


@dataclass(frozen=True)
class Work:
    """One work: ``function`` (``module:function``) called with each of ``calls``.

    ``calls`` is empty until it is known: how many pages where a site listens, or how long a function takes.
    """

    name: str
    function: str
    limit: Limit
    """What bounds it: the processor, waiting, or whatever the reader's function does."""
    what: str
    """What a call does, in a few words."""
    calls: tuple[tuple[Any, ...], ...] = ()

    def filled(self, count: int) -> Work:
        """Return the work with ``count`` calls, which go through its own calls again and again."""
        calls = tuple(self.calls[number % len(self.calls)] for number in range(count))
        return Work(self.name, self.function, self.limit, self.what, calls)


def own_count(seconds: float) -> int:
    """Return how many calls of ``seconds`` each are enough to compare with."""
    least, most = OWN_CALLS
    return min(max(round(OWN_SECONDS / max(seconds, 1e-6)), least), most)


def cpu_works(count: int | None) -> list[Work]:
    """Return the works that are bound by the processor, of ``count`` calls each."""
    count = count or CALLS
    name = f"{comparison.__name__}:"
    starts = (PRIMES_BEGIN + PRIMES_SPAN * number for number in range(count))
    return [
        Work(
            "primes",
            f"{name}count_primes",
            "cpu",
            f"count the primes among {PRIMES_SPAN:,} numbers from {PRIMES_BEGIN:,} on",
            tuple((start, start + PRIMES_SPAN) for start in starts),
        ),
        Work(
            "mandelbrot",
            f"{name}mandelbrot_row",
            "cpu",
            f"a row of {comparison.ROW_PIXELS} points of the Mandelbrot set, {ROW_ITERATIONS} iterations",
            tuple((row, count, ROW_ITERATIONS) for row in range(count)),
        ),
    ]


def crawl(site: str, count: int | None) -> Work:
    """Return the crawl of ``count`` pages of the site at ``site``."""
    return Work(
        "crawl",
        f"{comparison.__name__}:read_page",
        "io",
        f"read a page of a site on loopback that answers after {PAGE_DELAY * 1000:.0f} ms",
        tuple((f"{site}/{page}",) for page in range(count or CALLS)),
    )


def own(function: str, arguments: str, count: int | None) -> Work:
    """Return the work of the reader's ``function`` with ``arguments`` (JSON).

    A list of lists is one list of arguments per call; any other list is the arguments of every call.
    Without ``count`` a list of lists has as many calls as it has entries.

    Raises:
        BadInputError: the name or the arguments are not of that form, or it cannot be imported here.
    """
    _check_importable(function)
    calls = read_calls(arguments)
    work = Work(function.rpartition(":")[2], function, "own", f"{function} of the reader's own", calls)
    if count:
        return work.filled(count)
    return work


def read_calls(text: str) -> tuple[tuple[Any, ...], ...]:
    """Read the arguments of one call, or of several.

    Raises:
        BadInputError: it is no JSON list.
    """
    examples = "ARGS='[30]' are the arguments of every call, ARGS='[[30], [31]]' those of two"
    try:
        value = json.loads(text)
    except ValueError as error:
        raise BadInputError(f"ARGS is not JSON: {error}", next_step=examples) from error
    if not isinstance(value, list):
        raise BadInputError(f"ARGS is no list: {text}", next_step=examples)
    several = bool(value) and all(isinstance(arguments, list) for arguments in value)
    return tuple(map(tuple, value)) if several else (tuple(value),)


def _check_importable(function: str) -> None:
    if (
        not all(part.isidentifier() for part in function.replace(":", ".", 1).split("."))
        or ":" not in function
    ):
        raise BadInputError(
            f"{function!r} is not of the form module:function", next_step="such as TASK=mypackage.work:resize"
        )
    try:
        comparison.resolve(function)
    except Exception as error:
        raise BadInputError(
            f"{function} cannot be used: {type(error).__name__}: {error}",
            next_step="it must be importable from the current directory, or from PYTHONPATH",
        ) from error


def functions(works: Sequence[Work]) -> list[str]:
    """Return the functions that ``works`` call."""
    return sorted({work.function for work in works})
