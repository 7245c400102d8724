"""What was measured, for people: tables for the terminal and for Markdown, one picture of bars a workload."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from html import escape
from typing import Final

from rich.table import Table as RichTable

from clusterkit.ops.tables import new_table
from tests.benchmarks.samples import Row, Table

_WIDTH, _LEFT, _RIGHT = 760, 190, 90
_BAR, _GAP, _TOP, _PANEL = 18, 8, 44, 40
#: Readable on white and on black, where the page that shows the picture does not say which it is.
_INK, _SOFT, _KIT, _OTHER = "#6e7781", "#8c959f", "#0b63ce", "#9aa4af"


def number(value: float) -> str:
    """Return a figure with no more digits than mean something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def columns(table: Table) -> dict[str, Callable[[Row], str]]:
    """Return what the columns of a table are called, and what each says of a row."""
    reference = table.rows[0].name.partition(",")[0]
    found: dict[str, Callable[[Row], str]] = {table.unit: lambda row: number(row.value)}
    if any(row.samples > 1 for row in table.rows):
        found["lowest to highest"] = lambda row: f"{number(row.lowest)} to {number(row.highest)}"
    if any(row.ratio is not None for row in table.rows):
        found[f"{reference} / this"] = lambda row: "" if row.ratio is None else f"{row.ratio:.2f}"
    found["CPU us"] = lambda row: number(row.cpu) if row.cpu else "-"
    found["broker us"] = lambda row: number(row.broker)
    for group, names in _groups(table.rows[0].figures).items():
        found[group] = _group(names)
    return found


def _groups(figures: dict[str, float]) -> dict[str, list[str]]:
    """Put figures of one load into one column: "30% p50" and "30% p95" are "30% p50 / p95"."""
    groups: dict[str, list[str]] = {}
    for name in figures:
        head = name.partition(" p")[0] if re.search(r" p\d", name) else name
        groups.setdefault(head, []).append(name)
    return {
        f"{head} {' / '.join(name.removeprefix(head).strip() for name in names)}".strip(): names
        for head, names in groups.items()
    }


def _group(names: list[str]) -> Callable[[Row], str]:
    return lambda row: " / ".join(_figure(row.figures[name]) for name in names)


def _figure(value: float) -> str:
    return number(value) if value >= 100 else f"{value:.3g}"


def terminal(table: Table) -> RichTable:
    """Return a table as the kit's command prints them."""
    shown = columns(table)
    found = new_table(f"{table.title}, medians of {_repeats(table)}", "system", *shown, right=tuple(shown))
    for row in table.rows:
        found.add_row(row.name, *(cell(row) for cell in shown.values()))
    return found


def footnotes(table: Table) -> str:
    """Return what belongs under the terminal's table: what each system guarantees, how it was measured."""
    guarantees = (f"{name}: {text}" for name, text in table.guarantees.items())
    return "\n".join((*guarantees, *table.notes, ""))


def markdown(table: Table, picture: str) -> str:
    """Return a section of a page: picture, table, what each system guarantees, how it was measured."""
    shown = columns(table)
    lines = [
        f"![{table.title}: a bar for each system]({picture})",
        "",
        f"| system | {' | '.join(shown)} | guarantees |",
        f"| --- |{' --- |' * (len(shown) + 1)}",
        *(
            f"| {row.name} | {' | '.join(cell(row) for cell in shown.values())} |"
            f" {table.guarantees.get(row.name, '')} |"
            for row in table.rows
        ),
        "",
        f"Medians of {_repeats(table)}; measured in {table.seconds:.0f} s. {' '.join(table.notes)}",
    ]
    return "\n".join(lines)


def _repeats(table: Table) -> str:
    runs = min(row.samples for row in table.rows)
    what = "run" if all(row.ratio is None for row in table.rows) else "pair of runs"
    return f"{runs} {what if runs == 1 else what.replace('pair', 'pairs')}"


def svg(table: Table) -> str:
    """Return two panels of bars, the value and the CPU time a task, as a picture that needs nothing else."""
    panel = len(table.rows) * (_BAR + _GAP)
    height = _TOP + 2 * panel + _PANEL + 8
    parts = [
        f'<text x="4" y="18" font-size="14" font-weight="600" fill="{_INK}">{escape(table.title)}</text>',
        _bars(table, table.unit, lambda row: row.value, _TOP, logarithmic=table.logarithmic),
        _bars(table, f"CPU, microseconds {table.cpu_of}", lambda row: row.cpu, _TOP + panel + _PANEL),
    ]
    said = "; ".join(f"{row.name} {number(row.value)}" for row in table.rows)
    label = escape(f"{table.title}, {table.unit}: {said}", quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img"'
        f' aria-label="{label}" font-family="system-ui,sans-serif" font-size="12">{"".join(parts)}</svg>\n'
    )


def _bars(
    table: Table, title: str, of: Callable[[Row], float], top: int, *, logarithmic: bool = False
) -> str:
    scale: Callable[[float], float] = math.log1p if logarithmic else float
    longest = max([*(scale(of(row)) for row in table.rows), 1e-9])
    title += " (logarithmic)" if logarithmic else ""
    parts = [f'<text x="{_LEFT}" y="{top - 8}" fill="{_SOFT}">{escape(title)}</text>']
    for index, row in enumerate(table.rows):
        y = top + index * (_BAR + _GAP)
        width = max(scale(of(row)) / longest * (_WIDTH - _LEFT - _RIGHT), 1)
        colour = _KIT if row.name.startswith("kit") else _OTHER
        base = y + _BAR - 5
        parts.append(
            f'<text x="{_LEFT - 8}" y="{base}" text-anchor="end" fill="{_INK}">{escape(row.name)}</text>'
            f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="2" fill="{colour}"/>'
            f'<text x="{_LEFT + width + 6:.1f}" y="{base}" fill="{_INK}">{number(of(row))}</text>'
        )
    return "".join(parts)


_MARK: Final = "<!-- {word} of bench {name}: written by make bench WRITE=1 -->"


def between_marks(page: str, name: str, text: str) -> str:
    """Return ``page`` with ``text`` instead of what is between the marks of ``name``.

    Raises:
        ValueError: the page does not have both marks.
    """
    begin, end = (_MARK.format(word=word, name=name) for word in ("begin", "end"))
    head, found, rest = page.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"the page has no marks {begin} and {end}, in this order")
    return f"{head}{begin}\n{text}\n{end}{tail}"
