"""The work that `make compare` gives to every system: plain functions, and one that calls any by its name.

Nothing but the standard library is imported, so that what a system takes is its own and not the work's.
"""

from __future__ import annotations

import importlib
import json
import sys
import urllib.request
from hashlib import sha256
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Seconds a page may take.
PAGE_TIMEOUT: Final = 30.0
#: Pixels of a row of the Mandelbrot set, and the part of the plane it is taken from.
ROW_PIXELS: Final = 640
LEFT, WIDTH, HEIGHT = -2.2, 3.2, 2.4


def count_primes(start: int, stop: int) -> int:
    """Count the primes p with ``start`` <= p < ``stop`` by trial division."""
    return sum(1 for number in range(max(start, 2), stop) if _is_prime(number))


def mandelbrot_row(row: int, rows: int, iterations: int) -> list[int]:
    """Return how long each point of row ``row`` of ``rows`` stays bounded, ``iterations`` at most."""
    imaginary = HEIGHT / 2 - HEIGHT * row / rows
    step = WIDTH / ROW_PIXELS
    return [_stays(LEFT + step * column, imaginary, iterations) for column in range(ROW_PIXELS)]


def read_page(url: str) -> dict[str, Any]:
    """Read a page of a site; return its address, title and links, as a crawler notes them."""
    with urllib.request.urlopen(url, timeout=PAGE_TIMEOUT) as answer:  # noqa: S310 - the comparison's own site
        reader = _Reader()
        reader.feed(answer.read().decode())
    return {"url": url, "title": reader.title, "links": reader.links}


def resolve(name: str) -> Callable[..., Any]:
    """Return the function that ``name`` (``module:function``) means.

    Raises:
        ImportError, AttributeError, TypeError: it cannot be imported, is not there, or cannot be called.
    """
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for attribute in path.split("."):
        found = getattr(found, attribute)
    if not callable(found):
        message = f"{name} is not a function"
        raise TypeError(message)
    return found  # type: ignore[no-any-return]


def invoke(name: str, arguments: Sequence[Any]) -> Any:
    """Call the function ``name`` (``module:function``): what every system is given to run."""
    return resolve(name)(*arguments)


def add_paths(paths: Sequence[str]) -> None:
    """Let what is importable from ``paths`` be imported, after everything that is importable already."""
    sys.path.extend(path for path in paths if path not in sys.path)


def digest(result: Any) -> str:
    """Return a short digest of a result as JSON, which is how a task's result travels.

    Raises:
        TypeError: the result is not JSON.
    """
    return sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()[:16]


def _is_prime(number: int) -> bool:
    divisor = 2
    while divisor * divisor <= number:
        if number % divisor == 0:
            return False
        divisor += 1
    return True


def _stays(real: float, imaginary: float, iterations: int) -> int:
    x = y = 0.0
    for iteration in range(iterations):
        x, y = x * x - y * y + real, 2 * x * y + imaginary
        if x * x + y * y > 4.0:  # noqa: PLR2004 - beyond a distance of 2 it never comes back
            return iteration
    return iterations


class _Reader(HTMLParser):
    """Collects a page's title and its links in order."""

    def __init__(self) -> None:
        super().__init__()
        self.title, self.links, self._in_title = "", list[str](), False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_title = tag == "title"
        href = dict(attrs).get("href")
        if tag == "a" and href:
            self.links.append(href)

    def handle_endtag(self, tag: str) -> None:
        self._in_title = self._in_title and tag != "title"

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
