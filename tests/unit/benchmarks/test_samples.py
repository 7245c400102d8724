"""Benchmarks: who is measured when, and what is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchwork.marks import Marks

from tests.benchmarks.samples import Pair, Sample, percentile, rows, turns


def sample(value: float, cpu: float = 1.0, **figures: float) -> Sample:
    return Sample(value, cpu, 0.0, figures)


def test_the_reference_is_measured_beside_every_peer_in_every_round() -> None:
    found = list(turns("kit", ["a", "b"], 3))
    assert [turn.peer for turn in found] == ["a", "b"] * 3
    assert all(set(turn.order) == {"kit", turn.peer} for turn in found)


def test_each_round_begins_with_the_other_half_of_the_pair() -> None:
    orders = [turn.order for turn in turns("kit", ["a"], 4)]
    assert orders == [("kit", "a"), ("a", "kit")] * 2


def test_a_row_has_medians_and_the_extremes() -> None:
    pairs = [Pair("a", sample(10), sample(value)) for value in (3, 1, 100)]
    row = rows("kit", pairs)[1]
    assert (row.name, row.value, row.lowest, row.highest, row.samples) == ("a", 3, 1, 100, 3)


def test_a_ratio_is_the_median_of_the_pairs_and_not_of_the_whole() -> None:
    # The machine was ten times as fast in the second pair: the ratio of each pair does not know.
    pairs = [
        Pair("a", sample(2), sample(1)),
        Pair("a", sample(20), sample(10)),
        Pair("a", sample(6), sample(2)),
    ]
    assert rows("kit", pairs)[1].ratio == 2


def test_the_reference_is_the_first_row_and_has_no_ratio() -> None:
    found = rows("kit", [Pair("a", sample(2), sample(1)), Pair("b", sample(4), sample(1))])
    assert [row.name for row in found] == ["kit", "a", "b"]
    assert found[0].ratio is None
    assert found[0].value == 3


def test_figures_of_a_workload_have_medians_too() -> None:
    pairs = [Pair("a", sample(1, late=1), sample(1, late=late)) for late in (5, 7, 6)]
    assert rows("kit", pairs)[1].figures == {"late": 6}


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.95, 95), (0.99, 99), (1.0, 100)])
def test_a_percentile_is_one_of_the_values(share: float, value: float) -> None:
    assert percentile(list(range(1, 101)), share) == value


def test_a_percentile_of_one_value_is_that_value() -> None:
    assert percentile([7.0], 0.5) == 7.0


def test_marks_tell_what_did_not_run_and_what_ran_twice(tmp_path: Path) -> None:
    seen = Marks.new(tmp_path, 4)
    worker = Marks(tmp_path)
    for number in (0, 1, 1):
        worker.ran(number)
    assert (seen.done(), seen.twice(), seen.count) == (2, 1, 4)


def test_a_worker_of_an_earlier_measurement_marks_nothing(tmp_path: Path) -> None:
    Marks.new(tmp_path, 4)
    late = Marks(tmp_path)
    seen = Marks.new(tmp_path, 4)
    late.ran(0)
    assert seen.done() == 0


def test_the_pace_is_the_tasks_own_whenever_one_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Marks.new(tmp_path, 6)
    clock = iter([100.0, 101.0, 101.5, 102.0, 102.5, 103.0])
    monkeypatch.setattr("benchwork.marks.time.monotonic", lambda: next(clock))
    for number in (3, 0, 1, 5, 4, 2, 2):  # the second run of one is not its end
        Marks(tmp_path).ran(number)
    assert seen.pace(warm=2) == 2.0
