"""Arguments out of bounds are refused before a task runs, in words that say which and why."""

from __future__ import annotations

import fnmatch
import inspect
import json
from typing import Annotated

import pytest
from pydantic import Field

from tasks.app import app
from tasks.checks import checked


@checked
def scale(number: Annotated[int, Field(ge=1, le=10)], factor: float = 2.0, *, label: str = "") -> str:
    """Stand for any task."""
    return f"{label}{number * factor}"


def test_good_arguments_pass_by_position_and_by_name() -> None:
    assert scale(2) == "4.0"
    assert scale(number=2, factor=3, label="=") == "=6.0"


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((11,), {}, "scale: number: Input should be less than or equal to 10, not 11"),
        (("5",), {}, "scale: number: Input should be a valid integer, not '5'"),
        ((True,), {}, "scale: number: Input should be a valid integer, not True"),
        ((2.5,), {}, "scale: number: Input should be a valid integer"),
        ((2,), {"factor": None}, "scale: factor: Input should be a valid number, not None"),
        ((), {}, "scale: missing a required argument: 'number'"),
        ((1, 2, 3), {}, "scale: too many positional arguments"),
        ((1,), {"lable": "x"}, "scale: got an unexpected keyword argument 'lable'"),
        ((0,), {"label": 1}, "number: Input should be greater than or equal to 1, not 0; label: Input"),
    ],
)
def test_a_bad_argument_is_named_with_its_rule_and_value(
    args: tuple[object, ...], kwargs: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError) as caught:
        scale(*args, **kwargs)  # type: ignore[arg-type]
    assert said in str(caught.value)
    assert type(caught.value) is ValueError
    assert caught.value.__suppress_context__


def test_a_long_value_is_shortened_and_many_faults_are_counted() -> None:
    @checked
    def add(numbers: list[int]) -> int:
        return sum(numbers)

    with pytest.raises(ValueError) as caught:
        add(["x" * 10_000] * 50)  # type: ignore[list-item]
    assert "and 47 more" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_the_signature_stays_the_functions_own() -> None:
    assert list(inspect.signature(scale).parameters) == ["number", "factor", "label"]


@pytest.mark.parametrize(
    ("name", "queue"),
    [
        ("tasks.compute.fibonacci", "cpu"),
        ("tasks.compute.fibonacci_many", "cpu"),
        ("tasks.compute.is_prime", "cpu"),
        ("tasks.compute.count_primes", "cpu"),
        ("tasks.compute.monte_carlo_pi", "cpu"),
        ("tasks.compute.mandelbrot_tile", "cpu"),
        ("tasks.text.count_words", "cpu"),
        ("tasks.text.merge_counts", None),
        ("tasks.crawl.crawl", "io"),
        ("tasks.probes.echo", None),
        ("tasks.probes.sleep", None),
        ("tasks.probes.fail", None),
        ("tasks.probes.crash", None),
        ("tasks.probes.allocate", None),
    ],
)
def test_the_app_has_the_task_and_routes_it(name: str, queue: str | None) -> None:
    app.loader.import_default_modules()
    assert name in app.tasks
    routes = [pattern for pattern in app.conf.task_routes if fnmatch.fnmatch(name, pattern)]
    assert [app.conf.task_routes[pattern]["queue"] for pattern in routes] == ([queue] if queue else [])


def test_the_schedule_names_a_task_that_exists_and_is_json() -> None:
    app.loader.import_default_modules()
    for entry in app.conf.beat_schedule.values():
        assert entry["task"] in app.tasks
        assert json.loads(json.dumps(entry)) == entry
