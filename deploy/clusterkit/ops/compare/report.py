"""A comparison as files: an HTML page that needs nothing else, its picture, the figures as CSV and JSON."""

from __future__ import annotations

import json
import time
from html import escape
from typing import TYPE_CHECKING, Final

from clusterkit.ops.compare import picture, tables

if TYPE_CHECKING:
    from pathlib import Path

    from clusterkit.ops.compare.figures import Compared, Comparison

PAGE, PICTURE, TABLE, DATA = "report.html", "compare.svg", "compare.csv", "compare.json"

_STYLE: Final = """
:root { --ground:#fff; --ink:#1b1f24; --soft:#59636e; --line:#d6dbe1; --bad:#c62828 }
@media (prefers-color-scheme: dark) {
  :root { --ground:#0f1318; --ink:#e4e8ed; --soft:#98a3af; --line:#2c343d; --bad:#ff7b72 } }
* { box-sizing:border-box }
body { margin:0 auto; max-width:64rem; padding:1rem; background:var(--ground); color:var(--ink);
       font:16px/1.5 system-ui,sans-serif }
h1 { font-size:1.5rem } h2 { font-size:1.15rem; margin:2rem 0 .3rem }
.soft, th { color:var(--soft) } .bad { color:var(--bad) }
.wide { overflow-x:auto } table { border-collapse:collapse; font-size:.85rem }
th, td { padding:.3rem .7rem .3rem 0; text-align:right; white-space:nowrap;
         border-bottom:1px solid var(--line) }
th:first-child, td:first-child, th:last-child, td:last-child { text-align:left }
svg { width:100%; min-width:44rem; height:auto; display:block }
"""


def write(comparison: Comparison, directory: Path) -> None:
    """Write all files into ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    files = {
        PAGE: page(comparison),
        PICTURE: picture.svg(comparison),
        TABLE: comparison.to_csv(),
        DATA: json.dumps(comparison.to_json(), indent=2) + "\n",
    }
    for name, content in files.items():
        (directory / name).write_text(content, encoding="utf-8")


def page(comparison: Comparison) -> str:
    """Return the HTML page of ``comparison``."""
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(comparison.started))
    reading = "".join(f"<p>{escape(sentence)}</p>" for sentence in comparison.reading)
    problems = "".join(f'<p class="bad">{escape(problem)}</p>' for problem in comparison.problems)
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Comparison, {when}</title><style>{_STYLE}</style></head><body>",
            "<h1>The same work under each system</h1>",
            f'<p class="soft">{escape(tables.machine(comparison))}</p>',
            problems,
            reading,
            f'<div class="wide">{picture.svg(comparison)}</div>',
            *map(_section, comparison.works),
            f'<p class="soft">{escape(tables.LEGEND)}</p>',
            "</body></html>",
            "",
        ]
    )


def _section(compared: Compared) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in tables.HEAD)
    rows = "".join(
        ("<tr class=bad>" if figure.problem else "<tr>")
        + "".join(f"<td>{escape(cell)}</td>" for cell in tables.cells(compared, figure))
        + "</tr>"
        for figure in compared.figures
    )
    title = f"<h2>{escape(tables.caption(compared))}</h2>"
    return f'{title}<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'
