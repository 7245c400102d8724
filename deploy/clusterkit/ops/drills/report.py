"""A run of drills as one HTML page that needs nothing else: what was done, should be seen, was seen."""

from __future__ import annotations

import time
from html import escape
from typing import TYPE_CHECKING, Final

from clusterkit.ops.drills import ledger, tables, timeline

if TYPE_CHECKING:
    from pathlib import Path

    from clusterkit.ops.drills.outcome import Outcome, Run

REPORT: Final = "report.html"

_STYLE: Final = """
:root { --ground:#fff; --ink:#1b1f24; --soft:#59636e; --line:#d6dbe1; --good:#1a7f37; --bad:#c62828;
        --confirmed:#0b63ce; --executed:#1a7f37; --refused:#c62828; --delay:#8a63c9; --band:#f2c94c66; }
@media (prefers-color-scheme: dark) {
  :root { --ground:#0f1318; --ink:#e4e8ed; --soft:#98a3af; --line:#2c343d; --good:#4ac26b; --bad:#ff7b72;
          --confirmed:#6cb2ff; --executed:#4ac26b; --refused:#ff7b72; --delay:#b794f4; --band:#f2c94c33; } }
* { box-sizing:border-box }
body { margin:0 auto; max-width:62rem; padding:1rem; background:var(--ground); color:var(--ink);
       font:16px/1.5 system-ui,sans-serif }
h1 { font-size:1.5rem } h2 { font-size:1.2rem; margin:2.5rem 0 .3rem }
.soft, dt, th, .legend { color:var(--soft) }
.good { color:var(--good) } .bad { color:var(--bad); font-weight:600 }
.wide { overflow-x:auto } table { border-collapse:collapse; font-size:.85rem }
th, td { padding:.3rem .7rem .3rem 0; text-align:left; white-space:nowrap;
         border-bottom:1px solid var(--line) }
dl { display:grid; grid-template-columns:max-content 1fr; gap:.1rem 1rem; margin:.5rem 0 } dd { margin:0 }
.picture { overflow-x:auto; border:1px solid var(--line); border-radius:6px; padding:.5rem; margin:.6rem 0 }
svg { width:100%; min-width:32rem; height:auto; display:block }
svg text { font:11px system-ui,sans-serif; fill:var(--soft) } svg .name, svg .mark { fill:var(--ink) }
.grid { stroke:var(--line) } .band { fill:var(--band) } .fault { stroke:var(--ink); stroke-dasharray:3 3 }
polyline { fill:none; stroke-width:2 } .confirmed { stroke:var(--confirmed) }
.executed { stroke:var(--executed); stroke-dasharray:5 3 }
rect.refused { fill:var(--refused) } rect.delay { fill:var(--delay) }
.legend i { display:inline-block; width:1.1em; height:.35em; margin:0 .35em .15em 1em; vertical-align:middle }
.legend i:first-child { margin-left:0 }
@media (max-width:40rem) { dl { grid-template-columns:1fr } dt { margin-top:.4rem } }
"""
_LEGEND: Final = (
    '<p class="legend"><i style="background:var(--confirmed)"></i>confirmed'
    '<i style="background:var(--executed)"></i>executed<i style="background:var(--refused)"></i>refused'
    '<i style="background:var(--delay)"></i>delay by when sent'
    '<i style="background:var(--band)"></i>fault</p>'
)


def write(run: Run, directory: Path) -> None:
    """Write the page into ``directory``."""
    (directory / REPORT).write_text(page(run), encoding="utf-8")


def page(run: Run) -> str:
    """Return the page of ``run``."""
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.started))
    lost = sum(len(outcome.ledger.lost) for outcome in run.outcomes)
    unwell = "" if run.well or lost else ", and not all is well"
    verdict = f'<span class="{"good" if run.well else "bad"}">{lost} tasks lost{unwell}</span>'
    stock = (
        '<p class="bad">With Celery\'s own settings on classic queues, to compare with.</p>'
        if run.settings == "stock"
        else ""
    )
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Drills on {escape(run.cluster)}, {when}</title><style>{_STYLE}</style></head><body>",
            f"<h1>Drills on {escape(run.cluster)}: {verdict}</h1>",
            f'<p class="soft">{when}; {escape(tables.caption(run))}</p>{stock}',
            _summary(run),
            f'<p class="soft">{escape(ledger.RECOVERY)} Delay: from sending to the first begin.</p>',
            *map(_section, run.outcomes),
            _list("Could not be done", run.failed),
            _list("Not come to", dict.fromkeys(run.missing, "the run was ended before")),
            _list("Not possible here", run.skipped),
            "</body></html>",
            "",
        ]
    )


def _summary(run: Run) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in ("fault", *tables.COLUMNS))
    rows = "".join(
        f'<tr><td><a class="{_mood(outcome)}" href="#{outcome.fault}">{outcome.fault}</a></td>'
        + "".join(f"<td>{escape(cell(outcome))}</td>" for cell in tables.COLUMNS.values())
        + "</tr>"
        for outcome in run.outcomes
    )
    return f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'


def _mood(outcome: Outcome) -> str:
    return "good" if outcome.well else "bad"


def _section(outcome: Outcome) -> str:
    facts = {
        "Fault": outcome.does,
        "Done": "; ".join(outcome.done),
        "Should be seen": outcome.sees,
        "Seen": _seen(outcome),
    }
    items = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    return (
        f'<h2 id="{outcome.fault}" class="{_mood(outcome)}">{outcome.fault}</h2><dl>{items}</dl>'
        f'<div class="picture">{timeline.svg(outcome)}</div>{_LEGEND}'
    )


def _seen(outcome: Outcome) -> str:
    """Return what was seen, in sentences."""
    book = outcome.ledger
    said = [
        f"{book.sent} sent, {book.confirmed} confirmed, {book.once} executed once",
        f"{len(book.lost)} lost" + (f" ({_numbers(book.lost)})" if book.lost else ""),
    ]
    for count, what in (
        (book.begun_again, "begun more than once"),
        (book.completed_again, "completed more than once"),
        (len(book.dead), "in the dead letters"),
        (book.refused, f"refused with an error, of which {book.refused_but_ran} ran"),
        (book.unknown, f"of unknown fate to the producer, of which {book.unknown_but_ran} ran"),
        (book.results_missing, "completed without a result"),
        (book.waiting, "still in the queues when the drill gave up"),
    ):
        if count:
            said.append(f"{count} {what}")
    if outcome.beats:
        said.append(tables.beats(outcome))
    said.append(f"recovered after {book.recovery:g} s (late: more than {book.late_after:g} s)")
    said.append(
        f"healthy after {outcome.healthy:g} s"
        if outcome.healthy is not None
        else f"not healthy: {'; '.join(outcome.problems)}"
    )
    return "; ".join(said) + "."


def _numbers(numbers: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, numbers[:10]))
    return f"{shown}, ..." if len(numbers) > 10 else shown  # noqa: PLR2004


def _list(title: str, drills: dict[str, str]) -> str:
    if not drills:
        return ""
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(why)}</dd>" for name, why in drills.items())
    return f"<h2>{title}</h2><dl>{items}</dl>"
