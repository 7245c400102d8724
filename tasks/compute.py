"""Work for processors: numbers, primes, pi by chance, and pieces of a Mandelbrot picture."""

from __future__ import annotations

import base64
import math
import random
import sys
import zlib
from array import array
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from clusterkit.runtime.errors import BadInputError
from tasks.app import app
from tasks.checks import checked

if TYPE_CHECKING:
    from collections.abc import Sequence

# Python refuses to print or parse integers of more than 4300 digits (sys.set_int_max_str_digits),
# so JSON cannot carry them; fibonacci(20_000) has 4180.
MAX_FIBONACCI = 20_000
MAX_NUMBERS = 200
# Below 2**64 the first twelve primes as bases make Miller-Rabin exact (Sorenson and Webster,
# "Strong pseudoprimes to twelve prime bases", 2015: exact below 3.18e23).
MAX_PRIME = 2**64 - 1
WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
# The sieve holds one byte per number and needs the primes up to the root of `stop`.
MAX_SIEVE_STOP = 10**12
MAX_SIEVE_SPAN = 10**7
# About 7 s a task (measured: 7.6 million samples a second).
MAX_SAMPLES = 50_000_000
MAX_TILE_SIDE = 512
MAX_TILES = 20_000
# About 17 s a task (measured: 11 million steps a second).
MAX_TILE_WORK = 200_000_000
# Far enough out that the fraction of the last step is smooth to the eye (escape radius 16).
ESCAPE = 256.0
PIXEL_MAX = 65_535

FibonacciIndex = Annotated[int, Field(ge=0, le=MAX_FIBONACCI)]
TileSide = Annotated[int, Field(ge=1, le=MAX_TILE_SIDE)]
Coordinate = Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)]


@app.task
@checked
def fibonacci(n: FibonacciIndex) -> int:
    """Return Fibonacci number ``n`` (0 to 20 000); the first, number 0, is 0."""
    return _fibonacci(n)


@app.task
@checked
def fibonacci_many(numbers: Annotated[list[FibonacciIndex], Field(max_length=MAX_NUMBERS)]) -> list[int]:
    """Return the Fibonacci number of each of ``numbers`` (up to 200), in their order."""
    return [_fibonacci(n) for n in numbers]


@app.task
@checked
def is_prime(n: Annotated[int, Field(ge=0, le=MAX_PRIME)]) -> bool:
    """Say whether ``n`` (below 2**64) is a prime: exact, not probable."""
    if n < 2:  # noqa: PLR2004 - the definition
        return False
    for prime in WITNESSES:
        if n % prime == 0:
            return n == prime
    return all(_survives(n, witness) for witness in WITNESSES)


@app.task
@checked
def count_primes(
    start: Annotated[int, Field(ge=0, le=MAX_SIEVE_STOP)],
    stop: Annotated[int, Field(ge=0, le=MAX_SIEVE_STOP)],
) -> int:
    """Count the primes p with ``start`` <= p < ``stop``; ``stop`` up to 10**12, 10**7 numbers at most."""
    if stop - start > MAX_SIEVE_SPAN:
        message = f"count_primes: {stop - start} numbers asked for, at most {MAX_SIEVE_SPAN} in one task"
        raise ValueError(message)
    start = max(start, 2)
    if stop <= start:
        return 0
    return _sieve(start, stop).count(1)


@app.task
@checked
def monte_carlo_pi(
    samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES)],
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0,
) -> dict[str, float]:
    """Throw ``samples`` darts at a square and estimate pi; the same ``seed`` gives the same answer.

    Returns ``inside`` and ``samples`` too, so that many tasks can be added up exactly.
    """
    dart = random.Random(seed).random  # noqa: S311 - no secret is made of it
    inside = sum(1 for _ in range(samples) if dart() ** 2 + dart() ** 2 <= 1.0)
    return {"inside": inside, "samples": samples, "pi": 4 * inside / samples}


@app.task
@checked
def mandelbrot_tile(
    corner: Annotated[list[Coordinate], Field(min_length=2, max_length=2)],
    step: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)],
    width: TileSide,
    height: TileSide,
    iterations: Annotated[int, Field(ge=1, le=100_000)] = 256,
) -> dict[str, int | str]:
    """Compute ``width`` x ``height`` pixels of the Mandelbrot set.

    ``corner`` is the upper left pixel as [real, imaginary], ``step`` the distance between pixels.
    The result's ``pixels`` are read by ``tile_pixels``; 512 x 512 of them are under 0.7 MB.
    """
    if fault := _too_much_work(width, height, iterations):
        raise ValueError(f"mandelbrot_tile: {fault}")
    left, top = corner
    values = array("H")
    for row in range(height):
        imaginary = top - row * step
        values.extend(_shade(left + column * step, imaginary, iterations) for column in range(width))
    if sys.byteorder == "little":
        values.byteswap()
    pixels = base64.b64encode(zlib.compress(values.tobytes())).decode("ascii")
    return {"width": width, "height": height, "pixels": pixels}


