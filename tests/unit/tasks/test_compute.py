"""The numbers are right, whatever the way they are computed."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from clusterkit.runtime.errors import BadInputError
from tasks import compute


def by_trial(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def tile(**changes: Any) -> dict[str, Any]:
    arguments = {"corner": [-2.0, 1.25], "step": 1 / 64, "width": 64, "height": 64, "iterations": 100}
    answer: dict[str, Any] = compute.mandelbrot_tile(**{**arguments, **changes})
    return answer


def test_fibonacci_numbers_are_the_known_ones() -> None:
    assert compute.fibonacci_many(list(range(11))) == [0, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55]
    assert compute.fibonacci(100) == 354_224_848_179_261_915_075


def test_the_largest_fibonacci_number_passes_json() -> None:
    value = compute.fibonacci(compute.MAX_FIBONACCI)
    assert json.loads(json.dumps(value)) == value


@pytest.mark.parametrize("n", [-1, compute.MAX_FIBONACCI + 1])
def test_fibonacci_out_of_bounds_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match="fibonacci: n: "):
        compute.fibonacci(n)


def test_primality_agrees_with_trial_division() -> None:
    assert [n for n in range(5000) if compute.is_prime(n)] == [n for n in range(5000) if by_trial(n)]


@pytest.mark.parametrize("n", [2**61 - 1, 18_446_744_073_709_551_557, 1_000_000_007])
def test_large_primes_are_recognised(n: int) -> None:
    assert compute.is_prime(n) is True


@pytest.mark.parametrize("n", [561, 3_215_031_751, 3_825_123_056_546_413_051, 4_294_967_291 * 4_294_967_279])
def test_numbers_that_pass_for_primes_are_not_taken_for_such(n: int) -> None:
    assert compute.is_prime(n) is False


@pytest.mark.parametrize(
    ("start", "stop", "count"),
    [
        (0, 0, 0),
        (0, 2, 0),
        (0, 3, 1),
        (2, 2, 0),
        (5, 3, 0),
        (0, 100, 25),
        (0, 1_000_000, 78_498),
        (7, 8, 1),
        (1_000_000_000, 1_000_001_000, 49),
    ],
)
def test_primes_are_counted(start: int, stop: int, count: int) -> None:
    assert compute.count_primes(start, stop) == count


def test_counts_of_neighbouring_ranges_add_up_to_the_whole() -> None:
    parts = [compute.count_primes(start, start + 777) for start in range(0, 77_700, 777)]
    assert sum(parts) == compute.count_primes(0, 77_700)


def test_too_many_numbers_for_one_sieve_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 10000000 in one task"):
        compute.count_primes(0, 10_000_001)


def test_pi_by_chance_is_near_and_the_same_for_the_same_seed() -> None:
    first = compute.monte_carlo_pi(100_000, 7)
    assert first == compute.monte_carlo_pi(100_000, seed=7)
    assert first != compute.monte_carlo_pi(100_000, seed=8)
    assert first["pi"] == pytest.approx(math.pi, abs=0.03)
    assert first["pi"] == 4 * first["inside"] / first["samples"]


def test_a_tile_passes_json_and_has_as_many_pixels_as_asked_for() -> None:
    answer = json.loads(json.dumps(tile(width=30, height=20)))
    assert len(compute.tile_pixels(answer)) == 600
    assert (answer["width"], answer["height"]) == (30, 20)


def test_the_set_is_symmetric_about_the_real_axis() -> None:
    above = compute.tile_pixels(tile(corner=[-2.0, 63 / 64]))
    below = compute.tile_pixels(tile(corner=[-2.0, 0.0]))
    rows_above = [above[row * 64 : row * 64 + 64] for row in range(64)]
    rows_below = [below[row * 64 : row * 64 + 64] for row in range(64)]
    assert rows_above == rows_below[::-1]


@pytest.mark.parametrize(
    ("point", "inside"),
    [((0, 0), True), ((-1, 0), True), ((-1.75, 0), True), ((0, 1), True), ((0.3, 0), False), ((2, 2), False)],
)
def test_known_points_are_inside_or_outside(point: tuple[float, float], inside: bool) -> None:
    pixels = compute.tile_pixels(tile(corner=list(point), width=1, height=1))
    assert (pixels[0] == 0) is inside


def test_points_further_out_are_left_sooner() -> None:
    shades = [compute.tile_pixels(tile(corner=[x, 0], width=1, height=1))[0] for x in (3.0, 1.0, 0.5, 0.3)]
    assert shades == sorted(shades)
    assert shades[0] >= 1


def test_the_shortcut_for_the_inside_changes_no_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    with_shortcut = tile()
    monkeypatch.setattr(compute, "_surely_inside", lambda _real, _imaginary: False)
    assert tile() == with_shortcut


def test_a_tile_of_too_much_work_is_refused() -> None:
    with pytest.raises(ValueError, match="choose smaller tiles"):
        tile(width=512, height=512, iterations=1000)


def test_the_largest_tile_stays_below_a_megabyte() -> None:
    answer = tile(corner=[-0.7436, 0.1318], step=1e-5, width=512, height=512, iterations=60)
    assert len(json.dumps(answer)) < 1_000_000


def test_tiles_cover_every_pixel_of_the_picture_once() -> None:
    plan = compute.plan_tiles(250, 130, 100, (-0.5, 0.0, 3.0), 50)
    covered = [
        (x + column, y + row)
        for (x, y), arguments in plan.items()
        for row in range(arguments["height"])
        for column in range(arguments["width"])
    ]
    assert len(covered) == len(set(covered)) == 250 * 130


def test_tiles_meet_where_the_whole_picture_has_the_same_pixels() -> None:
    def picture(side: int) -> dict[tuple[int, int], int]:
        pixels = {}
        for (x, y), arguments in compute.plan_tiles(32, 16, side, (-0.5, 0.0, 4.0), 50).items():
            values = compute.tile_pixels(compute.mandelbrot_tile(**arguments))
            for index, value in enumerate(values):
                pixels[x + index % arguments["width"], y + index // arguments["width"]] = value
        return pixels

    assert picture(8) == picture(32)


@pytest.mark.parametrize(
    ("size", "iterations", "said"),
    [
        ((0, 10, 10), 1, "at least 1 x 1"),
        ((10, 10, 513), 1, "1 to 512"),
        ((9999, 9999, 1), 1, "at most 20000"),
        ((600, 600, 500), 1000, "choose smaller tiles"),
    ],
)
def test_a_picture_that_cannot_be_is_refused(size: tuple[int, int, int], iterations: int, said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        compute.plan_tiles(*size, (0, 0, 1), iterations)
