"""Benchmarks: tables and pictures."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from rich.console import Console

from tests.benchmarks import report
from tests.benchmarks.samples import Pair, Sample, Table, row, rows

SVG = "{http://www.w3.org/2000/svg}"


def table(**figures: float) -> Table:
    pairs = [Pair("a <peer>", Sample(3_000, 40, 5, figures), Sample(1_500, 80, 10, figures))]
    return Table(
        "drain", "Drain", "tasks/s", rows("kit", pairs), ("How.",), {"kit": "late", "a <peer>": "early"}
    )


def test_markdown_has_a_line_for_each_system_with_its_ratio_and_guarantees() -> None:
    text = report.markdown(table(), "images/x.svg")
    assert "| a <peer> | 1,500 | 2.00 | 80.0 | 10.0 | early |" in text
    assert "| kit | 3,000 |" in text
    assert "![Drain: a bar for each system](images/x.svg)" in text


def test_percentiles_of_one_load_share_a_column() -> None:
    shown = report.columns(table(**{"30% p50": 1, "30% p95": 2, "90% p50": 3}))
    assert "30% p50 / p95" in shown
    assert shown["30% p50 / p95"](table(**{"30% p50": 1, "30% p95": 2, "90% p50": 3}).rows[0]) == "1 / 2"


def test_the_terminal_shows_the_same_figures() -> None:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(report.terminal(table()))
    assert "3,000" in capture.get()
    assert "1 pair of runs" in capture.get()


def test_the_terminal_says_what_each_system_guarantees_and_how_it_was_measured() -> None:
    assert report.footnotes(table()).splitlines() == ["kit: late", "a <peer>: early", "How."]


def test_the_picture_is_svg_with_a_bar_per_system_and_panel() -> None:
    root = ET.fromstring(report.svg(table()))  # noqa: S314 - our own picture
    bars = root.findall(f"{SVG}rect")
    assert len(bars) == 4
    assert float(bars[0].attrib["width"]) == pytest.approx(2 * float(bars[1].attrib["width"]), rel=0.01)
    assert "a <peer> 1,500" in root.attrib["aria-label"]


def test_values_of_several_magnitudes_are_drawn_by_their_logarithm() -> None:
    root = ET.fromstring(report.svg(replace(table(), logarithmic=True)))  # noqa: S314 - our own picture
    kit, peer = (float(bar.attrib["width"]) for bar in root.findall(f"{SVG}rect")[:2])
    assert kit / peer == pytest.approx(math.log1p(3_000) / math.log1p(1_500), rel=0.01)


def test_several_runs_have_a_spread_and_single_ones_have_none() -> None:
    assert "lowest to highest" not in report.columns(table())
    pairs = [Pair("peer", Sample(value, 4, 5), Sample(value, 8, 10)) for value in (20.0, 30.0)]
    shown = report.columns(replace(table(), rows=rows("kit", pairs)))
    assert shown["lowest to highest"](rows("kit", pairs)[0]) == "20.0 to 30.0"


def test_systems_without_pairs_have_no_ratio() -> None:
    alone = replace(table(), rows=(row("kit", [Sample(1, 2, 3)]),))
    assert "kit / this" not in report.columns(alone)
    assert "Medians of 1 run;" in report.markdown(alone, "x.svg")


def test_only_what_is_between_the_marks_is_written_anew() -> None:
    begin = "<!-- begin of bench x: written by make bench WRITE=1 -->"
    end = "<!-- end of bench x: written by make bench WRITE=1 -->"
    page = f"before\n{begin}\nold\n{end}\nafter\n"
    assert report.between_marks(page, "x", "new") == f"before\n{begin}\nnew\n{end}\nafter\n"


def test_a_page_without_marks_is_not_written() -> None:
    with pytest.raises(ValueError, match="no marks"):
        report.between_marks("text", "x", "new")


@pytest.mark.parametrize(("value", "said"), [(12_345.6, "12,346"), (12.34, "12.3"), (1.234, "1.23")])
def test_figures_have_no_more_digits_than_mean_something(value: float, said: str) -> None:
    assert report.number(value) == said
