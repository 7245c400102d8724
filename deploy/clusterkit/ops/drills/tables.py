"""A run of drills as a table: for the terminal, and as Markdown for one run or two side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from clusterkit.ops.drills.outcome import Outcome, Run

_NOTHING: Final = "-"
#: Characters of the widest table on a terminal.
_WIDTH: Final = 190


def _errors(outcome: Outcome) -> str:
    book = outcome.ledger
    names = ", ".join(f"{count} {name}" for name, count in book.errors.items())
    ran = f" ({book.refused_but_ran} ran)" if book.refused_but_ran else ""
    return f"{names}{ran}" if names else _NOTHING


def _lost(outcome: Outcome) -> str:
    book = outcome.ledger
    return f"{len(book.lost)} ({book.waiting} may wait)" if book.waiting else str(len(book.lost))


def _unknown(outcome: Outcome) -> str:
    book = outcome.ledger
    return f"{book.unknown} ({book.unknown_but_ran} ran)" if book.unknown else _NOTHING


def _delays(outcome: Outcome) -> str:
    during = outcome.ledger.delays["during"]
    part = during if during.count else outcome.ledger.delays["after"]
    return f"{part.p50:.2f} / {part.p95:.2f} / {part.longest:.1f}" if part.count else _NOTHING


def _healthy(outcome: Outcome) -> str:
    return "no" if outcome.healthy is None else f"{outcome.healthy:.0f}"


def _count(number: int) -> str:
    return str(number) if number else _NOTHING


COLUMNS: Final[dict[str, Callable[[Outcome], str]]] = {
    "sent": lambda outcome: str(outcome.ledger.sent),
    "confirmed": lambda outcome: str(outcome.ledger.confirmed),
    "ran once": lambda outcome: str(outcome.ledger.once),
    "lost": _lost,
    "begun twice": lambda outcome: _count(outcome.ledger.begun_again),
    "done twice": lambda outcome: _count(outcome.ledger.completed_again),
    "dead letters": lambda outcome: _count(len(outcome.ledger.dead)),
    "unknown": _unknown,
    "producer's errors": _errors,
    "no result": lambda outcome: _count(outcome.ledger.results_missing),
    "delay p50 / p95 / max, s": _delays,
    "recovery, s": lambda outcome: f"{outcome.ledger.recovery:.0f}",
    "healthy, s": _healthy,
}
#: What colour a column has when it is not 0: a lost result is no lost task.
_COLORS: Final = {"lost": "bold red", "no result": "yellow"}


def show(run: Run, console: Console) -> None:
    """Print the table of a run."""
    table = Table(
        title=f"Drills on {run.cluster}: {caption(run)}",
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=None,
        pad_edge=False,
    )
    table.add_column("fault", no_wrap=True)
    for name in COLUMNS:
        table.add_column(name, no_wrap=True, justify="left" if name == "producer's errors" else "right")
    for outcome in run.outcomes:
        cells = [_colored(name, cell(outcome)) for name, cell in COLUMNS.items()]
        table.add_row(f"[{'green' if outcome.well else 'red'}]{outcome.fault}[/]", *cells)
    # Never folded: in a log there is room for it.
    Console(file=console.file, width=max(console.width, _WIDTH)).print(table)
    for outcome in run.outcomes:
        if outcome.beats:
            console.print(f"[bold]{outcome.fault}[/]: {beats(outcome)}", highlight=False, soft_wrap=True)
        for problem in outcome.problems:
            _line(console, "[red]problem[/]", outcome.fault, problem)
    for name, why in run.failed.items():
        _line(console, "[red]not done[/]", name, why)
    for name in run.missing:
        _line(console, "[red]not done[/]", name, "the run was ended before")
    for name, why in run.skipped.items():
        _line(console, "[dim]not here[/]", name, why)


def _line(console: Console, what: str, fault: str, why: str) -> None:
    console.print(f"{what} {fault}: {escape(why)}", highlight=False, soft_wrap=True)


def beats(outcome: Outcome) -> str:
    """Return how the schedule was kept, in words."""
    kept = outcome.beats
    if not kept:
        return ""
    return f"schedule: {kept.count} tasks, longest gap {kept.longest_gap:g} s, sent twice {kept.twice}"


def _colored(name: str, text: str) -> str:
    if name not in _COLORS or text == _NOTHING:
        return text
    return f"[green]{text}[/]" if text == "0" else f"[{_COLORS[name]}]{text}[/]"


def markdown(runs: list[Run]) -> str:
    """Return the table of one run, or of two with what differs side by side."""
    return _single(runs[0]) if len(runs) == 1 else _beside(runs)


def _single(run: Run) -> str:
    rows = [[outcome.fault, *(cell(outcome) for cell in COLUMNS.values())] for outcome in run.outcomes]
    lines = [caption(run), "", *_rows(["fault", *COLUMNS], rows)]
    lines += [f"\n{outcome.fault}: {beats(outcome)}." for outcome in run.outcomes if outcome.beats]
    return "\n".join(lines) + "\n"


#: What two runs are compared by.
_COMPARED: Final = ("lost", "done twice", "dead letters", "no result", "producer's errors")


def _beside(runs: list[Run]) -> str:
    found = [{outcome.fault: outcome for outcome in run.outcomes} for run in runs]
    names = [name for name in found[0] if all(name in each for each in found)]
    same = len({run.settings for run in runs}) == 1
    labels = [run.cluster if same else run.settings for run in runs]
    header = ["fault", *(f"{name}: {label}" for name in _COMPARED for label in labels)]
    rows = [
        [name, *(COLUMNS[column](each[name]) for column in _COMPARED for each in found)] for name in names
    ]
    return "\n".join([*(caption(run) for run in runs), "", *_rows(header, rows)]) + "\n"


def caption(run: Run) -> str:
    """Return what a run was made with."""
    how = " in bulk" if run.bulk else ""
    return (
        f"{run.settings}: {run.tasks} tasks a drill{how} at {run.rate:g} a second, seed {run.seed};"
        f" {run.machine}."
    )


def _rows(header: list[str], rows: list[list[str]]) -> list[str]:
    line = "| {} |".format
    return [line(" | ".join(cells)) for cells in (header, ["---"] * len(header), *rows)]
