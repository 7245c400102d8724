#!/usr/bin/env python3
"""Crawl one site politely from the cluster, and list what it has.

Examples:
  crawl.py https://example.org
  crawl.py https://example.org --depth 1 --max-pages 20 --json
  crawl.py http://127.0.0.1:8000 --allow-private --delay 0.1
"""

from __future__ import annotations

import _venv  # noqa: F401  # isort: skip - runs this in the checkout's .venv

import json
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from clusterkit.runtime import client
from tasks.app import app
from tasks.crawl import crawl


def main() -> None:
    """Submit one crawl and print its summary."""
    parser = client.argument_parser(__doc__)
    parser.add_argument("url", metavar="URL", help="where to begin")
    parser.add_argument("--depth", type=int, default=2, help="links away from there (default 2)")
    parser.add_argument("--max-pages", type=int, default=50, metavar="N", help="read no more (default 50)")
    parser.add_argument("--delay", type=float, default=1.0, metavar="SECONDS", help="between requests (1)")
    parser.add_argument("--allow-private", action="store_true", help="allow addresses of private networks")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    options = parser.parse_args()
    client.connect(app, options.cluster)
    names = ("depth", "max_pages", "delay", "allow_private")
    result = crawl.apply_async((options.url,), {name: getattr(options, name) for name in names})
    summary = client.wait(result)
    print(json.dumps(summary, indent=2)) if options.json else show(summary)


def show(summary: dict[str, Any]) -> None:
    """Print pages as a table; errors and skipped addresses in short."""
    # The site's text must not be read as rich's markup, nor reach the terminal as control codes.
    table = Table("status", "bytes", "links", "title", Column("url", overflow="fold"))
    for page in summary["pages"]:
        cells = (page[name] for name in ("status", "bytes", "links", "title", "url"))
        table.add_row(*("" if cell is None else plain(cell) for cell in cells))
    console = Console(markup=False, highlight=False)
    console.print(table)
    for error in summary["errors"]:
        console.print(f"error: {plain(error['url'])}: {plain(error['error'])}")
    for reason, count in summary["skipped_reasons"].items():
        console.print(f"skipped {count}: {plain(reason)}")
    console.print(f"{len(summary['pages'])} pages; stopped: {summary['stopped']}")


def plain(value: object) -> str:
    """Drop what is not printable."""
    return "".join(character for character in str(value) if character.isprintable())


if __name__ == "__main__":
    client.run(main)