def plan_tiles(
    width: int, height: int, tile: int, view: Sequence[float], iterations: int
) -> dict[tuple[int, int], dict[str, Any]]:
    """Cut a picture into tiles: upper left pixel (x, y) -> arguments of ``mandelbrot_tile``.

    ``view`` is the picture's centre (real, imaginary) and the width it spans.

    Raises ``BadInputError`` at sizes that give no picture, or more than 20 000 tiles.
    """
    if not (1 <= tile <= MAX_TILE_SIDE and width >= 1 and height >= 1):
        message = f"a tile is 1 to {MAX_TILE_SIDE} pixels wide, a picture at least 1 x 1"
        raise BadInputError(message)
    if (tiles := -(-width // tile) * -(-height // tile)) > MAX_TILES:
        message = f"{tiles} tiles, at most {MAX_TILES}: choose larger ones"
        raise BadInputError(message)
    if fault := _too_much_work(min(tile, width), min(tile, height), iterations):
        raise BadInputError(fault)
    real, imaginary, span = view
    step = span / width
    left, top = real - step * (width - 1) / 2, imaginary + step * (height - 1) / 2
    return {
        (x, y): {
            "corner": [left + x * step, top - y * step],
            "step": step,
            "width": min(tile, width - x),
            "height": min(tile, height - y),
            "iterations": iterations,
        }
        for y in range(0, height, tile)
        for x in range(0, width, tile)
    }


def tile_pixels(tile: dict[str, int | str]) -> array[int]:
    """Unpack a tile: row by row, 0 inside the set, else 1 (left at once) to 65 535 (nearly stayed)."""
    values = array("H", zlib.decompress(base64.b64decode(str(tile["pixels"]))))
    if sys.byteorder == "little":
        values.byteswap()
    return values


def _too_much_work(width: int, height: int, iterations: int) -> str:
    """Say what is wrong with a tile that would keep a worker too long; nothing if it would not."""
    if (work := width * height * iterations) <= MAX_TILE_WORK:
        return ""
    return (
        f"a tile of {width} x {height} pixels of {iterations} iterations takes {work} steps, "
        f"at most {MAX_TILE_WORK} in one task: choose smaller tiles"
    )


def _fibonacci(n: int) -> int:
    current, following = 0, 1
    for _ in range(n):
        current, following = following, current + following
    return current


def _survives(n: int, witness: int) -> bool:
    """Run one round of Miller-Rabin on an odd ``n``; False proves that it is composite."""
    twos = ((n - 1) & (1 - n)).bit_length() - 1
    power = pow(witness, (n - 1) >> twos, n)
    if power in (1, n - 1):
        return True
    for _ in range(twos - 1):
        power = power * power % n
        if power == n - 1:
            return True
    return False


def _sieve(start: int, stop: int) -> bytearray:
    """Mark with 1 the primes of ``start`` (2 or more) to ``stop`` - 1, by Eratosthenes."""
    root = math.isqrt(stop - 1)
    small = bytearray([1]) * (root + 1)
    marks = bytearray([1]) * (stop - start)
    for number in range(2, root + 1):
        if not small[number]:
            continue
        small[number * number :: number] = bytes(len(range(number * number, root + 1, number)))
        first = max(number * number, -(-start // number) * number)
        marks[first - start :: number] = bytes(len(range(first, stop, number)))
    return marks


def _shade(real: float, imaginary: float, iterations: int) -> int:
    """Give one pixel's value: how long its point stays, smoothed between whole iterations."""
    if _surely_inside(real, imaginary):
        return 0
    x = y = x2 = y2 = 0.0
    for iteration in range(iterations):
        y = 2 * x * y + imaginary
        x = x2 - y2 + real
        x2, y2 = x * x, y * y
        if x2 + y2 > ESCAPE:
            stayed = iteration + 1 - math.log2(math.log2(x2 + y2) / math.log2(ESCAPE))
            share = min(max(stayed / iterations, 0.0), 1.0)
            return 1 + round(share * (PIXEL_MAX - 1))
    return 0


def _surely_inside(real: float, imaginary: float) -> bool:
    """Recognise the main heart and the large disc, which would cost every iteration."""
    square = imaginary * imaginary
    q = (real - 0.25) ** 2 + square
    return q * (q + real - 0.25) <= square / 4 or (real + 1) ** 2 + square <= 1 / 16
