"""A comparison as tables on a terminal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from clusterkit.ops.compare.figures import MEGABYTE
from clusterkit.ops.tables import new_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from clusterkit.ops.compare.figures import Compared, Comparison, Figure

#: What each column shows of a variant that ran.
COLUMNS: Final[dict[str, Callable[[Compared, Figure], str]]] = {
    "calls/s": lambda _, figure: f"{figure.rate:.1f}",
    "x plain": lambda compared, figure: f"{compared.times(figure):.2f}",
    "CPU ms": lambda _, figure: f"{1000 * figure.processor:.1f}",
    "servers ms": lambda _, figure: f"{1000 * figure.servers:.1f}" if figure.celery else "",
    "MB": lambda _, figure: f"{figure.memory / MEGABYTE:.0f}",
}
#: What the columns mean.
LEGEND: Final = (
    "calls/s: the median of the rounds, without starting the pools. CPU ms: user and system time a call of"
    " the processes that call and that work; servers ms: of RabbitMQ and the result store. MB: peak memory of"
    " the former (PSS: a page that several share counts once)."
)


def cells(compared: Compared, figure: Figure) -> list[str]:
    """Return a variant's line: name, calls at once, figures, and whether its results are the plain loop's."""
    shown = [show(compared, figure) if figure.ran else "" for show in COLUMNS.values()]
    results = "equal" if not figure.problem else "DIFFER" if figure.ran else "failed"
    return [figure.title, str(figure.at_once), *shown, results]


HEAD: Final = ("system", "at once", *COLUMNS, "results")


def caption(compared: Compared) -> str:
    """Return a work's title: its name, how often, and what a call does."""
    return f"{compared.work}: {compared.plain.calls} calls; {compared.what}"


def machine(comparison: Comparison) -> str:
    """Return the machine, the time and the versions in one line."""
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(comparison.started))
    facts = [f"{name} {value}" for name, value in comparison.machine.items() if name != "processor"]
    cores = f"{comparison.cores} {'core' if comparison.cores == 1 else 'cores'}"
    rounds = f"median of {comparison.rounds} {'round' if comparison.rounds == 1 else 'rounds'}"
    return f"{when}; {cores} of {comparison.machine['processor']}; {', '.join(facts)}; {rounds}"


def show(comparison: Comparison, console: Console) -> None:
    """Print a table for each work, how to read it, and the machine."""
    for compared in comparison.works:
        table = new_table(caption(compared), *HEAD, right=("at once", *COLUMNS))
        table.columns[0].no_wrap = True
        for figure in compared.figures:
            style = "red" if figure.problem else None
            table.add_row(*cells(compared, figure), style=style)
        console.print(table)
        console.print()
    for sentence in (LEGEND, *comparison.reading):
        console.print(f"{sentence}\n", highlight=False, markup=False)
    console.print(machine(comparison), highlight=False, markup=False, style="dim")
