#!/usr/bin/env python3
"""Compute Fibonacci numbers on the cluster, one task each.

Examples:
  fibonacci.py 10 20 30
  fibonacci.py 20000 --full
"""

from __future__ import annotations

import _venv  # noqa: F401  # isort: skip - runs this in the checkout's .venv

import time

from rich.console import Console
from rich.table import Table

from clusterkit.runtime import client
from tasks.app import app
from tasks.compute import fibonacci

WIDE = 40


def main() -> None:
    """Submit all, then print each value, when it was there, and which worker node computed it."""
    parser = client.argument_parser(__doc__)
    parser.add_argument("numbers", metavar="N", type=int, nargs="+", help="0 to 20000")
    parser.add_argument("--full", action="store_true", help=f"print all digits of more than {WIDE}")
    options = parser.parse_args()
    client.connect(app, options.cluster)
    table = Table("n", "fibonacci(n)", "there after", "worker node")
    started = time.monotonic()
    for n, result in [(n, fibonacci.apply_async((n,))) for n in options.numbers]:
        value = client.wait(result)
        seconds = time.monotonic() - started
        digits = str(value) if options.full else shorten(str(value))
        table.add_row(str(n), digits, f"{seconds:.3f} s", result.worker or "?")
    Console().print(table)


def shorten(digits: str) -> str:
    """Keep the ends of a long number."""
    return digits if len(digits) <= WIDE else f"{digits[:12]}…{digits[-12:]} ({len(digits)} digits)"


if __name__ == "__main__":
    client.run(main)
